"""Choosing settings before the study: the trunk's on trunks, then each tail's on tails of the best trunk.

The scalar is the mean over budgets of the validation metric (its logarithm where the question says so) at the best
share. Both tails get as many trials as the trunk, so that no plan is better tuned than another. Seeds of the
tuning are not seeds of the study: the study itself is the joint confirmation on fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.budget import Budget
from harness.contracts import FloatRange, Search, SearchSpace, Suggestion
from harness.plan import Branch, BranchWork, Phase, Stop
from harness.split import Prices, SplitPhases, cuts, fork_points

TUNING_SEED = 1_000_003
"""Far from the seeds that people give."""
RUNGS = 2
"""A trial is judged at its middle budget first, and pruned there if it lags."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How much to tune.

    Args:
        trials: settings tried for each of the three phases.
        factor: learning rates are searched from recipe / factor to recipe * factor.
        batch: suggestions made and trained together.
        forks: forks that tails are tuned on.
    """

    trials: int
    factor: float = 5.0
    batch: int = 4
    forks: int = 2

    def __post_init__(self) -> None:
        if self.trials < 2:
            raise ValueError(
                f"tuning needs at least two trials a phase, got {self.trials}; write --tune 8 or leave it out"
            )

    def space(self, phase: Phase) -> SearchSpace:
        rate = phase.optimiser.learning_rate
        return {"learning_rate": FloatRange(low=rate / self.factor, high=rate * self.factor, log=True)}


def with_settings(phase: Phase, values: Mapping[str, Any]) -> Phase:
    """The phase with suggested settings put in: learning_rate, batch, or a key of its objective."""
    for name, value in values.items():
        if name == "learning_rate":
            phase = replace(phase, optimiser=replace(phase.optimiser, learning_rate=value))
        elif name == "batch":
            phase = replace(phase, batch=value)
        else:
            phase = replace(phase, objective={**phase.objective, name: value})
    return phase


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Turns finished segments into the scalar that a search minimises."""

    value: Callable[[str], float]
    """Validation metric of a segment, smaller is better, on the scale that is averaged; infinite if diverged."""
    budgets: Sequence[Budget]
    prices: Prices

    def score(self, ways: Sequence[tuple[float, BranchWork]], upto: int) -> float:
        """Mean over the first `upto` budgets of the best value among the branches.

        Args:
            ways: branches with the cost spent before each.
        """
        best = []
        for budget in self.budgets[:upto]:
            found = []
            for spent, work in ways:
                end = cuts(self.prices.of(work.branch.phase), [budget], already_spent=spent)
                if end and any(stop.steps == end[0] for stop in work.stops):
                    found.append(self.value(work.branch.at(end[0]).hash))
            best.append(min(found, default=math.inf))
        return sum(best) / len(best)


@dataclass(frozen=True, kw_only=True)
class PhaseSearch:
    """The search for one phase's settings: which branches a suggestion means."""

    phase: Phase
    parents: Sequence[tuple[float, str]]
    """Cost spent before, and hash, of the states that the phase starts from."""
    search: Search
    tuning: Tuning
    judge: Judge

    def works(self, suggestion: Suggestion, upto: int) -> list[tuple[float, BranchWork]]:
        phase = with_settings(self.phase, suggestion.values)
        price = self.judge.prices.of(phase)
        found = []
        for spent, parent in self.parents:
            ends = cuts(price, self.judge.budgets[:upto], already_spent=spent)
            if ends:
                branch = Branch(parent=parent, phase=phase, seed=TUNING_SEED)
                found.append((spent, BranchWork(branch=branch, stops=tuple(Stop(steps=n) for n in ends))))
        return found

    def rounds(self) -> Iterator[Sequence[BranchWork]]:
        """Rounds of branches to train. Advance only when the round before is in the store."""
        while suggestions := self._ask():
            alive = suggestions
            for rung in rungs(len(self.judge.budgets)):
                works = {s.number: self.works(s, rung) for s in alive}
                yield [work for ways in works.values() for _, work in ways]
                alive = self._judge(alive, works, rung)

    def _ask(self) -> list[Suggestion]:
        asked: list[Suggestion] = []
        while len(asked) < self.tuning.batch and (suggestion := self.search.ask()) is not None:
            asked.append(suggestion)
        return asked

    def _judge(
        self, alive: list[Suggestion], works: Mapping[int, list[tuple[float, BranchWork]]], rung: int
    ) -> list[Suggestion]:
        """Tell what is finished or pruned, report what is not; those that go on."""
        last = rung == len(self.judge.budgets)
        going = []
        for suggestion in alive:
            score = self.judge.score(works[suggestion.number], rung)
            value = score if math.isfinite(score) else None
            if last or value is None:
                self.search.tell(suggestion.number, value)
            elif self.search.report(suggestion.number, rung, value):
                self.search.tell(suggestion.number, None)
            else:
                going.append(suggestion)
        return going

    @property
    def best_phase(self) -> Phase:
        best = self.search.best
        return self.phase if best is None else with_settings(self.phase, best.values)


def rungs(budgets: int) -> tuple[int, ...]:
    """How many budgets each rung sees: about half, then all."""
    return tuple(sorted({max(1, budgets // RUNGS), budgets}))


def tune(
    phases: SplitPhases,
    *,
    root: str,
    tuning: Tuning,
    judge: Judge,
    make_search: Callable[[str, SearchSpace], Search],
    done: Callable[[SplitPhases], None],
) -> Iterator[Sequence[BranchWork]]:
    """Rounds of branches that tune the trunk, then both tails; `done` gets the chosen phases."""
    on_trunks = PhaseSearch(
        phase=phases.trunk,
        parents=[(0.0, root)],
        search=make_search("trunk", tuning.space(phases.trunk)),
        tuning=tuning,
        judge=judge,
    )
    yield from on_trunks.rounds()
    trunk = on_trunks.best_phase
    branch = Branch(parent=root, phase=trunk, seed=TUNING_SEED)
    forks = fork_points(judge.prices.of(trunk), judge.budgets, max(tuning.forks, 2))
    yield [BranchWork(branch=branch, stops=tuple(Stop(steps=n, evaluate=False) for n in forks))]
    currency = judge.budgets[0].currency
    parents = [(judge.prices.cost(trunk, n).amount(currency), branch.at(n).hash) for n in forks]
    chosen = []
    for phase in (phases.second, phases.refinement):
        search = make_search(phase.name, tuning.space(phase))
        on_tails = PhaseSearch(phase=phase, parents=parents, search=search, tuning=tuning, judge=judge)
        yield from on_tails.rounds()
        chosen.append(on_tails.best_phase)
    done(SplitPhases(trunk=trunk, second=chosen[0], refinement=chosen[1]))
