"""What laws over budgets are worth: fitted to a study's answers, and judged on the largest budget, held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.answers.fit import Fit, fit_power_law, fit_share_law, power_law, share_law, too_few
from harness.answers.frontier import BudgetAnswer, Outcome, choose
from harness.answers.question import MetricChoice, Question
from models.estimators import Estimate

Way = Callable[[BudgetAnswer], Outcome | None]
WAYS: Mapping[str, Way] = {
    "best": lambda a: a.best,
    "hybrid": lambda a: a.hybrid,
    "first_only": lambda a: a.first_only,
    "second_only": lambda a: a.second_only,
}
"""Ways of spending a budget that have a law, by name."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the laws do at the largest budget when they are fitted on the others.

    Attributes:
        predicted, found: the metric of the best split. interval_width: of its prediction, on the comparison scale.
        effect: what the law would have to resolve, |hybrid - first phase only| there, on the same scale.
        useful: whether the interval is narrower than the effect.
        share_predicted, share_found, share_guessed: best share; the plain guess is that of the budget before.
        share_beats_guess: whether the law's share is nearer than the guess; None where both are equally near.
    """

    predicted: Estimate
    found: float
    interval_width: float
    effect: float
    useful: bool
    share_predicted: Estimate
    share_found: float
    share_guessed: float
    share_beats_guess: bool | None


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Every law of a study, each with a note where it is refused.

    Attributes:
        metrics: by way of spending: "best", "hybrid", "first_only", "second_only". share: of the best share.
        verdict: None with `verdict_note` where there are too few budgets to hold one out.
    """

    metrics: Mapping[str, Fit]
    share: Fit
    verdict: Verdict | None
    verdict_note: str


def laws_of(answers: Sequence[BudgetAnswer], question: Question) -> Laws:
    """Power laws of the metric, the law of the best share, and their verdict, from the answers alone."""
    verdict, note = judge(answers, question)
    return Laws(
        metrics={name: metric_fit(answers, way, question.metric) for name, way in WAYS.items()},
        share=share_fit(answers, question),
        verdict=verdict,
        verdict_note=note,
    )


def judge(answers: Sequence[BudgetAnswer], question: Question) -> tuple[Verdict | None, str]:
    """Hold the largest budget out, predict it, and say whether that beats knowing nothing."""
    budgets = [a.budget.amount for a in answers]
    if note := too_few(budgets):
        return None, note
    *known, last = answers
    seeds = _shared_seeds(answers)
    if not seeds or last.hybrid is None or last.first_only is None:
        return None, "a verdict needs hybrids and the first phase alone at the largest budget, with the same seeds"
    by_seed = _values(known, WAYS["best"], question.metric, seeds)
    if any(not math.isfinite(v) for values in by_seed.values() for v in values) or not _finite(last, question):
        return None, "a verdict needs finite values, got diverged models among the best splits"
    law = power_law(budgets[:-1], by_seed, question.metric)
    shares = share_law(budgets[:-1], seeds, _chooser(known, question))
    return _verdict(law.predict(budgets[-1]), shares.predict(budgets[-1]), known[-1], last, question), ""


def _verdict(
    predicted: Estimate, share: Estimate, before: BudgetAnswer, last: BudgetAnswer, question: Question
) -> Verdict:
    metric = question.metric
    width = _scaled(predicted.hi, question) - _scaled(predicted.lo, question)
    effect = abs(last.hybrid_vs_first.value) if last.hybrid_vs_first is not None else math.nan
    law_error, guess_error = abs(share.value - last.best.share), abs(before.best.share - last.best.share)
    return Verdict(
        predicted=predicted,
        found=last.best.scores[metric.name].value,
        interval_width=width,
        effect=effect,
        useful=bool(width < effect),
        share_predicted=share,
        share_found=last.best.share,
        share_guessed=before.best.share,
        share_beats_guess=None if math.isclose(law_error, guess_error, abs_tol=1e-9) else law_error < guess_error,
    )


def _scaled(value: float, question: Question) -> float:
    """A lower end of zero is infinitely far down on a log scale."""
    return -math.inf if question.metric.log and value <= 0 else question.metric.scaled(value)


def _finite(answer: BudgetAnswer, question: Question) -> bool:
    score = answer.best.scores.get(question.metric.name)
    return score is not None and math.isfinite(score.value)


def metric_fit(answers: Sequence[BudgetAnswer], way: Way, metric: MetricChoice) -> Fit:
    """The power law of a metric of one way of spending, over the budgets that allow it."""
    having = [a for a in answers if way(a) is not None]
    budgets = [a.budget.amount for a in having]
    if note := too_few(budgets):
        return Fit(law=None, note=note)
    return fit_power_law(budgets, _values(having, way, metric, _shared_seeds(having)), metric)


def share_fit(answers: Sequence[BudgetAnswer], question: Question) -> Fit:
    """The law of the best share, chosen by the question's metric."""
    budgets, seeds = [a.budget.amount for a in answers], _shared_seeds(answers)
    if note := too_few(budgets):
        return Fit(law=None, note=note)
    if not seeds:
        return Fit(law=None, note="a law of the best share needs a seed that reaches every budget; there is none")
    return fit_share_law(budgets, seeds, _chooser(answers, question))


def _values(
    answers: Sequence[BudgetAnswer], way: Way, metric: MetricChoice, seeds: Sequence[int]
) -> dict[int, list[float]]:
    """The metric's value of every seed at every budget; NaN where it has none."""
    values: dict[int, list[float]] = {seed: [] for seed in seeds}
    for answer in answers:
        outcome = way(answer)
        score = None if outcome is None else outcome.scores.get(metric.name)
        for seed in seeds:
            values[seed].append(math.nan if score is None else score.by_seed.get(seed, math.nan))
    return values


def _chooser(answers: Sequence[BudgetAnswer], question: Question) -> Callable[[Sequence[int]], NDArray[np.float64]]:
    def best_share(seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.array([choose(a.candidates, seeds, question.metric).share for a in answers])

    return best_share


def _shared_seeds(answers: Sequence[BudgetAnswer]) -> tuple[int, ...]:
    sets = [set(a.seeds) for a in answers]
    return tuple(sorted(set.intersection(*sets))) if sets else ()
