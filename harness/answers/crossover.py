"""Where the second phase begins to help: at every fork, the two tails set against each other at equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.answers.curves import Curve, Reading, curves_of, measured
from harness.answers.question import MetricChoice, Question
from harness.answers.scores import Score, paired_difference, score_of
from harness.answers.surface import Cell
from harness.budget import Currency
from models.estimators import Estimate


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The two tails of one fork.

    Attributes:
        fork_cost: of the trunk up to the fork. quality: test score of the trunk there, None if it was not judged.
        cost: total cost at which the tails are compared, the last that all seeds' tails reach.
        difference: second - refinement over paired seeds, on the metric's comparison scale.
        helps: True or False where the interval excludes zero, None where it cannot be told.
    """

    fork_steps: int
    fork_cost: float
    quality: Score | None
    cost: float
    difference: Estimate
    helps: bool | None


def crossover(cells: Iterable[Cell], currency: Currency, question: Question) -> tuple[Crossing, ...]:
    """One crossing a fork that has both tails, cheapest fork first; only seeds that have both are compared."""
    curves = curves_of(cells, currency)
    forks = sorted({c.fork_steps for c in curves if c.tail == question.second})
    crossings = (_crossing(curves, fork, currency, question) for fork in forks)
    return tuple(crossing for crossing in crossings if crossing is not None)


def begins_to_help(crossings: Sequence[Crossing]) -> Crossing | None:
    """The earliest fork from which the second phase beats the refinement beyond doubt, None if there is none."""
    return next((crossing for crossing in crossings if crossing.helps), None)


def _crossing(curves: Sequence[Curve], fork: int, currency: Currency, question: Question) -> Crossing | None:
    sides = [
        {c.seed: c for c in curves if c.fork_steps == fork and c.tail == tail}
        for tail in (question.second, question.refinement)
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    cost = min(side[seed].cells[-1].cost(currency) for side in sides for seed in seeds)
    second, refined = (
        {seed: reading for seed in seeds if (reading := side[seed].at(cost, currency, question))} for side in sides
    )
    difference = paired_difference(second, refined, question.metric)
    return Crossing(
        fork_steps=fork,
        fork_cost=sides[0][seeds[0]].cells[0].trunk_cost.amount(currency),
        quality=_quality([sides[0][seed] for seed in seeds], currency, question),
        cost=cost,
        difference=difference,
        helps=_helps(difference, second, refined, question.metric),
    )


def _quality(tails: Sequence[Curve], currency: Currency, question: Question) -> Score | None:
    starts = [tail.start for tail in tails if tail.start is not None]
    readings = [measured(start, currency, question) for start in starts]
    return score_of(readings, question.metric) if readings else None


def _helps(
    difference: Estimate, second: dict[int, Reading], refined: dict[int, Reading], metric: MetricChoice
) -> bool | None:
    lost_second, lost_refined = (sum(r.diverged for r in side.values()) for side in (second, refined))
    if lost_second > lost_refined:
        return False
    better, worse = (difference.hi < 0, difference.lo > 0)
    if metric.direction == "max":
        better, worse = worse, better
    return True if better else False if worse else None
