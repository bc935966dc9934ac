"""How far S_K is from the score of a noised mixture, which is known: bias, variance and direction at given points.

A bias of order 1 / K drowns in fluctuations of order 1 / sqrt(K). What fluctuates to first order is known, has mean
zero and is subtracted:

    mean_k p_k / P (v_k - S),    p_k = exp(-E(y_k)), P its expectation, S the exact score, v_k what the form averages.

Shapes: P points, R repeats of each, D coordinates, K noises of each repeat, C components.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.score_estimator import Form, estimate_score, require_samples
from models.targets.gaussian_mixture import GaussianMixture


@dataclass(frozen=True, kw_only=True)
class ScoreErrors:
    """What the repeats at each point say; every tensor has a row a point.

    Attributes:
        bias_square_P: unbiased estimate of |E S_K - S|^2, the product of two halves; below zero where noise is all.
        variance_P: trace of the covariance of S_K. cosine_P: mean cosine of the angle between S_K and S.
        score_square_P: |S|^2.
        weight_square_P: E (p / P)^2, how many noises count as one: 1 / K rules for K well above it.
    """

    bias_square_P: Tensor
    variance_P: Tensor
    cosine_P: Tensor
    score_square_P: Tensor
    weight_square_P: Tensor


@torch.no_grad()
def score_errors(
    target: GaussianMixture, x_PD: Tensor, *, variance: float, samples: int, repeats: int, form: Form, seed: int
) -> ScoreErrors:
    """Errors of `repeats` independent S_K at each point.

    Args:
        x_PD: points, in float64 for biases to be resolved. variance: of the noise, length units squared.
        samples: K. form: of the estimate. seed: of the noise, which is the same for every form.

    Raises:
        ValueError: without a noise, or for fewer than two repeats.
    """
    require_samples(samples)
    if repeats < 2:
        raise ValueError(f"a variance needs two repeats at least, got repeats={repeats}; write for example 32")
    rows_MD, shape = x_PD.repeat(repeats, 1), (repeats, *x_PD.shape)
    h = x_PD.new_tensor(variance)
    estimate = estimate_score(target, rows_MD, h, _noises(rows_MD, samples, seed), form=form)
    estimate_RPD, score_PD = estimate.score_BD.view(shape), target.noised(variance).score(x_PD)
    left_RPD = estimate_RPD - score_PD
    if form != "jensen":
        first_MD = _first_order(target, rows_MD, variance, _noises(rows_MD, samples, seed), form=form)
        left_RPD = left_RPD - (first_MD / samples).view(shape)
    half = repeats // 2
    return ScoreErrors(
        bias_square_P=(left_RPD[:half].mean(dim=0) * left_RPD[half:].mean(dim=0)).sum(dim=1),
        variance_P=estimate_RPD.var(dim=0).sum(dim=1),
        cosine_P=torch.cosine_similarity(estimate_RPD, score_PD.expand(shape), dim=2).mean(dim=0),
        score_square_P=score_PD.square().sum(dim=1),
        weight_square_P=weight_square(target, x_PD, variance),
    )


def weight_square(target: GaussianMixture, x_PD: Tensor, variance: float) -> Tensor:
    """E (p / P)^2, (P,), in closed form: the square of a mixture is the mixture of all products of its components."""
    means_CD, dim = target.means_KD.to(x_PD), target.space.dim
    assert target.weights_K is not None
    log_weight_C = target.weights_K.log().to(x_PD)
    apart_CC = torch.cdist(means_CD, means_CD).square()
    log_pair_CC = log_weight_C[:, None] + log_weight_C - _log_normaliser(dim, 2.0 * target.variance)
    log_pair_CC = log_pair_CC - apart_CC / (4.0 * target.variance)
    width = 0.5 * target.variance + variance
    middle_QD = 0.5 * (means_CD[:, None] + means_CD).flatten(0, 1)
    log_square_PQ = log_pair_CC.flatten() - torch.cdist(x_PD, middle_QD).square() / (2.0 * width)
    log_square_P = torch.logsumexp(log_square_PQ, dim=1) - _log_normaliser(dim, width)
    return torch.exp(log_square_P + 2.0 * target.noised(variance).energy(x_PD))


def _log_normaliser(dim: int, variance: float) -> float:
    return 0.5 * dim * math.log(2.0 * math.pi * variance)


def _first_order(
    target: GaussianMixture, x_MD: Tensor, variance: float, noise: Iterator[Tensor], *, form: Form
) -> Tensor:
    """Sum over the noises of p / P (v - S), (M, D)."""
    exact, deviation = target.noised(variance), math.sqrt(variance)
    log_density_M, score_MD = -exact.energy(x_MD), exact.score(x_MD)
    first_MD = torch.zeros_like(x_MD)
    for noise_MD in noise:
        y_MD = x_MD + deviation * noise_MD
        ratio_M = torch.exp(-target.energy(y_MD) - log_density_M)
        vector_MD = target.score(y_MD) if form == "weighted" else noise_MD / deviation
        first_MD.addcmul_(ratio_M.unsqueeze(1), vector_MD - score_MD)
    return first_MD


def _noises(like_MD: Tensor, samples: int, seed: int) -> Iterator[Tensor]:
    """The same K arrays (M, D) whenever they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randn(like_MD.shape, generator=generator, dtype=like_MD.dtype)
