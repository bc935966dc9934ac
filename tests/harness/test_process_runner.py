"""Workers that are processes of this machine keep the runner laws, sum over ranks, and fail as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.adapters.process_runner import ProcessRunner
from harness.checkpoint import Store
from harness.contracts import Runner
from harness.measure import WORKER as WORKER_OF_MEASUREMENTS
from harness.measure import Measurement, measure_with
from harness.session import Setting
from harness.trial import Placement
from tests.harness.runner_workers import spec
from tests.harness.tiny import FM, SETTINGS
from tests.laws.runner_laws import WORKER, Family, RunnerLaws

pytestmark = pytest.mark.faults


class TestProcessRunner(RunnerLaws):
    @pytest.fixture(scope="class")
    def runner(self) -> Runner:
        return ProcessRunner(worker=WORKER)


def test_two_processes_sum_and_one_error_ends_both(tmp_path: Path) -> None:
    family = Family({name: spec(name, tmp_path, workers=2) for name in ("pair", "broken pair")})
    ProcessRunner(worker=WORKER).run(family, family.on_event)
    assert family.results["pair"].status == "finished"
    assert [event.values["ranks"] for event in family.events["pair"][1:]] == [3.0] * 5
    assert "trials named broken pair must fail" in family.results["broken pair"].error


def test_a_killed_worker_ends_its_trial(tmp_path: Path) -> None:
    family = Family({"pair": spec("pair", tmp_path, workers=2)})
    ProcessRunner(worker="tests.harness.runner_workers:die_once").run(family, family.on_event)
    assert family.results["pair"].status == "failed"


def test_a_measurement_under_processes_has_every_way(tmp_path: Path) -> None:
    setting = Setting(build="models.problem:build", problem=SETTINGS, seeds=(0,), placement=Placement(workers=2))
    study = Measurement(name="scaling", part="workers", setting=setting, phases=(FM,))
    measured = measure_with(ProcessRunner(worker=WORKER_OF_MEASUREMENTS), study, Store(tmp_path))
    assert [(t.way, t.workers, t.rows) for t in measured.timings] == [
        ("alone", 1, FM.batch),
        ("strong", 2, FM.batch),
        ("weak", 2, 2 * FM.batch),
        ("apart", 2, 2 * FM.batch),
    ]
    assert len({text.split(" pid ")[1].split()[0] for text in measured.workers.values()}) == 2
