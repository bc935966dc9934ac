"""ProcessRunner: one trial after the other, its workers processes of this machine; for measuring without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, spawn

from harness.adapters.failure import one_line
from harness.adapters.inline_runner import one_after_the_other
from harness.address import resolve
from harness.collective import Alone, Collective, ProcessGroup
from harness.contracts import TrialSource
from harness.trial import Event, TrialResult, TrialSpec

POLL_SECONDS = 0.1
PATIENCE = timedelta(minutes=30)

OnEvent = Callable[[TrialSpec, Event], None]


class ProcessRunner:
    """Fulfils `harness.contracts.Runner` with processes that talk over gloo. A lost worker ends its trial.

    Args:
        worker: address of the generator function that does a trial's work on each worker.
    """

    def __init__(self, *, worker: str = "harness.worker:run_trial") -> None:
        self.worker = worker

    def run(self, source: TrialSource, on_event: OnEvent) -> None:
        """Run all trials of a source. An error of a trial is told as its result.

        Raises:
            RuntimeError: if the source waits for trials that nobody runs.
        """
        one_after_the_other(source, lambda spec: self._run_trial(spec, on_event))

    def _run_trial(self, spec: TrialSpec, on_event: OnEvent) -> TrialResult:
        start = time.monotonic()
        told: SimpleQueue[Event | str] = get_context("spawn").SimpleQueue()
        errors: list[str] = []
        with TemporaryDirectory() as folder:
            arguments = (spec.to_json(), self.worker, str(Path(folder) / "meeting"), told)
            group = spawn(work, args=arguments, nprocs=spec.placement.workers, join=False)
            try:
                while not group.join(timeout=POLL_SECONDS):
                    errors += pass_on(told, spec, on_event)
            except (ProcessRaisedException, ProcessExitedException) as lost:
                errors += [*pass_on(told, spec, on_event), one_line(lost)]
            finally:
                stop(group)
            errors += pass_on(told, spec, on_event)
        error = errors[0] if errors else ""
        seconds = time.monotonic() - start
        return TrialResult(spec=spec, status="failed" if error else "finished", error=error, wall_seconds=seconds)


def pass_on(told: SimpleQueue[Event | str], spec: TrialSpec, on_event: OnEvent) -> list[str]:
    """Pass on the events that have come; what workers said of their errors."""
    errors = []
    while not told.empty():
        item = told.get()
        if isinstance(item, str):
            errors.append(item)
        else:
            on_event(spec, item)
    return errors


def stop(group: ProcessContext) -> None:
    """End what still runs, as after Ctrl-C."""
    for process in group.processes:
        if process.is_alive():
            process.terminate()
            process.join()


def work(rank: int, spec_json: str, worker: str, meeting: str, told: SimpleQueue[Event | str]) -> None:
    """One rank of a trial. Rank 0 sends the events, every rank its error."""
    spec = TrialSpec.from_json(spec_json)
    torch.set_num_threads(spec.placement.threads)
    try:
        for event in resolve(worker)(spec, joined(rank, spec.placement.workers, meeting)):
            if rank == 0:
                told.put(event)
    except Exception as error:
        told.put(one_line(error))
        raise SystemExit(1) from error


def joined(rank: int, workers: int, meeting: str) -> Collective:
    """The group of all workers. It ends with its processes."""
    if workers == 1:
        return Alone()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers, timeout=PATIENCE)
    return ProcessGroup()
