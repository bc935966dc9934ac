"""Records outlive a tracker that is locked, lost, unwritable or killed: they wait on disk and arrive once, in order."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from harness.adapters import mlflow_database
from harness.adapters.mlflow_recorder import recorder_at
from harness.contracts import Recorder
from harness.patient_recorder import PatientRecorder, send_waiting
from harness.spool import SPOOL
from tests.harness.test_mlflow_recorder import as_stored, child_of, runs_of
from tests.laws.recorder_laws import RecorderLaws, StoredRun, line

STUDY = "waiting"


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: building them takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    recorder_at(folder, destination("nobody")).close()
    return folder / "mlflow.db"


@pytest.fixture
def output(empty: Path, tmp_path: Path) -> Path:
    """A folder of results with a database of its own."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_database, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr("harness.patient_recorder.SHORTEST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("harness.patient_recorder.PATIENCE", 0.0)


def destination(study: str, uri: str | None = None) -> dict[str, str | None]:
    return {"study": study, "experiment": "faults", "tracking_uri": uri}


def spool_of(output: Path) -> Path:
    return output / "kind" / STUDY / SPOOL


def opened(output: Path, study: str = STUDY, uri: str | None = None) -> PatientRecorder:
    to = destination(study, uri)
    file = output / "kind" / study / SPOOL
    return PatientRecorder(lambda: recorder_at(output, to), file=file, destination=to)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Another connection holds the database for itself."""
    with closing(sqlite3.connect(output / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def begin(recorder: Recorder, *keys: str) -> None:
    for key in keys:
        recorder.start(key, name=f"run {key}", params={"rate": 0.1, "sizes": (8, 8)}, tags={"method": "fm"})


def steps(output: Path, key: str = "a", metric: str = "train/loss") -> list[int]:
    """Steps of a metric in the order in which they are stored, doubles included."""
    return [step for step, *_ in stored(output, key).points[metric]]


def stored(output: Path, key: str = "a") -> StoredRun:
    (run,) = [run for run in runs_of(output, STUDY) if run.data.tags["key"] == key]
    return as_stored(output, run)


@pytest.mark.faults
class TestPatientRecorder(RecorderLaws):
    @pytest.fixture(autouse=True)
    def _in_store(self, empty: Path) -> None:
        self.store = empty.parent

    def open(self, study: str) -> Recorder:
        return opened(self.store, study)

    def stored(self, study: str) -> dict[str, list[StoredRun]]:
        found: dict[str, list[StoredRun]] = {}
        for run in runs_of(self.store, study):
            found.setdefault(run.data.tags["key"], []).append(as_stored(self.store, run))
        return found


def test_a_locked_database_gets_its_records_later_and_once(output: Path) -> None:
    recorder = opened(output)
    begin(recorder, "a")
    recorder.record("a", line("train/loss", range(3)))
    (output / "table.csv").write_text("old")
    with locked(output):
        recorder.record("a", line("train/loss", range(2, 5)))
        begin(recorder, "b")
        recorder.record("b", line("train/loss", range(2), slope=7.0))
        recorder.attach("a", output / "table.csv")
        recorder.describe("a", "**told**")
        recorder.finish("a", "finished")
        assert recorder.waiting
        assert spool_of(output).read_text().count("\n") >= 7
        (output / "table.csv").write_text("new")
    recorder.record("b", line("train/loss", range(4), slope=7.0))
    assert not recorder.waiting
    assert not spool_of(output).exists()
    run = stored(output)
    assert steps(output) == list(range(5))
    assert (run.status, run.files, run.description) == ("finished", {"table.csv": "new"}, "**told**")
    assert (run.params["rate"], run.params["sizes"], run.tags["method"]) == ("0.1", "[8,8]", "fm")
    assert [value for _, value, _ in stored(output, "b").points["train/loss"]] == [0.0, 7.0, 14.0, 21.0]


def test_a_study_that_ends_while_the_database_is_locked_is_sent_by_the_next_one(output: Path) -> None:
    with locked(output):
        recorder = opened(output)
        begin(recorder, "a")
        recorder.record("a", line("train/loss", range(3)))
        recorder.finish("a", "finished")
        recorder.close()
        assert spool_of(output).exists()
    recorder = opened(output)
    assert not spool_of(output).exists()
    begin(recorder, "a")
    recorder.record("a", line("train/loss", range(5)))
    recorder.finish("a", "finished")
    recorder.close()
    assert steps(output) == list(range(5))
    assert stored(output).status == "finished"


def test_another_program_sends_what_waits_once(output: Path) -> None:
    with locked(output):
        recorder = opened(output)
        begin(recorder, "a")
        recorder.record("a", line("train/loss", range(3)))
        assert ["will send them" in told for told in send_waiting(output, partial(recorder_at, output))] == [True]
        recorder.close()
        assert ["still wait" in told for told in send_waiting(output, partial(recorder_at, output))] == [True]
    assert ["were sent" in told for told in send_waiting(output, partial(recorder_at, output))] == [True]
    assert steps(output) == [0, 1, 2]
    assert list(send_waiting(output, partial(recorder_at, output))) == []


@pytest.mark.faults  # building its tables takes seconds
def test_a_database_that_was_removed_is_made_again_with_all_that_is_told(output: Path) -> None:
    (output / "table.csv").write_text("rows")
    recorder = opened(output)
    begin(recorder, "a", "ended")
    recorder.record("a", line("train/loss", range(3)))
    recorder.finish("ended", "finished")
    (output / "mlflow.db").unlink()
    recorder.record("a", line("train/loss", range(5)))
    assert not recorder.waiting
    recorder.attach("ended", output / "table.csv")
    recorder.finish("a", "finished")
    assert steps(output) == list(range(5))
    assert stored(output).status == stored(output, "ended").status == "finished"


def test_a_database_that_was_replaced_is_not_written_past(output: Path, empty: Path) -> None:
    recorder = opened(output)
    begin(recorder, "a")
    recorder.record("a", line("train/loss", range(3)))
    shutil.copy(empty, output / "other.db")
    os.replace(output / "other.db", output / "mlflow.db")
    recorder.record("a", line("train/loss", range(5)))
    recorder.close()
    assert steps(output) == list(range(5))


def test_a_spoilt_database_keeps_records_waiting(output: Path, empty: Path) -> None:
    recorder = opened(output)
    begin(recorder, "a")
    (output / "mlflow.db").write_text("something else " * 1000)
    recorder.record("a", line("train/loss", range(3)))
    assert recorder.waiting
    shutil.copy(empty, output / "mlflow.db")
    recorder.close()
    assert steps(output) == [0, 1, 2]


def test_a_file_that_never_was_a_database_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("something else " * 100)
    with pytest.raises(ValueError, match="write another output folder"):
        opened(tmp_path)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder on a disk that turns read-only, as disks do when they fail. Skips where this user may not."""
    again = ["mount", "-o", "remount,bind,ro", str(folder)]
    subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True)
    done = subprocess.run(again, capture_output=True)
    try:
        if done.returncode != 0:
            pytest.skip(f"making a disk read-only needs root: {done.stderr.decode().strip()}")
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def test_a_database_on_a_disk_that_turned_read_only(output: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The spool stands on another disk, as under --output with a database that is a link."""
    disk = tmp_path_factory.mktemp("disk")
    shutil.move(output / "mlflow.db", disk / "mlflow.db")
    (output / "mlflow.db").symlink_to(disk / "mlflow.db")
    recorder = opened(output)
    begin(recorder, "a")
    with read_only(disk):
        recorder.record("a", line("train/loss", range(3)))
        assert recorder.waiting
    recorder.close()
    assert not spool_of(output).exists()
    assert steps(output) == [0, 1, 2]


CHILD = """
import sys
from pathlib import Path
from tests.harness.test_patient_recorder import begin, opened
from tests.laws.recorder_laws import line
recorder = opened(Path(sys.argv[1]))
begin(recorder, "a")
for first in range(0, 20000, 50):
    recorder.record("a", line("train/loss", range(first, first + 50)))
    print("recorded", flush=True)
"""


@pytest.mark.faults
def test_a_process_killed_while_records_wait_and_while_they_are_sent_loses_none(output: Path) -> None:
    def killed_after(batches: int) -> None:
        with child_of(CHILD, str(output)) as child:
            assert child.stdout is not None
            assert [child.stdout.readline() for _ in range(batches)] == ["recorded\n"] * batches
            child.send_signal(signal.SIGKILL)

    killed_after(2)
    with closing(sqlite3.connect(output / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        killed_after(6)
    assert spool_of(output).exists()
    killed_after(1)  # sends what waits, and is killed soon after
    recorder = opened(output)
    begin(recorder, "a")
    recorder.record("a", line("train/loss", range(500)))
    recorder.close()
    found = steps(output)
    assert found == sorted(set(found))
    assert found[:500] == list(range(500))


# a server


@contextmanager
def server(output: Path, port: int) -> Iterator[None]:
    """A real MLflow server, killed at the end of the block."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{output / 'mlflow.db'}"),
        *("--artifacts-destination", (output / "artifacts").as_uri()),
    ]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 180.0
        while not answers(port):
            assert process.poll() is None
            assert time.monotonic() < give_up, "the server must answer"
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.faults
def test_a_server_that_is_killed_and_started_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    uri = f"http://127.0.0.1:{port}"
    (output / "table.csv").write_text("rows")
    with server(output, port):
        recorder = opened(output, uri=uri)
        begin(recorder, "a")
        recorder.record("a", line("train/loss", range(3)))
    recorder.record("a", line("train/loss", range(2, 5)))
    recorder.attach("a", output / "table.csv")
    recorder.finish("a", "finished")
    assert recorder.waiting
    recorder.close()
    assert spool_of(output).exists()
    with server(output, port):
        assert ["were sent" in told for told in send_waiting(output, partial(recorder_at, output))] == [True]
    assert steps(output) == list(range(5))
    assert stored(output).status == "finished"
    assert stored(output).files == {"table.csv": "rows"}
