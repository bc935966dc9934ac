"""Estimate: a number with its interval; bootstrap of functions of means, and t intervals over seeds.

Shapes: n samples, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student_t

Array = NDArray[np.float64]
Statistic = Callable[[Mapping[str, Array]], Array]

LEVEL = 0.95
REPLICATES = 1000
COUNTS_PER_BLOCK = 2**22
"""Resampling counts held in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, the ends of its 95 % interval, and the number of samples behind it.

    Where no value or interval can be given it is NaN and `reason` says why.
    """

    value: float
    lo: float
    hi: float
    n: int
    reason: str = ""


def undefined(reason: str, *, n: int) -> Estimate:
    """An estimate that is refused."""
    return Estimate(value=np.nan, lo=np.nan, hi=np.nan, n=n, reason=reason)


@dataclass(frozen=True, kw_only=True)
class BootstrapMeans:
    """Means of several columns over the same samples, with bootstrap replicates and leave-one-out values.

    Build it with `of`; any smooth function of the means then has a BCa interval at next to no cost.
    """

    n: int
    means: Mapping[str, Array]
    replicates_R: Mapping[str, Array]
    jackknife_n: Mapping[str, Array]

    @staticmethod
    def of(columns_n: Mapping[str, ArrayLike], *, seed: int, replicates: int = REPLICATES) -> BootstrapMeans:
        """From columns of equal length. One resample serves all of them, so their replicates stay paired."""
        names = list(columns_n)
        table_nK = np.stack([np.asarray(columns_n[name], dtype=np.float64) for name in names], axis=1)
        n = len(table_nK)
        if n < 2:
            raise ValueError(f"an interval needs at least two samples, got {n}; evaluate on more")
        with np.errstate(invalid="ignore"):
            blocks = [counts_Rn @ table_nK / n for counts_Rn in resampling_counts(n, seed, replicates)]
            replicates_RK = np.concatenate(blocks)
            mean_K = table_nK.mean(axis=0)
            jackknife_nK = (n * mean_K - table_nK) / (n - 1)
        return BootstrapMeans(
            n=n,
            means=dict(zip(names, mean_K, strict=True)),
            replicates_R=dict(zip(names, replicates_RK.T, strict=True)),
            jackknife_n=dict(zip(names, jackknife_nK.T, strict=True)),
        )

    def estimate(self, statistic: Statistic) -> Estimate:
        """The function of the means with its bias-corrected and accelerated interval (Efron 1987).

        `statistic` maps named means to the quantity and must broadcast.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = float(statistic(self.means))
            replicates_R, jackknife_n = statistic(self.replicates_R), statistic(self.jackknife_n)
        if not np.isfinite(value):
            return undefined("a sample or the quantity itself is not finite", n=self.n)
        lo, hi = _bca_interval(value, replicates_R, jackknife_n)
        return Estimate(value=value, lo=lo, hi=hi, n=self.n)

    def mean(self, name: str) -> Estimate:
        """The plain mean of one column."""
        return self.estimate(lambda m: m[name])


def resampling_counts(n: int, seed: int, replicates: int = REPLICATES) -> Iterator[Array]:
    """How often each of n samples is drawn in each replicate, in blocks (R, n); the same for the same seed."""
    block = max(1, COUNTS_PER_BLOCK // n)
    for start in range(0, replicates, block):
        yield _counts(n, seed, start, min(block, replicates - start))


# One evaluation asks for the same resample a dozen times: the last few blocks are kept.
@lru_cache(maxsize=4)
def _counts(n: int, seed: int, start: int, rows: int) -> Array:
    rng = np.random.default_rng([seed, start])
    drawn_Rn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    counts_Rn = np.bincount(drawn_Rn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
    counts_Rn.setflags(write=False)
    return counts_Rn


def centred_interval(value: float, replicates_R: Array, *, level: float = LEVEL) -> tuple[float, float]:
    """The spread of the replicates around their own mean, put around the value.

    For distances between samples: resampling adds its own upward bias, which a percentile interval would inherit.
    """
    quantiles = np.quantile(replicates_R, [(1 - level) / 2, (1 + level) / 2]) - replicates_R.mean()
    return float(value + quantiles[0]), float(value + quantiles[1])


def mean_estimate(values_n: ArrayLike, *, seed: int) -> Estimate:
    """The mean of one column with its bootstrap interval."""
    return BootstrapMeans.of({"value": values_n}, seed=seed).mean("value")


def t_interval(values: Sequence[float] | Array, *, level: float = LEVEL) -> Estimate:
    """Mean over seeds with Student's t interval. One seed gives a value without an interval."""
    array = np.asarray(values, dtype=np.float64)
    n = array.size
    if n == 0:
        raise ValueError("a mean over seeds needs at least one seed, got none; run one first")
    if not np.isfinite(array).all():
        return undefined(f"{int((~np.isfinite(array)).sum())} of {n} seeds are not finite", n=n)
    mean = float(array.mean())
    if n == 1:
        return Estimate(value=mean, lo=np.nan, hi=np.nan, n=1, reason="one seed has no spread")
    half = float(student_t.ppf((1 + level) / 2, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Estimate(value=mean, lo=mean - half, hi=mean + half, n=n)


def paired_t_interval(a: Sequence[float] | Array, b: Sequence[float] | Array, *, level: float = LEVEL) -> Estimate:
    """Mean of a - b over seeds that both share, with Student's t interval of the differences."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"paired seeds must match one to one, got {first.size} and {second.size}; keep the shared ones"
        )
    return t_interval(first - second, level=level)


def _bca_interval(value: float, replicates_R: Array, jackknife_n: Array) -> tuple[float, float]:
    below = np.mean(replicates_R < value) + 0.5 * np.mean(replicates_R == value)
    edge = 0.5 / len(replicates_R)
    bias = ndtri(np.clip(below, edge, 1 - edge))
    acceleration = _acceleration(jackknife_n)
    shifted = bias + ndtri(np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    with np.errstate(invalid="ignore"):  # between infinite replicates there is no end to tell
        lo, hi = np.quantile(replicates_R, levels)
    return float(lo), float(hi)


def _acceleration(jackknife_n: Array) -> float:
    """A sixth of the skewness of the jackknife; none where values overflow, as the weights of an untrained flow can."""
    if not np.all(np.isfinite(jackknife_n)):
        return 0.0
    influence_n = jackknife_n.mean() - jackknife_n
    scale = float(np.sum(influence_n**2)) ** 1.5
    return float(np.sum(influence_n**3)) / (6 * scale) if np.isfinite(scale) and scale > 0 else 0.0
