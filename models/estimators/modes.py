"""How many known modes a model's samples reach.

Shapes: n samples, K modes, D coordinates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from models.estimators.estimate import Estimate, centred_interval, resampling_counts, undefined

REACH = 3.0
"""A sample reaches the nearest mode within so many of its standard deviations."""
MODE_REPLICATES = 200


def modes_covered_estimate(x_nD: ArrayLike, modes_KD: ArrayLike, *, width: float, seed: int) -> Estimate:
    """Number of modes that at least one sample reaches, with the spread of that number under resampling.

    Args:
        x_nD: samples. modes_KD: centres. width: standard deviation of a mode in each coordinate.
    """
    x, modes = np.asarray(x_nD, dtype=np.float64), np.asarray(modes_KD, dtype=np.float64)
    n, count = len(x), len(modes)
    if not np.isfinite(x).all():
        return undefined("some samples are not finite", n=n)
    distance_nK = np.linalg.norm(x[:, None] - modes[None], axis=2)
    nearest_n = distance_nK.argmin(axis=1)
    reached_nK = np.zeros((n, count), dtype=np.float32)
    reached_nK[np.arange(n), nearest_n] = distance_nK.min(axis=1) <= REACH * width
    value = float((reached_nK.sum(axis=0) > 0).sum())
    blocks = resampling_counts(n, seed, MODE_REPLICATES)
    replicates_R = np.concatenate([(drawn.astype(np.float32) @ reached_nK > 0).sum(axis=1) for drawn in blocks])
    lo, hi = centred_interval(value, replicates_R.astype(np.float64))
    return Estimate(value=value, lo=min(value, max(lo, 0.0)), hi=max(value, min(hi, float(count))), n=n)
