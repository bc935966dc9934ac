"""What is trained after what: Phase, Plan, Branch, Segment and the tree that they form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.identity import Settings, content_hash, plain


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Settings of the optimiser of one phase (always started fresh at the phase's first step).

    Args:
        learning_rate: constant over the phase, so that it cannot depend on a budget.
        gradient_clip: largest norm of the reduced gradient, or None.
    """

    name: Literal["adam"] = "adam"
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    gradient_clip: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"a learning rate must be positive and finite, got {self.learning_rate}; write for example 1e-3"
            )
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"a gradient clip must be positive, got {self.gradient_clip}; leave it out for none")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One way of training: an objective, an optimiser and a global batch size.

    Args:
        name: what reports call it; not part of its identity.
        objective: settings that the problem turns into an Objective.
        batch: global batch size, shared by the workers.
        ema_decay: decay of an exponential moving average of the weights that is evaluated and forked, or None.
    """

    name: str
    objective: Settings
    optimiser: Optimiser
    batch: int
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"a batch must hold at least one sample, got {self.batch}; write for example 256")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"an EMA decay must lie between 0 and 1, got {self.ema_decay}; write for example 0.999")

    @property
    def fingerprint(self) -> str:
        """The hash of everything that changes what the phase computes."""
        return content_hash({k: v for k, v in plain(self).items() if k != "name"})

    @property
    def price_fingerprint(self) -> str:
        """The hash of what decides the price of a step: two phases that differ in their rate alone share it."""
        settings = {key: value for key, value in plain(self).items() if key != "name"}
        settings["optimiser"] = {k: v for k, v in settings["optimiser"].items() if k != "learning_rate"}
        return content_hash(settings)

    @staticmethod
    def from_plain(value: Mapping[str, Any]) -> Phase:
        return Phase(**{**value, "optimiser": Optimiser(**value["optimiser"])})


def root_hash(problem: Settings, seed: int) -> str:
    """The name of the untrained model of a problem at a seed."""
    return content_hash({"root": plain(problem), "seed": seed})


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One phase trained from one parent state with one seed, for as many steps as anyone asks.

    Args:
        parent: hash of the segment (or root) that it starts from.
        phase: how it trains. seed: of its batches and noise.
    """

    parent: str
    phase: Phase
    seed: int

    @property
    def hash(self) -> str:
        """Knows nothing of budgets, currencies, workers or machine speed: a larger study finds it again."""
        return content_hash({"parent": self.parent, "phase": self.phase.fingerprint, "seed": self.seed})

    def at(self, steps: int) -> Segment:
        return Segment(branch=self, steps=steps)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The state that a branch has reached after a whole number of steps."""

    branch: Branch
    steps: int

    @property
    def hash(self) -> str:
        return content_hash({"branch": self.branch.hash, "steps": self.steps})


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A step count at which a branch is saved, and evaluated if asked."""

    steps: int
    evaluate: bool = True


@dataclass(frozen=True, kw_only=True)
class BranchWork:
    """A branch and the stops asked of it, in rising order."""

    branch: Branch
    stops: tuple[Stop, ...]

    def __post_init__(self) -> None:
        steps = [stop.steps for stop in self.stops]
        assert steps == sorted(set(steps)), f"stops must rise strictly, got {steps}"

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(self.branch.at(stop.steps) for stop in self.stops)

    @staticmethod
    def from_plain(value: Mapping[str, Any]) -> BranchWork:
        branch = value["branch"]
        return BranchWork(
            branch=Branch(parent=branch["parent"], phase=Phase.from_plain(branch["phase"]), seed=branch["seed"]),
            stops=tuple(Stop(**stop) for stop in value["stops"]),
        )


@dataclass(frozen=True, kw_only=True)
class SegmentTree:
    """Branches in an order in which every parent comes before its children."""

    works: tuple[BranchWork, ...] = ()
    roots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.roots)
        for work in self.works:
            if work.branch.parent not in known:
                raise ValueError(
                    f"a branch must come after its parent, got parent {work.branch.parent} of {work.branch.hash} too "
                    "late; list the trunk before its tails"
                )
            known.update(segment.hash for segment in work.segments)

    def __iter__(self) -> Iterator[BranchWork]:
        return iter(self.works)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segment for work in self.works for segment in work.segments)

    @property
    def steps(self) -> int:
        """Training steps that the whole tree takes, shared trunks counted once."""
        return sum(work.stops[-1].steps for work in self.works if work.stops)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Phases in order, each with its step count: FM only, PG only, the hybrid, and any longer chain are all plans."""

    stages: tuple[tuple[Phase, int], ...]

    def segments(self, *, root: str, seed: int) -> tuple[Segment, ...]:
        """The end of every stage, each the parent of the next. Stages of zero steps leave nothing behind."""
        ends: list[Segment] = []
        parent = root
        for phase, steps in self.stages:
            if steps > 0:
                ends.append(Branch(parent=parent, phase=phase, seed=seed).at(steps))
                parent = ends[-1].hash
        return tuple(ends)


def grid_floor(steps: int, *, per_octave: int = 8) -> int:
    """The largest step count on the geometric grid that does not exceed `steps` (0 if `steps` < 1).

    The grid is round(2^(k / per_octave)), so a neighbour is at most 2^(1 / per_octave) away (9 % for 8).
    """
    best = 0
    for point in geometric_grid(steps, per_octave=per_octave):
        best = point
    return best


def geometric_grid(last: int, *, per_octave: int = 8) -> tuple[int, ...]:
    """All grid points from 1 up to and including `last` at most."""
    points: list[int] = []
    k = 0
    while (point := round(2 ** (k / per_octave))) <= last:
        if not points or point > points[-1]:
            points.append(point)
        k += 1
    return tuple(points)
