"""The sweep over noise schedules, from its options to its files, tiny; interrupted, resumed, and read again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from harness import sweep_run
from harness.checkpoint import Store
from harness.finished_study import FinishedStudy
from harness.judging import Judgement
from models.generators import schedule_of
from models.problem import build
from studies.noise_schedule import NoiseSchedule
from tests.studies.counted_trials import counted_trials

TINY: dict[str, Any] = {
    "target": "gmm4",
    "trials": 6,
    "first_rung": 1,
    "factor": 2,
    "rungs": 3,
    "startup": 3,
    "runner": "inline",
    "hidden": 8,
    "layers": 2,
    "train_samples": 96,
    "evaluation_samples": 32,
    "evaluation_tolerance": 1e-2,
    "dem_batch": 10,
    "samples_range": (2, 5),
    "sde_steps": 2,
    "buffer_capacity": 30,
    "buffer_start_rows": 16,
    "generated": 11,
    "resamples": 2,
}


def test_a_sweep_prunes_resumes_and_tells_what_the_store_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = NoiseSchedule(**TINY, output=tmp_path)
    counted_trials(monkeypatch, at_most=4)
    with pytest.raises(KeyboardInterrupt):
        study.execute()
    store = Store(tmp_path / "store")
    before = {path.name: path.stat().st_mtime_ns for path in (store.folder / "segments").rglob("*.json")}
    assert before

    started = counted_trials(monkeypatch)
    text = study.execute()
    after = {path.name: path.stat().st_mtime_ns for path in (store.folder / "segments").rglob("*.json")}
    assert {name: after[name] for name in before} == before
    folder = tmp_path / "noise_schedule" / study.sweep().id
    rows = read(folder / "trials.csv")
    states = {row["point"]: row["state"] for row in rows}
    assert len(states) == 6
    assert set(states.values()) == {"finished", "pruned"}
    assert "too few trials to say which settings matter" in text
    agrees_with_the_store(study, store, rows)
    best = min(
        (row for row in rows if row["state"] == "finished" and row["steps"] == "4"), key=lambda r: float(r["loss"])
    )
    assert FinishedStudy.read(folder).winner().segment == best["segments"]
    is_tracked(tmp_path, study, states)
    for name in ("history.png", "slices.png", "importance.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    started.clear()
    assert study.execute() == text
    assert started == []


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def agrees_with_the_store(study: NoiseSchedule, store: Store, rows: list[dict[str, str]]) -> None:
    sweep = study.sweep()
    problem = build(sweep.setting.problem, cache=store.folder / "reference")
    judgement = Judgement(sweep.question, problem, store, sweep.setting.problem)
    for row in rows:
        assert float(row["device_seconds"]) > 0
        assert float(row["loss"]) == judgement.estimates(row["segments"], "validation")["forward_kl"].value
        assert float(row["test_loss"]) == judgement.estimates(row["segments"], "test")["forward_kl"].value
    for point in {row["point"] for row in rows}:
        mine = [row for row in rows if row["point"] == point]
        assert [int(row["steps"]) for row in mine] == list(sweep.ladder.steps[: len(mine)])
        assert (mine[0]["state"] == "finished") == (len(mine) == 3)


def is_tracked(output: Path, study: NoiseSchedule, states: dict[str, str]) -> None:
    """Every point is a run with its settings, and its losses at the steps of the rungs."""
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("noise_schedule gmm4")
    assert experiment is not None
    runs = {run.data.params["number"]: run for run in client.search_runs([experiment.experiment_id]) if run.data.params}
    assert {number: run.data.tags["state"] for number, run in runs.items()} == states
    for run in runs.values():
        assert {"family", "learning_rate"} <= run.data.params.keys()
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "sweep/loss")]
        assert sorted(steps) == [1, 2, 4][: int(run.data.tags["rungs"])]


def test_every_corner_of_the_space_is_a_schedule_of_the_width_that_was_asked_for() -> None:
    for target in ("gmm4", "gmm40", "dw4", "lj13", "lj55"):
        study = NoiseSchedule(target=target)
        corners = list(study.sweep().corners())
        assert {values["family"] for values in corners} == {"geometric", "linear", "quadratic", "power", "cosine"}
        for values in corners:
            phase = study.phase_of(values)
            schedule = schedule_of(phase.objective["schedule"])
            lost = values["noise_min"] ** 2 if values["family"] == "geometric" else 0.0
            np.testing.assert_allclose(schedule.total_variance, values["noise_max"] ** 2 - lost)
            assert phase.objective["samples"] == values["samples"]
            assert phase.objective["clip"]["norm"] == values["clip"]
            assert phase.optimiser.learning_rate == values["learning_rate"]


def test_what_is_given_is_not_searched() -> None:
    study = NoiseSchedule(families=("geometric",), noise_max=2.5, dem_samples=7)
    assert list(study.space()) == ["noise_min", "clip", "learning_rate"]
    phase = study.phase_of({"noise_min": 0.1, "clip": 3.0, "learning_rate": 1e-3})
    assert phase.objective["schedule"] == {"kind": "geometric", "sigma_min": 0.1, "sigma_max": 2.5}
    assert phase.objective["samples"] == 7


def test_the_trials_are_no_part_of_the_identity_and_the_metric_is() -> None:
    sweep = NoiseSchedule().sweep()
    assert NoiseSchedule(trials=99).sweep().id == sweep.id
    assert NoiseSchedule(metric="energy_w2").sweep().id != sweep.id
    assert NoiseSchedule(first_rung=7).sweep().id != sweep.id


def test_losses_are_what_the_metric_says() -> None:
    estimate = sweep_run.Estimate(value=0.25, lo=0.2, hi=0.3, n=9)
    assert NoiseSchedule(metric="ess_q").loss()({"ess_q": estimate}) == -0.25
    assert NoiseSchedule(metric="energy_w2").loss()({"energy_w2": estimate}) == 0.25
    study = NoiseSchedule(metric="log_z_error")
    log_z = build(study.problem_setting().problem, cache=Path()).physics.target.log_z
    assert log_z is not None
    assert study.loss()({"log_z": estimate}) == pytest.approx(abs(0.25 - log_z))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 1}, "--trials 30"),
        ({"families": ()}, "--families geometric"),
        ({"families": ("linear", "linear")}, "--families geometric"),
        ({"clip_range": (3.0, 1.0)}, "--clip-range LOW HIGH"),
        ({"learning_rate_range": (0.0, 1.0)}, "--learning-rate-range LOW HIGH"),
        ({"exponent_range": (0.5, 2.0)}, "--exponent-range 1 6"),
        ({"noise_min_range": (0.1, 2.0)}, "--noise-min-range"),
        ({"noise_max": 0.05}, "--noise-max-range"),
        ({"first_rung": 0}, "--first-rung 200"),
        ({"factor": 1}, "--factor 3"),
        ({"startup": 0}, "--startup 10"),
        ({"resamples": 1}, "--resamples 50"),
        ({"target": "lj13", "metric": "forward_kl"}, "--metric nll"),
        ({"target": "dw4", "metric": "log_z_error"}, "--metric nll"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        NoiseSchedule(**options, output=tmp_path).execute()
    assert list(tmp_path.iterdir()) == []
