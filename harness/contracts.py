"""The protocols that adapters and problems fulfil: Problem, Search, Recorder, Runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from harness.identity import Settings
from harness.trial import Event, TrialResult, TrialSpec
from models.contracts import Batch, Objective, Prepared, Random, Work
from models.estimators import Estimate

Records = Mapping[str, np.ndarray]
"""Per-sample records: every array has one row a sample; keys read "<set>/<quantity>", ids under "<set>/sample_id"."""


class Sampling(Protocol):
    """Rows that a phase trains on and that are made before its first step."""

    @property
    def settings(self) -> Settings:
        """What decides the rows, beside the parent."""

    @property
    def rows(self) -> int: ...

    @property
    def from_parent(self) -> bool:
        """Whether the model of the phase's parent draws them."""

    @property
    def kept(self) -> bool:
        """Whether they are dear enough to be made once and kept; else every worker makes all of them."""

    def draw(self, flow: Any | None, random: Random) -> Prepared:
        """This worker's rows with the work that they took. Args: flow: the parent's model where it is asked for."""

    def finish(self, drawn: Mapping[str, Tensor], *, seed: int) -> tuple[Batch, Work]:
        """The rows of all workers as training data: resampled, with forces, whatever was asked for."""


class Problem(Protocol):
    """What a study trains and how it is judged; built on every worker from plain settings.

    The settings of a phase's objective decide which model it trains and on which rows. Where they are None, or say
    nothing of it, that is the problem's own model and the seed's training set.
    """

    def model(self, objective: Settings | None) -> Settings:
        """What tells a phase's model from others: a child with its parent's model goes on with its parent's weights."""

    def flow(self, seed: int, objective: Settings | None = None) -> torch.nn.Module:
        """A phase's untrained model, the same bits for the same seed. It has a `prior`."""

    def sampling(self, objective: Settings) -> Sampling | None:
        """How a phase's rows are made; None where it trains on the training set."""

    def objective(self, settings: Settings) -> Objective: ...

    def training_data(self, seed: int) -> Batch:
        """The whole training set of a seed (its draw is part of the seed)."""

    def evaluate(self, flow: Any, *, rank: int, workers: int) -> Records:
        """This worker's share of the per-sample records; points and base noise are the same for every flow."""

    def estimates(self, records: Records, split: Literal["validation", "test"]) -> Mapping[str, Estimate]:
        """Estimates with intervals, from the merged records of all workers alone."""

    def data_cost(self) -> Mapping[str, Any]:
        """What making the data took, as fields of a Cost; the same for every plan."""

    def data_report(self) -> Mapping[str, Any]:
        """How the data came about: "source" in words, and diagnostics of the sampler by name."""

    def picture(self, records: Records | None) -> Mapping[str, np.ndarray]:
        """What to draw of a model's samples (of the data where None): fields of a SamplePanel, energy at least."""


class TrialSource(Protocol):
    """Proposes trials when they are ready; learns how they ended."""

    def ask(self) -> TrialSpec | None:
        """The next trial that can start now, None while nothing is ready."""

    def tell(self, result: TrialResult) -> None: ...

    @property
    def finished(self) -> bool:
        """True once `ask` will never propose again and every proposed trial has been told."""


class Runner(Protocol):
    """Places trials and runs their workers until the source is finished."""

    def run(self, source: TrialSource, on_event: Callable[[TrialSpec, Event], None]) -> None:
        """`on_event` is called in this process, in order within a trial, at least once an event."""


@dataclass(frozen=True, kw_only=True)
class FloatRange:
    """A real hyperparameter on [low, high], searched on a log scale if `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class IntRange:
    """A whole-number hyperparameter on [low, high], both included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A hyperparameter that takes one of a few values."""

    options: tuple[Any, ...]


SearchSpace = Mapping[str, FloatRange | IntRange | Choice]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A point to try. The number is unique within the search and stable over a resume."""

    number: int
    values: Mapping[str, Any]


class Search(Protocol):
    """Ask and tell. The scalar told is minimised; a failed or diverged trial is told as None."""

    def ask(self) -> Suggestion | None:
        """The next point, None when the search has proposed all its points."""

    def tell(self, number: int, value: float | None) -> None:
        """Idempotent: telling a number that has been told changes nothing."""

    def report(self, number: int, step: int, value: float) -> bool:
        """An intermediate value; True where the trial should be pruned."""

    @property
    def best(self) -> Suggestion | None:
        """The point with the smallest told value, None while there is none."""


PrunerName = Literal["none", "median", "successive_halving", "hyperband"]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Rungs at which a trial is judged on its way: each `factor` times as many steps as the one before."""

    first: int
    factor: int
    rungs: int

    def __post_init__(self) -> None:
        if self.first < 1 or self.factor < 2 or self.rungs < 1:
            raise ValueError(
                "a ladder has a first rung of at least 1 step, a factor of at least 2 and at least one rung, got "
                f"{self.first}, {self.factor} and {self.rungs}; write for example --first-rung 200 --factor 3 --rungs 3"
            )

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(self.first * self.factor**k for k in range(self.rungs))


TriedState = Literal["open", "finished", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A proposed point and what became of it.

    Attributes:
        values: the point; empty while it is not drawn to its end. reported: intermediate values by step.
        value: the loss that was told at the end, None where the trial is open, pruned or failed.
    """

    number: int
    values: Mapping[str, Any]
    state: TriedState
    reported: Mapping[int, float]
    value: float | None


Told = float | tuple[float, ...]
"""What is minimised: a scalar, or one number for each objective, the loss first."""


class SearchWithHistory(Search, Protocol):
    """A search that remembers every point, and may have several objectives."""

    def tell(self, number: int, value: Told | None) -> None:
        """As that of a Search."""

    @property
    def history(self) -> tuple[Tried, ...]:
        """Every point proposed so far, in order of its number."""

    @property
    def front(self) -> tuple[int, ...]:
        """Numbers of the points that no other one beats in an objective without losing in another."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One recorded number. Recording a point twice leaves it there once."""

    metric: str
    value: float
    step: int
    timestamp: float


class TrackerAway(RuntimeError):
    """The tool that keeps records does not take them now: it is locked, lost, full or out of reach."""


class RecordRefused(RuntimeError):
    """The tool that keeps records will never take this one."""


class Recorder(Protocol):
    """The one writer of records. A run is known by its key, within the study that the recorder was opened for.

    Every call is idempotent. One that raises TrackerAway may be made again later, by another recorder of the study.
    """

    def start(self, key: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run with this key, or take it up again after a restart."""

    def record(self, key: str, points: Sequence[Point]) -> None:
        """Idempotent on (key, metric, step): a point already there is not written again."""

    def attach(self, key: str, file: Path) -> None:
        """Keep a copy of a file with the run."""

    def describe(self, key: str, text: str) -> None:
        """The run's description, in Markdown."""

    def finish(self, key: str, status: Literal["finished", "failed"]) -> None: ...

    def page(self, server: str) -> str | None:
        """Address of the study's page, None while the tracker is away. Args: server: scheme, host and port of it."""

    def close(self) -> None: ...
