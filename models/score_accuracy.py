"""How far S_K is from the score of the noised target, where that is known: bias, variance and direction at points.

A bias of order 1 / K drowns in fluctuations of order 1 / sqrt(K). What fluctuates to first order is known, has mean
zero and is subtracted:

    mean_k p_k / P (v_k - S),    p_k = exp(-E(y_k)), P its expectation, S the exact score, v_k what the form averages.

Shapes: P points, R repeats of each, D coordinates, K noises of each repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.contracts import Target
from models.score_estimator import Form, estimate_score, require_samples


@dataclass(frozen=True, kw_only=True)
class ScoreErrors:
    """What the repeats at each point say; every tensor has a row a point.

    Attributes:
        bias_square_P: unbiased estimate of |E S_K - S|^2, the product of two halves; below zero where noise is all.
        variance_P: trace of the covariance of S_K. cosine_P: mean cosine of the angle between S_K and S.
        score_square_P: |S|^2.
        weight_square_P: estimate of E (p / P)^2, NaN where the form has no weights: 1 / K rules for K well above it.
            Too low where it exceeds all noises together.
    """

    bias_square_P: Tensor
    variance_P: Tensor
    cosine_P: Tensor
    score_square_P: Tensor
    weight_square_P: Tensor


@torch.no_grad()
def score_errors(
    target: Target, exact: Target, x_PD: Tensor, *, variance: float, samples: int, repeats: int, form: Form, seed: int
) -> ScoreErrors:
    """Errors of `repeats` independent S_K at each point.

    Args:
        exact: the target after noise of this variance, normalised as the target is. x_PD: points, in float64 for biases
            to be resolved. variance: of the noise, length units squared. samples: K. form: of the estimate.
        seed: of the noise, which is the same for every form.

    Raises:
        ValueError: without a noise, or for fewer than two repeats.
    """
    require_samples(samples)
    if repeats < 2:
        raise ValueError(f"a variance needs two repeats at least, got repeats={repeats}; write for example 32")
    rows_MD = x_PD.repeat(repeats, 1)
    shape = (repeats, *x_PD.shape)
    h = x_PD.new_tensor(variance)
    estimate = estimate_score(target, rows_MD, h, _noises(rows_MD, samples, seed), form=form)
    estimate_RPD, score_PD = estimate.score_BD.view(shape), exact.score(x_PD)
    left_RPD, weight_square_P = estimate_RPD - score_PD, torch.full_like(x_PD[:, 0], torch.nan)
    if form != "jensen":
        first_MD, square_M = _first_order(target, exact, rows_MD, h, _noises(rows_MD, samples, seed), form=form)
        left_RPD = left_RPD - (first_MD / samples).view(shape)
        weight_square_P = (square_M / samples).view(shape[:2]).mean(dim=0)
    half = repeats // 2
    return ScoreErrors(
        bias_square_P=(left_RPD[:half].mean(dim=0) * left_RPD[half:].mean(dim=0)).sum(dim=1),
        variance_P=estimate_RPD.var(dim=0).sum(dim=1),
        cosine_P=torch.cosine_similarity(estimate_RPD, score_PD.expand(shape), dim=2).mean(dim=0),
        score_square_P=score_PD.square().sum(dim=1),
        weight_square_P=weight_square_P,
    )


def _first_order(
    target: Target, exact: Target, x_MD: Tensor, h: Tensor, noise: Iterator[Tensor], *, form: Form
) -> tuple[Tensor, Tensor]:
    """Sums over the noises of p / P (v - S), (M, D), and of (p / P)^2, (M,)."""
    log_density_M, score_MD = -exact.energy(x_MD), exact.score(x_MD)
    first_MD, square_M = torch.zeros_like(x_MD), torch.zeros_like(log_density_M)
    for noise_MD in noise:
        unit_MD = target.space.project(noise_MD)
        y_MD = x_MD + h.sqrt() * unit_MD
        ratio_M = torch.exp(-target.energy(y_MD) - log_density_M)
        vector_MD = target.score(y_MD) if form == "weighted" else unit_MD / h.sqrt()
        first_MD.addcmul_(ratio_M.unsqueeze(1), vector_MD - score_MD)
        square_M.addcmul_(ratio_M, ratio_M)
    return first_MD, square_M


def _noises(like_MD: Tensor, samples: int, seed: int) -> Iterator[Tensor]:
    """The same K arrays (M, D) whenever they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randn(like_MD.shape, generator=generator, dtype=like_MD.dtype)
