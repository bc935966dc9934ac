"""Annealed importance sampling between Gaussians: normaliser, invariance, step sizes, work, and rows that fail.

Shapes: B batch, D coordinates, M intermediate densities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.annealed import AnnealedSamples, Annealing, Bridge, anneal
from models.contracts import Random, Space, whole_batch
from models.flows.coupling import CouplingFlow
from models.flows.prior import GaussianPrior
from models.targets import dw4
from tests.models.gaussian_pair import PARTICLES, PLANE, GaussianFlow, GaussianTarget, exact_rows, log_normaliser

LIKE = torch.empty(0, dtype=torch.float64)
QUICK = Annealing(bridges=3, moves=1, leapfrog_steps=2, step_size=0.8)


@dataclass(frozen=True, kw_only=True)
class Counted(GaussianTarget):
    """Counts the rows that it is asked for."""

    calls: dict[str, int] = field(default_factory=lambda: {"energy": 0, "score": 0})

    def energy(self, x_BD: Tensor) -> Tensor:
        self.calls["energy"] += len(x_BD)
        return super().energy(x_BD)

    def score(self, x_BD: Tensor) -> Tensor:
        self.calls["score"] += len(x_BD)
        return super().score(x_BD)


def pair(space: Space) -> tuple[GaussianFlow, GaussianTarget]:
    far = (1.1, -0.8, 0.4, 0.3, -0.7, 0.5)[: space.dim]
    flow = GaussianFlow(space=space, mean=(0.0,) * space.dim, std=1.4)
    return flow, GaussianTarget(space=space, mean=far, std=1.0)


def run(
    flow: Any, target: Any, n: int, *, seed: int = 1, settings: Annealing = QUICK, random: Random | None = None
) -> AnnealedSamples:
    return anneal(
        flow,
        target,
        random or whole_batch(n, seed),
        like=LIKE,
        settings=settings,
        step_size_M=settings.first_step_sizes(),
    )


@pytest.fixture(params=[PLANE, PARTICLES], ids=["plane", "particles"])
def space(request: pytest.FixtureRequest) -> Space:
    return request.param


class TestWeights:
    @pytest.mark.parametrize("bridges", [0, 1, 4])
    def test_weights_average_to_the_normaliser(self, space: Space, bridges: int) -> None:
        flow, target = pair(space)
        samples = run(flow, target, 8000, settings=replace(QUICK, bridges=bridges))
        scaled_B = (samples.log_w_B - log_normaliser(flow, target).detach()).exp()
        error = float(scaled_B.std()) / math.sqrt(len(scaled_B))
        assert 0.0 < error < 0.06
        assert abs(float(scaled_B.mean()) - 1.0) < 3 * error

    def test_weighted_rows_follow_the_squared_target_over_the_flow(self, space: Space) -> None:
        flow, target = pair(space)
        samples = run(flow, target, 20_000, settings=replace(QUICK, bridges=4))
        share_B = torch.softmax(samples.log_w_B, dim=0)
        exact_BD = exact_rows(flow, target, 1.0, 20_000, seed=3)
        for moment in (lambda x_BD: x_BD, torch.square):
            found_D = (share_B[:, None] * moment(samples.x_BD)).sum(dim=0)
            spread_D = (share_B[:, None] * (moment(samples.x_BD) - found_D)).square().sum(dim=0)
            error_D = (spread_D + moment(exact_BD).var(dim=0) / len(exact_BD)).sqrt()
            assert bool((error_D < 0.05).all())
            assert bool(((found_D - moment(exact_BD).mean(dim=0)).abs() < 4 * error_D + 1e-12).all())

    def test_without_moves_they_are_plain_importance_weights(self, space: Space) -> None:
        flow, target = pair(space)
        for settings in (replace(QUICK, bridges=0), replace(QUICK, moves=0), replace(QUICK, bridges=7, moves=0)):
            samples = run(flow, target, 50, settings=settings)
            start = flow.push(flow.prior.from_noise(whole_batch(50, 1).normal(space.dim, like=LIKE)))
            assert torch.equal(samples.x_BD, start.x1_BD)
            expected_B = 2.0 * (-target.energy(start.x1_BD) - start.log_q_B)
            torch.testing.assert_close(samples.log_w_B, expected_B, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(samples.log_q_B, start.log_q_B, rtol=1e-12, atol=1e-12)

    def test_moves_even_the_weights_out(self, space: Space) -> None:
        flow, target = pair(space)
        plain, annealed = (run(flow, target, 4000, settings=replace(QUICK, bridges=n)).log_w_B for n in (0, 8))
        assert float(annealed.std()) < 0.7 * float(plain.std())

    def test_densities_are_those_of_the_last_rows(self, space: Space) -> None:
        flow, target = pair(space)
        samples = run(flow, target, 20)
        torch.testing.assert_close(samples.log_q_B, flow.log_prob(samples.x_BD), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(space.project(samples.x_BD), samples.x_BD, rtol=0, atol=1e-12)
        assert not samples.x_BD.requires_grad
        assert not samples.log_w_B.requires_grad


class TestMoves:
    def moved(self, space: Space, b: float, step_size: float, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Exact rows of pi_b, where one move took them, and acceptance probabilities."""
        flow, target = pair(space)
        bridge, random = Bridge(flow=flow, target=target), whole_batch(n, 5)
        x_BD = exact_rows(flow, target, b, n, seed=2)
        place, acceptance_B = bridge.move(
            bridge.look(x_BD),
            b,
            noise_BD=random.normal(space.dim, like=x_BD),
            uniform_B=random.uniform(like=x_BD),
            step_size=step_size,
            settings=QUICK,
        )
        return x_BD, place.x_BD, acceptance_B

    @pytest.mark.parametrize("b", [0.0, 0.4, 1.0])
    def test_pairs_of_places_are_reversible(self, space: Space, b: float) -> None:
        """Detailed balance: exchanging before and after leaves every expectation as it is, where many are rejected."""
        before_BD, after_BD, acceptance_B = self.moved(space, b, 1.3, 40_000)
        assert 0.2 < float(acceptance_B.mean()) < 0.95
        assert float((after_BD - before_BD).norm(dim=1).mean()) > 0.3
        first_B, second_B = before_BD[:, 0], after_BD[:, 0]
        for f, g in ((torch.ones_like, torch.clone), (torch.ones_like, torch.square), (torch.clone, torch.square)):
            difference_B = f(first_B) * g(second_B) - g(first_B) * f(second_B)
            error = float(difference_B.std()) / math.sqrt(len(difference_B))
            assert 0.0 < error < 0.2
            assert abs(float(difference_B.mean())) < 3.5 * error

    def test_small_steps_are_accepted_and_large_ones_are_not(self, space: Space) -> None:
        mean = [float(self.moved(space, 0.5, step_size, 500)[2].mean()) for step_size in (1e-3, 0.5, 1.0, 4.0)]
        assert mean[0] > 0.9999
        assert mean == sorted(mean, reverse=True)
        assert mean[3] < 0.01

    def test_a_clipped_force_stays_correct(self) -> None:
        flow, target = pair(PLANE)
        samples = run(flow, target, 8000, settings=replace(QUICK, force_clip=0.3))
        free = run(flow, target, 8000)
        assert not torch.equal(samples.x_BD, free.x_BD)
        scaled_B = (samples.log_w_B - log_normaliser(flow, target).detach()).exp()
        assert abs(float(scaled_B.mean()) - 1.0) < 3 * float(scaled_B.std()) / math.sqrt(8000)

    def test_forces_are_gradients_of_the_bridge(self) -> None:
        target = dw4()
        torch.manual_seed(1)
        flow = CouplingFlow(prior=GaussianPrior(space=target.space, std=2.0), layers=2, hidden=(4,), bins=4).double()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        x_BD = flow.sample(4, generator=torch.Generator().manual_seed(2)).x1_BD.requires_grad_()
        for b in (0.2, 0.9):
            log_pi_B = (1 - 2 * b) * flow.log_prob(x_BD) - 2 * b * target.energy(x_BD)
            (expected_BD,) = torch.autograd.grad(log_pi_B.sum(), x_BD)
            place = Bridge(flow=flow, target=target).look(x_BD.detach())
            torch.testing.assert_close(place.log_bridge(b), log_pi_B.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(place.force(b, 1e12), expected_BD, rtol=1e-9, atol=1e-9)
            assert float(place.force(b, 0.5).norm(dim=1).max()) <= 0.5 + 1e-12


class TestStepSizes:
    @pytest.mark.parametrize("first", [1e-2, 20.0])
    def test_adaptation_finds_the_acceptance_that_it_aims_at(self, first: float) -> None:
        flow, target = pair(PARTICLES)
        settings = replace(QUICK, step_size=first, target_acceptance=0.7, adaptation_rate=0.5)
        step_size_M = settings.first_step_sizes()
        for number in range(60):
            samples = anneal(
                flow, target, whole_batch(32, number), like=LIKE, settings=settings, step_size_M=step_size_M
            )
            step_size_M = settings.adapted(step_size_M, samples.acceptance_BM)
        last = anneal(flow, target, whole_batch(2000, 999), like=LIKE, settings=settings, step_size_M=step_size_M)
        torch.testing.assert_close(
            last.acceptance_BM.mean(dim=0), torch.full((3,), 0.7, dtype=torch.float64), rtol=0, atol=0.08
        )

    def test_without_a_rate_or_moves_they_stay(self) -> None:
        acceptance_BM = torch.zeros(4, 3)
        for settings in (replace(QUICK, adaptation_rate=0.0), replace(QUICK, moves=0)):
            first_M = settings.first_step_sizes()
            assert torch.equal(settings.adapted(first_M, acceptance_BM), first_M)


class TestFailingRows:
    def test_rows_beyond_a_wall_weigh_nothing_and_the_rest_is_exact(self) -> None:
        """Energies of NaN for x > wall: p is zero there, and the normaliser is the integral over the other side."""
        flow, target = pair(PLANE)
        walled = replace(target, wall=0.9)
        samples = run(flow, walled, 20_000)
        assert not bool(torch.isnan(samples.log_w_B).any())
        assert not bool(torch.isnan(samples.x_BD).any())
        dead_B = samples.log_w_B == -math.inf
        assert torch.equal(samples.usable_B, ~dead_B)
        assert 0.1 < float(dead_B.double().mean()) < 0.6
        assert bool((samples.x_BD[~dead_B, 0] < 0.9).all())
        exact_BD = exact_rows(flow, target, 1.0, 200_000, seed=7)
        inside = float((exact_BD[:, 0] < 0.9).double().mean())
        scaled_B = (samples.log_w_B - log_normaliser(flow, target).detach()).exp() / inside
        error = float(scaled_B.std()) / math.sqrt(len(scaled_B))
        assert abs(float(scaled_B.mean()) - 1.0) < 3 * error + 0.01

    def test_infinite_energies_and_densities_weigh_nothing(self) -> None:
        flow, target = pair(PLANE)

        class Broken(GaussianFlow):
            def log_prob(self, x1_BD: Tensor) -> Tensor:
                return super().log_prob(x1_BD) + torch.where(x1_BD[:, 0] > 0.0, -math.inf, 0.0)

        broken = Broken(space=PLANE, mean=(0.0, 0.0), std=1.4)
        samples = run(broken, target, 200)
        start = flow.push(flow.prior.from_noise(whole_batch(200, 1).normal(2, like=LIKE))).x1_BD
        assert torch.equal(samples.log_w_B == -math.inf, start[:, 0] > 0.0)
        assert bool((samples.x_BD[samples.usable_B, 0] <= 0.0).all())


class TestSharing:
    def test_rows_do_not_depend_on_how_workers_share_them(self, space: Space) -> None:
        flow, target = pair(space)
        whole = run(flow, target, 10)
        parts = [
            run(
                flow,
                target,
                10,
                random=Random(generator=torch.Generator().manual_seed(1), global_size=10, start=start, stop=stop),
            )
            for start, stop in ((0, 4), (4, 10))
        ]
        for name in ("x_BD", "log_q_B", "log_w_B", "acceptance_BM"):
            joined = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-12, atol=1e-12)
        assert parts[0].work + parts[1].work == whole.work

    @pytest.mark.parametrize("settings", [QUICK, replace(QUICK, bridges=0), replace(QUICK, moves=3)])
    def test_work_is_what_was_called(self, settings: Annealing) -> None:
        flow, target = pair(PLANE)
        counted = Counted(space=PLANE, mean=target.mean, std=target.std)
        looked = [0]
        log_prob = flow.log_prob

        def counting(x1_BD: Tensor) -> Tensor:
            looked[0] += len(x1_BD) if torch.is_grad_enabled() else 0
            return log_prob(x1_BD)

        flow.log_prob = counting  # type: ignore[method-assign]
        work = run(flow, counted, 9, settings=settings).work
        assert work.samples == 9
        assert (work.energy_evaluations, work.force_evaluations) == (counted.calls["energy"], counted.calls["score"])
        assert work.field_evaluations == 2 * 9 + 2 * looked[0]
        assert work.declared_flops == 7 * sum(counted.calls.values())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Annealing(bridges=-1), "bridges=-1"),
        (lambda: Annealing(leapfrog_steps=0), "leapfrog_steps=0; write"),
        (lambda: Annealing(step_size=0.0), "step_size=0.0"),
        (lambda: Annealing(force_clip=0.0), "force_clip=0.0"),
        (lambda: Annealing(target_acceptance=1.0), "got 1.0; 0.65"),
        (
            lambda: anneal(*pair(PLANE), whole_batch(2, 1), like=LIKE, settings=QUICK, step_size_M=torch.tensor([0.1])),
            "each of the 3 bridges",
        ),
    ],
)
def test_wrong_settings_are_told_with_what_to_write(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()
