"""What deciding on the way costs or saves against splits that were fixed beforehand, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.answers.curves import Reading, measured
from harness.answers.frontier import BudgetAnswer
from harness.answers.question import Question
from harness.answers.scores import Score, paired_difference, score_of
from harness.answers.surface import Cell
from harness.budget import Budget
from models.estimators import Estimate


@dataclass(frozen=True, kw_only=True)
class Regret:
    """The online runs of one budget against the surface.

    Attributes:
        online: their test score. against: by the name of a fixed way of spending the budget, its score and the online
            runs' loss less its own, paired over seeds on the metric's comparison scale. A positive one is regret where
            the smaller metric is the better, and so is a negative one where the larger is.
    """

    budget: Budget
    online: Score
    against: Mapping[str, tuple[Score, Estimate]]


def regret_of(cells: Sequence[Cell], answer: BudgetAnswer, question: Question) -> Regret | None:
    """Compare the online runs of a budget, one cell a seed, with the fixed ways of the same budget.

    "best fixed": the share with the best validation metric over all seeds, which no run could know beforehand.
    "of other seeds": every seed at the share that the other seeds' validation points choose.
    """
    readings = {cell.seed: measured(cell, answer.budget.currency, question) for cell in cells}
    online = score_of(list(readings.values()), question.metric)
    if online is None:
        return None
    against = {}
    for name, fixed in fixed_ways(answer, question).items():
        score = score_of([fixed[seed] for seed in sorted(fixed.keys() & readings.keys())], question.metric)
        if score is not None:
            against[name] = (score, paired_difference(readings, fixed, question.metric))
    return Regret(budget=answer.budget, online=online, against=against)


def fixed_ways(answer: BudgetAnswer, question: Question) -> dict[str, Mapping[int, Reading]]:
    """Readings of every seed, by the name of the way."""
    ways: dict[str, Mapping[int, Reading]] = {}
    for candidate in answer.candidates:
        if candidate.fork_steps == answer.best.fork_steps:
            ways["best fixed"] = candidate.readings
    ways["of other seeds"] = answer.best.readings
    ends = ((question.first_title, answer.first_only), (question.second_title, answer.second_only))
    return ways | {f"{title} only": outcome.readings for title, outcome in ends if outcome is not None}


def regret_rows(regrets: Sequence[Regret], question: Question) -> list[dict[str, object]]:
    """A row for every budget and fixed way: both test scores and what lies between them, with t intervals."""
    metric, rows = question.metric, []
    kind = "ratio" if metric.log else "difference"
    for regret in regrets:
        for way, (score, difference) in regret.against.items():
            row: dict[str, object] = {
                "budget": regret.budget.amount,
                "currency": regret.budget.currency.value,
                "against": way,
                "metric": metric.name,
                "seeds": difference.n,
            }
            row |= {f"online{end}": value for end, value in _ends_of(regret.online).items()}
            row |= {f"fixed{end}": value for end, value in _ends_of(score).items()}
            row |= {
                f"{kind}{end}": metric.unscaled(value)
                for end, value in (("", difference.value), ("_seed_lo", difference.lo), ("_seed_hi", difference.hi))
            }
            rows.append(row)
    return rows


def _ends_of(score: Score) -> dict[str, float]:
    known = math.isfinite(score.value)
    return {
        "": score.value,
        "_seed_lo": score.seed_lo if known else math.nan,
        "_seed_hi": score.seed_hi if known else math.nan,
    }
