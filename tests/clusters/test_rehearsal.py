"""A cluster on hosts made of namespaces: it lives through the loss of a node, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clusters.hosts import missing
from clusters.rehearse import unready

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "clusters" / "rehearse.py")]
PATIENCE_SECONDS = 120.0

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(unready()), reason=unready())]


def traces() -> dict[str, object]:
    """What a rehearsal could leave behind: mounts, network cards, files, servers."""
    servers = [process.info["name"] for process in psutil.process_iter(["name"])]
    return {
        "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()),
        "cards": sorted(os.listdir("/sys/class/net")),
        "files": sorted(name for folder in ("/mnt", "/root") for name in os.listdir(folder)),
        "ssh servers": servers.count("sshd"),
    }


@pytest.mark.slow
def test_a_study_outlives_the_loss_of_a_node_and_nothing_is_left() -> None:
    before = traces()
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pulling the plug" in done.stdout
    assert "no process of Ray is left on any host" in done.stdout
    assert traces() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_rehearsal_that_is_stopped(number: signal.Signals) -> None:
    before = traces()
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "hosts that answer over ssh" in line, line + process.stdout.read()
    process.send_signal(number)
    process.wait(PATIENCE_SECONDS)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while traces() != before and time.monotonic() < give_up:
        time.sleep(0.2)
    assert traces() == before


def test_what_a_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusters.hosts.SEARCHED", "/nonexistent")
    assert "got no ip" in missing()
    assert "install openssh-server, rsync" in missing()
