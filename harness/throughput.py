"""What workers gain: the seconds of a step at every number of workers of one group, measured in turns.

All numbers are those of one group of workers that takes turns with parts of itself, so that whatever else a machine
does meets all of them alike, and ratios are of neighbouring measurements. Three ways of adding workers:

- strong: they share one global batch.
- weak: the global batch grows with them.
- apart: each trains a trial of its own at the same time, as small trials do that share a device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch

from harness.calibrate import counted_step
from harness.collective import Alone, Collective, first_workers
from harness.loop import Trainer, TrainState
from harness.phase_data import base_noise, on_device
from harness.plan import Branch, Phase
from harness.trial import Event, TrialSpec
from harness.worker import Worker, prepare_process

ROUNDS = 7
BOUT_SECONDS = 0.5
MOST_STEPS = 200
WARM_UP_STEPS = 2
EPOCH_BATCHES = 4
"""Rows of base noise that a phase trains on, in batches."""


def measure(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """Time the phases that a trial is to calibrate. Every rank yields the same events.

    A "price" event tells the counted cost of a step on one worker, a "train" event the seconds of a step of each bout
    (its way and number of workers) in one round.
    """
    prepare_process(spec)
    worker = Worker(spec, collective)
    yield worker.introduce()
    teams = {count: first_workers(collective, count) for count in worker_counts(collective.workers)}
    for phase in spec.calibrate:
        yield counted(worker, phase)
        bouts = bouts_of(worker, phase, teams)
        for number in range(ROUNDS):
            values = {bout.name: bout.seconds() for bout in bouts}
            notes = {"phase": phase.name}
            yield Event(kind="train", step=number, timestamp=time.time(), values=values, notes=notes)


def worker_counts(workers: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, and all of them."""
    return tuple(sorted({*(2**k for k in range(workers.bit_length())), workers}))


def bouts_of(worker: Worker, phase: Phase, teams: dict[int, Collective | None]) -> list[Bout]:
    """One worker by itself, then every way at every larger number of workers."""
    found = []
    for count, team in teams.items():
        if count == 1:
            found.append(Bout(worker, phase, "alone 1", team))
            continue
        found.append(Bout(worker, phase, f"strong {count}", team))
        found.append(Bout(worker, replace(phase, batch=phase.batch * count), f"weak {count}", team))
        found.append(Bout(worker, phase, f"apart {count}", None if team is None else Alone()))
    return found


class Bout:
    """A phase at one number of workers in one way, ready to take steps. All workers call `seconds` together.

    Args:
        team: those who train together, seen from this worker; None where it looks on.
    """

    def __init__(self, worker: Worker, phase: Phase, name: str, team: Collective | None) -> None:
        self.name = name
        self.everyone = worker.collective
        self.mine = None if team is None else prepared(worker, phase, team)
        self.count = WARM_UP_STEPS
        fitting = round(BOUT_SECONDS / max(self.seconds(), 1e-9))
        self.count = self.everyone.broadcast(max(1, min(MOST_STEPS, fitting)))

    def seconds(self) -> float:
        """Wall seconds of a step, from when all are ready until the slowest has finished."""
        self.everyone.gather(None)
        self.everyone.broadcast(None)
        start = time.perf_counter()
        if self.mine is not None:
            trainer, state = self.mine
            with closing(trainer.steps(state, to=state.step + self.count)) as steps:
                for _ in steps:
                    pass
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.everyone.gather(None)
        seconds: float = self.everyone.broadcast((time.perf_counter() - start) / self.count)
        return seconds


def prepared(worker: Worker, phase: Phase, team: Collective) -> tuple[Trainer, TrainState]:
    """An untrained model and what its steps need, on rows of base noise."""
    spec, problem = worker.spec, worker.problem
    flow = problem.flow(spec.seed, phase.objective).to(worker.device)
    rows = base_noise(problem.flow(spec.seed, phase.objective).prior, EPOCH_BATCHES * phase.batch, spec.seed)
    branch = Branch(parent=worker.root(spec.seed), phase=phase, seed=spec.seed)
    trainer = Trainer.of(branch, problem.objective(phase.objective), on_device(rows, worker.device), team)
    return trainer, TrainState.start(flow, phase)


def counted(worker: Worker, phase: Phase) -> Event:
    """Operations and peak memory of a step of one worker by itself."""
    values: dict[str, float] = {}
    if worker.collective.rank == 0:
        cost = counted_step(*prepared(worker, phase, Alone()))
        values = {"flops": cost.flops, "peak_memory_bytes": float(cost.peak_memory_bytes)}
    known = worker.collective.broadcast(values)
    notes = {"phase": phase.name, "batch": str(phase.batch)}
    return Event(kind="price", timestamp=time.time(), values=known, notes=notes)
