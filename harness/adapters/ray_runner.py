"""RayRunner: Tune places trials, Train runs their workers, events come back through a queue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from harness.adapters.ray_cluster import check_cores
from harness.adapters.ray_session import LOGS, RaySession, open_session, starts_locally
from harness.adapters.ray_trials import ON_HEAD, OnEvent, Trials, check_not_stuck
from harness.adapters.ray_worker import ERROR, drive_trial
from harness.contracts import TrialSource


class RayRunner:
    """Fulfils `harness.contracts.Runner` with data-parallel workers. As a context, it keeps Ray over several runs.

    Args:
        address: of a running cluster; None for $RAY_ADDRESS, or else a Ray of this machine that ends with the run.
        concurrent: most trials at once; None for as many as fit.
        folder: for logs and Train's state. On a cluster all nodes must share it.
        max_failures: how often a trial's workers are restarted after one was lost.
        worker: address of the generator function that does a trial's work on each worker.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        concurrent: int | None = None,
        folder: Path,
        max_failures: int = 3,
        worker: str = "harness.worker:run_trial",
    ) -> None:
        if concurrent is not None and concurrent < 1:
            raise ValueError(f"at least one trial must run at a time, got {concurrent}; write --concurrent 1 or more")
        self.address = address
        self.concurrent = concurrent
        self.folder = folder.resolve()
        self.max_failures = max_failures
        self.worker = worker
        self._session: RaySession | None = None
        self._kept = False

    @property
    def logs(self) -> Path:
        """Where a local Ray's logs are kept once it has ended."""
        return self.folder / LOGS

    def __enter__(self) -> RayRunner:
        """Keep Ray from the first run that needs it until the end of the block; else every run starts its own."""
        self._kept = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept = False
        self._stop()

    def _stop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.stop()

    def run(self, source: TrialSource, on_event: OnEvent) -> None:
        """Run all trials of a source; Ray is not started for a source that proposes none.

        Failed trials are told as results. Ctrl-C and SIGTERM end Ray and pass through; what the store holds stays.

        Raises:
            ValueError: if a trial can never fit, or a node does not see the study's folders.
            RuntimeError: if the source waits for trials that nobody runs.
        """
        first = source.ask()
        if first is None:
            check_not_stuck(source)
            return
        if self._session is None and starts_locally(self.address):
            check_cores(first.placement)
        with self._opened() as session, Interruption() as interruption:
            trials = Trials(source=source, on_event=on_event, session=session, concurrent=self.concurrent, first=first)
            self._tune(trials, interruption)

    @contextmanager
    def _opened(self) -> Iterator[RaySession]:
        if self._session is None:
            self._session = open_session(self.address, self.folder)
        try:
            yield self._session
        finally:
            if not self._kept:
                self._stop()

    def _tune(self, trials: Trials, interruption: Interruption) -> None:
        state = self.folder / "ray"
        trainable = tune.with_parameters(
            drive_trial, events=trials.events, worker=self.worker, folder=state, max_failures=self.max_failures
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, ON_HEAD),
            tune_config=tune.TuneConfig(
                search_alg=SourceSearcher(trials), num_samples=-1, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(state),
                callbacks=[Watcher(trials, interruption)],
                failure_config=tune.FailureConfig(max_failures=self.max_failures),
                verbose=0,
            ),
        )
        tuner.fit()
        trials.poll()
        if not trials.finished:
            raise RuntimeError(
                "all trials must end before Tune does, but it left some; run the same command again, and see "
                f"{self.logs}"
            )


class SourceSearcher(Searcher):
    """Tune's view of a trial source: a trial is suggested only when it can start."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()
        self.trials = trials

    def suggest(self, trial_id: str) -> Any:
        """A configuration, None while no trial can start, FINISHED when none is left."""
        spec = self.trials.start(trial_id)
        if spec is not None:
            return {"spec": spec.to_json()}
        return Searcher.FINISHED if self.trials.finished else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        lost = "RuntimeError: the process that drove this trial was lost too often"
        self.trials.end(trial_id, lost if error or result is None else result[ERROR])

    def save(self, checkpoint_path: str) -> None:
        """A study is resumed from its store, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Watcher(tune.Callback):
    """Looks after events and ended trials at every step of Tune's loop, where an error of ours ends the loop."""

    def __init__(self, trials: Trials, interruption: Interruption) -> None:
        self.trials = trials
        self.interruption = interruption

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.trials.poll()
        self.interruption.check()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials.lost_driver(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials.lost_driver(trial.trial_id)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Interruption:
    """Within this context, the first Ctrl-C or SIGTERM waits for `check`; the second takes effect at once.

    Ray's own handler of SIGTERM, which it installs when it starts, would abort the process.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def check(self) -> None:
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
