"""What the Ray runner refuses before it starts anything, and which processes it takes for those of a killed study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.adapters.ray_processes import RECORD, ProcessId, ProcessRecord, end_leftovers, recorded
from harness.adapters.ray_runner import Interruption, RayRunner
from harness.adapters.ray_session import cores
from tests.harness.runner_workers import spec
from tests.laws.runner_laws import WORKER, Family


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def ray_like() -> Iterator[psutil.Popen]:
    """A process that has the word in its command line."""
    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)", "raylet"])
    yield process
    if process.is_running():
        process.kill()


def write(folder: Path, pid: int, created: float) -> None:
    value = {"session": str(folder / "session"), "processes": [{"pid": pid, "created": created}]}
    (folder / RECORD).write_text(json.dumps(value))


def test_more_workers_than_cores_are_refused_before_anything_starts(tmp_path: Path) -> None:
    family = Family({"crowd": spec("crowd", tmp_path, workers=cores() + 1)})
    folder = tmp_path / "study"
    with pytest.raises(ValueError, match=f"need {cores() + 1} CPUs where there are {cores()}; write fewer"):
        RayRunner(folder=folder, worker=WORKER).run(family, family.on_event)
    assert not folder.exists()


def test_an_empty_source_starts_no_ray(tmp_path: Path) -> None:
    RayRunner(folder=tmp_path / "study").run(Family({}), lambda found, event: None)
    assert not (tmp_path / "study").exists()


def test_at_least_one_trial_runs_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0; write --concurrent 1 or more"):
        RayRunner(folder=tmp_path, concurrent=0)


def test_a_recorded_process_is_ended(tmp_path: Path, ray_like: psutil.Popen) -> None:
    write(tmp_path, ray_like.pid, ray_like.create_time())
    assert end_leftovers(tmp_path) == 1
    assert not psutil.pid_exists(ray_like.pid)
    assert not (tmp_path / RECORD).exists()


def test_a_later_process_with_the_same_number_is_left_alone(tmp_path: Path, ray_like: psutil.Popen) -> None:
    write(tmp_path, ray_like.pid, ray_like.create_time() - 10.0)
    assert end_leftovers(tmp_path) == 0
    assert ray_like.poll() is None


def test_a_process_that_is_not_rays_is_left_alone() -> None:
    sleeper = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert ProcessId(pid=sleeper.pid, created=sleeper.create_time()).find() is None
    finally:
        sleeper.kill()


def test_without_a_record_there_is_nothing_to_end(tmp_path: Path) -> None:
    assert end_leftovers(tmp_path) == 0


def test_the_record_names_the_processes_of_the_session(tmp_path: Path, ray_like: psutil.Popen) -> None:
    session = tmp_path / "session"
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"ray --temp={session}"])
    try:
        record = ProcessRecord(tmp_path, session)
        record.refresh()
        assert [process.pid for process in recorded(tmp_path)] == [server.pid]
        record.close()
        assert not psutil.pid_exists(server.pid)
        assert ray_like.poll() is None
        assert not (tmp_path / RECORD).exists()
    finally:
        server.kill()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_waits_until_it_is_asked_for(number: signal.Signals, error: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        with pytest.raises(error):
            interruption.check()
    assert signal.getsignal(number) is before
