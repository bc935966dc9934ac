"""A law put to the test: what laws fitted up to one budget say of a larger one, and what was then found there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.answers.frontier import BudgetAnswer, Candidate
from harness.answers.laws import WAYS, metric_fit, share_fit
from harness.answers.question import MetricChoice, Question
from harness.answers.scores import Score, paired_difference
from harness.budget import Budget, Currency
from models.estimators import Estimate


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is said of a budget before anything is trained there.

    Attributes:
        budget: that is told of. fitted: budgets that the laws were fitted on. seeds: that they were fitted with.
        share: of the first phase in the best split, with its prediction interval.
        share_before: best share at the largest fitted budget: the plain guess.
        metrics: by metric and way of spending ("best" and others): the mean over as many seeds, with its interval.
        notes: why a law was refused, by "metric, way".
    """

    budget: Budget
    fitted: tuple[Budget, ...]
    seeds: tuple[int, ...]
    share: Estimate
    share_before: float
    metrics: Mapping[str, Mapping[str, Estimate]]
    notes: Mapping[str, str]

    @staticmethod
    def from_plain(value: Mapping[str, Any]) -> Prediction:
        metrics = {
            name: {way: Estimate(**estimate) for way, estimate in ways.items()}
            for name, ways in value["metrics"].items()
        }
        return Prediction(
            budget=_budget(value["budget"]),
            fitted=tuple(map(_budget, value["fitted"])),
            seeds=tuple(value["seeds"]),
            share=Estimate(**value["share"]),
            share_before=value["share_before"],
            metrics=metrics,
            notes=value["notes"],
        )


def predict(answers: Sequence[BudgetAnswer], budget: Budget, question: Question) -> Prediction:
    """Fit laws to the answers and read them off at a budget.

    Raises:
        ValueError: where the best share has no law: too few budgets, too small a range, no seed that reaches all.
    """
    share = share_fit(answers, question).law
    if share is None:
        raise ValueError(share_fit(answers, question).note)
    metrics: dict[str, dict[str, Estimate]] = {}
    notes: dict[str, str] = {}
    for metric in told_metrics(question):
        metrics[metric.name] = {}
        for way, pick in WAYS.items():
            fit = metric_fit(answers, pick, metric)
            if fit.law is None:
                notes[f"{metric.name}, {way}"] = fit.note
            else:
                metrics[metric.name][way] = fit.law.predict(budget.amount)
    return Prediction(
        budget=budget,
        fitted=tuple(answer.budget for answer in answers),
        seeds=tuple(sorted(set.intersection(*(set(answer.seeds) for answer in answers)))),
        share=share.predict(budget.amount),
        share_before=answers[-1].best.share,
        metrics=metrics,
        notes=notes,
    )


def told_metrics(question: Question) -> tuple[MetricChoice, ...]:
    """What laws are fitted to: the metric that decides, and the quality where that is another."""
    quality = question.choice(question.quality or question.metric.name)
    return (question.metric,) if quality.name == question.metric.name else (question.metric, quality)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One law against what was found.

    Attributes:
        inside: whether the mean that was found lies in the prediction interval; None where either is missing.
        width: of the prediction interval, on the comparison scale. gap: |hybrid - first phase only| that was found at
            the same budget, on the same scale: what a law must resolve to be of use.
    """

    metric: MetricChoice
    way: str
    predicted: Estimate
    found: Score
    inside: bool | None
    width: float
    gap: float

    @property
    def useful(self) -> bool | None:
        """Whether the interval is narrower than the gap; None where either is unknown."""
        return self.width < self.gap if math.isfinite(self.width) and math.isfinite(self.gap) else None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found at the budget that a prediction told of.

    Attributes:
        answer: all that was run there. predicted, same: the split that the law chose, and that of the same share as
            before. comparisons: laws against findings.
        gaps: hybrid - first phase only, by metric. gains: predicted split - same share, by metric (negative is better
            for a metric whose smaller values are); both paired over seeds, on the comparison scale. None of the second
            where both are one split.
    """

    prediction: Prediction
    answer: BudgetAnswer
    predicted: Candidate
    same: Candidate
    comparisons: tuple[Comparison, ...]
    gaps: Mapping[str, Estimate]
    gains: Mapping[str, Estimate] | None

    def beats_guess(self, metric: MetricChoice) -> bool | None:
        """Whether the law's split is shown to be better (True) or worse (False) than the guess; None where neither."""
        gain = None if self.gains is None else self.gains[metric.name]
        if gain is None or not (gain.hi < 0 or gain.lo > 0):
            return None
        return gain.hi < 0 if metric.direction == "min" else gain.lo > 0


def judge_prediction(
    prediction: Prediction, answer: BudgetAnswer, question: Question, *, predicted: int | None, same: int | None
) -> Trial:
    """Set a prediction against the answer at its budget.

    Args:
        predicted, same: fork steps of the split that the law chose and of the guess; None for the first phase only.

    Raises:
        ValueError: where one of these splits was not run by every seed.
    """
    metrics = told_metrics(question)
    chosen, guess = candidate_of(answer, predicted), candidate_of(answer, same)
    gaps = {}
    if answer.hybrid is not None and answer.first_only is not None:
        hybrid, first = answer.hybrid.readings, answer.first_only.readings
        gaps = {metric.name: paired_difference(hybrid, first, metric) for metric in metrics}
    gains = {m.name: paired_difference(chosen.readings, guess.readings, m) for m in metrics}
    return Trial(
        prediction=prediction,
        answer=answer,
        predicted=chosen,
        same=guess,
        comparisons=tuple(_comparisons(prediction, answer, chosen, gaps, metrics)),
        gaps=gaps,
        gains=None if chosen.fork_steps == guess.fork_steps else gains,
    )


def candidate_of(answer: BudgetAnswer, fork_steps: int | None) -> Candidate:
    """The split that forks after so many steps.

    Raises:
        ValueError: where it was not run by every seed.
    """
    for candidate in answer.candidates:
        if candidate.fork_steps == fork_steps:
            return candidate
    known = ", ".join("first phase only" if c.fork_steps is None else str(c.fork_steps) for c in answer.candidates)
    raise ValueError(
        f"a prediction is judged by its own split, got forks after {known} steps at {answer.budget} and none after "
        f"{fork_steps}; run the same command again, which trains what is missing"
    )


def _comparisons(
    prediction: Prediction,
    answer: BudgetAnswer,
    chosen: Candidate,
    gaps: Mapping[str, Estimate],
    metrics: Sequence[MetricChoice],
) -> list[Comparison]:
    """The law of the best split is held against the split that it chose, the others against their own ways."""
    found = []
    for metric in metrics:
        for way, told in prediction.metrics[metric.name].items():
            score = chosen.test(metric) if way == "best" else _score(answer, way, metric)
            if score is not None:
                gap = abs(gaps[metric.name].value) if metric.name in gaps else math.nan
                found.append(_comparison(metric, way, told, score, gap))
    return found


def _score(answer: BudgetAnswer, way: str, metric: MetricChoice) -> Score | None:
    outcome = WAYS[way](answer)
    return None if outcome is None else outcome.scores.get(metric.name)


def _comparison(metric: MetricChoice, way: str, told: Estimate, score: Score, gap: float) -> Comparison:
    known = all(map(math.isfinite, (told.lo, told.hi, score.value)))
    on_scale = known and not (metric.log and told.lo <= 0)
    return Comparison(
        metric=metric,
        way=way,
        predicted=told,
        found=score,
        inside=told.lo <= score.value <= told.hi if known else None,
        width=metric.scaled(told.hi) - metric.scaled(told.lo) if on_scale else math.nan,
        gap=gap,
    )


def _budget(value: Mapping[str, Any]) -> Budget:
    return Budget(amount=value["amount"], currency=Currency(value["currency"]))
