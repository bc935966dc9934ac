"""Denoising energy matching: regress a score network on scores estimated from the energy alone.

Akhound-Sadegh et al. 2024: iDEM where clean rows come from a buffer of the model's own samples, pDEM where they come
from the noise distribution. Noise time tau is 0 at the data and 1 at the noise, against flow time t = 1 - tau.

Shapes: B batch, D coordinates, K noises of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Target, Work, parameter_gradients
from models.fields.known_score import asked_of_target
from models.schedules import Schedule, Score
from models.score_estimator import Clip, Form, estimate_score, require_samples

Start = Literal["batch", "prior"]
Weighting = Literal["one", "variance"]
SMALLEST_WIDTH = 1e-6
"""Of noise that scores are measured in, length units: below it there is none to speak of."""

FIELD_EVALUATIONS_PER_SAMPLE = 2
"""One forward and one backward pass of the network."""
VARIANCE_OFFSET = 1e-3
"""Added to h(tau) where it is the weight, so that the cleanest rows count as well; for lengths of order one."""


@dataclass(frozen=True, kw_only=True)
class NoisedPoints:
    """Noised rows and what the network should say there.

    Attributes:
        tau_B: noise times in [0, 1). x_BD: noised rows. score_BD: the clipped estimate S_K. weight_B: lambda(tau), zero
            in rows whose estimate had no usable noise.
    """

    tau_B: Tensor
    x_BD: Tensor
    score_BD: Tensor
    weight_B: Tensor


@dataclass(frozen=True, kw_only=True)
class DenoisingEnergyMatching:
    """E lambda(tau) |s(tau, x_tau) - clip(S_K(x_tau))|^2 with x_tau = x_0 + sqrt(h(tau)) eps, tau uniform on [0, 1).

    The loss of a sample is the mean over its D components. Its flow has a `field.score(tau, x)`, as the
    `ProbabilityFlow` of a score network has.

    Args:
        target: gives energies and scores. schedule: of the noise. samples: K.
        start: where x_0 comes from. "batch": the rows of the batch, a replay buffer's (iDEM). "prior": the flow's
            prior, which stands for the noise distribution N(0, h(1)); of the batch only the number of rows counts
            (pDEM).
        clip: of S_K, None for none. Clipped particle by particle it is not mean-free, which adds a
            constant to the loss of a mean-free network and nothing to its gradient.
        weighting: lambda(tau) = 1, or "variance": h(tau) + variance_offset, as the published code weights mixtures.
        variance_offset: length units squared.
        form: of the estimate; others than "weighted" for ablation only.
        blend: length over which the estimate goes over to the ratio form, see `estimate_score`. Without it S_K is
            biased by a multiple of the score where noise is much wider than a mode, whatever K is affordable.
        noise_clip: of S_K times the width of the noise, after `clip`. The exact score times it is minus the mean of the
            noise given the noised row: seldom longer than a few, where estimates far out are off by decades.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    """What is dear are energies, which belong on the device that the weights are on."""
    prepares_globally: ClassVar[bool] = False

    target: Target
    schedule: Schedule
    samples: int
    start: Start
    clip: Clip | None
    weighting: Weighting = "one"
    form: Form = "weighted"
    blend: float | None = None
    noise_clip: Clip | None = None
    variance_offset: float = VARIANCE_OFFSET

    def __post_init__(self) -> None:
        require_samples(self.samples)
        if self.blend is not None and not self.blend > 0.0:
            raise ValueError(
                f"estimates are blended over a positive length, got blend={self.blend}; write the width of a mode"
            )
        if self.start not in ("batch", "prior"):
            raise ValueError(
                f"clean rows come from the 'batch' or from the 'prior', got start={self.start!r}; write start='batch'"
            )
        if self.weighting not in ("one", "variance"):
            raise ValueError(f"a weighting is 'one' or 'variance', got {self.weighting!r}; write weighting='one'")

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """Noised rows and estimated scores: nothing here depends on the weights."""
        points, work = self.draw(prior, batch.x_BD, random)
        tensors = {"tau": points.tau_B, "x": points.x_BD, "score": points.score_BD, "weight": points.weight_B}
        return Prepared(tensors=tensors, work=work)

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        """Gradient of the regression, summed over the prepared rows."""
        points = NoisedPoints(
            tau_B=prepared["tau"], x_BD=prepared["x"], score_BD=prepared["score"], weight_B=prepared["weight"]
        )
        loss_sum = score_regression_loss(flow.field.score, points).sum()
        n = len(prepared)
        work = Work(samples=n, field_evaluations=FIELD_EVALUATIONS_PER_SAMPLE * n)
        return GradientSum(
            gradients=parameter_gradients(loss_sum, list(flow.parameters())),
            loss_sum=loss_sum.detach(),
            weight=float(n),
            work=prepared.work + work + asked_of_target(flow.field, n),
        )

    def draw(self, prior: Prior, clean_BD: Tensor, random: Random) -> tuple[NoisedPoints, Work]:
        """Clean rows, times, their noise, then K noises of each row, always drawn in this order."""
        space, dim = self.target.space, self.target.space.dim
        x0_BD = clean_BD if self.start == "batch" else prior.from_noise(random.normal(dim, like=clean_BD))
        tau_B = random.uniform(like=clean_BD)
        h_B = self.schedule.h(tau_B)
        x_BD = x0_BD + h_B.sqrt().unsqueeze(1) * space.project(random.normal(dim, like=clean_BD))
        noise = _stream(random, self.samples, x_BD)
        clip = partial(self.clipped, width_B1=h_B.sqrt().clamp_min(SMALLEST_WIDTH).unsqueeze(1))
        estimate = estimate_score(self.target, x_BD, h_B, noise, form=self.form, clip=clip, blend=self.blend)
        weight_B = h_B + self.variance_offset if self.weighting == "variance" else torch.ones_like(h_B)
        weight_B = weight_B * (estimate.usable_B > 0)
        points = NoisedPoints(tau_B=tau_B, x_BD=x_BD, score_BD=estimate.score_BD, weight_B=weight_B)
        return points, estimate.work

    def clipped(self, score_BD: Tensor, width_B1: Tensor) -> Tensor:
        """An estimate in noise of a width, clipped, (B, D)."""
        space = self.target.space
        if self.clip is not None:
            score_BD = self.clip(score_BD, space)
        return score_BD if self.noise_clip is None else self.noise_clip(score_BD * width_B1, space) / width_B1


def score_regression_loss(score: Score, points: NoisedPoints) -> Tensor:
    """Weighted squared error of `score(tau, x)`, averaged over components: (B,)."""
    return points.weight_B * (score(points.tau_B, points.x_BD) - points.score_BD).square().mean(dim=1)


def _stream(random: Random, samples: int, like_BD: Tensor) -> Iterator[Tensor]:
    """K noises (B, D), one at a time: how many are looked at together then changes none of them."""
    for _ in range(samples):
        yield random.normal(like_BD.shape[1], like=like_BD)
