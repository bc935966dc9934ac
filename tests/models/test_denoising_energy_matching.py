"""Denoising energy matching: golden losses, the laws of objectives, where clean rows come from, learning.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Prepared, Target, Work, whole_batch
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.diffusion import ProbabilityFlow, noise_prior
from models.objectives.denoising_energy_matching import (
    DenoisingEnergyMatching,
    NoisedPoints,
    score_regression_loss,
)
from models.schedules import Geometric
from models.score_estimator import Clip, estimate_score
from models.targets import dw4, gmm4, lj13
from tests.laws.field_laws import perturbed
from tests.laws.objective_laws import ObjectiveLaws, flat, gradient_of

SCHEDULE = Geometric(sigma_min=0.05, sigma_max=2.0)
PLANE = DenoisingEnergyMatching(
    target=gmm4(), schedule=SCHEDULE, samples=7, start="batch", clip=Clip(norm=3.0, of="row"), weighting="variance"
)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow_on(target: Target, score: Any) -> ContinuousFlow:
    field = ProbabilityFlow(score=score, schedule=SCHEDULE)
    return ContinuousFlow(prior=noise_prior(target.space, SCHEDULE), field=field)


def plane_flow() -> ContinuousFlow:
    torch.manual_seed(5)
    return flow_on(gmm4(), MLPField(2, hidden=8, layers=2)).double()


class TestBufferInThePlane(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return PLANE

    def make_flow(self) -> nn.Module:
        return flow_on(gmm4(), MLPField(2, hidden=8, layers=2))

    def make_batch(self) -> Batch:
        return Batch(x_BD=normal(6, 2))


class TestPriorOnParticles(ObjectiveLaws):
    def make_objective(self) -> Objective:
        clip = Clip(norm=20.0, of="particles")
        return DenoisingEnergyMatching(target=dw4(), schedule=SCHEDULE, samples=5, start="prior", clip=clip)

    def make_flow(self) -> nn.Module:
        return flow_on(dw4(), perturbed(EGNN(particles=4, spatial_dim=2, hidden=8, layers=2)))

    def make_batch(self) -> Batch:
        return Batch(x_BD=dw4().space.project(normal(6, 8)))


@pytest.mark.parametrize(("name", "sigmas"), [("dw4", (1e-5, 3.0)), ("lj13", (0.01, 2.0))])
def test_golden_losses(name: str, sigmas: tuple[float, float]) -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "E_dem.npz") as file:
        golden = {key[len(name) + 1 :]: torch.tensor(file[key]) for key in file.files if key.startswith(name)}
    target: Target = dw4() if name == "dw4" else lj13()
    h_B = Geometric(sigma_min=sigmas[0], sigma_max=sigmas[1]).h(golden["t"])
    estimate = estimate_score(target, golden["x"], h_B, golden["noise"])
    points = NoisedPoints(
        tau_B=golden["t"],
        x_BD=golden["x"],
        score_BD=Clip(norm=20.0, of="particles")(estimate.score_BD, target.space),
        weight_B=torch.ones_like(h_B),
    )
    found_B = score_regression_loss(lambda tau, x_BD: golden["pred"], points)
    torch.testing.assert_close(found_B, golden["dem_loss_per_sample"], rtol=1e-11, atol=1e-11)


class TestWhatIsPrepared:
    def test_rows_of_the_batch_are_noised_with_the_variance_of_their_time(self) -> None:
        """One row many times: the noise left after h(tau) is taken out is standard normal."""
        n = 20_000
        batch = Batch(x_BD=torch.tensor([[0.3, -0.7]], dtype=torch.float64).expand(n, 2))
        objective = replace(PLANE, samples=1)
        points, _ = objective.draw(noise_prior(gmm4().space, SCHEDULE), batch.x_BD, whole_batch(n, 3))
        h_B = SCHEDULE.h(points.tau_B)
        left_BD = (points.x_BD - batch.x_BD) / h_B.sqrt().unsqueeze(1)
        assert float(left_BD.mean(0).abs().max()) < 4 / n**0.5
        assert float((left_BD.square().mean(0) - 1).abs().max()) < 4 * (2 / n) ** 0.5
        assert 0.0 <= float(points.tau_B.min()) < 0.01 < 0.99 < float(points.tau_B.max()) < 1.0
        assert torch.equal(points.weight_B, h_B + 1e-3)

    def test_pdem_starts_at_the_noise_and_asks_nothing_of_the_batch(self) -> None:
        n = 20_000
        objective = replace(PLANE, samples=1, start="prior")
        prior = noise_prior(gmm4().space, SCHEDULE)
        points, other = (
            objective.draw(prior, batch_BD, whole_batch(n, 3))[0] for batch_BD in (normal(n, 2), torch.zeros(n, 2))
        )
        torch.testing.assert_close(points.x_BD, other.x_BD.double(), rtol=1e-5, atol=1e-5)
        unit_BD = points.x_BD / (SCHEDULE.total_variance + SCHEDULE.h(points.tau_B)).sqrt().unsqueeze(1)
        assert float((unit_BD.square().mean(0) - 1).abs().max()) < 4 * (2 / n) ** 0.5

    def test_scores_are_those_of_the_estimator_and_clipped(self) -> None:
        batch, random = Batch(x_BD=normal(6, 2)), whole_batch(6, 3)
        prior = noise_prior(gmm4().space, SCHEDULE)
        prepared = PLANE.prepare(prior, batch, random)
        again = whole_batch(6, 3)
        tau_B = again.uniform(like=batch.x_BD)
        x_BD = batch.x_BD + SCHEDULE.h(tau_B).sqrt().unsqueeze(1) * again.normal(2, like=batch.x_BD)
        noise_KBD = torch.stack([again.normal(2, like=batch.x_BD) for _ in range(7)])
        expected_BD = estimate_score(gmm4(), x_BD, SCHEDULE.h(tau_B), noise_KBD).score_BD
        unclipped = replace(PLANE, clip=None).prepare(prior, batch, whole_batch(6, 3))
        torch.testing.assert_close(unclipped["score"], expected_BD, rtol=1e-12, atol=1e-12)
        tight = replace(PLANE, clip=Clip(norm=0.1, of="row")).prepare(prior, batch, whole_batch(6, 3))
        assert float(tight["score"].norm(dim=1).max()) <= 0.1
        assert prepared.work == Work(
            energy_evaluations=42, force_evaluations=42, declared_flops=84 * gmm4().energy_flops
        )

    def test_no_score_is_longer_than_the_noise_allows(self) -> None:
        batch, prior = Batch(x_BD=normal(400, 2)), noise_prior(gmm4().space, SCHEDULE)
        free, held = (
            replace(PLANE, clip=None, noise_clip=clip).draw(prior, batch.x_BD, whole_batch(400, 3))[0]
            for clip in (None, Clip(norm=1.5, of="row"))
        )
        width_B = SCHEDULE.h(free.tau_B).sqrt()
        length_B = width_B * free.score_BD.norm(dim=1)
        short_B = length_B < 1.5 - 1e-5
        assert 0 < int(short_B.sum()) < 400
        torch.testing.assert_close(held.score_BD[short_B], free.score_BD[short_B], rtol=1e-12, atol=0)
        direction_BD = torch.nn.functional.normalize(free.score_BD[~short_B])
        expected_BD = 1.5 * direction_BD / width_B[~short_B].unsqueeze(1)
        torch.testing.assert_close(held.score_BD[~short_B], expected_BD, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("tau", [0.0, 0.3, 0.7, 1.0])
    def test_exact_scores_in_units_of_the_noise_are_of_order_one(self, tau: float) -> None:
        # Minus the mean of the noise given the noised row: no longer than the noise on average, by Jensen's inequality.
        h = SCHEDULE.h(torch.tensor(tau, dtype=torch.float64))
        noised = gmm4().noised(float(h))
        x_BD = noised.sample(2000, torch.Generator().manual_seed(0)).double()
        square_B = h * noised.score(x_BD).square().sum(dim=1)
        assert float(square_B.mean()) <= 2.0
        assert float((square_B > 16.0).double().mean()) <= 2 * math.exp(-8.0) + 0.001

    def test_particles_stay_mean_free(self) -> None:
        batch = Batch(x_BD=dw4().space.project(normal(6, 8)))
        space, prior = dw4().space, noise_prior(dw4().space, SCHEDULE)
        for start in ("batch", "prior"):
            objective = DenoisingEnergyMatching(
                target=dw4(), schedule=SCHEDULE, samples=5, start=start, clip=Clip(norm=20.0, of="row")
            )
            prepared = objective.prepare(prior, batch, whole_batch(6, 1))
            for name in ("x", "score"):
                torch.testing.assert_close(space.project(prepared[name]), prepared[name], rtol=0, atol=1e-12)

    def test_rows_without_a_usable_noise_have_no_weight(self) -> None:
        """Two particles in one place, and noise too small for single precision to part them."""
        x_BD = lj13().space.project(2.0 * normal(4, 39)).float()
        x_BD[0, 3:6] = x_BD[0, :3]
        objective = DenoisingEnergyMatching(
            target=lj13(),
            schedule=Geometric(sigma_min=1e-9, sigma_max=1e-8),
            samples=5,
            start="batch",
            clip=Clip(norm=20.0, of="particles"),
        )
        prepared = objective.prepare(noise_prior(lj13().space, SCHEDULE), Batch(x_BD=x_BD), whole_batch(4, 1))
        assert prepared["weight"].tolist() == [0.0, 1.0, 1.0, 1.0]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in prepared.tensors.values())


def test_the_gradient_is_that_of_the_loss() -> None:
    flow, batch = plane_flow(), Batch(x_BD=normal(6, 2))
    prepared = PLANE.prepare(flow.prior, batch, whole_batch(6, 3))
    found = PLANE.gradient(flow, prepared)
    predicted_BD = flow.field.score(prepared["tau"], prepared["x"])  # type: ignore[attr-defined]
    loss = (prepared["weight"] * (predicted_BD - prepared["score"]).square().mean(1)).sum()
    expected = torch.autograd.grad(loss, list(flow.parameters()))
    for gradient, known in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, known, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.loss_sum, loss.detach(), rtol=1e-12, atol=0)


def test_the_mean_that_clipping_particles_leaves_does_not_reach_the_gradient() -> None:
    laws = TestPriorOnParticles()
    torch.manual_seed(5)
    flow, objective = laws.make_flow().double(), laws.make_objective()
    prepared = objective.prepare(flow.prior, laws.make_batch(), whole_batch(6, 3))  # type: ignore[arg-type]
    free = Prepared(tensors={**prepared.tensors, "score": dw4().space.project(prepared["score"])})
    assert float((free["score"] - prepared["score"]).abs().max()) > 0.1
    clipped, mean_free = objective.gradient(flow, prepared), objective.gradient(flow, free)
    torch.testing.assert_close(flat(clipped.gradients), flat(mean_free.gradients), rtol=1e-10, atol=1e-10)
    assert float(clipped.loss_sum) > float(mean_free.loss_sum)


class LinearScore(nn.Module):
    """s(tau, x) = -x / (v + h(tau)) with v to be learned: the family of all centred Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.log_v = nn.Parameter(torch.tensor(1.0))

    def forward(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        return -x_BD / (self.log_v.exp() + SCHEDULE.h(tau.to(x_BD).reshape(-1, 1)))


@pytest.mark.parametrize("start", ["batch", "prior"])
def test_the_variance_of_a_gaussian_is_learned_from_its_energy_alone(start: str) -> None:
    target = gmm4(mean=0.0, variance=0.5)
    flow = flow_on(target, LinearScore()).double()
    objective = DenoisingEnergyMatching(
        target=target,
        schedule=SCHEDULE,
        samples=128,
        start=start,  # type: ignore[arg-type]
        clip=None,
    )
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.1, betas=(0.5, 0.9))
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.01, total_iters=60)
    for step in range(60):
        batch = Batch(x_BD=normal(64, 2, seed=step))
        found = gradient_of(objective, flow, batch, whole_batch(64, step))
        for parameter, gradient in zip(flow.parameters(), found.gradients, strict=True):
            parameter.grad = gradient / found.weight
        optimiser.step()
        decay.step()
    learned = float(flow.field.score.log_v.detach().exp())  # type: ignore[attr-defined]
    assert learned == pytest.approx(0.5, rel=0.05)


def test_wrong_options_are_told_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"start='buffer'; write"):
        replace(PLANE, start="buffer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got 'h'; write"):
        replace(PLANE, weighting="h")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"samples=0; write"):
        replace(PLANE, samples=0)
