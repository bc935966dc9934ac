"""Sweep: a search over settings of a phase or a plan, in which a trial is judged on rungs and hopeless ones end early.

A trial trained to one rung is a segment, and going on is the same branch, so that judging on the way costs no training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.answers.question import Question
from harness.conditions import Acts, is_acting
from harness.contracts import Choice, Ladder, PrunerName, SearchSpace, SearchWithHistory, Suggestion, Told
from harness.identity import Settings, content_hash, plain
from harness.plan import BranchWork, Phase
from harness.session import Setting
from harness.trial import TrialResult, TrialSpec


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Everything that a sweep means. Making one starts nothing.

    Args:
        question: by which metric segments are judged. base: the phase whose settings are varied, None for plans.
        space: what is varied. ladder: steps at which a trial is judged, or multiples of the smallest budget.
        trials: points proposed in all; no part of the identity, so that a sweep can be prolonged.
        startup: random points to begin with. acts: names that act only where another one has some value, by name.
        asks: further settings that tell one sweep from another.
        conditional: whether settings are drawn only where they act, and not only told so.
        objectives: what is minimised; of loss and cost each point is judged once, at a budget of its own.
        first: settings that the first points take. rung_names: what rungs are called, where they are not steps.
    """

    name: str
    question: Question
    setting: Setting
    base: Phase | None
    space: SearchSpace
    ladder: Ladder
    trials: int
    pruner: PrunerName = "successive_halving"
    startup: int = 10
    acts: Acts = field(default_factory=dict)
    asks: Settings = field(default_factory=dict)
    conditional: bool = False
    first: tuple[Settings, ...] = ()
    rung_names: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("loss",)

    def __post_init__(self) -> None:
        if self.trials < 2:
            raise ValueError(f"a sweep has at least two trials, got {self.trials}; write for example --trials 30")
        if not self.space:
            raise ValueError("a sweep varies one setting or more, got all fixed; leave one of them open")
        if self.startup < 1:
            raise ValueError(f"a sweep begins with one random point or more, got {self.startup}; write --startup 10")

    @property
    def id(self) -> str:
        value = plain(self)
        del value["trials"], value["rung_names"]
        for name in ("conditional", "first"):
            if not value[name]:
                del value[name]
        if self.objectives == ("loss",):
            del value["objectives"]
        value["setting"] = self.setting.identity
        return content_hash(value)

    def acting(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a point that make a difference to it."""
        return {name: value for name, value in values.items() if is_acting(name, values, self.acts)}

    @property
    def rungs(self) -> tuple[str, ...]:
        """What rungs are called."""
        return self.rung_names or tuple(f"{steps} steps" for steps in self.ladder.steps)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points with all ranges at one end, and every choice once: what can be checked before anything starts."""
        choices = [d.options if isinstance(d, Choice) else (None,) for d in self.space.values()]
        for end in ("low", "high"):
            for picked in itertools.product(*choices):
                pairs = zip(self.space.items(), picked, strict=True)
                yield {name: p if isinstance(d, Choice) else getattr(d, end) for (name, d), p in pairs}


@dataclass(kw_only=True)
class OpenPoint:
    """A point on its way up the ladder. `rung` counts those that it has been judged on; `trained` those asked for."""

    suggestion: Suggestion
    rung: int = 0
    trained: int = 0


class SweepSource:
    """A TrialSource that proposes a rung of a point at a time, those that go on before new ones.

    Points are asked of the search only when a trial could start, so that as few as possible are drawn blindly.

    Args:
        rungs: how many there are. steps: of each.
        works: branches of a point with a stop at every rung up to one (its number, counted from 1).
        is_missing: whether a branch is yet to be trained or judged.
        spec: the trial that trains branches of a point. loss: of a point at a rung (counted from 1), on the minimised
            scale, infinite where it failed.
        told: of a point with its loss, what the search is told: more than that where it has further objectives.
        on_change: called when a point was proposed or judged. on_result: told how every trial ended.
    """

    def __init__(
        self,
        search: SearchWithHistory,
        *,
        steps: tuple[int, ...],
        works: Callable[[Suggestion, int], tuple[BranchWork, ...]],
        is_missing: Callable[[BranchWork], bool],
        spec: Callable[[Suggestion, int, tuple[BranchWork, ...]], TrialSpec],
        loss: Callable[[Suggestion, int], float],
        on_change: Callable[[Suggestion], None],
        on_result: Callable[[TrialResult], None],
        told: Callable[[Suggestion, float], Told] = lambda suggestion, loss: loss,
    ) -> None:
        self._search, self._steps = search, steps
        self._works, self._is_missing, self._spec, self._loss = works, is_missing, spec, loss
        self._on_change, self._on_result, self._told = on_change, on_result, told
        self._going: list[OpenPoint] = []
        self._running: dict[str, OpenPoint] = {}
        self._exhausted = False

    def ask(self) -> TrialSpec | None:
        for point in list(self._going):
            self._going.remove(point)
            if (spec := self._advance(point)) is not None:
                return spec
        while (suggestion := self._search.ask()) is not None:
            self._on_change(suggestion)
            if (spec := self._advance(OpenPoint(suggestion=suggestion))) is not None:
                return spec
        self._exhausted = True
        return None

    def tell(self, result: TrialResult) -> None:
        point = self._running.pop(result.spec.hash)
        self._on_result(result)
        if result.status == "failed":
            self._end(point, None)
        else:
            self._going.append(point)

    @property
    def finished(self) -> bool:
        return self._exhausted and not self._going and not self._running

    def _advance(self, point: OpenPoint) -> TrialSpec | None:
        """Judge what the store holds; the trial that trains the next rung, None where the point has ended or waits."""
        while True:
            works = self._works(point.suggestion, point.rung + 1)
            missing = tuple(work for work in works if self._is_missing(work))
            if missing and point.trained > point.rung:
                self._end(point, None)  # its trial has ended, and still there is nothing to judge
                return None
            if missing:
                if self._is_in_training(missing):
                    self._going.append(point)
                    return None
                point.trained = point.rung + 1
                spec = self._spec(point.suggestion, point.trained, missing)
                self._running[spec.hash] = point
                return spec
            if not self._judge(point):
                return None

    def _judge(self, point: OpenPoint) -> bool:
        """Report or tell the loss at the next rung; whether the point goes on."""
        point.rung += 1
        number, loss = point.suggestion.number, self._loss(point.suggestion, point.rung)
        if not math.isfinite(loss) or point.rung == len(self._steps):
            self._end(point, loss if math.isfinite(loss) else None)
            return False
        if self._search.report(number, self._steps[point.rung - 1], loss):
            self._end(point, None)
            return False
        self._on_change(point.suggestion)
        return True

    def _end(self, point: OpenPoint, loss: float | None) -> None:
        told = None if loss is None else self._told(point.suggestion, loss)
        self._search.tell(point.suggestion.number, told)
        self._on_change(point.suggestion)

    def _is_in_training(self, works: tuple[BranchWork, ...]) -> bool:
        """Whether another point means the same branches and trains them now: two would write over each other."""
        mine = {work.branch.hash for work in works}
        return any(
            mine & {work.branch.hash for work in self._works(other.suggestion, other.trained)}
            for other in self._running.values()
        )
