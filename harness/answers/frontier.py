"""The best split at every budget, read off the surface without winner's bias.

A share is chosen on validation points and reported on test points. What the reported value of the best share is worth
is told by leaving one seed out: for every seed the share is chosen on the others, so that luck in choosing is not
counted as a gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.answers.curves import Curve, Reading, curves_of
from harness.answers.question import MetricChoice, Question
from harness.answers.scores import Score, paired_difference, score_of
from harness.answers.surface import Cell
from harness.budget import Budget
from models.estimators import Estimate


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to split a budget, with a reading for every seed.

    Attributes:
        share: of the budget that the first phase takes: 0 second phase only, 1 first phase only.
        fork_steps: trunk steps before the second phase, None for the first phase only (each seed's better of trunk
            and refined trunk, by its validation points).
    """

    share: float
    fork_steps: int | None
    readings: Mapping[int, Reading]

    @property
    def is_hybrid(self) -> bool:
        return self.fork_steps is not None and self.fork_steps > 0

    @property
    def diverged(self) -> int:
        return sum(r.diverged for r in self.readings.values())

    @property
    def interpolated(self) -> int:
        return sum(r.interpolated for r in self.readings.values())

    def test(self, metric: MetricChoice) -> Score | None:
        return score_of(list(self.readings.values()), metric)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule for choosing among candidates gives on the seeds that it did not see.

    Attributes:
        share: chosen on all seeds' validation points. shares_by_seed: chosen on the other seeds alone.
        readings: of each held-out seed at its share. scores: of these, by metric.
    """

    share: float
    fork_steps: int | None
    shares_by_seed: Mapping[int, float]
    readings: Mapping[int, Reading]
    scores: Mapping[str, Score]

    @property
    def diverged(self) -> int:
        return sum(r.diverged for r in self.readings.values())

    @property
    def interpolated(self) -> int:
        return sum(r.interpolated for r in self.readings.values())


@dataclass(frozen=True, kw_only=True)
class BudgetAnswer:
    """All that the records say about one budget.

    Attributes:
        candidates: by rising share. best: over all of them. hybrid: over those that use both phases.
        first_only, second_only: the ends. indistinguishable: shares that are not shown to be worse than the best.
        hybrid_vs_first, hybrid_vs_second: paired differences over seeds on the metric's comparison scale.
    """

    budget: Budget
    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    best: Outcome
    hybrid: Outcome | None
    first_only: Outcome | None
    second_only: Outcome | None
    indistinguishable: tuple[float, ...]
    hybrid_vs_first: Estimate | None
    hybrid_vs_second: Estimate | None
    notes: tuple[str, ...]


def best_splits(cells: Iterable[Cell], budgets: Sequence[Budget], question: Question) -> tuple[BudgetAnswer, ...]:
    """The answer at every budget that the surface reaches (the others are left out), in the order of the budgets."""
    held = tuple(cells)
    answers = (_answer(curves_of(held, budget.currency), budget, question) for budget in budgets)
    return tuple(answer for answer in answers if answer is not None)


def candidates_at(curves: Sequence[Curve], budget: Budget, question: Question) -> tuple[Candidate, ...]:
    """Every split that any seed has at a budget, by rising share."""
    first: dict[int, list[Reading]] = {}
    second: dict[int, dict[int, Reading]] = {}
    for curve in curves:
        reading = curve.at(budget.amount, budget.currency, question)
        if reading is None:
            continue
        if curve.tail == question.second:
            second.setdefault(curve.fork_steps, {})[curve.seed] = reading
        elif curve.tail in ("", question.refinement):
            first.setdefault(curve.seed, []).append(reading)
    found = [Candidate(share=_share(by_seed), fork_steps=fork, readings=by_seed) for fork, by_seed in second.items()]
    if first:
        better = {seed: min(each, key=lambda r: _loss(r, question.metric)) for seed, each in first.items()}
        found.append(Candidate(share=1.0, fork_steps=None, readings=better))
    return tuple(sorted(found, key=lambda c: c.share))


def choose(candidates: Sequence[Candidate], seeds: Sequence[int], metric: MetricChoice) -> Candidate:
    """The candidate with the best mean on these seeds' validation points; fewer diverged seeds come first.

    A seed may be named several times, as a bootstrap does.
    """

    def rank(candidate: Candidate) -> tuple[int, float]:
        losses = [_loss(candidate.readings[seed], metric) for seed in seeds]
        finite = [loss for loss in losses if math.isfinite(loss)]
        return len(losses) - len(finite), sum(finite) / len(finite) if finite else math.inf

    return min(candidates, key=rank)


def _answer(curves: Sequence[Curve], budget: Budget, question: Question) -> BudgetAnswer | None:
    found = candidates_at(curves, budget, question)
    seeds = _seeds(found)
    complete = tuple(_restricted(c, seeds) for c in found if c.readings.keys() >= set(seeds))
    if not complete:
        return None
    best = _chosen(complete, seeds, question)
    hybrid = _of([c for c in complete if c.is_hybrid], seeds, question)
    first = _of([c for c in complete if c.fork_steps is None], seeds, question)
    second = _of([c for c in complete if c.fork_steps == 0], seeds, question)
    return BudgetAnswer(
        budget=budget,
        seeds=seeds,
        candidates=complete,
        best=best,
        hybrid=hybrid,
        first_only=first,
        second_only=second,
        indistinguishable=tuple(c.share for c in complete if not _shown_worse(c, best, question.metric)),
        hybrid_vs_first=_difference(hybrid, first, question.metric),
        hybrid_vs_second=_difference(hybrid, second, question.metric),
        notes=_notes(found, complete, seeds, best),
    )


def _seeds(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """The seeds whose first-phase-only model reaches the budget; where none does, all that have anything there."""
    everyone = {seed for c in candidates for seed in c.readings}
    reached = {seed for c in candidates if c.fork_steps is None for seed in c.readings}
    return tuple(sorted(reached or everyone))


def _restricted(candidate: Candidate, seeds: Sequence[int]) -> Candidate:
    readings = {seed: candidate.readings[seed] for seed in seeds}
    share = 1.0 if candidate.fork_steps is None else _share(readings)
    return Candidate(share=share, fork_steps=candidate.fork_steps, readings=readings)


def _of(candidates: Sequence[Candidate], seeds: Sequence[int], question: Question) -> Outcome | None:
    return _chosen(candidates, seeds, question) if candidates else None


def _chosen(candidates: Sequence[Candidate], seeds: Sequence[int], question: Question) -> Outcome:
    """Leave one seed out; a lone seed has to choose for itself, on other points than it is judged on.

    A share that diverged at any seed is behind the sound ones for all: to hide that from the seed it happened to would
    leave a budget without a score, and the rate of every share is reported anyway.
    """
    fewest = min(c.diverged for c in candidates)
    sound = [c for c in candidates if c.diverged == fewest]
    overall = choose(sound, seeds, question.metric)
    picks = {s: choose(sound, [o for o in seeds if o != s] or [s], question.metric) for s in seeds}
    readings = {seed: pick.readings[seed] for seed, pick in picks.items()}
    scores = {metric.name: score_of(list(readings.values()), metric) for metric in question.metrics}
    return Outcome(
        share=overall.share,
        fork_steps=overall.fork_steps,
        shares_by_seed={seed: pick.share for seed, pick in picks.items()},
        readings=readings,
        scores={name: score for name, score in scores.items() if score is not None},
    )


def _shown_worse(candidate: Candidate, best: Outcome, metric: MetricChoice) -> bool:
    """Whether the paired interval against the best (each seed's share chosen on the others) lies on the worse side."""
    if candidate.fork_steps == best.fork_steps:
        return False
    if candidate.diverged or best.diverged:
        return candidate.diverged > best.diverged
    difference = paired_difference(candidate.readings, best.readings, metric)
    return difference.lo > 0 if metric.direction == "min" else difference.hi < 0


def _difference(a: Outcome | None, b: Outcome | None, metric: MetricChoice) -> Estimate | None:
    return None if a is None or b is None else paired_difference(a.readings, b.readings, metric)


def _notes(
    found: Sequence[Candidate], complete: Sequence[Candidate], seeds: Sequence[int], best: Outcome
) -> tuple[str, ...]:
    notes = []
    if len(seeds) == 1:
        notes.append("one seed: the share is chosen on its own validation points, and nothing is known about luck")
    elif len(seeds) == 2:
        notes.append("two seeds: no interval over seeds; run at least three, and five for a claim")
    kept = {c.fork_steps for c in complete}
    for candidate in found:
        if candidate.fork_steps not in kept:
            lacking = sorted(set(seeds) - candidate.readings.keys())
            notes.append(f"share {candidate.share:.2f} left out: seeds {lacking} have no model there")
    if best.interpolated:
        notes.append(f"best split: {best.interpolated} of {len(seeds)} readings are interpolated")
    diverged = sum(c.diverged for c in complete)
    if diverged:
        notes.append(f"{diverged} of {len(complete) * len(seeds)} readings diverged and count as the worst")
    return tuple(notes)


def _share(readings: Mapping[int, Reading]) -> float:
    return sum(r.trunk_share for r in readings.values()) / len(readings)


def _loss(reading: Reading, metric: MetricChoice) -> float:
    estimate = reading.validation.get(metric.name)
    return metric.loss(math.nan if estimate is None else estimate.value)
