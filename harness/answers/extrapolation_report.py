"""A law's prediction beside what was found: text for the terminal, rows for other programs."""

from __future__ import annotations

import math
from typing import Any

from harness.answers.extrapolation import Comparison, Prediction, Trial, told_metrics
from harness.answers.frontier import Candidate
from harness.answers.question import MetricChoice, Question
from harness.answers.report import difference_text, percent, score_text, table, way_title
from harness.answers.scores import Score
from models.estimators import Estimate

ANSWERS = {True: "yes", False: "no", None: "-"}


def prediction_text(told: Prediction, question: Question) -> str:
    """What was said beforehand."""
    share, fitted = told.share, told.fitted
    interval = f" [{percent(share.lo)}, {percent(share.hi)}]" if math.isfinite(share.lo) else ""
    lines = [
        f"told before any model of {told.budget} was read, from {len(fitted)} budgets between {fitted[0]} and "
        f"{fitted[-1]} ({len(told.seeds)} seeds): best {question.first_title} share {percent(share.value)}{interval}; "
        f"at {fitted[-1]} it was {percent(told.share_before)}"
    ]
    for metric in told_metrics(question):
        for way, estimate in told.metrics[metric.name].items():
            lines.append(f"  {metric.title}, {way_title(way, question)}: {estimate_text(estimate, metric)}")
    lines += [f"  no law of {name}: {note}" for name, note in told.notes.items()]
    return "\n".join(lines)


def trial_text(trial: Trial, question: Question) -> str:
    """What was found, law by law and split by split, and whether the law was worth following."""
    parts = [comparison_table(trial, question), split_table(trial, question)]
    parts += [gain_text(trial, metric) for metric in told_metrics(question)]
    return "\n\n".join(parts)


def comparison_table(trial: Trial, question: Question) -> str:
    """Every law: predicted, found, inside or not, and the interval's width against the gap."""
    header = [f"at {trial.answer.budget}", "predicted", "found", "inside", "interval width", "gap", "narrower"]
    rows = [
        [
            f"{c.metric.title}, {way_title(c.way, question)}",
            estimate_text(c.predicted, c.metric),
            found_text(c.found, c.metric),
            ANSWERS[c.inside],
            width_text(c, c.width),
            width_text(c, c.gap),
            ANSWERS[c.useful],
        ]
        for c in trial.comparisons
    ]
    legend = (
        "predicted [ ]: 95 % prediction interval of the mean over as many seeds; found [ ]: over seeds; gap: between "
        f"the best hybrid and {question.first_title} only; of a metric compared by logarithms, widths are factors"
    )
    return "\n".join([table(header, rows), legend])


def split_table(trial: Trial, question: Question) -> str:
    """Every split that was run at the budget."""
    metrics = told_metrics(question)
    header = [f"{question.first_title} share", *(m.title for m in metrics), ""]
    rows = [
        [percent(c.share), *(found_text(c.test(metric), metric) for metric in metrics), _role(trial, c)]
        for c in trial.answer.candidates
    ]
    return table(header, rows)


def gain_text(trial: Trial, metric: MetricChoice) -> str:
    """Whether the law's split beat the guess, in a sentence."""
    if trial.gains is None:
        return f"{metric.title}: the law chose the same split as the guess, {percent(trial.predicted.share)}"
    relation = "/" if metric.log else "-"
    verdict = {True: "the law is better", False: "the law is worse", None: "they cannot be told apart"}
    n = trial.gains[metric.name].n
    return (
        f"{metric.title}: predicted split ({percent(trial.predicted.share)}) {relation} same share as before "
        f"({percent(trial.same.share)}) {difference_text(trial.gains[metric.name], metric)}, paired over {n} seeds: "
        f"{verdict[trial.beats_guess(metric)]}"
    )


def trial_rows(trial: Trial) -> list[dict[str, Any]]:
    """A row for every law."""
    return [
        {
            "metric": c.metric.name,
            "way": c.way,
            "budget": trial.answer.budget.amount,
            "currency": trial.answer.budget.currency.value,
            "seeds": len(trial.answer.seeds),
            "predicted": c.predicted.value,
            "predicted_lo": c.predicted.lo,
            "predicted_hi": c.predicted.hi,
            "found": c.found.value,
            "found_seed_lo": c.found.seed_lo,
            "found_seed_hi": c.found.seed_hi,
            "found_n": c.found.n,
            "inside": c.inside,
            "interval_width": c.width,
            "gap": c.gap,
            "narrower": c.useful,
        }
        for c in trial.comparisons
    ]


def estimate_text(e: Estimate, metric: MetricChoice) -> str:
    """With digits enough for a plain metric, whose differences are small beside its value."""
    digits = 3 if metric.log else 5
    text = f"{e.value:.{digits}g}"
    return f"{text} [{e.lo:.{digits}g}, {e.hi:.{digits}g}]" if math.isfinite(e.lo) else text


def found_text(score: Score | None, metric: MetricChoice) -> str:
    if score is None or not math.isfinite(score.value):
        return score_text(score)
    over_seeds = Estimate(value=score.value, lo=score.seed_lo, hi=score.seed_hi, n=len(score.by_seed))
    return estimate_text(over_seeds, metric)


def width_text(c: Comparison, width: float) -> str:
    if not math.isfinite(width):
        return "-"
    return f"x {math.exp(width):.3g}" if c.metric.log else f"{width:.3g}"


def _role(trial: Trial, candidate: Candidate) -> str:
    best = trial.answer.best.fork_steps
    roles = {"predicted": trial.predicted.fork_steps, "same share as before": trial.same.fork_steps}
    roles["best of these"] = best
    return ", ".join(name for name, fork in roles.items() if fork == candidate.fork_steps)
