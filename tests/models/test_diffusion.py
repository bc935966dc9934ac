"""The reverse process and the probability flow: golden steps, Gaussians in closed form, path gradients.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Space, whole_batch
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.diffusion import FinalClimb, ProbabilityFlow, ReverseSDE, noise_prior
from models.flows.prior import GaussianPrior
from models.flows.solvers import RungeKutta4
from models.objectives.path_gradient import PathGradient
from models.schedules import Geometric, Schedule
from models.score_estimator import Clip, EstimatedScore
from models.targets import GaussianMixture, dw4, gmm4, lj13
from tests.laws.field_laws import FieldLaws, ParticleFieldLaws
from tests.laws.flow_laws import FlowLaws
from tests.laws.objective_laws import flat, gradient_of

SCHEDULE = Geometric(sigma_min=0.3, sigma_max=2.0)
WIDTH = 0.8
"""Standard deviation of the data in the closed forms below."""


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class GaussianScore(nn.Module):
    """s(tau, x) = -x / (w^2 + h(tau)), the exact score of noised data N(0, w^2)."""

    def __init__(self, width: float = WIDTH, schedule: Schedule = SCHEDULE) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(math.log(width), dtype=torch.float64))
        self.schedule = schedule

    def forward(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        return -x_BD / self._variance(tau, x_BD)

    def with_divergence(self, tau: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        # The zero keeps the divergence on the graph of x, as every field's is.
        divergence_B = -x_BD.shape[1] / self._variance(tau, x_BD).squeeze(1) + 0.0 * x_BD.sum(dim=1)
        return self(tau, x_BD), divergence_B

    def _variance(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        return (2 * self.log_width).exp() + self.schedule.h(tau.to(x_BD).reshape(-1, 1).expand(len(x_BD), 1))


def gaussian_flow(width: float = WIDTH) -> ContinuousFlow:
    """From the exact marginal at tau = 1 (a little wider than `noise_prior`) to N(0, WIDTH^2)."""
    prior = GaussianPrior(space=Space(dim=3), std=math.sqrt(WIDTH**2 + SCHEDULE.total_variance))
    return ContinuousFlow(prior=prior, field=ProbabilityFlow(score=GaussianScore(width), schedule=SCHEDULE))


class TestReverseSDE:
    def test_golden_steps(self) -> None:
        with np.load(Path(__file__).parents[1] / "golden" / "E_dem.npz") as file:
            golden = {name: torch.tensor(file[name]) for name in file.files if name[:2] in ("em", "gm")}
        schedule = Geometric(sigma_min=float(golden["em_smin"]), sigma_max=float(golden["em_smax"]))
        means_KD, variance = golden["gmm_means"], float(golden["gmm_var"])

        def exact(tau: Tensor, x_BD: Tensor) -> Tensor:
            total = variance + float(schedule.h(tau))
            return GaussianMixture(name="noised", means_KD=means_KD, variance=total).score(x_BD)

        process = ReverseSDE(space=Space(dim=2), schedule=schedule, steps=5, noise_scale=float(golden["em_scale"]))
        states = list(process.states(exact, golden["em_traj"][0], golden["em_noise"]))
        torch.testing.assert_close(torch.stack(states), golden["em_traj"][1:], rtol=1e-12, atol=1e-12)
        last_BD = process.carry(exact, golden["em_traj"][0], golden["em_noise"])
        assert torch.equal(last_BD, states[-1])

    def test_an_exact_score_leads_to_the_target(self) -> None:
        """Second moments of 4000 draws of N(0, WIDTH^2), within four standard errors and the bias of 100 steps."""
        process = ReverseSDE(space=Space(dim=2), schedule=SCHEDULE, steps=100)
        drawn_BD = process.sample(GaussianScore(), 4000, generator=torch.Generator().manual_seed(2), like=normal(1, 1))
        moments_D = drawn_BD.square().mean(0) / WIDTH**2
        assert float((moments_D - 1).abs().max()) < 4 * (2 / 4000) ** 0.5 + 0.05
        assert float(drawn_BD.mean(0).abs().max()) < 4 * WIDTH / 4000**0.5

    def test_an_estimated_score_finds_all_four_modes(self) -> None:
        source = torch.Generator().manual_seed(3)
        schedule = Geometric(sigma_min=0.05, sigma_max=3.0)
        score = EstimatedScore(
            target=gmm4(mean=3.0), schedule=schedule, samples=100, generator=source, clip=Clip(norm=70.0, of="row")
        )
        process = ReverseSDE(space=Space(dim=2), schedule=schedule, steps=60)
        drawn_BD = process.sample(score, 400, generator=source, like=normal(1, 1))
        quadrant_B = (drawn_BD[:, 0] > 0).long() + 2 * (drawn_BD[:, 1] > 0).long()
        assert int(torch.bincount(quadrant_B, minlength=4).min()) > 60
        assert float((drawn_BD.abs() - 3.0).square().mean().sqrt()) == pytest.approx(0.5**0.5, rel=0.2)

    def test_draws_are_seeded_mean_free_and_of_the_asked_dtype(self) -> None:
        process = ReverseSDE(space=dw4().space, schedule=SCHEDULE, steps=4)
        first, again, other = (
            process.sample(GaussianScore(), 3, generator=torch.Generator().manual_seed(seed), like=normal(1, 1))
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.dtype == torch.float64
        assert not first.requires_grad
        torch.testing.assert_close(dw4().space.project(first), first, rtol=0, atol=1e-13)

    def test_a_final_climb_lowers_the_energy_by_bounded_steps(self) -> None:
        clip = Clip(norm=20.0, of="particles")
        climb = FinalClimb(target=lj13(), clip=clip, steps=10, step_size=1e-4)
        x_BD = lj13().space.project(1.2 * normal(5, 39))
        process = ReverseSDE(space=lj13().space, schedule=SCHEDULE, steps=1, noise_scale=0.0, final=climb)
        states = list(process.states(lambda tau, y_BD: torch.zeros_like(y_BD), x_BD, [torch.zeros_like(x_BD)]))
        assert len(states) == 2
        torch.testing.assert_close(states[0], x_BD)
        assert bool((lj13().energy(states[1]) < lj13().energy(x_BD)).all())
        moved = (states[1] - x_BD).unflatten(1, (13, 3)).norm(dim=2)
        # Taking out the centre of mass again moves a particle at most as far as the climb itself.
        assert 0.0 < float(moved.max()) <= 2 * 10 * 1e-4 * 20.0

    def test_wrong_settings_are_told_with_what_to_write(self) -> None:
        process = ReverseSDE(space=Space(dim=2), schedule=SCHEDULE, steps=3)
        with pytest.raises(ValueError, match=r"steps=0; write"):
            replace(process, steps=0)
        with pytest.raises(ValueError, match=r"got -1.0; write"):
            replace(process, noise_scale=-1.0)
        with pytest.raises(ValueError, match=r"got 2 for 3 steps; write"):
            process.carry(GaussianScore(), normal(2, 2), normal(2, 2, 2))
        with pytest.raises(ValueError, match=r"step_size=0.0; write"):
            FinalClimb(target=lj13(), clip=Clip(norm=1.0, of="row"), step_size=0.0)


def test_an_estimated_score_is_seeded_and_near_the_exact_one() -> None:
    schedule, x_BD = Geometric(sigma_min=0.05, sigma_max=2.0), normal(6, 2)

    def made(seed: int, clip: Clip | None = None) -> EstimatedScore:
        source = torch.Generator().manual_seed(seed)
        return EstimatedScore(target=gmm4(), schedule=schedule, samples=4000, generator=source, clip=clip)

    tau = torch.tensor(0.6, dtype=torch.float64)
    first, again, other = (made(seed)(tau, x_BD) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    exact_BD = gmm4(variance=0.5 + float(schedule.h(tau))).score(x_BD)
    torch.testing.assert_close(first, exact_BD, rtol=0, atol=0.05)
    clipped_BD = made(0, Clip(norm=0.1, of="row"))(tau, x_BD)
    assert float(clipped_BD.norm(dim=1).max()) <= 0.1


class TestPlaneField(FieldLaws):
    @property
    def space(self) -> Space:
        return Space(dim=2)

    def make(self) -> nn.Module:
        return ProbabilityFlow(score=MLPField(2, hidden=8, layers=2), schedule=SCHEDULE)


class TestParticleField(ParticleFieldLaws):
    @property
    def space(self) -> Space:
        return Space(dim=8, particles=4)

    def make(self) -> nn.Module:
        return ProbabilityFlow(score=EGNN(particles=4, spatial_dim=2, hidden=8, layers=2), schedule=SCHEDULE)


class TestGaussianFlow(FlowLaws):
    def make(self) -> ContinuousFlow:
        return gaussian_flow()


class TestClosedForm:
    SOLVER = RungeKutta4(steps=60)

    def test_points_shrink_with_the_width_of_the_marginal(self) -> None:
        flow = gaussian_flow()
        x0_BD = 2.0 * normal(5, 3)
        times = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
        states = flow.trajectory(x0_BD, times=times, solver=self.SOLVER)
        width_T = (WIDTH**2 + SCHEDULE.h(1.0 - times)).sqrt()
        torch.testing.assert_close(states, (width_T / width_T[0])[:, None, None] * x0_BD, rtol=1e-6, atol=1e-6)

    def test_the_density_is_that_of_the_data(self) -> None:
        flow, x1_BD = gaussian_flow(), WIDTH * normal(6, 3)
        expected_B = GaussianPrior(space=Space(dim=3), std=WIDTH).log_prob(x1_BD)
        torch.testing.assert_close(flow.log_prob(x1_BD, solver=self.SOLVER), expected_B, rtol=0, atol=1e-6)

    def test_path_gradients_vanish_at_the_exact_score_and_only_there(self) -> None:
        target = GaussianMixture(name="one", means_KD=torch.zeros(1, 3), variance=WIDTH**2)
        x_BD = WIDTH * normal(200, 3)
        batch = Batch(x_BD=x_BD, force_BD=target.score(x_BD))

        def gradient(width: float) -> float:
            objective = PathGradient(kl="forward", solver_steps=40)
            found = gradient_of(objective, gaussian_flow(width), batch, whole_batch(200, 1))
            return float(flat(found.gradients)[0]) / found.weight

        assert abs(gradient(WIDTH)) < 1e-5
        assert gradient(1.2 * WIDTH) > 1e-2
        assert gradient(0.8 * WIDTH) < -1e-2

    def test_the_noise_prior_has_the_total_variance_on_the_space(self) -> None:
        prior = noise_prior(Space(dim=8, particles=4), SCHEDULE)
        assert prior.std**2 == pytest.approx(2.0**2 - 0.3**2)
        assert prior.space.mean_free
