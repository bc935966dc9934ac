"""Flow annealed bootstrap: gradients of the alpha = 2 divergence in closed form, both losses, and a short training.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.annealed import AnnealedSamples, Annealing
from models.contracts import Batch, GradientSum, Objective, Space, Work, whole_batch
from models.estimators import LogWeights
from models.flows.coupling import CouplingFlow
from models.flows.prior import GaussianPrior
from models.objectives.flow_annealed_bootstrap import (
    BootstrapState,
    BufferedBootstrap,
    FlowAnnealedBootstrap,
    adjusted,
    fresh_batch,
    generate,
)
from models.prioritised import PrioritisedBuffer, WeightedBatch
from models.targets import gmm4
from tests.laws.objective_laws import ObjectiveLaws, flat, gradient_of
from tests.models.gaussian_pair import PARTICLES, PLANE, GaussianFlow, GaussianTarget, exact_rows, log_normaliser

LIKE = torch.empty(0, dtype=torch.float64)
QUICK = Annealing(bridges=3, moves=1, leapfrog_steps=2, step_size=0.8)


def pair(space: Space = PLANE) -> tuple[GaussianFlow, GaussianTarget]:
    far = (0.9, -0.5, 0.4, 0.3, -0.7, 0.5)[: space.dim]
    flow = GaussianFlow(space=space, mean=(0.1,) * space.dim, std=1.3)
    return flow, GaussianTarget(space=space, mean=far, std=1.0)


def state_of(target: Any, *, seed: int = 3, replacement: bool = True, annealing: Annealing = QUICK) -> BootstrapState:
    buffer = PrioritisedBuffer.empty(
        LIKE, dim=target.space.dim, capacity=2000, minimum=50, replacement=replacement, seed=seed
    )
    return BootstrapState(step_size_M=annealing.first_step_sizes(), buffer=buffer)


def generated(flow: Any, target: Any, n: int, *, seed: int = 1) -> tuple[BootstrapState, AnnealedSamples]:
    return generate(flow, target, state_of(target), annealing=QUICK, random=whole_batch(n, seed), like=LIKE)


def exact_gradient(flow: GaussianFlow, target: GaussianTarget) -> Tensor:
    """Of log int p^2 / q in the mean and the log scale."""
    return flat(torch.autograd.grad(log_normaliser(flow, target), list(flow.parameters())))


class TestGradientOfTheDivergence:
    def test_closed_form_against_finite_differences_and_a_known_value(self) -> None:
        """In one dimension d/dm log int p^2/q = -2 (a - m) / (2 s^2 - s_p^2), here -1.5 / 3.4."""
        flow = GaussianFlow(space=Space(dim=1), mean=(0.25,), std=math.sqrt(2.2))
        target = GaussianTarget(space=Space(dim=1), mean=(1.0,), std=1.0)
        found_P = exact_gradient(flow, target)
        assert float(found_P[0]) == pytest.approx(-1.5 / 3.4, abs=1e-12)
        assert float(found_P[0]) == pytest.approx(-0.44117647, abs=1e-8)
        for i, parameter in enumerate(flow.parameters()):
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter.add_(sign * 1e-5)
                    ends.append(float(log_normaliser(flow, target)))
                    parameter.sub_(sign * 1e-5)
            assert float(found_P[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)

    def test_closed_form_against_quadrature(self) -> None:
        flow = GaussianFlow(space=Space(dim=1), mean=(0.25,), std=math.sqrt(2.2))
        target = GaussianTarget(space=Space(dim=1), mean=(1.0,), std=1.0)
        x_B1 = torch.linspace(-15.0, 15.0, 20_001, dtype=torch.float64)[:, None]
        with torch.no_grad():
            log_B = -2.0 * target.energy(x_B1) - flow.log_prob(x_B1)
        quadrature = float(torch.logsumexp(log_B, dim=0)) + math.log(30.0 / 20_000)
        assert float(log_normaliser(flow, target).detach()) == pytest.approx(quadrature, abs=1e-10)

    @pytest.mark.parametrize("space", [PLANE, PARTICLES], ids=["plane", "particles"])
    def test_it_is_minus_the_mean_of_grad_log_q_over_the_squared_target(self, space: Space) -> None:
        flow, target = pair(space)
        batches = exact_rows(flow, target, 1.0, 40_000, seed=4).split(1000)
        gradients_RP = torch.stack([-flat(_gradients(flow.log_prob(x_BD).mean(), flow)) for x_BD in batches])
        error_P = gradients_RP.std(dim=0) / math.sqrt(len(gradients_RP))
        assert bool((error_P < 0.02).all())
        assert bool(((gradients_RP.mean(dim=0) - exact_gradient(flow, target)).abs() < 3.5 * error_P).all())


class TestFreshRows:
    @pytest.mark.parametrize("space", [PLANE, PARTICLES], ids=["plane", "particles"])
    def test_its_gradient_estimates_that_of_the_divergence(self, space: Space) -> None:
        flow, target = pair(space)
        found = [fresh_gradient(flow, target, 2000, seed) for seed in range(20)]
        gradients_RP = torch.stack([flat(g.gradients) / g.weight for g in found])
        error_P = gradients_RP.std(dim=0) / math.sqrt(len(gradients_RP))
        exact_P = exact_gradient(flow, target)
        assert bool((error_P < 0.03).all())
        assert float(exact_P.abs().max()) > 0.2
        # 3.5 standard errors of 20 batches, and the bias of self-normalised weights, of order 1 / 2000.
        assert bool(((gradients_RP.mean(dim=0) - exact_P).abs() < 3.5 * error_P + 2e-3).all())

    def test_the_loss_is_a_softmax_average(self) -> None:
        flow, target = pair()
        _, samples = generated(flow, target, 30)
        found = gradient_of(FlowAnnealedBootstrap(), flow, fresh_batch(samples), whole_batch(30, 1))
        share_B = torch.softmax(samples.log_w_B, dim=0)
        expected = -(share_B * flow.log_prob(samples.x_BD)).sum()
        torch.testing.assert_close(found.loss_sum / found.weight, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(flat(found.gradients) / found.weight, flat(_gradients(expected, flow)))

    def test_rows_that_failed_count_for_nothing(self) -> None:
        flow, target = pair()
        _, samples = generated(flow, target, 30)
        broken = replace(
            samples,
            x_BD=samples.x_BD.index_fill(0, torch.tensor([2]), math.nan),
            log_w_B=samples.log_w_B.index_fill(0, torch.tensor([5]), -math.inf),
        )
        keep = [i for i in range(30) if i not in (2, 5)]
        rest = replace(broken, x_BD=broken.x_BD[keep], log_w_B=broken.log_w_B[keep], log_q_B=broken.log_q_B[keep])
        one, two = (
            gradient_of(FlowAnnealedBootstrap(), flow, fresh_batch(rows), whole_batch(len(rows.x_BD), 1))
            for rows in (broken, rest)
        )
        torch.testing.assert_close(flat(one.gradients) / one.weight, flat(two.gradients) / two.weight)
        none = replace(samples, log_w_B=torch.full_like(samples.log_w_B, -math.inf))
        found = gradient_of(FlowAnnealedBootstrap(), flow, fresh_batch(none), whole_batch(30, 1))
        assert float(flat(found.gradients).abs().max()) == 0.0


class TestBufferedRows:
    def test_a_fresh_buffer_gives_the_same_gradient_on_average(self) -> None:
        """4000 draws of one buffer average to the softmax over it, and so do its draws' probabilities exactly."""
        flow, target = pair()
        state, samples = generated(flow, target, 60)
        assert state.buffer is not None
        fresh = gradient_of(FlowAnnealedBootstrap(), flow, fresh_batch(samples), whole_batch(60, 1))
        exact_P = flat(fresh.gradients) / fresh.weight
        share_B = torch.softmax(state.buffer.log_w_B, dim=0)
        rows = [
            gradient_of(BufferedBootstrap(), flow, one_row(state.buffer, i), whole_batch(1, 1))
            for i in range(len(state.buffer))
        ]
        enumerated_P = sum(share_B[i] * flat(row.gradients) for i, row in enumerate(rows))
        torch.testing.assert_close(enumerated_P, exact_P, rtol=1e-10, atol=1e-12)
        drawn_RP = torch.stack([drawn_gradient(flow, state.buffer, draw) for draw in range(100)])
        error_P = drawn_RP.std(dim=0) / math.sqrt(len(drawn_RP))
        assert bool(((drawn_RP.mean(dim=0) - exact_P).abs() < 3.5 * error_P).all())

    def test_the_ratio_corrects_a_buffer_of_an_older_flow(self) -> None:
        """Without clipping, rows of p^2 / q_old give the gradient for q up to one common factor, Z_new / Z_old."""
        flow, target = pair()
        x_BD = exact_rows(flow, target, 1.0, 40_000, seed=6)
        with torch.no_grad():
            batch = WeightedBatch(x_BD=x_BD, log_w_B=torch.zeros(len(x_BD)), log_q_B=flow.log_prob(x_BD))
            old = float(log_normaliser(flow, target))
            flow.mean_D.add_(-0.3)
            flow.log_scale.add_(0.1)
        found = gradient_of(BufferedBootstrap(ratio_clip=None), flow, batch, whole_batch(len(x_BD), 1))
        factor = math.exp(float(log_normaliser(flow, target).detach()) - old)
        assert abs(factor - 1.0) > 0.05
        expected_P = factor * exact_gradient(flow, target)
        torch.testing.assert_close(flat(found.gradients) / found.weight, expected_P, rtol=0, atol=0.02)

    def test_large_ratios_are_clipped(self) -> None:
        flow, _ = pair()
        x_BD = torch.zeros(3, 2, dtype=torch.float64)
        with torch.no_grad():
            log_q_B = flow.log_prob(x_BD)
        old_B = log_q_B + torch.tensor([0.0, math.log(4.0), 50.0], dtype=torch.float64)
        batch = WeightedBatch(x_BD=x_BD, log_w_B=torch.zeros(3), log_q_B=old_B)
        found = gradient_of(BufferedBootstrap(ratio_clip=10.0), flow, batch, whole_batch(3, 1))
        torch.testing.assert_close(found.loss_sum, -(1.0 + 4.0 + 10.0) * log_q_B[0], rtol=1e-12, atol=0)

    def test_the_density_that_comes_along_adjusts_the_buffer(self) -> None:
        flow, target = pair()
        state, _ = generated(flow, target, 60)
        with torch.no_grad():
            flow.mean_D.add_(0.2)
        assert state.buffer is not None
        batch, objective = state.buffer.sample(40, draw=0), BufferedBootstrap()
        prepared = objective.prepare(flow.prior, batch, whole_batch(40, 1))
        found, log_q_B = objective.gradient_and_density(flow, prepared)
        assert torch.equal(flat(found.gradients), flat(objective.gradient(flow, prepared).gradients))
        buffer, row_B = adjusted(state, batch, log_q_B).buffer, batch.row_B
        assert buffer is not None
        assert row_B is not None
        with torch.no_grad():
            old_B, new_B = batch.log_q_B, flow.log_prob(batch.x_BD)
        torch.testing.assert_close(buffer.log_w_B[row_B], batch.log_w_B + old_B - new_B, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(buffer.log_q_B[row_B], new_B, rtol=1e-12, atol=1e-12)


class FewRows:
    """Six weighted rows of a small flow that has moved since they were made."""

    def make_flow(self) -> nn.Module:
        flow = CouplingFlow(prior=GaussianPrior(space=PARTICLES), layers=2, hidden=(4,), bins=4).double()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return flow

    def make_batch(self) -> WeightedBatch:
        noise_BD = torch.randn(6, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        log_w_B = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
        return WeightedBatch(x_BD=PARTICLES.project(noise_BD), log_w_B=log_w_B, log_q_B=-6.0 + log_w_B)


class TestFreshLaws(FewRows, ObjectiveLaws):
    additive = False

    def make_objective(self) -> Objective:
        return FlowAnnealedBootstrap()


class TestBufferedLaws(FewRows, ObjectiveLaws):
    def make_objective(self) -> Objective:
        return BufferedBootstrap()


class TestTraining:
    def test_a_few_steps_lower_the_divergence_and_find_all_modes(self) -> None:
        """Four Gaussians at distance 3: a coupling flow, trained on energies alone."""
        target = gmm4(mean=1.5)
        before, after = (effective(train(target, steps), target) for steps in (0, 40))
        assert before.ess_q < 0.65
        assert after.ess_q > 0.8
        assert after.log_z == pytest.approx(0.0, abs=0.05)
        assert after.log_z_bound > before.log_z_bound + 0.3

    def test_a_resumed_training_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        target = gmm4()
        whole = list(trajectory(target, 10))[-1]
        half = list(trajectory(target, 5))[-1]
        torch.save([part.state_dict() for part in half], tmp_path / "half.pt")
        resumed = list(trajectory(target, 10, first=5, saved=torch.load(tmp_path / "half.pt", weights_only=True)))[-1]
        for name, tensor in whole[0].state_dict().items():
            assert torch.equal(tensor, resumed[0].state_dict()[name]), name
        assert torch.equal(whole[2].step_size_M, resumed[2].step_size_M)
        assert not torch.equal(whole[2].step_size_M, QUICK.first_step_sizes())
        assert whole[2].buffer is not None
        assert resumed[2].buffer is not None
        for name, value in whole[2].buffer.state_dict().items():
            again = resumed[2].buffer.state_dict()[name]
            assert torch.equal(value, again) if isinstance(value, Tensor) else value == again


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: BufferedBootstrap(ratio_clip=0.0), "got 0.0; write"),
        (
            lambda: gradient_of(BufferedBootstrap(), pair()[0], Batch(x_BD=LIKE), whole_batch(1, 1)),
            "got a Batch; write",
        ),
        (lambda: gradient_of(FlowAnnealedBootstrap(), pair()[0], Batch(x_BD=LIKE), whole_batch(1, 1)), "fresh_batch"),
        (lambda: BootstrapState.from_state({"buffer": None}), r"got \['buffer'\]; write"),
        (
            lambda: adjusted(BootstrapState(step_size_M=LIKE), FewRows().make_batch(), LIKE),
            "only rows of a buffer are adjusted",
        ),
    ],
)
def test_wrong_input_is_told_with_what_to_write(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_a_state_without_a_buffer_keeps_its_step_sizes() -> None:
    flow, target = pair()
    first = BootstrapState(step_size_M=QUICK.first_step_sizes())
    state, samples = generate(flow, target, first, annealing=QUICK, random=whole_batch(8, 1), like=LIKE)
    assert state.buffer is None
    assert torch.equal(state.step_size_M, QUICK.adapted(first.step_size_M, samples.acceptance_BM))
    again = BootstrapState.from_state(state.state_dict())
    assert torch.equal(again.step_size_M, state.step_size_M)
    assert samples.work != Work()


def _gradients(value: Tensor, flow: GaussianFlow) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, list(flow.parameters()), retain_graph=True)


def fresh_gradient(flow: GaussianFlow, target: GaussianTarget, n: int, seed: int) -> GradientSum:
    _, samples = generated(flow, target, n, seed=seed)
    return gradient_of(FlowAnnealedBootstrap(), flow, fresh_batch(samples), whole_batch(n, 1))


def one_row(buffer: PrioritisedBuffer, row: int) -> WeightedBatch:
    return WeightedBatch(
        x_BD=buffer.x_BD[row : row + 1], log_w_B=buffer.log_w_B[row : row + 1], log_q_B=buffer.log_q_B[row : row + 1]
    )


def drawn_gradient(flow: GaussianFlow, buffer: PrioritisedBuffer, draw: int) -> Tensor:
    found = gradient_of(BufferedBootstrap(), flow, buffer.sample(40, draw=draw), whole_batch(40, 1))
    return flat(found.gradients) / found.weight


Parts = tuple[CouplingFlow, torch.optim.Optimizer, BootstrapState]


def trajectory(target: Any, steps: int, *, first: int = 0, saved: list[Any] | None = None) -> Iterator[Parts]:
    """Flow, optimiser and state before the first step and after each; two gradient steps a generation."""
    torch.manual_seed(0)
    flow = CouplingFlow(prior=GaussianPrior(space=target.space, std=2.0), layers=2, hidden=(16,), bins=6).double()
    optimiser, objective = torch.optim.Adam(flow.parameters(), lr=1e-2), BufferedBootstrap()
    state = state_of(target, replacement=False)
    if saved is not None:
        flow.load_state_dict(saved[0])
        optimiser.load_state_dict(saved[1])
        state = BootstrapState.from_state(saved[2])
    yield flow, optimiser, state
    for step in range(first, steps):
        if step % 2 == 0:
            state, _ = generate(flow, target, state, annealing=QUICK, random=whole_batch(128, step), like=LIKE)
        assert state.buffer is not None
        batch = state.buffer.sample(128, draw=step)
        prepared = objective.prepare(flow.prior, batch, whole_batch(128, step))
        found, log_q_B = objective.gradient_and_density(flow, prepared)
        for parameter, gradient in zip(flow.parameters(), found.gradients, strict=True):
            parameter.grad = gradient / found.weight
        optimiser.step()
        state = adjusted(state, batch, log_q_B)
        yield flow, optimiser, state


def train(target: Any, steps: int) -> CouplingFlow:
    return list(trajectory(target, steps))[-1][0]


def effective(flow: CouplingFlow, target: Any) -> LogWeights:
    drawn = flow.sample(5000, generator=torch.Generator().manual_seed(11))
    return LogWeights.from_samples((-target.energy(drawn.x1_BD) - drawn.log_q_B).numpy())
