"""Negative log-likelihood in two conventions, and forward KL divergences, from per-sample log densities.

Data are drawn from the target; r = q / p. Shapes: n samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from models.estimators.estimate import Array, BootstrapMeans, Estimate, mean_estimate, undefined
from models.estimators.weights import LogWeights

SMALLEST_EFFECTIVE_SAMPLE = 100
"""n ESS_p below which the self-normalised forward KL is refused."""

SMALL_LOG_RATIO = 1e-5
"""Below it two terms of the series are exact to rounding, and the direct difference is not."""


def base_constant(degrees_of_freedom: int, prior_std: float) -> float:
    """dof/2 log(2 pi s^2), the constant of the Gaussian base; dof is (N - 1) d on the mean-free subspace."""
    return 0.5 * degrees_of_freedom * float(np.log(2 * np.pi * prior_std**2))


def negative_log_likelihood(log_q_n: ArrayLike, *, seed: int) -> Estimate:
    """-mean log q, with q normalised (Akhound-Sadegh et al. 2024)."""
    return mean_estimate(-np.asarray(log_q_n, dtype=np.float64), seed=seed)


def negative_log_likelihood_no_constant(
    log_q_n: ArrayLike, *, degrees_of_freedom: int, prior_std: float, seed: int
) -> Estimate:
    """The same less the constant of the Gaussian base (Klein et al. 2023): mean of |x0|^2 / (2 s^2) + logdet."""
    constant = base_constant(degrees_of_freedom, prior_std)
    return mean_estimate(-np.asarray(log_q_n, dtype=np.float64) - constant, seed=seed)


def forward_kl(log_q_n: ArrayLike, energy_n: ArrayLike, *, log_z: float, seed: int) -> Estimate:
    """KL(p | q) with known Z: mean of r - 1 - log r, each term non-negative and zero where q = p."""
    return mean_estimate(divergence_terms(_log_ratio(log_q_n, energy_n) + log_z), seed=seed)


def forward_kl_self_normalised(log_q_n: ArrayLike, energy_n: ArrayLike, *, seed: int) -> Estimate:
    """log mean r - mean log r with unknown Z: a diagnostic only, blind to model mass away from the data.

    Refused (NaN, with the reason) where n ESS_p is below 100.
    """
    log_r_n = _log_ratio(log_q_n, energy_n)
    n = log_r_n.size
    if not np.isfinite(log_r_n).all():
        return undefined(f"{int((~np.isfinite(log_r_n)).sum())} of {n} log ratios are not finite", n=n)
    effective = n * LogWeights.from_samples(-log_r_n).ess_p
    if effective < SMALLEST_EFFECTIVE_SAMPLE:
        return undefined(f"n ESS_p is {effective:.3g}, below {SMALLEST_EFFECTIVE_SAMPLE}", n=n)
    shift = log_r_n.max()
    table = BootstrapMeans.of({"r": np.exp(log_r_n - shift), "log": log_r_n - shift}, seed=seed)
    return table.estimate(lambda m: np.log(m["r"]) - m["log"])


def divergence_terms(log_r_n: Array) -> Array:
    """r - 1 - log r of each sample, without the cancellation near r = 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        series_n = log_r_n**2 * (0.5 + log_r_n / 6)
        return np.where(np.abs(log_r_n) < SMALL_LOG_RATIO, series_n, np.expm1(log_r_n) - log_r_n)


def _log_ratio(log_q_n: ArrayLike, energy_n: ArrayLike) -> Array:
    return np.asarray(log_q_n, dtype=np.float64) + np.asarray(energy_n, dtype=np.float64)
