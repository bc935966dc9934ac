"""What two methods pay for the same error: read off their curves of error against cost.

Shapes: S costs, B samples, R bootstrap replicates. Between two measured costs a curve is interpolated in the logarithms
of both, and nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.estimators import Estimate
from models.estimators.estimate import LEVEL, REPLICATES
from models.estimators.median import resampled_rows

Array = NDArray[np.float64]
FEWEST_REPLICATES = 0.95
"""Share of the replicates in which both curves must reach the error, else there is no interval."""


@dataclass(frozen=True, kw_only=True)
class EqualError:
    """Two costs of one median error.

    Attributes:
        error: of the first method at a cost that was measured. first_cost: that cost.
        second_cost: of the second method at the same error. interpolated: whether it lies between measured costs.
        ratio: first cost over second, with a bootstrap interval over the samples that both share.
    """

    error: float
    first_cost: float
    second_cost: float
    interpolated: bool
    ratio: Estimate


def cost_at(costs_S: Sequence[float], errors_S: Sequence[float] | Array, level: float) -> float:
    """The smallest cost at which the error falls to `level`; NaN where the curve begins below it or never gets there.

    Args:
        costs_S: rising. errors_S: of each cost.
    """
    if errors_S[0] < level:
        return math.nan
    for i in range(1, len(costs_S)):
        above, below = errors_S[i - 1], errors_S[i]
        if below <= level <= above:
            if above == below:
                return float(costs_S[i - 1])
            if below <= 0 or not math.isfinite(above):
                return math.nan
            share = math.log(above / level) / math.log(above / below)
            return math.exp((1 - share) * math.log(costs_S[i - 1]) + share * math.log(costs_S[i]))
    return math.nan


def equal_errors(
    costs_S: Sequence[float], first_SB: Array, second_SB: Array, *, seed: int, replicates: int = REPLICATES
) -> list[EqualError]:
    """The second method's cost at every median error that was measured of the first and that the second passes.

    Args:
        costs_S: rising, the same for both. first_SB, second_SB: errors of the same samples at these costs.
    """
    first_S, second_S = np.median(first_SB, axis=1), np.median(second_SB, axis=1)
    rows_RB = resampled_rows(first_SB.shape[1], seed=seed, replicates=replicates)
    first_RS, second_RS = (np.median(errors_SB[:, rows_RB], axis=2).T for errors_SB in (first_SB, second_SB))
    found = []
    for i, cost in enumerate(costs_S):
        other = cost_at(costs_S, second_S, float(first_S[i]))
        if not math.isfinite(other):
            continue
        pairs = zip(first_RS[:, i], second_RS, strict=True)
        others_R = np.array([cost_at(costs_S, curve_S, float(level)) for level, curve_S in pairs])
        ratio = _ratio(cost, other, others_R, n=first_SB.shape[1])
        measured = any(math.isclose(other, c, rel_tol=1e-12) for c in costs_S)
        found.append(
            EqualError(
                error=float(first_S[i]), first_cost=cost, second_cost=other, interpolated=not measured, ratio=ratio
            )
        )
    return found


def _ratio(cost: float, other: float, others_R: Array, *, n: int) -> Estimate:
    finite_R = others_R[np.isfinite(others_R)]
    if len(finite_R) < FEWEST_REPLICATES * len(others_R):
        reason = f"{len(others_R) - len(finite_R)} of {len(others_R)} resampled curves do not reach the error"
        return Estimate(value=cost / other, lo=math.nan, hi=math.nan, n=n, reason=reason)
    lo, hi = np.quantile(cost / finite_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=cost / other, lo=float(lo), hi=float(hi), n=n)
