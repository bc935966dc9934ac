"""A worker that writes down each step it takes, each state it keeps and where it goes on; and how to read that.

A line is written by one call before the next step begins, so it outlives the process that wrote it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from harness.collective import Collective
from harness.loop import Trainer, TrainState
from harness.plan import Branch, Segment
from harness.trial import Event, TrialSpec
from harness.worker import Worker, prepare_process
from models.contracts import Prepared, Work

WENT_ON, STEP, SAVED = "from", "step", "kept"
LINE_BYTES = 17 + 1 + 4 + 1 + 20 + 1 + 8 + 1
"""Every line has the same length, so that sizes of files count them."""


def run_trial(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """`harness.worker:run_trial`, traced beside the store."""
    prepare_process(spec)
    worker = TracedWorker(spec, collective)
    yield worker.introduce()
    for phase in spec.calibrate:
        yield worker.calibrate(phase)
    for work in spec.works:
        yield from worker.run_branch(work)


class Trace:
    """This process's file of lines."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / str(os.getpid()), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def write(self, kind: str, branch: str, step: int) -> None:
        os.write(self._file, f"{time.monotonic():17.6f} {kind} {branch:20} {step:8d}\n".encode())


class TracedWorker(Worker):
    """A worker whose rank 0 traces."""

    def __init__(self, spec: TrialSpec, collective: Collective) -> None:
        super().__init__(spec, collective)
        self.trace = Trace(trace_folder(Path(spec.store).parent))

    def trainer(self, branch: Branch) -> Trainer:
        plain = super().trainer(branch)
        return TracedTrainer(**{f.name: getattr(plain, f.name) for f in fields(plain)}, trace=self.trace)

    def restore(self, branch: Branch, *, up_to: int) -> TrainState:
        state = super().restore(branch, up_to=up_to)
        self.trace.write(WENT_ON, branch.hash, state.step)
        return state

    def _save_latest(self, branch: Branch, state: TrainState) -> None:
        super()._save_latest(branch, state)
        self.trace.write(SAVED, branch.hash, state.step)

    def _keep(self, segment: Segment, state: TrainState) -> Event:
        event = super()._keep(segment, state)
        self.trace.write(SAVED, segment.branch.hash, segment.steps)
        return event


@dataclass(frozen=True, kw_only=True)
class TracedTrainer(Trainer):
    """Traces every step once it is taken."""

    trace: Trace

    def step(self, state: TrainState, prepared: Prepared | None = None) -> Work:
        work = super().step(state, prepared)
        self.trace.write(STEP, self.branch.hash, state.step)
        return work


# reading


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a trace; seconds of the machine's monotonic clock, which all its processes share."""

    seconds: float
    kind: str
    branch: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """What one resumption trained again: checkpoint intervals (one that was not full counts), steps, and seconds."""

    intervals: int
    steps: int
    seconds: float


def trace_folder(output: Path) -> Path:
    return output / "trace"


def lines_written(output: Path) -> int:
    return sum(file.stat().st_size for file in trace_folder(output).glob("*")) // LINE_BYTES


def read_traces(output: Path) -> list[Line]:
    """All lines of all processes, in order of time."""
    texts = (file.read_text() for file in trace_folder(output).glob("*"))
    rows = (text.split() for part in texts for text in part.splitlines())
    lines = [Line(seconds=float(s), kind=kind, branch=branch, step=int(step)) for s, kind, branch, step in rows]
    return sorted(lines, key=lambda line: line.seconds)


def repeats(lines: Iterable[Line]) -> list[Repeat]:
    """What each resumption trained again, for those that trained anything again."""
    by_branch: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_branch[line.branch].append(line)
    return [found for branch in by_branch.values() for found in repeats_of_branch(branch)]


def repeats_of_branch(lines: Iterable[Line]) -> Iterator[Repeat]:
    """A resumption from the newest kept state repeats one interval at most; each kept state it passes over adds one."""
    last = begun = Line(seconds=0.0, kind=WENT_ON, branch="", step=0)
    kept: dict[int, float] = {}
    for line in lines:
        if line.kind == STEP:
            last = line
        elif line.kind == SAVED:
            kept[line.step] = line.seconds
        else:
            if last.step > line.step:
                passed_over = sum(line.step < step < last.step for step in kept)
                since = kept.get(line.step, begun.seconds)
                yield Repeat(intervals=1 + passed_over, steps=last.step - line.step, seconds=last.seconds - since)
            last = begun = line
