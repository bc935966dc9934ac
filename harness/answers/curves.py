"""Metric against total cost along one branch, read off at a budget: measured, interpolated, or not at all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.answers.question import MetricChoice, Question
from harness.answers.surface import Cell
from harness.budget import Currency
from harness.plan import grid_floor
from models.estimators import Estimate

MEASURED_BELOW = 0.10
"""A cell that falls short of a budget by no more than this part counts as measured there: the grid's own spacing."""
MEASURED_ABOVE = 0.01


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one branch of one seed gives at a budget.

    Attributes:
        cost: total as-if cost of the model that was read. trunk_share: the trunk's part of it.
        validation, test: estimates by name, empty where the branch has diverged.
        interpolated: lies between two evaluated models. segments: the models that it was read from.
    """

    seed: int
    fork_steps: int
    tail: str
    cost: float
    trunk_share: float
    validation: Mapping[str, Estimate]
    test: Mapping[str, Estimate]
    diverged: bool
    interpolated: bool
    segments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The evaluated models of one branch, cheapest first.

    Attributes:
        start: the trunk's model that a tail starts from, if it was evaluated; None on the trunk.
    """

    seed: int
    fork_steps: int
    tail: str
    cells: tuple[Cell, ...]
    start: Cell | None

    def at(self, amount: float, currency: Currency, question: Question) -> Reading | None:
        """The reading at a total cost; None where no evaluated model lies there or on either side."""
        close = [c for c in self.cells if counts_as_measured(c, amount, currency)]
        if close:
            nearest = min(close, key=lambda c: abs(math.log(c.cost(currency) / amount)))
            return measured(nearest, currency, question)
        points = self.cells if self.start is None else (self.start, *self.cells)
        below = [c for c in points if 0 < c.cost(currency) < amount]
        above = [c for c in points if c.cost(currency) > amount]
        return _interpolated(below[-1], above[0], amount, currency, question) if below and above else None


def counts_as_measured(cell: Cell, amount: float, currency: Currency) -> bool:
    """Whether a model answers a budget itself: it costs nearly that, or no longer branch on the grid of steps fits.

    The second matters where a step is dear: five steps for 84 % of a budget are all that it buys.
    """
    cost = cell.cost(currency)
    if (1 - MEASURED_BELOW) * amount <= cost <= (1 + MEASURED_ABOVE) * amount:
        return True
    steps, own = (cell.tail_steps, cell.tail_cost) if cell.tail else (cell.fork_steps, cell.trunk_cost)
    if steps < 1 or cost > amount:
        return False
    price = own.amount(currency) / steps
    affordable = math.floor((amount - cost) / price + steps + 1e-9) if price > 0 else steps
    return grid_floor(affordable) == steps


def curves_of(cells: Iterable[Cell], currency: Currency) -> tuple[Curve, ...]:
    """All branches of all seeds, in the order seed, fork, tail; the trunk of a seed is its fork 0 without a tail."""
    branches: dict[tuple[int, int, str], list[Cell]] = defaultdict(list)
    starts: dict[tuple[int, int], Cell] = {}
    for cell in cells:
        branches[cell.seed, cell.fork_steps if cell.tail else 0, cell.tail].append(cell)
        if not cell.tail:
            starts[cell.seed, cell.fork_steps] = cell
    return tuple(
        Curve(
            seed=seed,
            fork_steps=fork,
            tail=tail,
            cells=tuple(sorted(found, key=lambda c: c.cost(currency))),
            start=starts.get((seed, fork)) if tail else None,
        )
        for (seed, fork, tail), found in sorted(branches.items())
    )


def is_diverged(cell: Cell, question: Question) -> bool:
    """Marked so, or without a finite value of the metric that the question turns on.

    Raises:
        ValueError: for a cell that was never judged by that metric.
    """
    if cell.diverged:
        return True
    name = question.metric.name
    for split, estimates in (("validation", cell.validation), ("test", cell.test)):
        if name not in estimates:
            known = ", ".join(sorted(estimates)) or "nothing"
            raise ValueError(
                f"every cell must carry the metric asked for, got {known} and no {name} on {split} points of "
                f"{cell.segment}; ask for a metric that the problem estimates"
            )
    return not (math.isfinite(cell.validation[name].value) and math.isfinite(cell.test[name].value))


def measured(cell: Cell, currency: Currency, question: Question) -> Reading:
    """The reading at an evaluated model itself."""
    diverged = is_diverged(cell, question)
    return Reading(
        seed=cell.seed,
        fork_steps=cell.fork_steps,
        tail=cell.tail,
        cost=cell.cost(currency),
        trunk_share=cell.trunk_share(currency),
        validation={} if diverged else cell.validation,
        test={} if diverged else cell.test,
        diverged=diverged,
        interpolated=False,
        segments=(cell.segment,),
    )


def _interpolated(low: Cell, high: Cell, amount: float, currency: Currency, question: Question) -> Reading:
    low_cost, high_cost = low.cost(currency), high.cost(currency)
    weight = math.log(amount / low_cost) / math.log(high_cost / low_cost)
    diverged = is_diverged(low, question) or is_diverged(high, question)
    return Reading(
        seed=high.seed,
        fork_steps=high.fork_steps,
        tail=high.tail,
        cost=amount,
        trunk_share=high.trunk_cost.amount(currency) / amount if high.tail else 1.0,
        validation={} if diverged else _between(low.validation, high.validation, weight, question),
        test={} if diverged else _between(low.test, high.test, weight, question),
        diverged=diverged,
        interpolated=True,
        segments=(low.segment, high.segment),
    )


def _between(
    low: Mapping[str, Estimate], high: Mapping[str, Estimate], weight: float, question: Question
) -> dict[str, Estimate]:
    shared = [name for name in high if name in low]
    return {name: _mixed(low[name], high[name], weight, question.choice(name)) for name in shared}


def _mixed(low: Estimate, high: Estimate, weight: float, metric: MetricChoice) -> Estimate:
    """Ends of intervals are interpolated like values: neighbours share their test points, so they err together."""
    parts = {
        part: _mixed_number(getattr(low, part), getattr(high, part), weight, metric.log)
        for part in ("value", "lo", "hi")
    }
    return Estimate(**parts, n=min(low.n, high.n), reason=high.reason or low.reason)


def _mixed_number(low: float, high: float, weight: float, log: bool) -> float:
    if log and low > 0 and high > 0:
        return low * (high / low) ** weight
    return low + weight * (high - low)
