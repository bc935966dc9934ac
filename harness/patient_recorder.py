"""PatientRecorder: while the tracker is away, records wait on disk; later they are sent in order, each once.

Every call of a recorder is idempotent, so all waiting calls are made again until one pass has gone through; only then
is their file removed. A point that had arrived before is not written twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.contracts import Point, Recorder, RecordRefused, TrackerAway
from harness.spool import SPOOL, Call, Spool, destination_of, is_in_use

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""The tracker is asked again after so many times as long as it took to fail,"""
SHORTEST_WAIT_SECONDS = 5.0
"""or after this."""


class PatientRecorder:
    """Fulfils `harness.contracts.Recorder` whether the tracker is there or not.

    Args:
        open_tracker: makes the recorder that calls are meant for; it and its calls may raise TrackerAway.
        file: of the calls that wait. destination: written into it, so that another program can send them.

    Raises:
        ValueError: from `open_tracker`, for a tracker that could never take records.
    """

    def __init__(
        self, open_tracker: Callable[[], Recorder], *, file: Path, destination: Mapping[str, Any] | None = None
    ) -> None:
        self._open_tracker = open_tracker
        self._tracker: Recorder | None = None
        self._told = False
        self._due = 0.0
        self._opened: set[str] = set()
        self._said: dict[str, list[Call]] = {}
        self._spool = Spool(file, destination or {})
        begin = time.monotonic()
        try:
            self._tracker = open_tracker()
        except TrackerAway as error:
            self._lose(error, begin)
        else:
            self.send()

    @property
    def waiting(self) -> bool:
        """Whether records wait to be sent."""
        return self._spool.waiting

    def start(self, key: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self._do({"call": "start", "key": key, "name": name, "params": params, "tags": tags})

    def record(self, key: str, points: Sequence[Point]) -> None:
        rows = [[point.metric, float(point.value), int(point.step), float(point.timestamp)] for point in points]
        self._do({"call": "record", "key": key, "points": rows})

    def attach(self, key: str, file: Path) -> None:
        if not file.is_file():
            raise ValueError(f"only a file can be attached to a run, got {file}; write it before attaching it")
        self._do({"call": "attach", "key": key, "file": os.path.relpath(file, self._spool.file.parent)})

    def describe(self, key: str, text: str) -> None:
        self._do({"call": "describe", "key": key, "text": text})

    def finish(self, key: str, status: Literal["finished", "failed"]) -> None:
        self._do({"call": "finish", "key": key, "status": status})

    def page(self, server: str) -> str | None:
        return None if self._tracker is None else self._tracker.page(server)

    def close(self) -> None:
        """Try once more to send what waits; say where it is if it still does."""
        self.send()
        if self.waiting:
            log.warning("records wait in %s: the same command sends them, or the dashboard", self._spool.file)
        if self._tracker is not None:
            self._tracker.close()
        self._spool.close()

    def send(self) -> bool:
        """Make the waiting calls; False where the tracker is still away."""
        if not self.waiting:
            return True
        begin = time.monotonic()
        try:
            tracker = self._at_hand()
            for call in self._spool.calls():
                self._resend(tracker, call)
        except TrackerAway as error:
            self._lose(error, begin)
            return False
        self._spool.clear()
        self._told = False
        log.warning("the records that waited in %s have been sent", self._spool.file)
        return True

    def _do(self, call: Call) -> None:
        """Make a call now, or let it wait behind those that wait already."""
        key = call["key"]
        if call["call"] != "start" and key not in self._said:
            raise ValueError(f"a run has to be open to be written to, got key {key!r}; call start({key!r}, ...) first")
        if self.waiting or not self._made(call):
            self._wait(call)
        self._remember(call)
        if self.waiting and time.monotonic() >= self._due:
            self.send()

    def _made(self, call: Call) -> bool:
        """Whether the tracker took a call. One that was opened meanwhile is told first how the run was opened."""
        if self._tracker is None:
            return False
        begin = time.monotonic()
        try:
            if call["call"] != "start" and call["key"] not in self._opened:
                for earlier in self._said[call["key"]]:
                    make(self._tracker, earlier, self._spool.file.parent)
            make(self._tracker, call, self._spool.file.parent)
        except TrackerAway as error:
            self._lose(error, begin)
            return False
        self._opened.add(call["key"])
        return True

    def _resend(self, tracker: Recorder, call: Call) -> None:
        """A call that can never be made must not keep back all others."""
        try:
            make(tracker, call, self._spool.file.parent)
            self._opened.add(call["key"])
        except RecordRefused as error:
            log.warning("a record that waited was refused and is left out: %s", error)

    def _wait(self, call: Call) -> None:
        """The waiting calls of every run begin with what opens it."""
        if call["call"] != "start" and not self._spool.knows(call["key"]):
            for earlier in self._said[call["key"]]:
                self._spool.append(earlier)
        self._spool.append(call)

    def _remember(self, call: Call) -> None:
        """What opens a run again: how it was started last, and whether it has ended since."""
        if call["call"] == "start":
            self._said[call["key"]] = [call]
        elif call["call"] == "finish":
            self._said[call["key"]] = [self._said[call["key"]][0], call]

    def _at_hand(self) -> Recorder:
        """The tracker, opened again where it was lost. One that is spoilt may be mended by somebody meanwhile."""
        if self._tracker is None:
            try:
                self._tracker, self._opened = self._open_tracker(), set()
            except ValueError as error:
                raise TrackerAway(str(error)) from error
        return self._tracker

    def _lose(self, error: TrackerAway, begin: float) -> None:
        """Do without the tracker, and ask again when that costs little."""
        if not self._told:
            log.warning("%s; meanwhile records wait in %s", error, self._spool.file)
        self._tracker, self._told, now = None, True, time.monotonic()
        self._due = now + max(SHORTEST_WAIT_SECONDS, PATIENCE * (now - begin))


def make(tracker: Recorder, call: Call, folder: Path) -> None:
    """Make a call. Files are named from `folder`; one that is gone meanwhile is left out."""
    key = call["key"]
    if call["call"] == "start":
        tracker.start(key, name=call["name"], params=call["params"], tags=call["tags"])
    elif call["call"] == "record":
        tracker.record(key, [Point(metric=m, value=v, step=s, timestamp=t) for m, v, s, t in call["points"]])
    elif call["call"] == "attach":
        file = (folder / call["file"]).resolve()
        if file.is_file():
            tracker.attach(key, file)
    elif call["call"] == "describe":
        tracker.describe(key, call["text"])
    else:
        tracker.finish(key, call["status"])


def send_waiting(output: Path, open_tracker: Callable[[Mapping[str, Any]], Recorder]) -> Iterator[str]:
    """Send what waits under a folder of results; a line on each study that has records waiting.

    Args:
        open_tracker: makes the recorder of a destination.
    """
    for file in sorted(output.glob(f"*/*/{SPOOL}")):
        destination = destination_of(file)
        if is_in_use(file):
            yield f"records wait in {file}: the study runs, and will send them"
        elif not destination:
            yield f"records wait in {file}, which does not say for whom: run the study's command again"
        else:
            recorder = PatientRecorder(lambda to=destination: open_tracker(to), file=file)  # type: ignore[misc]
            recorder.close()
            yield (
                f"records still wait in {file}" if recorder.waiting else f"the records that waited in {file} were sent"
            )
