"""One metric over seeds: its mean with two kinds of interval that are never mixed, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.answers.curves import Reading
from harness.answers.question import MetricChoice
from models.estimators import Estimate, paired_t_interval, t_interval

SEEDS_FOR_INTERVAL = 3
"""Two seeds have a spread, but Student's interval of it is thirteen standard errors wide: it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over seeds, on its own scale (a geometric mean where it is compared by logarithms).

    Attributes:
        seed_lo, seed_hi: 95 % t interval over seeds. NaN where there are too few, or where a seed diverged.
        eval_lo, eval_hi: what the finite number of test points leaves open: the mean of the seeds' own intervals, as
            if all erred together, which shared test points make nearly true.
        n: test points behind each seed's value. by_seed: NaN where the seed diverged.
        reason: why a number is missing, or "".
    """

    value: float
    seed_lo: float
    seed_hi: float
    eval_lo: float
    eval_hi: float
    n: int
    by_seed: Mapping[int, float]
    reason: str = ""

    @property
    def diverged(self) -> int:
        return sum(not math.isfinite(v) for v in self.by_seed.values())


def score_of(readings: Sequence[Reading], metric: MetricChoice) -> Score | None:
    """The test score of one reading a seed; None where no seed has the metric."""
    found = {r.seed: r.test[metric.name] for r in readings if metric.name in r.test}
    if not found:
        return None
    by_seed = {r.seed: found[r.seed].value if r.seed in found else math.nan for r in readings}
    over_seeds = seed_interval([metric.scaled(v) for v in by_seed.values()])
    return Score(
        value=metric.unscaled(over_seeds.value),
        seed_lo=metric.unscaled(over_seeds.lo),
        seed_hi=metric.unscaled(over_seeds.hi),
        eval_lo=_mean_end([e.lo for e in found.values()], metric) if len(found) == len(by_seed) else math.nan,
        eval_hi=_mean_end([e.hi for e in found.values()], metric) if len(found) == len(by_seed) else math.nan,
        n=min(e.n for e in found.values()),
        by_seed=by_seed,
        reason=over_seeds.reason,
    )


def seed_interval(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its t interval; no interval below three seeds, neither where one diverged."""
    return _honest(t_interval(values), values)


def paired_difference(a: Mapping[int, Reading], b: Mapping[int, Reading], metric: MetricChoice) -> Estimate:
    """a - b on the comparison scale, over the seeds that both have (a log ratio where the metric is logarithmic)."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return Estimate(value=math.nan, lo=math.nan, hi=math.nan, n=0, reason="no seed has both")
    first, second = ([metric.scaled(judged_value(side[s], metric)) for s in seeds] for side in (a, b))
    differences = [x - y for x, y in zip(first, second, strict=True)]
    return _honest(paired_t_interval(first, second), differences)


def judged_value(reading: Reading, metric: MetricChoice) -> float:
    """NaN where the branch diverged or was not judged by the metric."""
    return reading.test[metric.name].value if metric.name in reading.test else math.nan


def _honest(interval: Estimate, values: Sequence[float]) -> Estimate:
    n, lost = len(values), sum(not math.isfinite(v) for v in values)
    if lost:
        return Estimate(value=math.nan, lo=math.nan, hi=math.nan, n=n, reason=f"{lost} of {n} seeds diverged")
    if n < SEEDS_FOR_INTERVAL:
        reason = f"{n} seed{'s' if n > 1 else ''}: an interval over seeds needs at least {SEEDS_FOR_INTERVAL}"
        return Estimate(value=interval.value, lo=math.nan, hi=math.nan, n=n, reason=reason)
    return interval


def _mean_end(ends: Sequence[float], metric: MetricChoice) -> float:
    if metric.log and all(end > 0 for end in ends):
        return float(np.exp(np.mean(np.log(ends))))
    return float(np.mean(ends))
