"""InlineRunner: one trial after the other in this process, for tests, debugging and machines without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from harness.adapters.failure import one_line
from harness.address import resolve
from harness.collective import Alone
from harness.contracts import TrialSource
from harness.trial import Event, TrialResult, TrialSpec


class InlineRunner:
    """Fulfils `harness.contracts.Runner` with a single worker, this process.

    Args:
        worker: address of the generator function that does a trial's work.
    """

    def __init__(self, *, worker: str = "harness.worker:run_trial") -> None:
        self.worker = worker

    def run(self, source: TrialSource, on_event: Callable[[TrialSpec, Event], None]) -> None:
        """Run all trials of a source.

        An error of a trial is told as its result; an error of the source or of `on_event` ends the run.

        Raises:
            ValueError: if a trial asks for more than one worker.
            RuntimeError: if the source waits for trials that nobody runs.
        """
        one_after_the_other(source, lambda spec: self._run_trial(spec, on_event))

    def _run_trial(self, spec: TrialSpec, on_event: Callable[[TrialSpec, Event], None]) -> TrialResult:
        check_placement(spec)
        start = time.monotonic()
        with torch_threads(spec.placement.threads):
            error = self._work(spec, on_event)
        seconds = time.monotonic() - start
        return TrialResult(spec=spec, status="failed" if error else "finished", error=error, wall_seconds=seconds)

    def _work(self, spec: TrialSpec, on_event: Callable[[TrialSpec, Event], None]) -> str:
        """Pass the events on as they come. Returns what went wrong in the trial, "" if nothing did."""
        try:
            events = iter(resolve(self.worker)(spec, Alone()))
        except Exception as error:
            return one_line(error)
        while True:
            try:
                event = next(events, None)
            except Exception as error:
                return one_line(error)
            if event is None:
                return ""
            on_event(spec, event)


def one_after_the_other(source: TrialSource, run_trial: Callable[[TrialSpec], TrialResult]) -> None:
    """Ask a source for trials and tell it their results until it is finished.

    Raises:
        RuntimeError: if the source waits for trials that nobody runs.
    """
    while not source.finished:
        spec = source.ask()
        if spec is None:
            if source.finished:
                return
            raise RuntimeError("a source must propose a trial while none is running, got None; tell it all results")
        source.tell(run_trial(spec))


def check_placement(spec: TrialSpec) -> None:
    if spec.placement.workers != 1:
        raise ValueError(
            f"the inline runner is one worker, got a trial for {spec.placement.workers}; "
            "write --workers 1 or --runner ray"
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's number of threads within a block; the caller's number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
