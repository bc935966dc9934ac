"""The median of one column with its bootstrap interval. Shapes: n samples, R replicates."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from models.estimators.estimate import LEVEL, REPLICATES, Array, Estimate, undefined


def resampled_rows(n: int, *, seed: int, replicates: int = REPLICATES) -> np.ndarray:
    """Rows (R, n) drawn with replacement, the same for the same n and seed."""
    return np.random.default_rng(seed).integers(n, size=(replicates, n))


def median_estimate(values_n: ArrayLike, *, seed: int, replicates: int = REPLICATES) -> Estimate:
    """The median with its percentile interval over resamples (BCa needs a smooth statistic, which a median is not).

    Infinite values are larger than all others; NaN makes the median undefined.
    """
    values: Array = np.asarray(values_n, dtype=np.float64)
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs at least two samples, got {n}; evaluate on more")
    if np.isnan(values).any():
        return undefined(f"{int(np.isnan(values).sum())} of {n} samples are not numbers", n=n)
    medians_R = np.median(values[resampled_rows(n, seed=seed, replicates=replicates)], axis=1)
    lo, hi = np.quantile(medians_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="closest_observation")
    return Estimate(value=float(np.median(values)), lo=float(lo), hi=float(hi), n=n)
