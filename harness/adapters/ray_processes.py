"""The processes of a local Ray, on record, so that the next start can end what a killed study left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

RECORD = "ray_processes.json"
SAME_START_SECONDS = 0.05
GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process, told apart from a later one with the same number by when it started (seconds since the epoch)."""

    pid: int
    created: float

    def find(self) -> psutil.Process | None:
        """The process if it still lives and is one of Ray's."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < SAME_START_SECONDS
            return process if same and "ray" in " ".join(process.cmdline()) else None
        except psutil.Error:
            return None


class ProcessRecord:
    """The record of one study folder: the processes of the Ray session that was started for it."""

    def __init__(self, folder: Path, session: Path) -> None:
        self.path = folder / RECORD
        self.session = session
        self._known: frozenset[ProcessId] = frozenset()

    def refresh(self) -> None:
        """Write down every process of the session that lives now, if any is new."""
        now = frozenset(session_processes(self.session))
        if now - self._known:
            self._known = now
            value = {"session": str(self.session), "processes": [asdict(p) for p in sorted(now, key=lambda p: p.pid)]}
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(value, indent=1))
            os.replace(temporary, self.path)

    def close(self) -> None:
        """End what has outlived the session's shutdown, and forget it."""
        end(self._known)
        self.path.unlink(missing_ok=True)


def session_processes(session: Path) -> list[ProcessId]:
    """Ray's servers are our children and name their session's folder; all its other processes descend from those."""
    me = psutil.Process()
    ours = set()
    for process in me.children():
        if str(session) in " ".join(command(process)):
            ours.add(process.pid)
    family = me.children(recursive=True)
    parents = {process.pid: parent_of(process) for process in family}
    found = []
    for process in family:
        pid: int | None = process.pid
        while pid is not None and pid not in ours:
            pid = parents.get(pid)
        if pid is not None:
            found.append(ProcessId(pid=process.pid, created=process.create_time()))
    return found


def parent_of(process: psutil.Process) -> int | None:
    """The parent's number, None if the process has just ended."""
    try:
        return int(process.ppid())
    except psutil.Error:
        return None


def command(process: psutil.Process) -> list[str]:
    """The command line of a process, nothing if it has just ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def end(processes: Iterable[ProcessId]) -> int:
    """Kill those of the recorded processes that are still the same processes. Returns how many there were."""
    alive = [process for process in (p.find() for p in processes) if process is not None]
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)
    return len(alive)


def end_leftovers(folder: Path) -> int:
    """End what a killed study of this folder left running, and remove its session's folder.

    Returns:
        The number of processes that were ended; 0 if the last study ended well.
    """
    path = folder / RECORD
    if not path.exists():
        return 0
    count = end(recorded(folder))
    remove(Path(json.loads(path.read_text())["session"]))
    path.unlink()
    return count


def recorded(folder: Path) -> list[ProcessId]:
    """The processes on the record of a study folder, alive or not."""
    return [ProcessId(**process) for process in json.loads((folder / RECORD).read_text())["processes"]]


def remove(folder: Path) -> None:
    """Remove a session's folder. Processes that notice the end of their session late may still write into it."""
    give_up = time.monotonic() + GRACE_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < give_up:
        time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)
