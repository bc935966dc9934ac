"""Prior, solvers, divergences and continuous flows against closed forms.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Space
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence, hutchinson
from models.flows.prior import GaussianPrior
from models.flows.solvers import Dopri5, RungeKutta4, Solver
from tests.laws.field_laws import perturbed
from tests.laws.flow_laws import FlowLaws, LinearField, rotation

GOLDEN = Path(__file__).parents[1] / "golden"


def on_plane(field: nn.Module) -> ContinuousFlow:
    return ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=field)


class TestMLPFlow(FlowLaws):
    def make(self) -> ContinuousFlow:
        return on_plane(perturbed(MLPField(dim=2, hidden=16, layers=2, activation="silu"), scale=0.1))


class TestLinearFlow(FlowLaws):
    def make(self) -> ContinuousFlow:
        return on_plane(LinearField(torch.tensor([[0.3, -1.0], [0.4, -0.2]])))


class TestEGNNFlow(FlowLaws):
    solver = RungeKutta4(steps=12)

    def make(self) -> ContinuousFlow:
        prior = GaussianPrior(space=Space(dim=8, particles=4), std=1.5)
        field = perturbed(EGNN(particles=4, spatial_dim=2, hidden=4, layers=2), scale=0.05)
        return ContinuousFlow(prior=prior, field=field)


class TestPrior:
    @pytest.mark.parametrize("space", [Space(dim=3), Space(dim=8, particles=4)], ids=["plain", "mean-free"])
    def test_moments_and_entropy(self, space: Space) -> None:
        prior = GaussianPrior(space=space, std=1.7)
        x_BD = prior.sample(20_000, torch.Generator().manual_seed(0))
        k = space.degrees_of_freedom
        assert float(x_BD.square().sum(dim=1).mean()) / (k * 1.7**2) == pytest.approx(1.0, abs=0.02)
        entropy = 0.5 * k * math.log(2.0 * math.pi * math.e * 1.7**2)
        assert float(-prior.log_prob(x_BD).mean()) == pytest.approx(entropy, abs=0.06)
        space.check(x_BD)

    def test_the_constant_of_published_systems(self) -> None:
        with np.load(GOLDEN / "F_metrics.npz") as stored:
            for key, dim, particles in (("DW4", 8, 4), ("LJ13", 39, 13), ("LJ55", 165, 55), ("AD2", 66, 22)):
                prior = GaussianPrior(space=Space(dim=dim, particles=particles))
                assert prior.log_normaliser == pytest.approx(float(stored[f"nll_const_{key}"]), abs=1e-12)

    def test_score_is_the_gradient(self) -> None:
        prior = GaussianPrior(space=Space(dim=8, particles=4), std=0.6)
        x_BD = prior.sample(4, torch.Generator().manual_seed(0)).double().requires_grad_()
        (gradient_BD,) = torch.autograd.grad(prior.log_prob(x_BD).sum(), x_BD)
        torch.testing.assert_close(prior.score(x_BD), gradient_BD)

    def test_a_width_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match=r"positive.*0\.0.*write"):
            GaussianPrior(space=Space(dim=2), std=0.0)


def oscillating(t: Tensor, x: Tensor) -> Tensor:
    """dx/dt = sin(x + 3t), an equation whose rate depends on time."""
    return torch.sin(x + 3.0 * t)


def error_at(solver: Solver, *, start: float, end: float) -> float:
    """Distance to a converged solution of `oscillating`."""
    x0 = torch.tensor([[0.7], [-0.2]], dtype=torch.float64)
    best = RungeKutta4(steps=1000).integrate(oscillating, x0, start=start, end=end)
    return float((solver.integrate(oscillating, x0, start=start, end=end) - best).abs().max())


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
class TestSolvers:
    def test_runge_kutta_is_of_fourth_order_in_time_too(self, start: float, end: float) -> None:
        coarse, fine = (error_at(RungeKutta4(steps=n), start=start, end=end) for n in (20, 40))
        # Without the stages at their own times the error would only halve.
        assert 3.8 < math.log2(coarse / fine) < 4.2

    def test_a_graded_grid_is_of_fourth_order_too(self, start: float, end: float) -> None:
        grids = [RungeKutta4(steps=n, grading=0.2) for n in (40, 80)]
        coarse, fine = (error_at(grid, start=start, end=end) for grid in grids)
        assert 3.6 < math.log2(coarse / fine) < 4.4

    def test_dormand_prince_keeps_its_tolerance(self, start: float, end: float) -> None:
        for tolerance in (1e-4, 1e-7, 1e-10):
            assert error_at(Dopri5(rtol=tolerance, atol=tolerance), start=start, end=end) < 5 * tolerance


def test_graded_steps_shrink_towards_the_data_and_are_the_same_on_the_way_back() -> None:
    grid = RungeKutta4(steps=6, grading=0.1)
    there, back = grid.times(start=0.0, end=1.0), grid.times(start=1.0, end=0.0)
    assert (there[0], there[-1], len(there)) == (0.0, 1.0, 7)
    assert there == pytest.approx(back[::-1], abs=1e-14)
    steps = [b - a for a, b in pairwise(there)]
    # Steps are in proportion to 1 - t + width: each is the same fraction of that at its start.
    assert [h / (1.0 - t + 0.1) for h, t in zip(steps, there, strict=False)] == pytest.approx(
        [1 - (1 / 11) ** (1 / 6)] * 6
    )
    wide, equal = RungeKutta4(steps=6, grading=1e6), RungeKutta4(steps=6)
    assert wide.times(start=0.0, end=1.0) == pytest.approx(equal.times(start=0.0, end=1.0), abs=1e-6)
    assert len(grid.times(start=0.99, end=1.0)) == 2


def test_exponential_matches_the_classical_polynomial() -> None:
    state = RungeKutta4(steps=1).integrate(lambda t, x: x, torch.ones(1, dtype=torch.float64), start=0.0, end=1.0)
    assert float(state) == pytest.approx(1 + 1 + 1 / 2 + 1 / 6 + 1 / 24, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [RungeKutta4(steps=7), Dopri5()])
def test_solvers_keep_the_dtype(solver: Solver, dtype: torch.dtype) -> None:
    state = solver.integrate(oscillating, torch.ones(2, 3, dtype=dtype), start=1.0, end=0.0)
    assert state.dtype == dtype


def test_the_adaptive_solver_stays_inside_the_time_span() -> None:
    seen: list[float] = []

    def watch(t: Tensor, x: Tensor) -> Tensor:
        seen.append(float(t))
        return oscillating(t, x)

    Dopri5().integrate(watch, torch.ones(1, 1, dtype=torch.float64), start=1.0, end=0.0)
    assert min(seen) > -1e-12
    assert max(seen) <= 1.0


def test_a_diverging_field_ends_in_nan_and_not_in_a_hang() -> None:
    state = torch.full((2, 2), 5.0)
    for solver in (Dopri5(), RungeKutta4(steps=40)):
        end = solver.integrate(lambda t, x: x**3, state, start=0.0, end=1.0)
        assert not bool(torch.isfinite(end).any())


@pytest.mark.parametrize(
    "make", [lambda: RungeKutta4(steps=0), lambda: RungeKutta4(steps=9, grading=-1.0), lambda: Dopri5(rtol=0.0)]
)
def test_impossible_solvers_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"got.*write"):
        make()


def test_half_a_turn_has_length_pi_r() -> None:
    with np.load(GOLDEN / "F_metrics.npz") as stored:
        x0_BD = torch.as_tensor(stored["path_rot_x0"])
        exact_B, golden_B = (torch.as_tensor(stored[f"path_rot_length_{k}"]) for k in ("exact", "rk4_20"))
    turned = on_plane(rotation(math.pi)).push(x0_BD, solver=RungeKutta4(steps=20))
    torch.testing.assert_close(turned.length_B, exact_B, rtol=1.1e-5, atol=0)
    torch.testing.assert_close(turned.length_B, golden_B, rtol=0, atol=1e-11)
    torch.testing.assert_close(turned.x1_BD, -x0_BD, rtol=0, atol=1e-4)
    torch.testing.assert_close(turned.logdet_B, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_linear_flow_makes_the_gaussian_it_should() -> None:
    matrix_DD = torch.tensor([[0.4, 0.3], [0.3, -0.5]], dtype=torch.float64)
    flow = on_plane(LinearField(matrix_DD))
    map_DD = torch.linalg.matrix_exp(matrix_DD)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), map_DD @ map_DD.t())
    x1_BD = torch.randn(6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    actual_B = flow.log_prob(x1_BD, solver=Dopri5(rtol=1e-10, atol=1e-10))
    torch.testing.assert_close(actual_B, exact.log_prob(x1_BD), rtol=0, atol=1e-9)


def test_a_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    flow = on_plane(perturbed(MLPField(dim=2, hidden=16, layers=2, activation="silu"), scale=0.1))
    axis = torch.linspace(-8.0, 8.0, 81, dtype=torch.float64)
    grid_BD = torch.cartesian_prod(axis, axis)
    mass = flow.log_prob(grid_BD, solver=RungeKutta4(steps=10)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


def test_hutchinson_averages_to_the_trace() -> None:
    torch.manual_seed(0)
    field = perturbed(MLPField(dim=2, hidden=8, layers=2, activation="tanh"))
    x_BD, t = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.4)
    signs = [torch.tensor([a, b], dtype=torch.float64).expand(5, 2) for a in (-1, 1) for b in (-1, 1)]
    mean_B = torch.stack([hutchinson(probe_BD)(field, t, x_BD)[1] for probe_BD in signs]).mean(dim=0)
    torch.testing.assert_close(mean_B, exact_divergence(field, t, x_BD)[1], rtol=0, atol=1e-12)


def test_times_must_increase() -> None:
    flow = on_plane(rotation(1.0))
    with pytest.raises(ValueError, match=r"must increase.*write"):
        flow.trajectory(torch.zeros(1, 2, dtype=torch.float64), times=torch.tensor([0.5, 0.2]))
