"""The share of samples of a kind, with Wilson's interval."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from models.estimators.estimate import LEVEL, Estimate


def proportion_estimate(count: int, n: int) -> Estimate:
    """count / n with the score interval of Wilson 1927, which holds for small counts too (and 0 of n has a width).

    Samples are taken as independent.

    Errors: ValueError without samples, or for a count that is not between 0 and n.
    """
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"a share is a count of n samples, got {count} of {n}; give at least one sample")
    z = float(ndtri((1 + LEVEL) / 2))
    share, weight = count / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * float(np.sqrt(share * (1 - share) / n + weight / (4 * n)))
    # At the ends rounding must not push the interval off the share itself.
    return Estimate(value=share, lo=min(share, max(0.0, centre - half)), hi=max(share, min(1.0, centre + half)), n=n)
