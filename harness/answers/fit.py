"""Laws over budgets, fitted to records alone: a power law of a metric and a law of the best share.

A law is refitted on every resample of whole seeds (all budgets of a seed stay together), so its interval knows that a
seed's budgets share a trunk.

Shapes: K budgets, S seeds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtri
from scipy.stats import t as student_t

from harness.answers.question import MetricChoice
from harness.answers.scores import SEEDS_FOR_INTERVAL
from models.estimators import Estimate

Array = NDArray[np.float64]

SMALLEST_COUNT = 6
SMALLEST_DECADES = 2.0
MOST_RESAMPLES = 400
LEVEL = 0.95
# An offset must be worth its parameter: that much better by the corrected Akaike criterion.
AKAIKE_MARGIN = 2.0


@dataclass(frozen=True, kw_only=True)
class Law:
    """y = a (B / B0)^-b + c for a metric; y = a + b log(B / B0), held to [0, 1], for a share.

    Attributes:
        kind: "power", "power with offset" or "share". parameters: estimates over seeds by name.
        centre: B0, the geometric mean of the budgets, in the budgets' own unit.
        scatter: standard deviation of the points about the law, on the comparison scale.
        log: whether the comparison scale is logarithmic.
        resampled: parameter vectors of the refits. seeds, budgets: how many there were.
    """

    kind: str
    parameters: Mapping[str, Estimate]
    centre: float
    scatter: float
    log: bool
    resampled: tuple[tuple[float, ...], ...]
    seeds: int
    budgets: tuple[float, ...]

    def predict(self, budget: float) -> Estimate:
        """The mean over as many seeds at another budget, with its 95 % prediction interval.

        The interval holds what resampling seeds moves and how far the points lie from the law; not that the law may
        end outside the budgets it was fitted on.
        """
        theta = np.array([p.value for p in self.parameters.values()])
        value = _value(self.kind, theta, budget / self.centre)
        z = _to_scale(value, self.log)
        if self.seeds < SEEDS_FOR_INTERVAL:
            reason = f"{self.seeds} seeds: an interval needs at least {SEEDS_FOR_INTERVAL}"
            return Estimate(value=value, lo=math.nan, hi=math.nan, n=self.seeds, reason=reason)
        refits_R = [_to_scale(_value(self.kind, np.array(t), budget / self.centre), self.log) for t in self.resampled]
        spread = float(np.std(refits_R)) * math.sqrt(self.seeds / (self.seeds - 1))
        freedom = min(self.seeds - 1, len(self.budgets) - len(theta))
        half = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * math.hypot(spread, self.scatter)
        ends = (_from_scale(z - half, self.log), _from_scale(z + half, self.log))
        lo, hi = np.clip(ends, 0.0, 1.0) if self.kind == "share" else ends
        return Estimate(value=value, lo=float(lo), hi=float(hi), n=self.seeds)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law, or None and the note that says why there is none."""

    law: Law | None
    note: str = ""


def too_few(budgets: Sequence[float]) -> str:
    """Why no law may be fitted on these budgets; "" where one may."""
    count = len(set(budgets))
    decades = math.log10(max(budgets) / min(budgets)) if count else 0.0
    if count >= SMALLEST_COUNT and decades >= SMALLEST_DECADES - 1e-9:
        return ""
    return (
        f"a law needs at least six budgets over two decades, got {count} over {decades:.1f}; "
        "ask for more budgets or a larger range"
    )


def fit_power_law(budgets: Sequence[float], by_seed: Mapping[int, Sequence[float]], metric: MetricChoice) -> Fit:
    """metric = a (B / B0)^-b, with an offset c where the points call for one (always on a linear scale).

    Args:
        budgets: K amounts of one currency, rising. by_seed: K values of each seed.
    """
    note = too_few(budgets) or _unusable(budgets, by_seed)
    return Fit(law=None, note=note) if note else Fit(law=power_law(budgets, by_seed, metric))


def fit_share_law(budgets: Sequence[float], seeds: Sequence[int], best_share: Callable[[Sequence[int]], Array]) -> Fit:
    """best share = a + b log(B / B0), held to [0, 1].

    Args:
        best_share: the best shares at all K budgets as a set of seeds (some named several times) would choose them.
    """
    note = too_few(budgets)
    return Fit(law=None, note=note) if note else Fit(law=share_law(budgets, seeds, best_share))


def power_law(budgets: Sequence[float], by_seed: Mapping[int, Sequence[float]], metric: MetricChoice) -> Law:
    """The fit itself, however few the budgets; see `fit_power_law`."""
    x_K, centre = _centred(budgets)
    z_SK = np.array([[metric.scaled(v) for v in by_seed[seed]] for seed in sorted(by_seed)])
    offset = _needs_offset(x_K, z_SK.mean(axis=0), metric.log)
    kind = "power with offset" if offset else "power"

    def refit(rows: Sequence[int]) -> Array:
        return _fit_power(x_K, z_SK[list(rows)].mean(axis=0), offset, metric.log)

    theta = refit(range(len(z_SK)))
    fitted_K = np.array([_to_scale(_value(kind, theta, x), metric.log) for x in x_K])
    residual_K = z_SK.mean(axis=0) - fitted_K
    names = ("a", "b", "c") if offset else ("a", "b")
    return _law(kind, names, theta, refit, residual_K, len(z_SK), budgets, centre, log=metric.log)


def share_law(budgets: Sequence[float], seeds: Sequence[int], best_share: Callable[[Sequence[int]], Array]) -> Law:
    """The fit itself, however few the budgets; see `fit_share_law`."""
    x_K, centre = _centred(budgets)
    design_K2 = np.stack([np.ones_like(x_K), np.log(x_K)], axis=1)

    def refit(rows: Sequence[int]) -> Array:
        return np.linalg.lstsq(design_K2, best_share([seeds[row] for row in rows]), rcond=None)[0]

    theta = refit(range(len(seeds)))
    residual_K = best_share(list(seeds)) - np.clip(design_K2 @ theta, 0.0, 1.0)
    return _law("share", ("a", "b"), theta, refit, residual_K, len(seeds), budgets, centre, log=False)


def seed_resamples(seeds: int) -> list[tuple[int, ...]]:
    """Resamples of whole seeds: all of them, each as often as it would be drawn, where they are few; else at random."""
    if seeds**seeds <= MOST_RESAMPLES * 8:
        rows = []
        for draw in combinations_with_replacement(range(seeds), seeds):
            orders = math.factorial(seeds) // math.prod(math.factorial(draw.count(i)) for i in set(draw))
            rows += [draw] * orders
        return rows
    rng = np.random.default_rng(seeds)
    return [tuple(int(i) for i in row) for row in rng.integers(seeds, size=(MOST_RESAMPLES, seeds))]


def _law(
    kind: str,
    names: Sequence[str],
    theta: Array,
    refit: Callable[[Sequence[int]], Array],
    residual_K: Array,
    seeds: int,
    budgets: Sequence[float],
    centre: float,
    *,
    log: bool,
) -> Law:
    fitted: dict[tuple[int, ...], Array] = {}
    rows = seed_resamples(seeds) if seeds > 1 else []
    for row in rows:
        if (key := tuple(sorted(row))) not in fitted:
            fitted[key] = refit(key)
    resampled_RP = np.array([fitted[tuple(sorted(row))] for row in rows]).reshape(len(rows), len(theta))
    freedom = max(1, len(residual_K) - len(theta))
    return Law(
        kind=kind,
        parameters={name: _parameter(theta[i], resampled_RP[:, i], seeds) for i, name in enumerate(names)},
        centre=centre,
        scatter=math.sqrt(float(np.sum(residual_K**2)) / freedom),
        log=log,
        resampled=tuple(tuple(float(v) for v in row) for row in resampled_RP),
        seeds=seeds,
        budgets=tuple(budgets),
    )


def _parameter(value: float, resampled_R: Array, seeds: int) -> Estimate:
    """Percentiles widened for few clusters: by sqrt(n / (n - 1)), and Student's t in place of the normal."""
    if seeds < SEEDS_FOR_INTERVAL:
        reason = f"{seeds} seeds: an interval needs at least {SEEDS_FOR_INTERVAL}"
        return Estimate(value=float(value), lo=math.nan, hi=math.nan, n=seeds, reason=reason)
    tail = (1 + LEVEL) / 2
    wider = math.sqrt(seeds / (seeds - 1)) * float(student_t.ppf(tail, seeds - 1) / ndtri(tail))
    lo, hi = np.quantile(resampled_R, [1 - tail, tail])
    return Estimate(
        value=float(value), lo=float(value - wider * (value - lo)), hi=float(value + wider * (hi - value)), n=seeds
    )


def _needs_offset(x_K: Array, z_K: Array, log: bool) -> bool:
    if not log:
        return True

    def akaike(offset: bool) -> float:
        theta = _fit_power(x_K, z_K, offset, log)
        kind = "power with offset" if offset else "power"
        residual_K = z_K - np.array([_to_scale(_value(kind, theta, x), log) for x in x_K])
        n, p = len(x_K), len(theta) + 1
        if n <= p + 1:
            return math.inf
        return n * math.log(max(float(np.mean(residual_K**2)), 1e-24)) + 2 * p + 2 * p * (p + 1) / (n - p - 1)

    return akaike(True) < akaike(False) - AKAIKE_MARGIN


def _fit_power(x_K: Array, z_K: Array, offset: bool, log: bool) -> Array:
    """(a, b) or (a, b, c). Residuals live on the comparison scale; a positive metric has no negative offset."""
    y_K = np.exp(z_K) if log else z_K
    if log:
        slope, intercept = np.polyfit(np.log(x_K), z_K, 1)
        if not offset:
            return np.array([math.exp(intercept), -slope])
        start = np.array([math.log(max(math.exp(intercept) / 2, 1e-12)), max(-slope, 0.1), float(y_K.min()) / 2])
        bounds = ([-np.inf, 0.0, 0.0], [np.inf, 20.0, float(y_K.min())])

        def residual(theta: Array) -> Array:
            return np.log(np.exp(theta[0]) * x_K ** -theta[1] + theta[2] + 1e-300) - z_K

        found = least_squares(residual, start, bounds=bounds).x
        return np.array([math.exp(found[0]), found[1], found[2]])
    return _fit_linear_scale(x_K, y_K)


def _fit_linear_scale(x_K: Array, y_K: Array) -> Array:
    """Given b the law is linear in (a, c), so only b is searched for."""

    def linear(b: float) -> tuple[NDArray[np.floating[Any]], float]:
        design_K2 = np.stack([x_K**-b, np.ones_like(x_K)], axis=1)
        ac, *_ = np.linalg.lstsq(design_K2, y_K, rcond=None)
        return ac, float(np.sum((design_K2 @ ac - y_K) ** 2))

    b = min(np.geomspace(0.02, 8.0, 241), key=lambda trial: linear(float(trial))[1])
    (a, c), _ = linear(float(b))
    return np.array([a, float(b), c])


def _value(kind: str, theta: Array, x: float) -> float:
    if kind == "share":
        return float(np.clip(theta[0] + theta[1] * math.log(x), 0.0, 1.0))
    return float(theta[0] * x ** -theta[1] + (theta[2] if kind == "power with offset" else 0.0))


def _centred(budgets: Sequence[float]) -> tuple[Array, float]:
    b_K = np.asarray(budgets, dtype=np.float64)
    centre = float(np.exp(np.log(b_K).mean()))
    return b_K / centre, centre


def _unusable(budgets: Sequence[float], by_seed: Mapping[int, Sequence[float]]) -> str:
    if not by_seed or any(len(values) != len(budgets) for values in by_seed.values()):
        return f"a law needs a value of every seed at each of the {len(budgets)} budgets; some are missing"
    lost = sum(not math.isfinite(v) for values in by_seed.values() for v in values)
    return f"a law needs finite values, got {lost} of diverged models; leave those budgets out" if lost else ""


def _to_scale(value: float, log: bool) -> float:
    return math.log(max(value, 1e-300)) if log else value


def _from_scale(z: float, log: bool) -> float:
    return math.exp(min(z, 700.0)) if log else z
