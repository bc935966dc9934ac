"""The Ray runner on a real local Ray: laws, two workers, a lost worker, and what a killed study leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from harness.adapters.ray_cluster import check_shared
from harness.adapters.ray_processes import RECORD, end_leftovers, recorded
from harness.adapters.ray_runner import RayRunner
from harness.adapters.ray_session import cores
from harness.checkpoint import Store
from harness.contracts import Runner
from harness.measure import WORKER as WORKER_OF_MEASUREMENTS
from harness.measure import Measurement, measure_with
from harness.session import Setting
from harness.trial import Placement
from tests.harness.runner_workers import spec
from tests.harness.tiny import FM, SETTINGS
from tests.laws.runner_laws import WORKER, Family, RunnerLaws

PROJECT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300.0


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRunner]:
    """One local Ray for all tests of this module."""
    with RayRunner(folder=tmp_path_factory.mktemp("study"), worker=WORKER) as runner:
        yield runner
    assert not ray.is_initialized()


@pytest.mark.ray
class TestRayRunner(RunnerLaws):
    @pytest.fixture(scope="class")
    def runner(self, session: RayRunner) -> Runner:
        return session


@pytest.mark.ray
def test_two_workers_prove_themselves(session: RayRunner, tmp_path: Path) -> None:
    family = Family({"pair": spec("pair", tmp_path, workers=2)})
    session.run(family, family.on_event)
    assert family.results["pair"].status == "finished", family.results["pair"].error
    who, *steps = family.events["pair"]
    hosts, pids, torch_threads, omp_threads = zip(*(who.notes[f"rank_{r}"].split() for r in (0, 1)), strict=True)
    assert len(set(pids)) == 2
    assert str(os.getpid()) not in pids
    assert len(set(hosts)) == 1
    assert set(torch_threads) == set(omp_threads) == {"1"}
    assert who.notes["tools"] == "", "workers must import neither optuna nor mlflow"
    assert [event.values["sum"] for event in steps] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert all(event.values["ranks"] == 1.0 + 2.0 for event in steps)


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_the_trial_resumes(session: RayRunner, tmp_path: Path) -> None:
    runner = RayRunner(folder=session.folder, worker="tests.harness.runner_workers:die_once")
    family = Family({"victim": spec("victim", tmp_path, workers=2)})
    runner.run(family, family.on_event)
    assert family.results["victim"].status == "finished", family.results["victim"].error
    assert (tmp_path / "killed").exists()
    steps = [(event.step, event.values["sum"]) for event in family.events["victim"] if event.kind == "train"]
    assert steps[-3:] == [(3, 6.0), (4, 8.0), (5, 10.0)]
    resumed = [event.values["first"] for event in family.events["victim"] if event.step == 5]
    assert resumed == [3.0], "the second attempt must start where the first had got to"


@pytest.mark.ray
def test_workers_are_timed_in_turns(session: RayRunner, tmp_path: Path) -> None:
    setting = Setting(build="models.problem:build", problem=SETTINGS, seeds=(0,), placement=Placement(workers=2))
    study = Measurement(name="scaling", part="workers", setting=setting, phases=(FM,))
    runner = RayRunner(folder=session.folder, worker=WORKER_OF_MEASUREMENTS)
    measured = measure_with(runner, study, Store(tmp_path))
    ways = [(t.way, t.workers) for t in measured.timings]
    assert ways == [("alone", 1), ("strong", 2), ("weak", 2), ("apart", 2)]
    assert len(measured.workers) == 2


@pytest.mark.ray
def test_a_trial_larger_than_the_cluster_is_refused(session: RayRunner, tmp_path: Path) -> None:
    family = Family({"crowd": spec("crowd", tmp_path, workers=cores() + 1)})
    with pytest.raises(ValueError, match=f"need {cores() + 1} CPUs where there are {cores()}; write fewer"):
        session.run(family, family.on_event)


@pytest.mark.ray
def test_a_shared_folder_is_seen_by_all_nodes(session: RayRunner, tmp_path: Path) -> None:
    check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


STUDY = """
import sys
from pathlib import Path
from harness.adapters.ray_runner import RayRunner
from tests.harness.runner_workers import spec
from tests.laws.runner_laws import Family

family = Family({"endless": spec("endless", Path(sys.argv[1]))})
runner = RayRunner(folder=Path(sys.argv[1]) / "study", worker="tests.harness.runner_workers:linger")
runner.run(family, family.on_event)
"""


def until(happened: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < give_up, f"waited {PATIENCE_SECONDS} seconds for {what}"
        time.sleep(0.2)


def living(folder: Path) -> list[psutil.Process]:
    return [process for process in (p.find() for p in recorded(folder)) if process is not None]


@pytest.fixture
def study(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A study in a process of its own whose only trial never ends; a worker of it is on record."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "RAY_ADDRESS": ""}
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-c", STUDY, str(tmp_path)], env=environment, stdout=log, stderr=log, cwd=PROJECT
    )

    def worker_on_record() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        workers = {int(path.name.partition("-")[2]) for path in tmp_path.glob("alive-*")}
        return bool(workers) and bool(workers & {found.pid for found in living(tmp_path / "study")})

    until(worker_on_record, "a worker to start")
    yield process
    process.kill()
    process.wait()
    end_leftovers(tmp_path / "study")


@pytest.mark.ray
def test_what_a_killed_study_left_behind_is_ended_at_the_next_start(
    study: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    before = living(tmp_path / "study")
    study.kill()
    study.wait()
    end_leftovers(tmp_path / "study")
    assert not [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "study" / RECORD).exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_terminated_study_ends_its_ray(study: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = living(tmp_path / "study")
    study.send_signal(signal.SIGTERM)
    assert study.wait(timeout=PATIENCE_SECONDS) == 128 + signal.SIGTERM
    assert not [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "study" / RECORD).exists()
    assert list((tmp_path / "study" / "ray_logs").iterdir())
