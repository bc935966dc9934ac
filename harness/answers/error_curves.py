"""Errors of a method against what it costs, sample by sample, for several plans: rows, tables, and equal errors.

Shapes: S costs, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.answers.equal_error import EqualError, equal_errors
from harness.answers.figure_changes import Curve
from harness.answers.report import table
from harness.answers.scores import seed_interval
from models.estimators import Estimate, mean_estimate
from models.estimators.median import median_estimate

Array = NDArray[np.float64]
RESOLVED = 3.0
"""An error this many times the reference's own is told from it."""


@dataclass(frozen=True, kw_only=True)
class ErrorCurve:
    """The error of one quantity of one plan's model.

    Attributes:
        way: which of several ways the error was measured in. steps, costs: rising, one for each row of errors.
        errors_SB: of every sample. floor: the median error of the reference itself: less is not resolved.
    """

    plan: str
    seed: int
    way: str
    quantity: str
    steps: tuple[int, ...]
    costs: tuple[float, ...]
    errors_SB: Array
    floor: float

    @property
    def medians(self) -> Array:
        return np.median(self.errors_SB, axis=1)


def curve_rows(curves: Sequence[ErrorCurve], *, cost: str) -> list[dict[str, Any]]:
    """A row for every curve and number of steps: median and mean with bootstrap intervals over samples."""
    rows = []
    for curve in curves:
        for steps, amount, errors_B in zip(curve.steps, curve.costs, curve.errors_SB, strict=True):
            row = {"plan": curve.plan, "seed": curve.seed, "way": curve.way, "quantity": curve.quantity}
            row |= {"steps": steps, cost: amount}
            for name, e in (("median", median_estimate(errors_B, seed=0)), ("mean", mean_estimate(errors_B, seed=0))):
                row |= {name: e.value, f"{name}_eval_lo": e.lo, f"{name}_eval_hi": e.hi}
            rows.append(row | {"n": len(errors_B), "floor": curve.floor})
    return rows


def drawn_curves(curves: Sequence[ErrorCurve]) -> list[Curve]:
    """Medians against cost with their intervals, for every plan and seed."""
    found = []
    for curve in curves:
        medians = [median_estimate(errors_B, seed=0) for errors_B in curve.errors_SB]
        found.append(
            Curve(
                label=curve.plan,
                x=curve.costs,
                y=[e.value for e in medians],
                lo=[e.lo for e in medians],
                hi=[e.hi for e in medians],
            )
        )
    return found


def error_table(curves: Sequence[ErrorCurve], way: str, *, cost: str) -> str:
    """Median errors in one way, a row for every number of steps: the geometric mean over seeds."""
    held = [curve for curve in curves if curve.way == way]
    if not held:
        return ""
    columns = list(dict.fromkeys((curve.plan, curve.quantity) for curve in held))
    header = ["steps", cost, *(f"{quantity}, {plan}" for plan, quantity in columns)]
    rows = []
    for i, (steps, amount) in enumerate(zip(held[0].steps, held[0].costs, strict=True)):
        values = [geometric_mean([c.medians[i] for c in held if (c.plan, c.quantity) == column]) for column in columns]
        rows.append([str(steps), f"{amount:.0f}", *(f"{value:.2e}" for value in values)])
    floors = [geometric_mean([c.floor for c in held if (c.plan, c.quantity) == column]) for column in columns]
    return table(header, [*rows, ["reference", "", *(f"{value:.2e}" for value in floors)]])


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What two plans pay for one error of one quantity, for one seed."""

    first: str
    second: str
    seed: int
    way: str
    quantity: str
    steps: int
    equal: EqualError


def speeds(curves: Sequence[ErrorCurve]) -> list[Speed]:
    """The first plan against every other one, at each error that was measured of the first and is resolved for both."""
    found = []
    first_plan = curves[0].plan if curves else ""
    for first in (curve for curve in curves if curve.plan == first_plan):
        for second in curves:
            same = (second.seed, second.way, second.quantity) == (first.seed, first.way, first.quantity)
            if second.plan == first_plan or not same:
                continue
            place = {"first": first.plan, "second": second.plan, "seed": first.seed, "way": first.way}
            for equal in equal_errors(first.costs, first.errors_SB, second.errors_SB, seed=0):
                if equal.error > RESOLVED * max(first.floor, second.floor):
                    steps = first.steps[first.costs.index(equal.first_cost)]
                    found.append(Speed(**place, quantity=first.quantity, steps=steps, equal=equal))  # type: ignore[arg-type]
    return found


def speed_rows(found: Sequence[Speed], *, cost: str) -> list[dict[str, Any]]:
    """A row for every equal error. `speed_up` is the first plan's cost over the second's."""
    return [
        {
            "first": s.first,
            "second": s.second,
            "seed": s.seed,
            "way": s.way,
            "quantity": s.quantity,
            "error": s.equal.error,
            f"first_{cost}": s.equal.first_cost,
            f"second_{cost}": s.equal.second_cost,
            "second_interpolated": s.equal.interpolated,
            "speed_up": s.equal.ratio.value,
            "speed_up_eval_lo": s.equal.ratio.lo,
            "speed_up_eval_hi": s.equal.ratio.hi,
            "speed_up_n": s.equal.ratio.n,
        }
        for s in found
    ]


def speed_table(found: Sequence[Speed], way: str, *, cost: str) -> str:
    """Costs at equal error in one way; geometric means over the seeds that have them."""
    header = ["against", "error of", "error", f"{cost}, first", f"{cost}, second*", "speed-up", "seeds"]
    groups: dict[tuple[str, str, str, int], list[Speed]] = {}
    for s in found:
        if s.way == way:
            groups.setdefault((s.first, s.second, s.quantity, s.steps), []).append(s)
    rows = []
    for (first, second, quantity, _), held in groups.items():
        error, other = (geometric_mean([getattr(s.equal, name) for s in held]) for name in ("error", "second_cost"))
        cells = [f"{error:.2e}", f"{held[0].equal.first_cost:.0f}", f"{other:.1f}", ratio_text(held), str(len(held))]
        rows.append([f"{first} / {second}", quantity, *cells])
    return table(header, rows) if rows else "no error of the first plan lies within the curve of another"


def ratio_text(held: Sequence[Speed]) -> str:
    """With its interval: over samples for one seed, over seeds for three and more."""
    if len(held) == 1:
        return _with_ends(held[0].equal.ratio)
    e = seed_interval([math.log(s.equal.ratio.value) for s in held])
    return _with_ends(Estimate(value=math.exp(e.value), lo=math.exp(e.lo), hi=math.exp(e.hi), n=e.n))


def geometric_mean(values: Sequence[float]) -> float:
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(values))))


def _with_ends(e: Estimate) -> str:
    return f"{e.value:.2f} [{e.lo:.2f}, {e.hi:.2f}]" if math.isfinite(e.lo) else f"{e.value:.2f}"
