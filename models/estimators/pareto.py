"""Pareto k-hat: how heavy the right tail of importance weights is, so how far to trust them.

The tail is fitted by a generalised Pareto distribution: the quasi-Bayesian fit of Zhang and Stephens 2009, with the
tail length and the weak prior of Vehtari et al. 2024. Below 0.7 importance sampling is reliable; moments of order
1/k and above do not exist.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from models.estimators.estimate import Array, Estimate, undefined

SHORTEST_TAIL = 5
PRIOR_SAMPLES, PRIOR_SHAPE = 10, 0.5
GRID_QUARTILE_SCALE = 3


def pareto_k(log_w_n: ArrayLike) -> Estimate:
    """k-hat of the weights exp(log_w), with the normal interval of the shape (variance (1 + k)^2 / tail length)."""
    lw = np.asarray(log_w_n, dtype=np.float64)
    n, tail = lw.size, int(np.ceil(min(0.2 * lw.size, 3 * np.sqrt(lw.size))))
    if tail < SHORTEST_TAIL:
        return undefined(f"a tail fit needs {SHORTEST_TAIL} samples in the tail, got {tail}", n=n)
    if np.isnan(lw).any() or not np.isfinite(lw.max()):
        return undefined("the largest log weight is not finite", n=n)
    w_sorted = np.exp(np.sort(lw)[-tail - 1 :] - lw.max())
    excess_M = w_sorted[1:] - w_sorted[0]
    if not excess_M[SHORTEST_TAIL // 2] > 0:
        return undefined("the largest weights are all equal, there is no tail", n=n)
    k = (tail * generalised_pareto_shape(excess_M) + PRIOR_SAMPLES * PRIOR_SHAPE) / (tail + PRIOR_SAMPLES)
    half = 1.96 * (1 + max(k, -0.5)) / np.sqrt(tail)
    return Estimate(value=float(k), lo=float(k - half), hi=float(k + half), n=n)


def generalised_pareto_shape(excess_M: Array) -> float:
    """Shape k of positive exceedances in ascending order (k > 0: a heavy tail), Zhang and Stephens 2009."""
    m = len(excess_M)
    grid = 30 + int(np.sqrt(m))
    quartile = excess_M[int(m / 4 + 0.5) - 1]
    steps_G = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    theta_G = 1 / excess_M[-1] + steps_G / (GRID_QUARTILE_SCALE * quartile)
    k_G = np.log1p(-theta_G[:, None] * excess_M).mean(axis=1)
    log_likelihood_G = m * (np.log(-theta_G / k_G) - k_G - 1)
    weight_G = np.exp(log_likelihood_G - log_likelihood_G.max())
    theta = float(theta_G @ weight_G / weight_G.sum())
    return float(np.log1p(-theta * excess_M).mean())
