"""What one worker does with a trial: walk its branches, restore, train, keep, evaluate. A generator of events."""

from __future__ import annotations

import os
import random as stdlib_random
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from harness.address import resolve
from harness.allocator import keep_freed_memory
from harness.calibrate import device_kind, measure_price, price_key
from harness.checkpoint import DamagedObject, Store, checksum
from harness.collective import Collective
from harness.contracts import Problem
from harness.evaluate import gather_records
from harness.identity import content_hash
from harness.kept_models import finished, kept_flow, trained_objective
from harness.loop import Trainer, TrainState, train
from harness.phase_data import PhaseData
from harness.plan import Branch, BranchWork, Phase, Segment, Stop, root_hash
from harness.trial import Event, TrialSpec


def run_trial(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """Do what the store does not hold yet. Every rank yields the same events at the same points."""
    prepare_process(spec)
    worker = Worker(spec, collective)
    yield worker.introduce()
    for phase in spec.calibrate:
        yield worker.calibrate(phase)
    for work in spec.works:
        yield from worker.run_branch(work)


def prepare_process(spec: TrialSpec) -> None:
    """Threads and determinism flags are part of the spec; the global generators are seeded for good measure."""
    keep_freed_memory()
    torch.set_num_threads(spec.placement.threads)
    torch.use_deterministic_algorithms(spec.placement.deterministic, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(spec.seed)
    stdlib_random.seed(spec.seed)


def evaluation_key(problem: Any) -> str:
    """The name of an evaluation's settings: records made under others are other records."""
    return content_hash(problem["evaluation"])


class Worker:
    """One rank of a trial."""

    def __init__(self, spec: TrialSpec, collective: Collective) -> None:
        self.spec = spec
        self.collective = collective
        self.store = Store(Path(spec.store))
        self.problem: Problem = resolve(spec.build)(spec.problem, cache=Path(spec.store) / "reference")
        self.device = torch.device("cuda" if spec.placement.gpus_per_worker > 0 else "cpu")
        self.evaluation = evaluation_key(spec.problem)
        self.pending: list[Event] = []
        self.data = PhaseData(self.problem, self.store, collective, self.device)

    def root(self, seed: int) -> str:
        return root_hash(self.spec.problem["system"], seed)

    def introduce(self) -> Event:
        """Who works here: host, process and device of every rank."""
        me = f"{socket.gethostname()} pid {os.getpid()} {device_kind()} threads {torch.get_num_threads()}"
        everyone = self.collective.gather(me) or []
        notes = {f"rank_{rank}": text for rank, text in enumerate(everyone)}
        values = {"workers": float(self.collective.workers)}
        return Event(kind="workers", timestamp=time.time(), values=values, notes=notes)

    def trainer(self, branch: Branch) -> Trainer:
        objective = self.problem.objective(branch.phase.objective)
        microbatch = None if self.spec.memory_cap_bytes is None else self.price(branch.phase)["microbatch"]
        return Trainer.of(branch, objective, self.data.of(branch), self.collective, microbatch=microbatch)

    # prices

    def price(self, phase: Phase) -> dict[str, Any]:
        """The price of a phase on this kind of device and under this cap: from the record, or measured now."""
        spec, cap = self.spec, self.spec.memory_cap_bytes
        key = price_key(spec.problem["system"], phase, spec.placement, device_kind(), cap)
        known = self.collective.broadcast(self.store.price(key))
        if known is None:
            branch = Branch(parent=self.root(spec.seed), phase=phase, seed=spec.seed)
            objective = self.problem.objective(phase.objective)
            trainer = Trainer.of(branch, objective, self.data.stand_in(phase, spec.seed), self.collective)
            flow = self.problem.flow(spec.seed, phase.objective).to(self.device)
            known = asdict(measure_price(trainer, flow, memory_cap_bytes=cap))
            if self.collective.rank == 0:
                self.store.save_price(key, known)
        return known

    def calibrate(self, phase: Phase) -> Event:
        known = self.price(phase)
        step = known["per_step"]
        values = {"device_seconds_per_step": step["device_seconds"], "flops_per_step": step["flops"]}
        values["peak_memory_bytes"] = float(step["peak_memory_bytes"])
        if known.get("microbatch") is not None:
            values["microbatch"] = float(known["microbatch"])
        return Event(
            kind="price", timestamp=time.time(), values=values, notes={"phase": phase.name, "device": known["device"]}
        )

    # branches

    def run_branch(self, work: BranchWork) -> Iterator[Event]:
        mine = [self._missing(work.branch, stop) for stop in work.stops] if self.collective.rank == 0 else None
        missing = self.collective.broadcast(mine)
        state: TrainState | None = None
        for stop, (train_it, evaluate_it) in zip(work.stops, missing, strict=True):
            segment = work.branch.at(stop.steps)
            if train_it:
                state = state or self.restore(work.branch, up_to=stop.steps)
                yield from self._train_to(segment, state)
            if evaluate_it:
                yield self._evaluate(segment)
        if self.collective.rank == 0:
            self.store.drop_latest(work.branch)

    def _missing(self, branch: Branch, stop: Stop) -> tuple[bool, bool]:
        """What a stop still lacks: training, evaluation. A segment with a damaged state is forgotten, and lacks it."""
        segment = branch.at(stop.steps).hash
        evaluated = self.store.evaluation(segment, self.evaluation) is not None
        known = self.store.segment(segment)
        if known is not None:
            try:
                self.store.get(known["state"])
            except DamagedObject:
                self.store.forget_segment(segment)
                known = None
        return known is None, stop.evaluate and not evaluated

    def _train_to(self, segment: Segment, state: TrainState) -> Iterator[Event]:
        """Train on, leaving a partial checkpoint now and then, and keep the segment at its end."""
        trainer = self.trainer(segment.branch)
        saved_at = time.monotonic()
        for event in train(trainer, state, to=segment.steps):
            if event is not None:
                self.pending.append(event)
                yield event
            if time.monotonic() - saved_at > self.spec.checkpoint_seconds and state.step < segment.steps:
                self._save_latest(segment.branch, state)
                saved_at = time.monotonic()
        yield self._keep(segment, state)

    def _save_latest(self, branch: Branch, state: TrainState) -> None:
        if self.collective.rank == 0:
            name = self.store.put_state(state.state_dict())
            self.store.save_latest(branch, steps=state.step, state=name, events=self.pending)

    def _keep(self, segment: Segment, state: TrainState) -> Event:
        kept = {} if state.buffer is None else state.buffer.tensors
        rows = {f"buffer {name}": tensor for name, tensor in kept.items()}
        mark = checksum({**state.flow.state_dict(), **rows})
        self._check_ranks_agree(mark, segment)
        if self.collective.rank == 0:
            name = self.store.put_state(state.state_dict())
            self.store.finish_segment(segment, state=name, checksum=mark, events=self.pending)
        self.collective.broadcast(None)  # the other ranks read the segment next: they wait until it is there
        self.pending = []
        notes = {"segment": segment.hash, "checksum": mark}
        return Event(kind="segment", branch=segment.branch.hash, step=segment.steps, timestamp=time.time(), notes=notes)

    def _check_ranks_agree(self, mark: str, segment: Segment) -> None:
        marks = self.collective.broadcast(self.collective.gather(mark))
        if len(set(marks)) != 1:
            raise RuntimeError(
                f"all workers must hold the same weights, got checksums {marks} after {segment.steps} steps; "
                "report this with the study.json of the study"
            )

    # restoring

    def restore(self, branch: Branch, *, up_to: int) -> TrainState:
        """The most advanced state of the branch that is not past `up_to`, or its start."""
        found = self.collective.broadcast(self._best_checkpoint(branch, up_to) if self.collective.rank == 0 else None)
        state = TrainState.start(self._parent_flow(branch), branch.phase)
        self.pending = []
        if found is not None:
            name, events = found
            state.load_state_dict(self.store.get_state(name), self.problem.objective(branch.phase.objective))
            self.pending = [Event(**event) for event in events]
        return state

    def _best_checkpoint(self, branch: Branch, up_to: int) -> tuple[str, list[dict[str, Any]]] | None:
        """The name of a checkpoint that can be read, with events not yet in a segment; damaged ones are forgotten."""
        candidates: list[tuple[int, str, list[dict[str, Any]]]] = []
        latest = self.store.latest(branch)
        if latest is not None and latest["steps"] <= up_to:
            candidates.append((latest["steps"], latest["state"], latest["events"]))
        for steps in self.store.finished_steps(branch):
            segment = self.store.segment(branch.at(steps).hash)
            if steps <= up_to and segment is not None:
                candidates.append((steps, segment["state"], []))
        for steps, name, events in sorted(candidates, key=lambda c: c[0], reverse=True):
            try:
                self.store.get_state(name)
            except DamagedObject:
                self.store.forget_segment(branch.at(steps).hash)
                continue
            return name, events
        return None

    def _parent_flow(self, branch: Branch) -> torch.nn.Module:
        """The parent's model where the phase trains the same kind, else an untrained one."""
        problem, objective = self.problem, branch.phase.objective
        if branch.parent != self.root(branch.seed):
            parents = trained_objective(finished(self.store, branch.parent))
            if problem.model(parents) == problem.model(objective):
                return kept_flow(problem, self.store, branch.parent, branch.seed).to(self.device)
        return problem.flow(branch.seed, objective).to(self.device)

    # evaluation

    def _evaluate(self, segment: Segment) -> Event:
        """Off the clock: per-sample records of all workers, kept as one object."""
        start = time.perf_counter()
        flow = kept_flow(self.problem, self.store, segment.hash, segment.branch.seed).to(self.device)
        records = gather_records(self.problem, flow, self.collective)
        seconds = (time.perf_counter() - start) * self.collective.workers
        if records is not None:
            name = self.store.put_arrays(records)
            value = {"records": name, "device_seconds": seconds, "timestamp": time.time()}
            self.store.finish_evaluation(segment.hash, self.evaluation, value)
        return Event(
            kind="evaluated",
            branch=segment.branch.hash,
            step=segment.steps,
            timestamp=time.time(),
            values={"evaluation_device_seconds": seconds},
            notes={"segment": segment.hash},
        )
