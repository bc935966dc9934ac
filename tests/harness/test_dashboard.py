"""The dashboard says what is missing before it starts, and starts and stops a real server."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from harness.adapters.mlflow_recorder import MlflowRecorder
from harness.dashboard import HOST, Dashboard, checked

ROOT = Path(__file__).parents[2]


def with_database(folder: Path) -> Path:
    (folder / "mlflow.db").touch()
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def test_without_records_it_says_to_run_a_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*mlflow\.db; run a study first"):
        checked(Dashboard(output=tmp_path))


def test_a_port_in_use_is_named_with_one_to_try(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        taken = int(other.getsockname()[1])
        with pytest.raises(ValueError, match=rf"but {taken} is in use on .*; write --port \d+"):
            checked(Dashboard(output=with_database(tmp_path), port=taken))


def test_a_free_port_and_a_database_are_enough(tmp_path: Path) -> None:
    dashboard = Dashboard(output=with_database(tmp_path), port=free_port())
    assert checked(dashboard) == dashboard


def test_the_command_line_ends_with_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.dashboard", "--output", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 2
    assert "run a study first" in ended.stderr
    assert "Traceback" not in ended.stderr


def status_of(url: str, seconds: float = 90.0) -> int:
    """The HTTP status, once there is a server to give one."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


@pytest.mark.slow
def test_it_serves_the_records_and_leaves_nothing_behind(tmp_path: Path) -> None:
    recorder = MlflowRecorder(
        database=tmp_path / "mlflow.db",
        tracking_uri=None,
        artifacts=tmp_path / "artifacts",
        study="shown",
        experiment="surface",
    )
    recorder.start("a", name="a", params={}, tags={})
    port = free_port()
    command = [sys.executable, "-m", "harness.dashboard", "--output", str(tmp_path), "--port", str(port)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline().startswith(f"surface: http://{HOST}:{port}/#/experiments/{recorder.experiment_id}/")
    assert status_of(f"http://{HOST}:{port}/") == 200
    assert status_of(f"http://{HOST}:{port}/api/2.0/mlflow/experiments/get?experiment_id=1") == 200
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    assert checked(Dashboard(output=tmp_path, port=port)).port == port
