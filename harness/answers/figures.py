"""Pictures of a study: the surface, the frontier with its best share, and the metric against the share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from harness.answers.curves import curves_of, is_diverged
from harness.answers.figure_style import (
    BAND,
    BEST,
    FAINT,
    FIRST,
    HYBRID,
    INK,
    QUIET,
    SECOND,
    cost_label,
    finish,
    fork_colours,
    new_figure,
    styled,
)
from harness.answers.frontier import BudgetAnswer
from harness.answers.question import MetricChoice, Question
from harness.answers.report import percent
from harness.answers.scores import Score
from harness.answers.surface import Cell
from harness.budget import Budget, Currency

NOTHING_YET = "No trained model has been evaluated at a budget yet."

# The best split is one of the others, so it is drawn thin on top of them.
WAYS = (
    ("first_only", FIRST, "o", 3.4),
    ("second_only", SECOND, "s", 3.4),
    ("hybrid", HYBRID, "^", 3.4),
    ("best", BEST, "D", 1.3),
)


@styled
def draw_surface(
    path: Path, cells: Iterable[Cell], budgets: Sequence[Budget], question: Question, metric: MetricChoice | None = None
) -> None:
    """Metric on test points against total cost: trunk and both kinds of tail, coloured by where they fork.

    Args:
        metric: that of the question if left out.
    """
    held, shown, currency = list(cells), metric or question.metric, budgets[0].currency
    figure, axes = new_figure(1, 2, height=4.6, sharex=True, sharey=True)
    if not any(c.cost(currency) > 0 for c in held):
        finish(figure, path, NOTHING_YET)
        return
    titles = (f"{question.second_title} after {question.first_title}", f"{question.first_title} refined instead")
    for axis, tail, title in zip(axes, (question.second, question.refinement), titles, strict=True):
        axis.set_title(title)
        _curves(axis, held, tail, currency, question, shown)
        _costs_axis(axis, budgets)
    _metric_axis(axes[0], shown)
    _fork_bar(figure, axes, held, currency, question)
    finish(figure, path, _surface_caption(held, shown))


@styled
def draw_frontier(path: Path, answers: Sequence[BudgetAnswer], question: Question) -> None:
    """Above: the ends and the best split at every budget. Below: the best share with those it cannot be told from."""
    figure, (scores, shares) = new_figure(2, 1, height=6.8, heights=(1.5, 1.0), sharex=True)
    if not answers:
        finish(figure, path, NOTHING_YET)
        return
    _frontier(scores, answers, question)
    _best_share(shares, answers, question)
    shares.set_xlabel(cost_label(answers[0].budget.currency, "budget"))
    n = {s.n for a in answers if (s := a.best.scores.get(question.metric.name)) is not None}
    seeds = {len(a.seeds) for a in answers}
    finish(
        figure,
        path,
        f"Bars: 95 % t interval over {_seeds(seeds)}; test points n = {_span(n)}. Shares chosen on validation "
        "points of the other seeds. Open markers: interpolated. Band: shares not shown to be worse than the best.",
    )


@styled
def draw_shares(path: Path, answers: Sequence[BudgetAnswer], question: Question) -> None:
    """The metric against the share of the first phase, a line for every budget; a ring around the chosen share."""
    figure, (axis,) = new_figure(1, 1, height=4.8)
    if not answers:
        finish(figure, path, NOTHING_YET)
        return
    colours = fork_colours()(np.linspace(0, 1, max(2, len(answers))))
    for answer, colour in zip(answers, colours, strict=False):
        scores = [(c.share, c.test(question.metric)) for c in answer.candidates]
        known = [(share, s) for share, s in scores if s is not None and math.isfinite(s.value)]
        _with_bars(axis, [x for x, _ in known], [s for _, s in known], colour, "o", str(answer.budget))
        chosen = next((s for share, s in known if share == answer.best.share), None)
        if chosen is not None:
            axis.plot(answer.best.share, chosen.value, "o", ms=13, mfc="none", mec=colour, mew=1.6)
    _metric_axis(axis, question.metric)
    axis.set_xlabel(f"share of the budget spent on {question.first_title}")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(color=FAINT, lw=0.7)
    axis.legend(title="budget", loc="center left", bbox_to_anchor=(1.0, 0.5))
    seeds = {len(a.seeds) for a in answers}
    finish(figure, path, f"Mean of {_seeds(seeds)} on test points, 95 % t interval over seeds. Ring: best share.")


def _curves(
    axis: Axes, cells: Sequence[Cell], tail: str, currency: Currency, question: Question, metric: MetricChoice
) -> None:
    curves = curves_of(cells, currency)
    norm, colours = _fork_norm(cells, currency), fork_colours()
    for fork in sorted({c.fork_steps for c in curves if c.tail == tail}):
        members = [c for c in curves if c.tail == tail and c.fork_steps == fork]
        cost = members[0].cells[0].trunk_cost.amount(currency)
        colour = SECOND if cost <= 0 else colours(norm(cost))
        paths = [[*([c.start] if c.start else []), *c.cells] for c in members]
        _bundle(axis, paths, currency, question, metric, colour)
    trunks = [list(c.cells) for c in curves if c.tail == ""]
    _bundle(axis, trunks, currency, question, metric, QUIET, label=f"{question.first_title} trunk", width=2.6)
    axis.legend(loc="best")


def _bundle(
    axis: Axes,
    paths: Sequence[Sequence[Cell]],
    currency: Currency,
    question: Question,
    metric: MetricChoice,
    colour: object,
    *,
    label: str = "",
    width: float = 1.8,
) -> None:
    """A thin line for every seed and a strong one for their mean, where all seeds have a value."""
    values: dict[float, list[float]] = {}
    for path in paths:
        points = [
            (c.cost(currency), c.test[metric.name].value)
            for c in path
            if c.cost(currency) > 0 and metric.name in c.test and not is_diverged(c, question)
        ]
        axis.plot(*np.array(points).reshape(-1, 2).T, color=colour, lw=0.7, alpha=0.35)
        for cost, value in points:
            values.setdefault(cost, []).append(metric.scaled(value))
    means = [(cost, metric.unscaled(float(np.mean(v)))) for cost, v in sorted(values.items()) if len(v) == len(paths)]
    xy = np.array(means).reshape(-1, 2).T
    axis.plot(*xy, color=colour, lw=width, marker="o", ms=3.2, label=label or None, solid_capstyle="round")


def _costs_axis(axis: Axes, budgets: Sequence[Budget]) -> None:
    axis.set_xscale("log")
    axis.set_xlabel(cost_label(budgets[0].currency, "total training cost"))
    for budget in budgets:
        axis.axvline(budget.amount, color=FAINT, lw=1.0, zorder=0)


def _metric_axis(axis: Axes, metric: MetricChoice) -> None:
    drawn = bool(np.isfinite(axis.dataLim.intervaly).all())
    if metric.log and drawn:
        axis.set_yscale("log")
    axis.set_ylabel(f"{metric.title}  ({'lower' if metric.direction == 'min' else 'higher'} is better)")


def _fork_norm(cells: Sequence[Cell], currency: Currency) -> LogNorm:
    costs = [c.trunk_cost.amount(currency) for c in cells if c.tail and c.fork_steps > 0] or [1.0]
    return LogNorm(vmin=min(costs), vmax=max(max(costs), 1.0001 * min(costs)))


def _fork_bar(
    figure: Figure, axes: Sequence[Axes], cells: Sequence[Cell], currency: Currency, question: Question
) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm=_fork_norm(cells, currency), cmap=fork_colours()), ax=list(axes), pad=0.02, aspect=28
    )
    bar.set_label(cost_label(currency, f"{question.first_title} cost at the fork"))
    bar.outline.set_visible(False)
    axes[0].plot([], [], color=SECOND, label="from the untrained model")
    axes[0].legend(loc="best")


def _surface_caption(cells: Sequence[Cell], metric: MetricChoice) -> str:
    seeds, lost = len({c.seed for c in cells}), sum(c.diverged for c in cells)
    n = {c.test[metric.name].n for c in cells if metric.name in c.test}
    mean = "geometric mean" if metric.log else "mean"
    return (
        f"Strong lines: {mean} of {_seeds([seeds])}, thin lines: each seed; test points n = {_span(n)}. "
        f"Vertical lines: budgets. {lost} of {len(cells)} models diverged and are not drawn."
    )


def _frontier(axis: Axes, answers: Sequence[BudgetAnswer], question: Question) -> None:
    titles = {
        "first_only": f"{question.first_title} only (better of trunk and refined)",
        "second_only": f"{question.second_title} only",
        "hybrid": "best hybrid",
        "best": "best split",
    }
    for way, colour, marker, width in WAYS:
        having = [(a.budget.amount, o) for a in answers if (o := getattr(a, way)) is not None]
        points = [(x, o, s) for x, o in having if (s := o.scores.get(question.metric.name)) and math.isfinite(s.value)]
        label = titles[way] if points or not having else f"{titles[way]}: diverged"
        _with_bars(axis, [x for x, _, _ in points], [s for _, _, s in points], colour, marker, label, width=width)
        for x, outcome, score in points:
            if outcome.interpolated:
                axis.plot(x, score.value, marker, ms=3.4 + width, mfc="white", mec=colour, zorder=4)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator([a.budget.amount for a in answers]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda amount, _: f"{amount:.4g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    _metric_axis(axis, question.metric)
    axis.grid(axis="y", color=FAINT, lw=0.7)
    axis.legend(loc="best")
    axis.set_title("What a budget buys")


def _with_bars(
    axis: Axes,
    x: Sequence[float],
    scores: Sequence[Score],
    colour: object,
    marker: str,
    label: str,
    *,
    width: float = 1.8,
) -> None:
    y = np.array([s.value for s in scores])
    below = y - np.array([s.seed_lo for s in scores])
    above = np.array([s.seed_hi for s in scores]) - y
    bars = np.nan_to_num(np.array([below, above]).reshape(2, -1), nan=0.0)
    axis.errorbar(
        x,
        y,
        yerr=bars,
        color=colour,
        marker=marker,
        ms=3.4 + width,
        lw=width,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
        zorder=3,
    )


def _best_share(axis: Axes, answers: Sequence[BudgetAnswer], question: Question) -> None:
    x = [a.budget.amount for a in answers]
    lo, hi = ([pick(a.indistinguishable) for a in answers] for pick in (min, max))
    axis.fill_between(x, lo, hi, color=BAND, alpha=0.45, lw=0, zorder=1)
    for a in answers:
        each = [c.share for c in a.candidates]
        kept = [share in a.indistinguishable for share in each]
        axis.scatter([a.budget.amount] * len(each), each, s=14, c=[INK if k else "#c8c8c8" for k in kept], zorder=2)
    axis.plot(x, [a.best.share for a in answers], color=BEST, marker="D", ms=6, zorder=3)
    for a in answers:
        spot = (a.budget.amount, a.best.share)
        axis.annotate(percent(a.best.share), spot, xytext=(7, 5), textcoords="offset points", fontsize=8.5)
    axis.set_ylim(-0.05, 1.08)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel(f"best {question.first_title} share")
    axis.set_title(f"How much {question.first_title}, how much {question.second_title}")


def _seeds(counts: Iterable[int]) -> str:
    text = _span(counts)
    return f"{text} seed" if text == "1" else f"{text} seeds"


def _span(numbers: Iterable[int]) -> str:
    held = sorted(set(numbers))
    if not held:
        return "0"
    return f"{held[0]}" if len(held) == 1 else f"{held[0]} to {held[-1]}"
