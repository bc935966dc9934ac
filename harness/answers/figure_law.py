"""Picture of a law put to the test: the budgets that it was fitted on, its band, and what was found beyond them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from harness.answers.extrapolation import Trial
from harness.answers.figure_style import BEST, FAINT, FIRST, SECOND, cost_label, finish, new_figure, styled
from harness.answers.fit import Law
from harness.answers.frontier import BudgetAnswer
from harness.answers.laws import WAYS, Laws
from harness.answers.question import MetricChoice, Question
from harness.answers.report import way_title
from harness.answers.scores import Score

COLOURS = {"first_only": FIRST, "second_only": SECOND, "best": BEST}
POINTS = 60


@styled
def draw_law(path: Path, answers: Sequence[BudgetAnswer], laws: Laws, trial: Trial, question: Question) -> None:
    """The deciding metric against the budget, for the best split and both ends.

    Args:
        answers, laws: of the fitted budgets. trial: what was found beyond them.
    """
    figure, (axis,) = new_figure(1, 1, height=4.8)
    metric, last = question.metric, trial.answer.budget.amount
    found = {c.way: c.found for c in trial.comparisons if c.metric.name == metric.name}
    for way, colour in COLOURS.items():
        law = laws.metrics[way].law
        if law is not None:
            _band(axis, law, last, colour)
        points = [(a.budget.amount, s) for a in answers if (s := _score(a, way, metric)) is not None]
        _bars(axis, points, colour, "o", way_title(way, question))
        if way in found:
            _bars(axis, [(last, found[way])], colour, "*", "")
    axis.set_xscale("log")
    if metric.log:
        axis.set_yscale("log")
    axis.axvline(answers[-1].budget.amount, color=FAINT, zorder=0)
    axis.set_xlabel(cost_label(trial.answer.budget.currency, "budget"))
    axis.set_ylabel(metric.title)
    axis.legend(loc="best")
    finish(
        figure,
        path,
        f"Dots: fitted budgets, mean of {len(trial.answer.seeds)} seeds on test points with 95 % t intervals. Lines "
        "and bands: laws with 95 % prediction intervals, told before the stars were read. Star of the best split: "
        "the one that the law chose.",
    )


def _score(answer: BudgetAnswer, way: str, metric: MetricChoice) -> Score | None:
    outcome = WAYS[way](answer)
    return None if outcome is None else outcome.scores.get(metric.name)


def _band(axis: Axes, law: Law, last: float, colour: str) -> None:
    budgets = np.geomspace(min(law.budgets), last, POINTS)
    told = [law.predict(float(budget)) for budget in budgets]
    axis.plot(budgets, [e.value for e in told], color=colour, lw=1.2, zorder=2)
    axis.fill_between(budgets, [e.lo for e in told], [e.hi for e in told], color=colour, alpha=0.12, lw=0, zorder=1)


def _bars(axis: Axes, points: Sequence[tuple[float, Score]], colour: str, marker: str, label: str) -> None:
    known = [(x, s) for x, s in points if math.isfinite(s.value)]
    y = np.array([s.value for _, s in known])
    ends = np.array([[s.seed_lo for _, s in known], [s.seed_hi for _, s in known]])
    bars = np.nan_to_num(np.abs(ends - y).reshape(2, -1))
    size = 13 if marker == "*" else 5
    axis.errorbar([x for x, _ in known], y, yerr=bars, fmt=marker, ms=size, color=colour, capsize=2.5, label=label)
