"""The study of integration errors as a value, and as a whole in this process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import calibrate
from models import accuracy
from studies.accuracy_report import report
from studies.integration_error import IntegrationError
from studies.trajectory_length import TrajectoryLength
from tests.studies.test_trajectory_length import SMALL as TRAINED
from tests.studies.test_trajectory_length import rows_of, run_of

SMALL: dict[str, Any] = {
    **TRAINED,
    "fm": "30",
    "pg": None,
    "fm_learning_rate": 1e-2,
    "steps": (1, 2, 4, 8),
    "error_samples": 32,
    "gradient_batches": 2,
    "gradient_reference_steps": 12,
    "reference_tolerance": 1e-8,
}


def test_the_settings_are_part_of_the_question() -> None:
    study = IntegrationError(**SMALL).study()
    assert tuple(study.plans) == ("optimal-transport", "equivariant-optimal-transport")
    assert all([s.phase.name for s in plan.stages] == ["fm", "fm_tail"] for plan in study.plans.values())
    assert tuple(IntegrationError(target="gmm4").study().plans) == ("independent", "optimal-transport")
    changes = [
        {"steps": (1, 2)},
        {"gradings": (0.1,)},
        {"error_samples": 40},
        {"gradient_batches": 1},
        {"reference_tolerance": 1e-6},
    ]
    names = {IntegrationError(**{**SMALL, **change}).study().id for change in changes}
    assert len(names | {study.id}) == len(changes) + 1


def test_the_flows_are_those_of_the_other_study() -> None:
    common = {key: SMALL[key] for key in TRAINED} | {"fm_learning_rate": 1e-2}
    lengths = TrajectoryLength(**{**common, "pg": "2"}).study()
    for coupling, plan in IntegrationError(**SMALL).study().plans.items():
        assert plan.stages == lengths.plans[coupling].stages[:2]
        assert plan.setting == lengths.plans[coupling].setting


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": (2, 1)}, "write for example 1 2 4"),
        ({"steps": ()}, "write for example 1 2 4"),
        ({"steps": (0, 1)}, "write for example 1 2 4"),
        ({"error_samples": 65}, "write --error-samples"),
        ({"error_samples": 1}, "write --error-samples"),
        ({"gradings": (0.1, 0.1)}, "write --gradings"),
        ({"gradings": ()}, "write --gradings"),
        ({"gradings": (-0.1,)}, "write 0.1 or so"),
        ({"gradient_batches": 13}, "write --gradient-batches"),
        ({"gradient_batches": 0}, "write --gradient-batches"),
        ({"reference_tolerance": 0.0}, "write 1e-5"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        IntegrationError(**{**SMALL, **change}).study()


def test_a_whole_study_measures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    run, recorder, _ = run_of(IntegrationError(**{**SMALL, "seeds": "1"}).study(), tmp_path)
    cells = run.run()
    (run.folder / "study.json").write_text("{}")
    text = report(run, cells)
    errors = rows_of(run.folder / "errors.csv")
    assert len(errors) == 2 * 2 * 2 * 4
    for plan in run.tracks:
        for way in ("base to data", "data to base"):
            held = [r for r in errors if (r["plan"], r["way"], r["quantity"]) == (plan, way, "position")]
            assert [int(r["steps"]) for r in held] == [1, 2, 4, 8]
            assert [float(r["field_evaluations"]) for r in held] == [4, 8, 16, 32]
            medians = np.array([float(r["median"]) for r in held])
            slope = np.polyfit(np.log([2, 4, 8]), np.log(medians[1:]), 1)[0]
            assert -5 < slope < -3.2
            assert all(float(r["median_eval_lo"]) <= float(r["median"]) <= float(r["median_eval_hi"]) for r in held)
            assert all(float(r["floor"]) < float(r["median"]) for r in held[:3])
    gradients = rows_of(run.folder / "pg_steps.csv")
    assert [int(row["steps"]) for row in gradients] == [1, 2, 4, 8] * 2
    found = np.array([float(row["pg_gradient_error"]) for row in gradients]).reshape(2, 4)
    assert (np.diff(np.log(found)) < 0).all()
    with (run.folder / "speed_up.csv").open() as file:
        for row in csv.DictReader(file):
            ratio = float(row["first_field_evaluations"]) / float(row["second_field_evaluations"])
            assert float(row["speed_up"]) == pytest.approx(ratio)
            assert row["second_interpolated"] == "true"
    assert (run.folder / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert "relative error of the path gradient" in text
    assert recorder.files["summary"][:4] == ["errors.csv", "speed_up.csv", "pg_steps.csv", "errors.png"]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured already")

    monkeypatch.setattr(accuracy, "solver_errors", never)
    again, _, runner = run_of(IntegrationError(**{**SMALL, "seeds": "1"}).study(), tmp_path)
    assert report(again, again.run()) == text
    assert runner.kinds == []
