"""The study of scaling: its parts as values, what it says without a GPU, tables of sizes and of finished plans."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.answers.throughput import Timing
from harness.measure import Measured, check_workers
from harness.trial import Placement
from models.systems import system_of
from studies.scaling import Scaling
from studies.scaling_report import Size, quality_table, size_table
from tests.studies.refusals import check_message, refused


def test_the_law_has_budgets_enough_by_default() -> None:
    budgets = [budget.amount for budget in Scaling(target="gmm4").study().budgets]
    assert len(budgets) >= 6
    assert max(budgets) / min(budgets) >= 100


def test_a_measurement_is_known_by_what_is_measured() -> None:
    scaling = Scaling(target="gmm4", runner="inline", workers=2)
    phases = scaling.priced_phases()
    assert [phase.name for phase in phases] == ["fm", "pg hutchinson", "pg exact"]
    assert {phase.batch for phase in phases} == {scaling.rows}
    two = scaling.placed("workers", Placement(workers=2), phases)
    assert two.setting.placement.workers == 2
    assert two.id != scaling.placed("workers", Placement(workers=1), phases).id


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_sharing_a_gpu_is_said_to_want_one() -> None:
    assert "this machine has none" in Scaling(parts=("sharing",)).execute()


def test_rates_without_a_record_say_so(tmp_path: Path) -> None:
    assert "no price is on record" in Scaling(parts=("rates",), output=tmp_path).execute()


@pytest.mark.parametrize(
    ("args", "beats"),
    [
        (["--budgets", "3"], ["at least six budgets over two decades", "got 3", "ask for more budgets"]),
        (["--beyond", "1"], ["beyond its budgets", "factor of 1", "--beyond 4"]),
        (["--also", "0.5", "2"], ["inside (0, 1)", "0.5 2", "--also 0.1 0.5"]),
    ],
)
def test_a_wrong_option_is_told(
    args: list[str],
    beats: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--parts", "law", "--runner", "inline", "--budget", "6e9flop", "--output", str(tmp_path / "results")]
    check_message(refused(Scaling, [*common, *args], monkeypatch, capsys), beats)
    assert not (tmp_path / "results").exists()


def test_workers_that_would_share_a_core_are_refused() -> None:
    with pytest.raises(ValueError, match="cores of its own, got 512 workers with 1 threads each where"):
        check_workers(Placement(workers=512), Scaling(runner="inline"))


def test_sizes_are_told_by_the_row_and_in_steps_of_flow_matching() -> None:
    def timing(phase: str, *seconds: float) -> Timing:
        return Timing(phase=phase, batch=4, way="alone", workers=1, seconds=seconds)

    costs: dict[str, dict[str, float]] = {
        "fm": {"flops": 4e6, "peak_memory_bytes": 2.0**20},
        "pg": {"flops": 4e8, "peak_memory_bytes": 2.0**23},
    }
    measured = Measured(timings=(timing("fm", 0.004, 0.008), timing("pg", 0.4, 0.8)), costs=costs, workers={})
    text = size_table([Size(system=system_of("lj13"), measured=measured)], rows=4)
    fm, pg = text.splitlines()[2:4]
    assert fm.startswith("lj13")
    assert "1.5 [1.25, 1.75]" in fm
    assert "100 [100, 100]" in pg
    assert pg.split()[-2:] == ["1e+08", "8"]


def finished_plan(folder: Path, nlls: list[float]) -> Path:
    """What training a plan of two stages leaves behind."""
    stages = [{"phase": {"name": name}} for name in ("fm", "pg")]
    study: dict[str, Any] = {"stages": stages, "setting": {"problem": {"system": {"target": "lj13"}}}}
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"study": study}))
    rows = [
        {"seed": seed, "stage": stage, "segment": f"{seed}-{stage}", "cost_device_seconds": 10.0 + k, "nll": nll + k}
        for seed, nll in enumerate(nlls)
        for k, stage in enumerate(("fm", "pg"))
    ]
    with (folder / "stages.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_quality_is_that_of_the_last_stage_over_seeds(tmp_path: Path) -> None:
    plan = finished_plan(tmp_path / "train_plan" / "abc", [1.0, 2.0, 3.0])
    line = quality_table([plan]).splitlines()[2]
    assert line.startswith("lj13")
    assert "fm pg" in line
    assert "3 [" in line  # the mean of 2, 3 and 4
    assert line.split()[-1] == "-"  # it was not judged by ESS
