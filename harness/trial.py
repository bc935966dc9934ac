"""The values that travel: TrialSpec goes down to the workers, Event and TrialResult come up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.identity import Settings, canonical, content_hash
from harness.plan import BranchWork, Phase


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a trial runs: how many workers, with what each. Bit-identity is promised per placement."""

    workers: int = 2
    threads: int = 1
    gpus_per_worker: float = 0.0
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"a trial needs at least one worker, got {self.workers}; write --workers 1 or more")
        if self.threads < 1:
            raise ValueError(f"a worker needs at least one thread, got {self.threads}; write --threads 1 or more")
        if not 0 <= self.gpus_per_worker < math.inf:
            raise ValueError(
                f"--gpus-per-worker cannot be negative or infinite, got {self.gpus_per_worker}; write 0 for the CPU"
            )


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One placement's worth of work. The same spec is the same trial.

    Args:
        name: for people (a seed, a tail).
        build: "module:function" that turns `problem` into a Problem on the worker.
        problem: settings of the problem.
        works: branches in parents-first order; what the store already holds is skipped.
        calibrate: phases whose step price is to be measured (before any work).
        seed: of calibration, and of torch's global generators; every branch has a seed of its own.
        store: folder of checkpoints and records that all workers share.
        checkpoint_seconds: longest time of training between two checkpoints.
        memory_cap_bytes: most memory that a worker's step may take: larger ones are cut into micro-batches.
    """

    name: str
    build: str
    problem: Settings
    store: str
    works: tuple[BranchWork, ...] = ()
    calibrate: tuple[Phase, ...] = ()
    seed: int = 0
    placement: Placement = field(default_factory=Placement)
    checkpoint_seconds: float = 20.0
    memory_cap_bytes: float | None = None

    @property
    def hash(self) -> str:
        return content_hash(self)

    def to_json(self) -> str:
        return canonical(self)

    @staticmethod
    def from_json(text: str) -> TrialSpec:
        value: dict[str, Any] = json.loads(text)
        value["works"] = tuple(BranchWork.from_plain(work) for work in value["works"])
        value["calibrate"] = tuple(Phase.from_plain(phase) for phase in value["calibrate"])
        value["placement"] = Placement(**value["placement"])
        return TrialSpec(**value)


EventKind = Literal["workers", "price", "train", "evaluated", "segment"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, reported once and safe to record twice.

    Attributes:
        kind: "workers" (who trains), "price" (a calibrated phase), "train" (means since the last such event),
            "evaluated" and "segment" (a stop was evaluated, is durable).
        branch: hash of the branch ("" for workers and prices). step: steps done in that branch.
        timestamp: seconds since the epoch at which it happened, on the worker.
        values: numbers, such as loss, gradient_norm, skipped_steps, device_seconds.
        notes: texts, such as host names and hashes.
    """

    kind: EventKind
    branch: str = ""
    step: int = 0
    timestamp: float
    values: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended. What it made is in the store."""

    spec: TrialSpec
    status: Literal["finished", "failed"]
    error: str = ""
    wall_seconds: float = 0.0
