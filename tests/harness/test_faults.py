"""A study that is killed again and again, and started again by the same command, ends as one that was left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.adapters.mlflow_recorder import MlflowClient
from harness.adapters.ray_processes import RECORD, ProcessId, recorded

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
# Costs in operations mean the same number of steps everywhere; checkpoints come as often as they can be written.
SMALL = (
    *("--hidden", "8", "--layers", "2", "--train-samples", "128", "--evaluation-samples", "32"),
    *("--fm-batch", "32", "--pg-batch", "16", "--solver-steps", "2", "--checkpoint-seconds", "0.02"),
    *("--budgets", "2", "--splits", "2", "--seeds", "1"),
)
INLINE = ("--runner", "inline", "--budget", "2e7flop")
# A step that two processes share takes longer, so there are fewer.
TWO_WORKERS = ("--runner", "ray", "--workers", "2", "--budget", "3e6flop")
LIFE_SECONDS = 240.0
CLOCKS = "clock/"
"""Metrics that hang on clocks."""
METERS = ("device_seconds", "peak_memory_bytes")
"""Costs that hang on the machine's moment, unlike counted operations."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to kill: once this life has written so many files of a pattern, and a random little later.

    A file counts when it appears or changes. `latest` bounds the random delay in seconds.
    """

    name: str
    pattern: str = ""
    writes: int = 1
    latest: float = 0.3


# Every room of a study's life, in an order in which each still lies ahead when its turn comes.
MOMENTS = (
    Moment(name="start-up", latest=2.0),
    Moment(name="the making of the database", pattern=".partial-mlflow.db", latest=1.5),
    Moment(name="the calibration of FM", pattern="budget_split/*/workers.json"),
    Moment(name="the calibration of PG", pattern="store/prices/*.json"),
    Moment(name="the reference samples", pattern="store/reference/*", latest=0.01),
    Moment(name="the write of a checkpoint", pattern="store/**/.partial-*", writes=3, latest=0.002),
    Moment(name="training", pattern="store/branches/*/latest.json", writes=4),
    Moment(name="an evaluation", pattern="store/segments/*.json", writes=2, latest=0.05),
    Moment(name="the write of records", pattern="store/evaluations/*.json", writes=2, latest=0.01),
    Moment(name="the recorder's flush", pattern="store/estimates/*.json", writes=20, latest=1.0),
    Moment(name="the figures", pattern="budget_split/*/surface.png", latest=1.0),
    Moment(name="the summary", pattern="artifacts/**/*.csv", latest=0.2),
)


@dataclass(frozen=True, kw_only=True)
class Life:
    """One start of the command: whether it was killed, its exit code otherwise, and what it said."""

    killed: bool
    code: int | None
    text: str
    seconds: float


def command(output: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "studies" / "budget_split.py"), *SMALL, "--output", str(output), *options]


def environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**known, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def live(args: list[str], log: Path, until: Callable[[], bool] = lambda: False) -> Life:
    """Start the command and wait for its end, or kill it once `until` is true."""
    begin = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(args, stdout=stream, stderr=subprocess.STDOUT, env=environment(), cwd=log.parent)
        try:
            while process.poll() is None and not until():
                assert time.monotonic() - begin < LIFE_SECONDS, f"no end in sight: {log.read_text()[-2000:]}"
                time.sleep(0.002)
            killed = process.poll() is None
        finally:
            process.kill()
            process.wait()
    return Life(killed=killed, code=process.returncode, text=log.read_text(), seconds=time.monotonic() - begin)


def writes_of(output: Path, pattern: str) -> Callable[[], int]:
    """Counts the files of a pattern that have appeared or changed since now, each change once."""
    seen = dict(stamps(output, pattern))
    count = 0

    def changed() -> int:
        nonlocal count
        for path, stamp in stamps(output, pattern):
            if seen.get(path) != stamp:
                seen[path] = stamp
                count += 1
        return count

    return changed


def stamps(output: Path, pattern: str) -> Iterator[tuple[Path, tuple[int, int]]]:
    for path in output.glob(pattern):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # renamed into place between two looks: what it became is seen under its own name
        yield path, (stat.st_mtime_ns, stat.st_ino)


def at(moment: Moment, output: Path, rng: random.Random) -> Callable[[], bool]:
    """True from the moment on."""
    delay = rng.uniform(0.0, moment.latest)
    writes = writes_of(output, moment.pattern) if moment.pattern else lambda: moment.writes
    due: float | None = None

    def come() -> bool:
        nonlocal due
        if due is None and writes() >= moment.writes:
            due = time.monotonic() + delay
        return due is not None and time.monotonic() >= due

    return come


# what must be equal


def checksums(output: Path) -> dict[str, str]:
    files = (output / "store" / "segments").glob("*.json")
    return {file.stem: json.loads(file.read_text())["checksum"] for file in files}


def study_folder(output: Path) -> Path:
    (folder,) = (output / "budget_split").iterdir()
    return folder


def surface(output: Path) -> list[dict[str, str]]:
    """The rows as texts: floats are written in full, so equal texts are equal bits."""
    with (study_folder(output) / "surface.csv").open() as stream:
        return list(csv.DictReader(stream))


def answer(output: Path) -> Any:
    """All that does not hang on clocks: budgets are in operations, so that is all but the metered costs."""
    return without_meters(json.loads((study_folder(output) / "answer.json").read_text()))


def without_meters(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_meters(item) for key, item in value.items() if key not in METERS}
    return [without_meters(item) for item in value] if isinstance(value, list) else value


History = dict[tuple[str, str, int], list[float]]


def histories(output: Path) -> History:
    """Every point of every run: (key of the run, metric, step) with its values; each key must be one run."""
    client = MlflowClient(tracking_uri=f"sqlite:///{output.absolute() / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    keys = Counter((run.data.tags["study"], run.data.tags["key"]) for run in runs)
    assert set(keys.values()) == {1}, f"each run must be there once, got {keys}"
    assert {run.info.status for run in runs} == {"FINISHED"}
    found: History = {}
    for run in runs:
        for metric in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, metric):
                found.setdefault((run.data.tags["key"], metric, point.step), []).append(point.value)
    return found


def check_records(output: Path, undisturbed: Path) -> None:
    """Each step of each metric once; and where no clock is involved, the same values."""
    expected, found = histories(undisturbed), histories(output)
    assert not {point: values for point, values in found.items() if len(values) != 1}
    assert found.keys() == expected.keys()
    plain = [point for point in expected if not point[1].startswith(CLOCKS)]
    assert plain, "some metric must be free of clocks"
    # NaN stands for itself here, so texts are compared.
    assert {point: repr(found[point]) for point in plain} == {point: repr(expected[point]) for point in plain}


def check_same(output: Path, undisturbed: Path) -> None:
    assert checksums(output) == checksums(undisturbed)
    assert surface(output) == surface(undisturbed)
    assert answer(output) == answer(undisturbed)
    check_records(output, undisturbed)


def finish(args: list[str], log: Path) -> Life:
    life = live(args, log)
    assert life.code == 0, life.text
    assert "failed" not in life.text, life.text
    return life


def test_a_study_killed_at_every_stage_ends_with_the_same_numbers(tmp_path: Path) -> None:
    rng = random.Random(7)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    finish(command(undisturbed, *INLINE), tmp_path / "undisturbed.log")
    output.mkdir()
    deaths = []
    for number, moment in enumerate(MOMENTS):
        log = tmp_path / f"life-{number}.log"
        life = live(command(output, *INLINE), log, at(moment, output, rng))
        assert life.killed or life.code == 0, f"after the kill in {deaths[-1:]}: {life.text}"
        deaths += [moment.name] if life.killed else []
        print(f"{moment.name}: {'killed' if life.killed else 'ended'} after {life.seconds:.1f} s", flush=True)
    assert len(deaths) >= 10, f"at least ten kills must hit, got {deaths}"
    finish(command(output, *INLINE), tmp_path / "last.log")
    check_same(output, undisturbed)


# workers under Ray


def ray_command(output: Path) -> list[str]:
    return command(output, *TWO_WORKERS)


def worker_pids(output: Path) -> list[int]:
    """Processes of the last group of workers that introduced itself."""
    path = study_folder(output) / "workers.json"
    last = json.loads(path.read_text())[-1]
    return [int(text.split(" pid ")[1].split()[0]) for key, text in last.items() if key.startswith("rank_")]


def known_processes(output: Path) -> list[ProcessId]:
    """What the record of a killed study names."""
    return [process for file in output.glob(f"budget_split/*/**/{RECORD}") for process in recorded(file.parent)]


def kill_a_worker(output: Path, rng: random.Random) -> Callable[[], bool]:
    """Kills one worker in the middle of training, and never asks for the study's own death."""
    introduced = writes_of(output, "budget_split/*/workers.json")
    trained = writes_of(output, "store/branches/*/latest.json")
    done = False

    def watch() -> bool:
        nonlocal done
        if not done and trained() >= 2 and introduced() >= 1:
            victim = rng.choice(worker_pids(output))
            assert any("ray" in part for part in psutil.Process(victim).cmdline())
            os.kill(victim, signal.SIGKILL)
            done = True
        return False

    return watch


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_killed_and_killed_again_end_with_the_same_weights(tmp_path: Path) -> None:
    rng = random.Random(11)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    finish(ray_command(undisturbed), tmp_path / "undisturbed.log")
    output.mkdir()
    left: list[ProcessId] = []
    for number, moment in enumerate(
        (
            Moment(name="the calibration", pattern="budget_split/*/workers.json"),
            Moment(name="training", pattern="store/branches/*/latest.json", writes=3),
            Moment(name="an evaluation", pattern="store/segments/*.json", writes=3, latest=0.1),
        )
    ):
        life = live(ray_command(output), tmp_path / f"life-{number}.log", at(moment, output, rng))
        assert life.killed, f"{moment.name} must come, got {life.text}"
        left += known_processes(output)
        print(f"{moment.name}: killed after {life.seconds:.1f} s", flush=True)
    last = live(ray_command(output), tmp_path / "last.log", kill_a_worker(output, rng))
    assert last.code == 0, last.text
    assert left, "a killed study must leave a record of its processes"
    assert not [process for process in left if process.find() is not None]
    check_same(output, undisturbed)
