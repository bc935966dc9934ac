"""Training at several numbers of noises: plans that differ in nothing else, one whole study, wrong counts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.plan_run import PlanStudyRun
from studies.noise_count import NoiseCount, report
from tests.harness.test_recording import Remembered
from tests.studies.test_energy_options import SMALL

TINY: dict[str, Any] = {name: value for name, value in SMALL.items() if name not in ("dem_samples", "stages")}
TINY |= {"counts": (2, 5), "spend": "3", "own": "2"}


def test_plans_differ_in_the_number_of_noises_alone() -> None:
    plans = NoiseCount(**TINY).study().plans
    assert list(plans) == ["K=2", "K=5"]
    few, many = (dict(plan.stages[0].phase.objective) for plan in plans.values())
    assert (few.pop("samples"), many.pop("samples")) == (2, 5)
    assert few == many


def test_a_whole_study_judges_both_models_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    study = NoiseCount(**TINY, output=tmp_path).study()
    run = PlanStudyRun(study, output=tmp_path, runner=InlineRunner(), recorder=Remembered())
    cells = run.run()
    assert not run.session.failures
    text = report(run, cells)
    rows = list(csv.DictReader((run.folder / "stages.csv").open()))
    assert [(row["plan"], row["stage"]) for row in rows] == [
        (plan, stage) for plan in ("K=2", "K=5") for stage in ("idem", "fm_own")
    ]
    assert text.count("K=2") >= 2
    forces = {name: by_seed[0][0].tail_cost.force_evaluations for name, by_seed in cells.items()}
    assert forces["K=5"] - forces["K=2"] == 3 * 8 * (5 - 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"counts": ()}, "write --counts 10 100 1000"),
        ({"counts": (0, 5)}, r"positive and differ, got \[0, 5\]"),
        ({"counts": (5, 5)}, r"positive and differ, got \[5, 5\]"),
        ({"dem_samples": 7}, "write --counts 7"),
    ],
)
def test_wrong_counts_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        NoiseCount(**{**TINY, **options}).study()
