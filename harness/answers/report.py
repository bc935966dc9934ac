"""Tables for the terminal: the answer at every budget, where the second phase begins to help, and what was saved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.answers.crossover import Crossing, begins_to_help
from harness.answers.frontier import BudgetAnswer, Outcome
from harness.answers.laws import Laws
from harness.answers.question import MetricChoice, Question
from harness.answers.savings import GridCost
from harness.answers.scores import Score
from harness.budget import Currency
from models.estimators import Estimate

NOTHING = "-"


def answer_table(answers: Sequence[BudgetAnswer], question: Question) -> str:
    """For every budget: the best share with the shares it cannot be told from, its score, the two ends, the gain."""
    if not answers:
        return "no budget is reached by the models that were evaluated"
    metric = question.metric
    header = [
        "budget",
        f"best {question.first_title} share",
        f"{metric.title} there",
        f"{question.first_title} only",
        f"{question.second_title} only",
        f"hybrid {'/' if metric.log else '-'} {question.first_title} only",
        *(f"{m.title} there" for m in question.beside),
    ]
    rows = [
        [
            str(a.budget),
            share_text(a),
            score_text(a.best.scores.get(metric.name)),
            _outcome_text(a.first_only, metric),
            _outcome_text(a.second_only, metric),
            difference_text(a.hybrid_vs_first, metric),
            *(score_text(a.best.scores.get(m.name), interval=False) for m in question.beside),
        ]
        for a in answers
    ]
    seeds = sorted({len(a.seeds) for a in answers})
    n = next((s.n for a in answers if (s := a.best.scores.get(metric.name)) is not None), 0)
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    legend = (
        f"{metric.title} on n = {n} test points, mean of {count} seed{'' if seeds == [1] else 's'}; "
        "[ ] 95 % t interval over seeds; share [ ] those not shown to be worse"
    )
    return "\n".join([table(header, rows), legend, *_notes(answers)])


def crossover_table(crossings: Sequence[Crossing], currency: Currency, question: Question) -> str:
    """The two tails of every fork at equal cost, and the first-phase quality from which the second phase wins."""
    if not crossings:
        return f"no fork has both tails, so nothing is known of where {question.second_title} begins to help"
    metric, relation = question.metric, "/" if question.metric.log else "-"
    header = ["fork", f"cost / {currency}", f"{metric.title} at fork", f"{question.second_title} {relation} refinement"]
    rows = [
        [
            f"{c.fork_steps} steps",
            f"{c.fork_cost:.4g}",
            score_text(c.quality, interval=False),
            f"{difference_text(c.difference, metric)}{_mark(c.helps)}",
        ]
        for c in crossings
    ]
    start = begins_to_help(crossings)
    if start is None:
        verdict = f"at no fork is {question.second_title} shown to beat the refinement of {question.first_title}"
    else:
        quality = score_text(start.quality, interval=False)
        verdict = (
            f"{question.second_title} is shown to help from {metric.title} {quality} on "
            f"(after {start.fork_steps} steps of {question.first_title})"
        )
    return "\n".join([table(header, rows), verdict])


def savings_table(costs: Sequence[tuple[str, GridCost]], currency: Currency) -> str:
    """The naive grid against the tree, a row for each kind of grid."""
    header = ["grid", "splits", "budgets", "seeds", "cells", f"each alone / {currency}", f"tree / {currency}", "ratio"]
    rows = [
        [name, *map(str, (c.splits, c.budgets, c.seeds, c.cells)), f"{c.naive:.4g}", f"{c.tree:.4g}", f"{c.ratio:.2f}"]
        for name, c in costs
    ]
    return table(header, rows)


def laws_text(laws: Laws, question: Question, currency: Currency) -> str:
    """The fitted laws with their intervals, or why there are none."""
    fits = (*laws.metrics.items(), ("share", laws.share))
    if all(fit.law is None for _, fit in fits):
        return f"no law is fitted: {laws.share.note}"
    lines = []
    for name, fit in fits:
        title = way_title(name, question)
        if name != "share":
            title = f"{question.metric.title}, {title}"
        if fit.law is None:
            lines.append(f"{title}: {fit.note}")
            continue
        p = {key: interval_text(value) for key, value in fit.law.parameters.items()}
        ratio = f"(B / {fit.law.centre:.3g} {currency})"
        form = f"{p['a']} + {p['b']} log {ratio}" if name == "share" else f"{p['a']} {ratio}^-{p['b']}"
        lines.append(f"{title} = {form}" + (f" + {p['c']}" if "c" in p else ""))
    if laws.verdict is not None:
        v = laws.verdict
        lines.append(
            f"largest budget held out: prediction interval {v.interval_width:.2g} wide, effect {v.effect:.2g}; share "
            f"predicted {percent(v.share_predicted.value)}, found {percent(v.share_found)}, "
            f"plain guess {percent(v.share_guessed)}"
        )
    return "\n".join(dict.fromkeys(lines))


def way_title(name: str, question: Question) -> str:
    """What people call a way of spending a budget."""
    return {
        "share": f"best {question.first_title} share",
        "best": "best split",
        "hybrid": "best hybrid",
        "first_only": f"{question.first_title} only",
        "second_only": f"{question.second_title} only",
    }[name]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces, a rule under the header; the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *(line(row) for row in rows)])


def share_text(answer: BudgetAnswer) -> str:
    """The best share with the smallest and the largest that are not shown to be worse."""
    lo, hi = percent(min(answer.indistinguishable)), percent(max(answer.indistinguishable))
    return f"{percent(answer.best.share)} [{lo}, {hi}]"


def percent(share: float) -> str:
    """Two figures, so that small shares do not read as none."""
    return f"{100 * share:.2g}%" if share < 0.995 else "100%"


def score_text(score: Score | None, *, interval: bool = True) -> str:
    """A score with its interval over seeds; how many seeds diverged where it has no value."""
    if score is None:
        return NOTHING
    if not math.isfinite(score.value):
        return f"{score.diverged}/{len(score.by_seed)} diverged"
    text = f"{score.value:.3g}"
    return f"{text} [{score.seed_lo:.2g}, {score.seed_hi:.2g}]" if interval and math.isfinite(score.seed_lo) else text


def difference_text(difference: Estimate | None, metric: MetricChoice) -> str:
    """A paired difference; as a ratio where the metric is compared by logarithms."""
    if difference is None:
        return NOTHING
    if not math.isfinite(difference.value):
        return difference.reason or NOTHING
    value, lo, hi = (metric.unscaled(v) for v in (difference.value, difference.lo, difference.hi))
    sign = "" if metric.log else "+"
    text = f"{value:{sign}.2g}"
    return f"{text} [{lo:{sign}.2g}, {hi:{sign}.2g}]" if math.isfinite(lo) else text


def interval_text(estimate: Estimate) -> str:
    text = f"{estimate.value:.3g}"
    return f"{text} [{estimate.lo:.3g}, {estimate.hi:.3g}]" if math.isfinite(estimate.lo) else text


def _outcome_text(outcome: Outcome | None, metric: MetricChoice) -> str:
    return (
        NOTHING
        if outcome is None
        else score_text(outcome.scores.get(metric.name), interval=False)
        + (
            f" ({outcome.diverged}/{len(outcome.readings)} diverged)"
            if outcome.diverged > 0 and not outcome.scores
            else ""
        )
    )


def _mark(helps: bool | None) -> str:
    return {True: "  helps", False: "  hurts", None: ""}[helps]


def _notes(answers: Sequence[BudgetAnswer]) -> list[str]:
    """Each note once, with the budgets that it holds for where it does not hold for all."""
    where: dict[str, list[str]] = {}
    for answer in answers:
        for note in answer.notes:
            where.setdefault(note, []).append(str(answer.budget))
    return [
        f"note: {note}" if len(found) == len(answers) else f"note at {', '.join(found)}: {note}"
        for note, found in where.items()
    ]
