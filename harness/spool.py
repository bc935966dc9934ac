"""Spool: calls of a recorder that wait in a file beside the study until its tracker takes them."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from harness.identity import plain
from harness.room import NO_ROOM, no_room

log = logging.getLogger(__name__)

SPOOL = "unsent.jsonl"
_DESTINATION = "destination"

Call = Mapping[str, Any]
"""A call of a recorder: "call" and "key", and its arguments by name."""


class Spool:
    """The file of waiting calls, in their order. While a process has it open, no other reads or writes it.

    Args:
        file: JSON lines; the first says where the calls are to go. destination: that line.
    """

    def __init__(self, file: Path, destination: Mapping[str, Any]) -> None:
        self.file, self.destination = file, destination
        self._lock: IO[str] | None = None
        self._points: set[tuple[str, str, int]] = set()
        self._last: dict[tuple[str, str], str] = {}
        if file.exists():
            self._open()

    @property
    def waiting(self) -> bool:
        return bool(self._last)

    def knows(self, key: str) -> bool:
        """Whether a call that waits opens this run."""
        return (key, "status") in self._last

    def calls(self) -> Iterator[Call]:
        return (line for line in whole_lines(self.file) if "call" in line)

    def append(self, call: Call) -> None:
        """Keep a call, but for what waits already; it is on the disk when this returns.

        Raises:
            NoRoom: where the disk is full.
        """
        if self._lock is None:
            self._open()
        news = self._news(call)
        if news:
            lines = [news] if self.waiting else [{_DESTINATION: self.destination}, news]
            append_text(self.file, "".join(text(line) + "\n" for line in lines))
            self._note(news)

    def clear(self) -> None:
        """All has been sent."""
        self.file.unlink(missing_ok=True)
        self._points, self._last = set(), {}

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _open(self) -> None:
        """Wait for the lock, drop half a line that a killed process left, and learn what waits."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_file(self.file).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if self.file.exists():
            os.truncate(self.file, self.file.read_bytes().rfind(b"\n") + 1)
            for call in self.calls():
                self._note(call)

    def _news(self, call: Call) -> Call:
        """The call without what waits already; empty if that is all of it."""
        if call["call"] != "record":
            return {} if self._last.get(slot(call)) == text(call) else call
        points = [point for point in call["points"] if (call["key"], point[0], point[2]) not in self._points]
        return {**call, "points": points} if points else {}

    def _note(self, call: Call) -> None:
        self._last[slot(call)] = text(call)
        for metric, _, step, _ in call.get("points", ()):
            self._points.add((call["key"], metric, step))


def slot(call: Call) -> tuple[str, str]:
    """Calls of one slot replace each other: a run is open or ended, has one description, one file of a name."""
    kinds = {"start": "status", "finish": "status", "attach": f"file {call.get('file')}"}
    return str(call["key"]), kinds.get(call["call"], str(call["call"]))


def text(line: Mapping[str, Any]) -> str:
    """A line as JSON. A parameter without a JSON form stands there as a tracker would show it, as text."""
    params = {name: _told(value) for name, value in line.get("params", {}).items()}
    return json.dumps(plain({**line, "params": params} if params else line))


def _told(value: Any) -> Any:
    try:
        return plain(value)
    except TypeError:
        return str(value)


def destination_of(file: Path) -> Mapping[str, Any]:
    """Where the calls of a spool are to go, empty where that cannot be read."""
    found = (line[_DESTINATION] for line in whole_lines(file) if _DESTINATION in line)
    return next(found, {})


def is_in_use(file: Path) -> bool:
    """Whether another process has a spool open."""
    with _lock_file(file).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock_file(file: Path) -> Path:
    return file.with_suffix(".lock")


def whole_lines(file: Path) -> list[Any]:
    """The values of a file of JSON lines; a damaged line is told and left out."""
    found = []
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        try:
            found += [json.loads(line)] if line else []
        except ValueError:
            log.warning("a line of %s is damaged and left out: the same command records what it held", file)
    return found


def append_text(file: Path, content: str) -> None:
    """Append all of a text or nothing.

    Raises:
        NoRoom: where the disk is full.
    """
    before = file.stat().st_size if file.exists() else 0
    try:
        with file.open("a") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if file.exists():
            os.truncate(file, before)
        if error.errno not in NO_ROOM:
            raise
        raise no_room(file, error) from error
