"""Plans of energy-only phases: what stands behind what, settings of the papers, and a whole plan in this process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.launch import check_problem
from harness.phase_data import making_cost
from harness.plan import Phase
from harness.plan_report import conclude_plan
from harness.plan_run import PlanStudyRun
from studies.train_plan import TrainPlan
from tests.harness.test_recording import Remembered

SMALL: dict[str, Any] = {
    "target": "gmm4",
    "runner": "inline",
    "seeds": "1",
    "evaluation_samples": 64,
    "evaluation_tolerance": 1e-2,
    "train_samples": 96,
    "hidden": 8,
    "layers": 1,
    "fm_batch": 8,
    "pg_batch": 8,
    "solver_steps": 2,
    "dem_samples": 3,
    "dem_batch": 8,
    "noise_min": 0.1,
    "sde_steps": 5,
    "generated": 10,
    "inner_steps": 2,
    "buffer_start_rows": 16,
    "own_samples": 40,
    "control_steps": 4,
    "control_batch": 8,
    "fab_batch": 8,
    "fab_bridges": 1,
    "fab_rows": 10,
    "fab_every": 2,
    "fab_minimum": 16,
    "fab_layers": 2,
}


def phases(*stages: str, **options: Any) -> tuple[Phase, ...]:
    return TrainPlan(**{**SMALL, **options, "stages": stages}).study().phases


# chains


def test_path_gradients_go_on_with_the_score_that_idem_left() -> None:
    idem, pg = phases("idem=2", "pg=1")
    (alone,) = phases("pg=1")
    assert pg.objective["model"]["network"] == idem.objective["network"]
    assert {name: value for name, value in pg.objective.items() if name != "model"} == alone.objective
    *_, own, after = phases("idem=2", "fm_own=2", "pg=1")
    assert after == alone
    assert own.objective["data"]["from"] == "parent"


def test_rows_of_a_score_network_come_from_its_reverse_process_unless_weights_are_wanted() -> None:
    own = phases("idem=2", "fm_own=1")[1].objective["data"]
    assert own["sde"] == {"steps": 5, "noise_scale": 1.0}
    assert (own["rows"], own["resampled"]) == (40, False)
    resampled = phases("idem=2", "fm_own=1", fm_own_resampled=True)[1].objective["data"]
    assert resampled == {"from": "parent", "rows": 40, "resampled": True, "tolerance": 1e-4}
    pg_own = phases("idem=2", "pg_own=1")[1].objective
    assert pg_own["data"]["resampled"]
    assert pg_own["model"]["kind"] == "probability_flow"
    assert not phases("idem=2", "pg_own=1", pg_own_raw=True)[1].objective["data"]["resampled"]
    later = phases("idem=2", "pg=1", "fm_own=1")[2].objective["data"]
    assert "sde" not in later  # what path gradients changed is the flow, not the process
    assert phases("pis=2", "fm_own=1")[1].objective["data"] == {"from": "parent", "rows": 40, "resampled": False}


def test_a_buffer_may_begin_with_the_stage_before_or_with_the_training_set() -> None:
    first = phases("idem=2", buffer_start="data")[0].objective
    assert "data" not in first
    behind = phases("fm=2", "idem=2", buffer_start="data")[1].objective
    assert behind["data"] == {"from": "parent", "rows": 16, "resampled": False, "tolerance": 1e-4}
    estimate = phases("idem=2", buffer_start="estimate")[0].objective["data"]
    assert estimate == {
        "from": "estimate",
        "rows": 16,
        "samples": 3,
        "norm": 20.0,
        "sde": {"steps": 5, "noise_scale": 1.0},
    }


@pytest.mark.parametrize(
    "stages",
    [("pdem=2", "idem=2"), ("fm=1", "fm_own=1"), ("pis=1", "pg_own=1"), ("fm=1", "pg_own=1"), ("fab=1", "fab=1")],
)
def test_other_chains_that_make_sense(stages: tuple[str, ...], tmp_path: Path) -> None:
    study = TrainPlan(**{**SMALL, "stages": stages}).study()
    check_problem(study.setting, study.phases, tmp_path)


@pytest.mark.parametrize("stages", [("fm_own=2",), ("pg_own=2", "fm=1")])
def test_own_samples_need_a_stage_before(stages: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"samples of the stage before it.*first stage.*write for example --stages idem="
    ):
        phases(*stages)


@pytest.mark.parametrize(
    "stages",
    [
        ("idem=2", "fm=2"),
        ("fm=2", "idem=2"),
        ("pis=2", "pg=1"),
        ("pis=2", "dds=1"),
        ("idem=2", "pis=1"),
        ("fab=1", "pg=1"),
        ("fm=1", "fab=1"),
    ],
)
def test_a_stage_that_would_forget_the_one_before_is_refused(stages: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"goes on with the model.*write fm_own or pg_own"):
        phases(*stages)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dem_samples": 0}, "at least one noise"),
        ({"generated": 0}, "refilled with rows"),
        ({"sde_steps": 0}, "at least one step"),
        ({"noise_max": 0.01}, "sigma_min < sigma_max"),
        ({"dem_clip": -1.0}, "largest norm must be positive"),
        ({"score_scaled": -1.0}, "width of the data must be positive"),
        ({"score_pinned": -1.0}, "width at which a pin lets go must be positive"),
        ({"dem_ema_decay": 2.0}, "EMA decay"),
        ({"dem_blend": 0.0}, "blended over a positive length"),
        ({"dem_noise_clip": 0.0}, "largest norm must be positive"),
        ({"stages": ("dds=2",), "dds_rates": (1.5, 0.5)}, "rates are positive, in order and below"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    def checked() -> None:
        study = TrainPlan(**{**SMALL, "stages": ("idem=2",), **options}).study()
        check_problem(study.setting, study.phases, tmp_path)

    with pytest.raises(ValueError, match=told):
        checked()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fab_batch": 17}, r"without replacement from 16 rows.*batch of 17; write --fab-batch 16 or --fab-minimum 17"),
        ({"fab_bridges": -1}, r"bridges and moves are not negative.*got bridges=-1.*write"),
        ({"fab_every": 0}, r"gets rows now and then.*every=0.*write"),
        ({"fab_rows": 0}, r"gets rows now and then.*rows=0; write"),
        ({"fab_layers": 1}, r"at least two couplings.*layers=1; write"),
    ],
)
def test_wrong_settings_of_bootstrapping_are_told_too(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    def checked() -> None:
        study = TrainPlan(**{**SMALL, **options, "stages": ("fab=2",)}).study()
        check_problem(study.setting, study.phases, tmp_path)

    with pytest.raises(ValueError, match=told):
        checked()


# recipes


@pytest.mark.parametrize(
    ("target", "noise", "samples", "clip", "rate", "scale"),
    [
        ("gmm40", (5e-4, 50.0), 500, 1.4, 5e-4, 1.0),
        ("dw4", (1e-5, 3.0), 1000, 20.0, 1e-3, 1.0),
        ("lj13", (0.01, 2.0), 1000, 20.0, 1e-3, 0.9),
        ("lj55", (0.5, 4.0), 100, 20.0, 1e-3, 0.5),
    ],
)
def test_recipes_are_the_published_ones(
    target: str, noise: tuple[float, float], samples: int, clip: float, rate: float, scale: float
) -> None:
    idem = TrainPlan(target=target).named_phases()["idem"]
    settings = idem.objective
    assert (settings["schedule"]["sigma_min"], settings["schedule"]["sigma_max"]) == noise
    assert (settings["samples"], settings["clip"]["norm"]) == (samples, clip)
    assert (idem.optimiser.learning_rate, idem.optimiser.gradient_clip) == (rate, 0.5)
    assert settings["sde"]["noise_scale"] == scale
    assert settings["replay"]["every"] == 100


@pytest.mark.parametrize(("target", "published"), [("dw4", "one"), ("gmm40", "variance")])
def test_the_weight_of_noise_times_is_published_and_free(target: str, published: str) -> None:
    def weighting(**options: Any) -> str:
        return TrainPlan(target=target, **options).named_phases()["idem"].objective["weighting"]

    assert weighting() == published
    assert {weighting(dem_weighting="one"), weighting(dem_weighting="variance")} == {"one", "variance"}


def test_a_clip_in_units_of_the_noise_is_of_what_the_clip_is_of() -> None:
    def noise_clip(**options: Any) -> dict[str, Any] | None:
        return TrainPlan(target="dw4", **options).named_phases()["idem"].objective.get("noise_clip")

    assert noise_clip() is None
    assert noise_clip(dem_noise_clip=4.0) == {"norm": 4.0, "of": "particles"}


def test_plans_of_data_keep_their_names() -> None:
    assert TrainPlan(target="gmm4", stages=("fm=100", "pg=10")).study().id == NAME_OF_A_PLAN


NAME_OF_A_PLAN = "70e99bd229453b419d80"


# a whole plan


def test_a_plan_from_the_energy_to_path_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    stages = ("idem=5", "fm_own=4", "pg=2")
    study = TrainPlan(**{**SMALL, "stages": stages, "output": tmp_path}).study()
    run = PlanStudyRun(study, output=tmp_path, runner=InlineRunner(), recorder=Remembered())
    cells = run.run()
    assert not run.session.failures
    (judged,) = cells[""].values()
    assert [cell.tail for cell in judged] == ["", "idem", "fm_own", "pg"]
    own = judged[2].tail_cost
    made = making_cost(run.session.problem, run.session.store, run.tracks[""].ends(0)[1].branch)
    assert made.force_evaluations == 40
    assert own.force_evaluations == 40  # flow matching itself asks for none
    assert own.device_seconds > made.device_seconds > 0
    assert judged[1].tail_cost.field_evaluations == 5 * (2 * 8 + 5 * 10 // 2)
    text = conclude_plan(run, cells)
    assert "log Z" in text
    rows = list(csv.DictReader((run.folder / "stages.csv").open()))
    assert [row["stage"] for row in rows] == ["untrained", "idem", "fm_own", "pg"]
    assert rows[1]["fm_loss"] == ""
    assert rows[2]["fm_loss"] != ""


def test_path_gradients_go_on_with_a_pinned_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    options = SMALL | {"score_pinned": 0.2, "stages": ("idem=4", "pg_own=2"), "output": tmp_path}
    study = TrainPlan(**options).study()
    run = PlanStudyRun(study, output=tmp_path, runner=InlineRunner(), recorder=Remembered())
    cells = run.run()
    assert not run.session.failures
    (judged,) = cells[""].values()
    assert [cell.test["nll"].n for cell in judged[1:]] == [64, 64]
    plain = TrainPlan(**{**options, "score_pinned": None}).study()
    assert plain.stages[0].phase.fingerprint != study.stages[0].phase.fingerprint
    # A batch of eight asks for three noises and for the field; every other step, ten rows take five steps.
    assert judged[1].tail_cost.force_evaluations == 4 * (8 * (3 + 1) + 5 * 10 // 2)


@pytest.mark.parametrize(("name", "options"), [("pis", {}), ("dds", {}), ("dds", {"dds_rates": (0.5, 1.5)})])
def test_a_controlled_sampler_is_judged_and_taught_to_a_flow(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    study = TrainPlan(**{**SMALL, **options, "stages": (f"{name}=4", "fm_own=3"), "output": tmp_path}).study()
    run = PlanStudyRun(study, output=tmp_path, runner=InlineRunner(), recorder=Remembered())
    cells = run.run()
    assert not run.session.failures
    (judged,) = cells[""].values()
    untrained, sampler, flow = judged
    assert "nll" not in untrained.test
    assert "nll" not in sampler.test
    assert {"log_z", "log_z_bound", "ess_q", "tv_2d", "modes_covered"} <= set(sampler.test)
    assert flow.test["nll"].n == 64
    assert not untrained.diverged
    assert not sampler.diverged
    assert " - " in conclude_plan(run, cells)


def test_bootstrapping_is_judged_by_its_density_and_taught_to_a_flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    stages = ("fab=20", "fm_own=3")
    study = TrainPlan(**{**SMALL, "fm_own_resampled": True, "stages": stages, "output": tmp_path}).study()
    run = PlanStudyRun(study, output=tmp_path, runner=InlineRunner(), recorder=Remembered())
    cells = run.run()
    assert not run.session.failures
    (judged,) = cells[""].values()
    untrained, bootstrapped, flow = judged
    judgements = {"nll", "ess_q", "ess_p", "log_z", "energy_w2", "tv_2d", "modes_covered", "path_length"}
    for cell in judged:
        assert judgements <= set(cell.test)
        assert not cell.diverged
    assert "fm_loss" not in bootstrapped.test
    assert "fm_loss" in flow.test
    assert bootstrapped.test["path_length"].value == bootstrapped.test["transport_distance"].value
    assert bootstrapped.test["nll"].value != untrained.test["nll"].value
    assert bootstrapped.tail_cost.force_evaluations > 0
    assert "log Z" in conclude_plan(run, cells)
