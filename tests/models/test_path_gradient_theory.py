"""Path gradients against autograd and their own theory: order, vanishing variance, unbiasedness, cost, memory.

Shapes: B batch, D coordinates, P flat parameters, S repetitions.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from harness.memory import LiveBytes
from models.contracts import Batch, Divergence, Objective, Space, Target, whole_batch
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence, hutchinson
from models.flows.prior import GaussianPrior
from models.flows.solvers import RungeKutta4
from models.objectives.maximum_likelihood import MaximumLikelihood
from models.objectives.path_gradient import PathGradient, forward_kl, reverse_kl
from tests.laws.field_laws import perturbed
from tests.laws.flow_laws import LinearField
from tests.laws.objective_laws import flat, gradient_of
from tests.laws.path_gradient_golden import compare, four_modes, golden_flow, load, mixture, small_flow


def stop_gradient_reference(flow: ContinuousFlow, target: Target, x_BD: Tensor, *, kl: str, steps: int) -> Tensor:
    """The same path gradient by autograd through the discretised solver, summed over the batch.

    The score of the carried density is taken by autograd at the far end and held constant; only the path then depends
    on the parameters.
    """
    solver, dim = RungeKutta4(steps=steps), flow.space.dim

    def rates(t: Tensor, state: Tensor) -> Tensor:
        v_BD, divergence_B = flow.field.with_divergence(t, state[:, :dim])
        return torch.cat([v_BD, divergence_B[:, None]], dim=1)

    def carry(x_BD: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        state = torch.cat([x_BD, x_BD.new_zeros(len(x_BD), 1)], dim=1)
        state = solver.integrate(rates, state, start=start, end=end)
        return state[:, :dim], state[:, dim]

    near, far = (1.0, 0.0) if kl == "forward" else (0.0, 1.0)
    end_BD = carry(x_BD, near, far)[0]
    fixed_BD = end_BD.detach().requires_grad_()
    back_BD, change_B = carry(fixed_BD, far, near)
    log_near_B = -target.energy(back_BD) if kl == "forward" else flow.prior.log_prob(back_BD)
    (carried_BD,) = torch.autograd.grad((log_near_B + change_B).sum(), fixed_BD)
    own_BD = flow.prior.score(fixed_BD) if kl == "forward" else target.score(fixed_BD)
    difference_BD = (carried_BD - own_BD).detach()
    gradients = torch.autograd.grad((end_BD * difference_BD).sum(), list(flow.parameters()))
    return flat(gradients)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_agrees_with_autograd_to_fourth_order(kl: str) -> None:
    golden = load("A_path_gradient.npz")
    flow, target = golden_flow(golden), mixture(golden)
    x_BD = golden["x1"] if kl == "forward" else golden["z0"]
    errors = []
    for steps in (8, 16, 32):
        solver = RungeKutta4(steps=steps)
        record = (
            forward_kl(flow, x_BD, golden["force_p"], solver=solver, divergence=exact_divergence)
            if kl == "forward"
            else reverse_kl(flow, x_BD, target.score, solver=solver, divergence=exact_divergence)
        )
        reference_P = stop_gradient_reference(flow, target, x_BD, kl=kl, steps=steps)
        errors.append(float((record.gradient_P - reference_P).norm() / reference_P.norm()))
    assert errors[1] < 1e-5
    for coarse, fine in itertools.pairwise(errors):
        assert 8.0 < coarse / fine < 32.0


class TestStickingTheLanding:
    """Where q = p, each sample's path gradient vanishes, while the likelihood's gradient does not."""

    @pytest.fixture
    def golden(self) -> dict[str, Tensor]:
        return load("A_path_gradient.npz")

    @staticmethod
    def flow_of(golden: dict[str, Tensor]) -> ContinuousFlow:
        field = AffineField(golden["stl_A"])
        return ContinuousFlow(prior=GaussianPrior(space=Space(dim=3)), field=field)

    def test_forward_vanishes_for_each_sample(self, golden: dict[str, Tensor]) -> None:
        flow = self.flow_of(golden)
        for divergence in (exact_divergence, hutchinson(torch.ones(1, 3, dtype=torch.float64))):
            for x_D in golden["stl_x"]:
                force_BD = -(x_D @ golden["stl_prec_rk4_n15"])[None]
                record = forward_kl(flow, x_D[None], force_BD, solver=RungeKutta4(steps=15), divergence=divergence)
                assert float(record.gradient_P.norm()) < 1e-12

    def test_golden_values_of_both_precisions(self, golden: dict[str, Tensor]) -> None:
        for precision, key in (("stl_prec", "stl_pg_n15"), ("stl_prec_rk4_n15", "stl_pg_matched_n15")):
            record = forward_kl(
                self.flow_of(golden),
                golden["stl_x"],
                -golden["stl_x"] @ golden[precision],
                solver=RungeKutta4(steps=15),
                divergence=exact_divergence,
            )
            compare({key: (record.gradient_P / 5, golden[key])}, 1e-12)

    def test_maximum_likelihood_does_not_vanish(self, golden: dict[str, Tensor]) -> None:
        norms = []
        for x_D, expected_P in zip(golden["stl_x"], golden["stl_ml_per_sample"], strict=True):
            one = gradient_of(
                MaximumLikelihood(solver_steps=15), self.flow_of(golden), Batch(x_BD=x_D[None]), whole_batch(1, 0)
            )
            compare({"ml": (flat(one.gradients), expected_P)}, 1e-11)
            norms.append(float(flat(one.gradients).norm()))
        assert min(norms) > 1.6
        assert max(norms) < 3.4


class AffineField(LinearField):
    """v = A x + b: twelve parameters in three dimensions, as the golden numbers have."""

    def __init__(self, matrix_DD: Tensor) -> None:
        super().__init__(matrix_DD.clone())
        self.bias_D = nn.Parameter(torch.zeros(len(matrix_DD), dtype=matrix_DD.dtype))

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        return super().forward(t, x_BD) + self.bias_D


def test_expectation_is_that_of_maximum_likelihood() -> None:
    flow, target = small_flow(), four_modes()
    path, likelihood = PathGradient(kl="forward", target=target, solver_steps=6), MaximumLikelihood(solver_steps=6)
    differences = []
    for seed in range(24):
        x_BD = target.sample(200, torch.Generator().manual_seed(seed)).double()
        random = whole_batch(200, seed)
        pair = [flat(gradient_of(o, flow, Batch(x_BD=x_BD), random).gradients) / 200 for o in (path, likelihood)]
        differences.append(pair[0] - pair[1])
    difference_SP = torch.stack(differences)
    standard_error_P = difference_SP.std(dim=0) / math.sqrt(len(differences))
    z_P = difference_SP.mean(dim=0) / standard_error_P
    assert float(z_P.abs().max()) < 4.0
    assert float(z_P.square().mean().sqrt()) < 1.6


@pytest.mark.parametrize("dim", [2, 4])
def test_all_probes_average_to_the_exact_gradient(dim: int) -> None:
    torch.manual_seed(1)
    field = perturbed(MLPField(dim=dim, hidden=6, layers=2, activation="tanh"))
    flow = ContinuousFlow(prior=GaussianPrior(space=Space(dim=dim)), field=field)
    x_BD = torch.randn(3, dim, dtype=torch.float64)

    def gradient(divergence: Divergence) -> Tensor:
        return forward_kl(flow, x_BD, -x_BD, solver=RungeKutta4(steps=3), divergence=divergence).gradient_P

    signs = [torch.tensor(s, dtype=torch.float64).expand(3, dim) for s in itertools.product((-1.0, 1.0), repeat=dim)]
    mean_P = torch.stack([gradient(hutchinson(probe_BD)) for probe_BD in signs]).mean(dim=0)
    exact_P = gradient(exact_divergence)
    torch.testing.assert_close(mean_P, exact_P, rtol=0, atol=1e-12 * max(1.0, float(exact_P.abs().max())))


class CountingField(nn.Module):
    """Counts the forward passes of the field inside, with and without a divergence."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.plain, self.with_trace = inner, 0, 0

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        self.plain += 1
        return self.inner(t, x_BD)

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        self.with_trace += 1
        return self.inner.with_divergence(t, x_BD)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_fifteen_steps_are_120_passes_and_the_work_says_so(kl: str) -> None:
    flow, target = small_flow(), four_modes()
    counter = flow.field = CountingField(flow.field)
    x_BD = target.sample(5, torch.Generator().manual_seed(0)).double()
    objective = PathGradient(kl=kl, target=target)  # type: ignore[arg-type]
    work = gradient_of(objective, flow, Batch(x_BD=x_BD), whole_batch(5, 0)).work
    # Pass one moves position, log-determinant and force together: 3 x 60. Pass two position and adjoint: 2 x 60.
    assert (counter.with_trace, counter.plain) == (60, 60)
    assert work.field_evaluations == 5 * 120
    assert work.force_evaluations == 5
    assert work.energy_evaluations == (5 if kl == "reverse" else 0)
    assert work.declared_flops > 0


def test_stored_forces_cost_nothing() -> None:
    target = four_modes()
    x_BD = target.sample(4, torch.Generator().manual_seed(0)).double()
    objective = PathGradient(kl="forward", solver_steps=2)
    work = gradient_of(objective, small_flow(), Batch(x_BD=x_BD, force_BD=target.score(x_BD)), whole_batch(4, 0)).work
    assert objective.needs_force
    assert (work.force_evaluations, work.declared_flops) == (0, 0)


def peak_bytes(objective: Objective, flow: ContinuousFlow, batch: Batch) -> int:
    with LiveBytes() as tally:
        gradient_of(objective, flow, batch, whole_batch(len(batch.x_BD), 0))
    return tally.peak


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    field = MLPField(dim=2, hidden=8, layers=1).double()
    flow = ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=field)
    x_BD = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(x_BD=x_BD, force_BD=-x_BD)
    few, many = (peak_bytes(PathGradient(kl="forward", solver_steps=n), flow, batch) for n in (15, 120))
    assert many < 1.1 * few
    # The tally does see a graph that grows: the one of autograd through the solver.
    few_stored, many_stored = (peak_bytes(MaximumLikelihood(solver_steps=n), flow, batch) for n in (3, 12))
    assert many_stored > 3 * few_stored
