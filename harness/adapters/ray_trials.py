"""The trials of a source on their way through Tune: when one may start, what it reports, how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Queue

from harness.adapters.ray_cluster import check_room, check_shared, demand, remove_all_groups
from harness.adapters.ray_session import RaySession
from harness.contracts import TrialSource
from harness.trial import Event, TrialResult, TrialSpec

ON_HEAD = {"node:__internal_head__": 0.001}
"""Drivers and the queue run beside the head's servers and take no core from a worker."""

POLL_SECONDS = 0.2
REFRESH_SECONDS = 2.0

OnEvent = Callable[[TrialSpec, Event], None]


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial that was handed to Tune, and when (monotonic seconds)."""

    spec: TrialSpec
    since: float


class Trials:
    """The source's trials on their way through Tune; lives in the study's process, like all that it calls."""

    def __init__(
        self,
        *,
        source: TrialSource,
        on_event: OnEvent,
        session: RaySession,
        concurrent: int | None,
        first: TrialSpec | None = None,
    ) -> None:
        self.source, self.on_event, self.session, self.concurrent = source, on_event, session, concurrent
        self.events = Queue(actor_options={"num_cpus": 0, "resources": ON_HEAD})
        self._waiting = first
        self._running: dict[str, Running] = {}
        self._ended: list[tuple[str, str]] = []
        self._polled_at = self._refreshed_at = 0.0
        self._shared: set[str] = set()
        self._groups: dict[str, PlacementGroup | None] = {}

    # placing

    def start(self, trial_id: str) -> TrialSpec | None:
        """The next trial, if there is one and it has room."""
        spec, self._waiting = self._waiting or self.source.ask(), None
        if spec is None:
            if not self._running:
                check_not_stuck(self.source)
            return None
        self._check(spec)
        if not self._has_room(spec):
            self._waiting = spec
            return None
        self._running[trial_id] = Running(spec=spec, since=time.monotonic())
        return spec

    @property
    def finished(self) -> bool:
        return self._waiting is None and self.source.finished

    def _check(self, spec: TrialSpec) -> None:
        check_room(spec.placement, local=self.session.local)
        if not self.session.local and spec.store not in self._shared:
            for folder in (Path(spec.store), self.session.folder):
                check_shared(folder)
            self._shared.add(spec.store)

    def _has_room(self, spec: TrialSpec) -> bool:
        """A trial that would wait for workers would still occupy a driver, so it is not started."""
        if not self._running:
            return True
        if self.concurrent is not None and len(self._running) >= self.concurrent:
            return False
        if self.concurrent is not None and not self.session.local:
            return True
        have = ray.cluster_resources()
        asked = [spec.placement, *(running.spec.placement for running in self._running.values())]
        return all(sum(demand(p)[kind] for p in asked) <= have.get(kind, 0.0) for kind in ("CPU", "GPU"))

    # what comes back

    def end(self, trial_id: str, error: str) -> None:
        self._ended.append((trial_id, error))

    def poll(self) -> None:
        """Pass on new events, then tell the source which trials have ended: their events are all in the queue."""
        now = time.monotonic()
        if self._ended or now - self._polled_at > POLL_SECONDS:
            ended, self._ended = self._ended, []
            self._pass_on_events()
            for trial_id, error in ended:
                self._tell(trial_id, error)
            self._polled_at = time.monotonic()
        if now - self._refreshed_at > REFRESH_SECONDS:
            self.session.refresh()
            self._refreshed_at = time.monotonic()

    def _pass_on_events(self) -> None:
        for trial_id, report in self.events.get_nowait_batch(self.events.qsize()):
            self._groups[trial_id] = report.get("group", self._groups.get(trial_id))
            for event in report["events"]:
                self.on_event(self._running[trial_id].spec, event)

    def lost_driver(self, trial_id: str) -> None:
        """Free what the workers of a lost driver held. Train's own cleaner does that only where a dashboard runs."""
        self._pass_on_events()
        group = self._groups.pop(trial_id, None)
        if group is not None:
            remove_placement_group(group)
        elif self.session.record is not None and self._running.keys() == {trial_id}:
            remove_all_groups()

    def _tell(self, trial_id: str, error: str) -> None:
        trial = self._running.pop(trial_id)
        self._groups.pop(trial_id, None)
        seconds = time.monotonic() - trial.since
        status: Literal["finished", "failed"] = "failed" if error else "finished"
        self.source.tell(TrialResult(spec=trial.spec, status=status, error=error, wall_seconds=seconds))


def check_not_stuck(source: TrialSource) -> None:
    if not source.finished:
        raise RuntimeError("a source must propose a trial while none is running, got None; tell it all results")
