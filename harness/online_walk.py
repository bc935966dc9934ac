"""One online run of one budget: replayed from what the store holds, up to what it asks for next.

Every probe is the beginning of the branch that it may become, so that only what is turned down is spent in vain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.answers.question import MetricChoice
from harness.budget import Budget, Cost
from harness.online_rule import (
    Array,
    Gains,
    Look,
    LookTerms,
    SwitchRule,
    part_of,
    power_of_two_within,
    second_is_better,
    wants_to_leave,
)
from harness.plan import Branch, BranchWork, Phase, Stop, grid_floor
from harness.split import LARGEST_FORK, PlannedCell, Prices, SplitPhases
from models.estimators import Estimate

Verdict = Literal["go on", "second", "refinement"]
GO_ON: Verdict = "go on"
Terms = Callable[[str], Array | None]
"""Per-sample terms of the deciding metric on validation points, by segment; None where it is not judged."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was seen and decided at one octave of the first phase.

    Attributes:
        spent: on the first phase and on all probes so far, these included. worth: of leaving now, on the metric's
            comparison scale. judged: segments that were judged for it.
    """

    steps: int
    probe_steps: int
    spent: Cost
    gains: Gains
    worth: Estimate | None
    verdict: Verdict
    judged: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asks:
    """What must be trained and judged before the run can go on. Branches come after their parents."""

    works: tuple[BranchWork, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that has decided how to spend all that is left.

    Attributes:
        works: the trunk and the branch that finishes. cell: its end. probing: what was turned down.
    """

    works: tuple[BranchWork, ...]
    cell: PlannedCell
    probing: Cost
    looked: tuple[Looked, ...] = field(repr=False)

    @property
    def cost(self) -> Cost:
        """All that was trained, probes included."""
        return self.cell.trunk_cost + self.cell.tail_cost + self.probing


@dataclass(frozen=True, kw_only=True)
class Walk:
    """An online run as a value.

    Args:
        root: hash of the untrained model. prices: of all three phases.
    """

    seed: int
    budget: Budget
    root: str
    phases: SplitPhases
    prices: Prices
    rule: SwitchRule
    metric: MetricChoice

    @property
    def trunk(self) -> Branch:
        return Branch(parent=self.root, phase=self.phases.trunk, seed=self.seed)

    @property
    def probe_steps(self) -> int:
        return self.rule.probe_steps(self.prices.of(self.phases.second), self.budget)

    @property
    def refined_steps(self) -> int:
        """Steps of the refinement that cost what a probe costs."""
        probe = self._amount(self.phases.second, self.probe_steps)
        budget = Budget(amount=probe, currency=self.budget.currency)
        return max(1, self.prices.of(self.phases.refinement).steps_within(budget))

    def next(self, terms: Terms) -> Asks | Ended:
        """Replay the run as far as it has come."""
        looked: list[Looked] = []
        wasted = Cost()
        for steps in self.rule.octaves(self.prices.of(self.phases.trunk), self.budget):
            if not self._affords_look(steps, wasted):
                break
            made = self._look(steps, wasted, looked, terms)
            if isinstance(made, Asks):
                return made
            looked.append(made)
            second, refined = self._probe_cost(), self._refined_cost() if made.gains.over_refinement else Cost()
            if made.verdict != "go on":
                taken = made.verdict == "second"
                return self._end(steps, made.verdict, wasted + (refined if taken else second), looked)
            wasted = wasted + second + refined
        assert not looked, "the last look that is affordable decides"
        return self._end(self._last_fork(), "refinement", Cost(), looked)

    # one look

    def _look(self, steps: int, wasted: Cost, looked: list[Looked], terms: Terms) -> Looked | Asks:
        half, probe = self._second(steps).at(self.probe_steps // 2), self._second(steps).at(self.probe_steps)
        refined = self._refinement(steps).at(self.refined_steps)
        before = self._second(steps // 2).at(self.probe_steps).hash if looked else None
        half_n, probe_n = terms(half.hash), terms(probe.hash)
        if half_n is None or probe_n is None:
            return self._asks(steps, self._second(steps), (half.steps, probe.steps))
        seen = LookTerms(half_n=half_n, probe_n=probe_n, before_n=None if before is None else terms(before))
        octaves = self._octaves_lost(steps, wasted)
        look = Look(seen, self.metric, octaves_lost=octaves)
        spent = self._trunk_cost(steps) + wasted + self._probe_cost()
        judged, verdict = [half.hash, probe.hash], GO_ON
        if wants_to_leave(look, self.rule):
            refined_n = terms(refined.hash)
            if refined_n is None:
                return self._asks(steps, self._refinement(steps), (refined.steps,))
            look = Look(replace(seen, refinement_n=refined_n), self.metric, octaves_lost=octaves)
            judged.append(refined.hash)
            spent, verdict = spent + self._refined_cost(), self._verdict(look)
        return Looked(
            steps=steps,
            probe_steps=probe.steps,
            spent=spent,
            gains=look.gains,
            worth=look.worth_of_leaving,
            verdict=verdict,
            judged=tuple(judged),
        )

    def _verdict(self, look: Look) -> Verdict:
        if second_is_better(look):
            return "second"
        return "refinement" if look.octaves_lost is None else "go on"

    def _octaves_lost(self, steps: int, wasted: Cost) -> float | None:
        """Octaves of the second phase that the next octave of the first would cost; None where it does not fit."""
        if not self._affords_look(2 * steps, wasted + self._probe_cost() + self._refined_cost()):
            return None
        now = self._left(self._trunk_cost(steps) + wasted)
        later = self._left(self._trunk_cost(2 * steps) + wasted + self._probe_cost())
        return math.log2(now / later)

    def _affords_look(self, steps: int, wasted: Cost) -> bool:
        if self.probe_steps == 0:
            return False
        looking = self._probe_cost() + self._refined_cost()
        return self._left(self._trunk_cost(steps) + wasted + looking) >= 0

    # the end

    def _end(self, steps: int, verdict: Verdict, probing: Cost, looked: list[Looked]) -> Ended:
        branch = self._second(steps) if verdict == "second" else self._refinement(steps)
        taken = (self.probe_steps if verdict == "second" else self.refined_steps) if looked else 0
        spent = (self._trunk_cost(steps) + probing).amount(self.budget.currency)
        price = self.prices.of(branch.phase)
        end = max(taken, grid_floor(price.steps_within(self.budget, already_spent=spent)))
        cell = PlannedCell(
            seed=self.seed,
            fork_steps=steps,
            tail=branch.phase.name if end else "",
            tail_steps=end,
            trunk_cost=self._trunk_cost(steps),
            tail_cost=self.prices.cost(branch.phase, end),
            segment=branch.at(end).hash if end else self.trunk.at(steps).hash,
        )
        trunk = BranchWork(branch=self.trunk, stops=(Stop(steps=0), Stop(steps=steps, evaluate=not end)))
        tail = BranchWork(branch=branch, stops=(Stop(steps=end),))
        return Ended(works=(trunk, tail) if end else (trunk,), cell=cell, probing=probing, looked=tuple(looked))

    def _last_fork(self) -> int:
        """Where a run that cannot afford the second phase begins to refine."""
        within = part_of(self.budget, LARGEST_FORK)
        return max(1, power_of_two_within(self.prices.of(self.phases.trunk).steps_within(within)))

    # parts

    def _asks(self, steps: int, branch: Branch, stops: tuple[int, ...]) -> Asks:
        trunk = BranchWork(branch=self.trunk, stops=(Stop(steps=steps, evaluate=False),))
        return Asks(works=(trunk, BranchWork(branch=branch, stops=tuple(Stop(steps=n) for n in stops))))

    def _second(self, steps: int) -> Branch:
        return self._tail(steps, self.phases.second)

    def _refinement(self, steps: int) -> Branch:
        return self._tail(steps, self.phases.refinement)

    def _tail(self, steps: int, phase: Phase) -> Branch:
        return Branch(parent=self.trunk.at(steps).hash, phase=phase, seed=self.seed)

    def _trunk_cost(self, steps: int) -> Cost:
        return self.prices.cost(self.phases.trunk, steps)

    def _probe_cost(self) -> Cost:
        return self.prices.cost(self.phases.second, self.probe_steps)

    def _refined_cost(self) -> Cost:
        return self.prices.cost(self.phases.refinement, self.refined_steps)

    def _amount(self, phase: Phase, steps: int) -> float:
        return self.prices.cost(phase, steps).amount(self.budget.currency)

    def _left(self, spent: Cost) -> float:
        return self.budget.amount - spent.amount(self.budget.currency)


def merged(steps: Sequence[Asks | Ended]) -> list[BranchWork]:
    """The works of several runs of one seed, each branch once with all of its stops, trunks first."""
    stops: dict[str, dict[int, bool]] = {}
    branches: dict[str, Branch] = {}
    for step in steps:
        for work in step.works:
            branches.setdefault(work.branch.hash, work.branch)
            held = stops.setdefault(work.branch.hash, {})
            for stop in work.stops:
                held[stop.steps] = held.get(stop.steps, False) or stop.evaluate
    return [
        BranchWork(branch=branch, stops=tuple(Stop(steps=n, evaluate=e) for n, e in sorted(stops[name].items())))
        for name, branch in branches.items()
    ]
