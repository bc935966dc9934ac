"""A full disk fails the trial in words, leaves the last checkpoint whole, and costs nothing once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.adapters.inline_runner import InlineRunner
from harness.checkpoint import Store
from harness.plan import BranchWork, Stop
from harness.room import NoRoom
from harness.source import StagedSource
from harness.trial import Event, TrialResult, TrialSpec
from tests.harness.test_spool import no_file_beyond
from tests.harness.tiny import checksums, events, trial, trunk_and_tails

ROOT = Path(__file__).parents[2]
LAST = 20


def work() -> BranchWork:
    return BranchWork(branch=trunk_and_tails()[0].branch, stops=(Stop(steps=LAST, evaluate=False),))


def run(spec: TrialSpec, on_event: Event | None = None) -> TrialResult:
    results: list[TrialResult] = []
    source = StagedSource(iter([[spec]]), ready=lambda spec: True, on_result=results.append)
    InlineRunner().run(source, lambda spec, event: None)
    return results[0]


def test_a_trial_without_room_fails_and_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    undisturbed = trial(tmp_path / "undisturbed", [work()])
    list(events(undisturbed))
    spec, store = trial(tmp_path / "full", [work()]), Store(tmp_path / "full")
    going = iter(events(spec))
    while store.latest(work().branch) is None:
        next(going)
    going.close()  # type: ignore[attr-defined]
    good = store.latest(work().branch)
    assert good is not None
    assert 0 < good["steps"] < LAST

    with no_file_beyond(4096):
        assert len(store.get(good["state"])) > 4096, "a checkpoint must be too large for what is left"
        result = run(spec)
    assert result.status == "failed"
    assert "a study needs room for its files" in result.error
    assert "run the same command again, which goes on from the last checkpoint" in result.error
    assert store.latest(work().branch) == good
    assert store.get_state(good["state"])["step"] == good["steps"]
    assert [path.name for path in (store.folder / "objects").iterdir()] == [good["state"]], "no half file may stay"

    assert run(spec).status == "finished"
    assert checksums(store.folder, [work()]) == checksums(tmp_path / "undisturbed", [work()]) != {}


def test_what_has_no_room_is_told_with_its_file(tmp_path: Path) -> None:
    with no_file_beyond(100), pytest.raises(NoRoom, match=r"got none for .*objects/"):
        Store(tmp_path).put(b"x" * 200, ".bin")


# a real disk that is full


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in memory; skips where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path, *, leave: int) -> None:
    """Take all of a disk but some bytes."""
    disk = os.statvfs(file.parent)
    with file.open("wb") as stream:
        stream.write(b"x" * (disk.f_bavail * disk.f_frsize - leave))


def study(output: Path) -> subprocess.CompletedProcess[str]:
    options = (
        *("--stages", "fm=40", "pg=4", "--seeds", "1", "--runner", "inline", "--checkpoint-seconds", "0"),
        *("--hidden", "64", "--layers", "3", "--train-samples", "128", "--evaluation-samples", "32"),
        *("--evaluation-tolerance", "1e-3", "--fm-batch", "32", "--pg-batch", "16", "--solver-steps", "2"),
    )
    command = [sys.executable, str(ROOT / "studies" / "train_plan.py"), *options, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=output.parent)


def stored(output: Path) -> dict[str, str]:
    store = Store(output / "store")
    found = {file.stem: store.segment(file.stem) for file in (store.folder / "segments").glob("*.json")}
    return {name: value["checksum"] for name, value in found.items() if value is not None}


@pytest.mark.faults
def test_a_study_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "8m"):
        output = disk / "results"
        output.mkdir()
        fill(disk / "ballast", leave=600 * 2**10)
        full = study(output)
        assert full.returncode != 0 or "failed" in full.stdout, full.stdout
        said = full.stdout + full.stderr
        assert "a study needs room for its files" in said
        assert "Traceback" not in said
        kept = stored(output)
        (disk / "ballast").unlink()
        good = study(output)
        assert good.returncode == 0, good.stderr
        assert "failed" not in good.stdout
        found = stored(output)
        assert kept.items() <= found.items()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert study(undisturbed).returncode == 0
    assert found == stored(undisturbed) != {}
