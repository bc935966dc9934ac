"""Minima under samples: files and a trained plan, from the command line's options to the files that are written."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import calibrate
from harness.trained_plan import TrainedPlan
from models.minimise import minimise
from models.reference.published import read_rows
from models.targets import gmm4, lj13
from studies.minima import MinimaUnderSamples
from studies.train_plan import TrainPlan
from tests.models.test_minimise import LJ13_MINIMUM, icosahedron, perturbed
from tests.studies.refusals import check_message, refused

PLAN: dict[str, Any] = {
    "runner": "inline",
    "seeds": "2",
    "train_samples": 64,
    "hidden": 8,
    "layers": 2,
    "fm_batch": 16,
    "pg_batch": 8,
    "ml_batch": 8,
    "solver_steps": 2,
    "evaluation_samples": 40,
    "evaluation_tolerance": 1e-3,
    "stages": ("fm=3", "ml=2"),
}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def answered(text: str) -> Path:
    """The folder that a study's text names."""
    return Path(next(line for line in text.splitlines() if line.startswith("in ")).removeprefix("in ").rstrip(":"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Near the icosahedron, and far from it with one particle upon another."""
    near = perturbed(icosahedron(), rows=7, width=0.05)
    far = perturbed(torch.zeros(39, dtype=torch.float64), rows=5, width=1.0, seed=3)
    far[0, :6] = 0.0
    paths = {}
    for name, x_BD in (("near", near), ("far", far)):
        paths[name] = tmp_path / f"{name}.npy"
        np.save(paths[name], x_BD.numpy().astype(np.float64))
    return paths


def test_files_are_compared_with_reference_data(files: dict[str, Path], tmp_path: Path) -> None:
    options = MinimaUnderSamples(
        target="lj13", samples=(files["far"],), reference=files["near"], output=tmp_path / "results"
    )
    text = options.execute()
    folder = answered(text)
    assert folder.parent == tmp_path / "results" / "minima"
    assert {path.name for path in folder.iterdir()} == {"minima.csv", "shares.csv", "minima.png"}
    reference, far = rows_of(folder / "shares.csv")
    assert (reference["set"], far["set"]) == ("reference", "far")
    assert float(reference["share"]) == 1.0
    assert (reference["share_n"], far["share_n"], far["not_at_rest"]) == ("7", "5", "1")
    assert float(reference["lowest"]) == pytest.approx(LJ13_MINIMUM, abs=1e-6)
    rows = rows_of(folder / "minima.csv")
    assert [row["converged"] for row in rows].count("false") == 1
    found = minimise(lj13(), read_rows(files["far"], lj13().space))
    told = [float(row["energy"]) for row in rows if row["set"] == "far" and row["converged"] == "true"]
    assert told == pytest.approx(found.energy_B[1:].tolist(), abs=1e-9)
    assert "-83.089644" in text


def test_rows_are_taken_evenly_from_the_whole_file(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.stack([np.arange(10.0), np.zeros(10)], axis=1))
    x_BD = read_rows(tmp_path / "rows.npy", gmm4().space, at_most=5)
    assert x_BD[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert len(read_rows(tmp_path / "rows.npy", gmm4().space, at_most=20)) == 10


def test_the_models_of_a_trained_plan_are_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    trained = TrainPlan(**PLAN, output=tmp_path)
    trained.execute()
    folder = tmp_path / "train_plan" / trained.study().id
    plan = TrainedPlan.read(folder)
    assert plan.stages == ("fm", "ml")
    assert [(model.plan, model.seed) for model in plan.models] == [("", 0), ("", 1)]
    x = {(m.seed, stage): plan.records(m, stage)["model/x"] for m in plan.models for stage in (0, 1, 2)}
    assert all(each.shape == (40, 2) for each in x.values())
    assert len({each.tobytes() for each in x.values()}) == 6

    text = MinimaUnderSamples(plan=folder, output=tmp_path).execute()
    names = [row["set"] for row in rows_of(answered(text) / "shares.csv")]
    assert names == ["reference", "ml, seed 0", "ml, seed 1"]
    rows = [row for row in rows_of(answered(text) / "minima.csv") if row["set"] == "ml, seed 1"]
    expected = minimise(gmm4(), torch.from_numpy(x[1, 2]))
    assert [float(row["energy"]) for row in rows] == pytest.approx(expected.energy_B.tolist(), abs=1e-9)
    untrained = MinimaUnderSamples(plan=folder, stage=0, output=tmp_path).execute()
    assert "untrained, seed 0" in untrained
    assert answered(untrained) != answered(text)

    for change, beat in (({"stage": 3}, "from 0 (untrained) to 2"), ({"target": "dw4"}, "trained on gmm4")):
        with pytest.raises(ValueError, match=r"[,;] ") as told:
            MinimaUnderSamples(plan=folder, output=tmp_path, **change).execute()
        assert beat in str(told.value)
    other = {**plan.problem, "evaluation": {**plan.problem["evaluation"], "samples": 41}}
    with pytest.raises(ValueError, match="must have been judged"):
        replace(plan, problem=other).records(plan.models[0], 1)
    (folder / "stages.csv").write_text("seed,stage,segment\n0,untrained,a\n0,fm,b\n")
    with pytest.raises(ValueError, match=r"must have the stages untrained, fm, ml .* got untrained, fm for seed 0"):
        TrainedPlan.read(folder)
    (folder / "stages.csv").write_text(f"seed,stage,segment\n1,ml,{plan.models[1].segments[2]}\n")
    last = TrainedPlan.read(folder)
    assert last.records(last.models[0], 2)["model/x"].tobytes() == x[1, 2].tobytes()
    with pytest.raises(ValueError, match="must have been judged, got no records of fm, seed 1"):
        last.records(last.models[0], 1)


def test_without_reference_data_own_samples_are_made(tmp_path: Path) -> None:
    np.save(tmp_path / "model.npy", gmm4().sample(8, torch.Generator().manual_seed(0)).numpy())
    text = MinimaUnderSamples(target="gmm4", samples=(tmp_path / "model.npy",), rows=20, output=tmp_path).execute()
    reference, model = rows_of(answered(text) / "shares.csv")
    assert (reference["share_n"], model["share_n"]) == ("20", "8")


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "nothing to minimise": ([], ["model's samples", "got none", "--samples FILE.npy"]),
    "no such file": (["--samples", "gone.npy"], ["read from a file", "gone.npy", "write the path"]),
    "no such plan": (["--plan", "gone"], ["study.json and stages.csv", "gone", "write the folder"]),
    "no rows": (["--samples", "x.npy", "--rows", "1"], ["at least two rows", "--rows 1", "--rows 1000"]),
    "nothing is the same": (["--samples", "x.npy", "--within", "0"], ["more than nothing", "--within 0", "1e-3"]),
    "unknown target": (["--samples", "x.npy", "--target", "lj14"], ["a target is one of", "'lj14'", "--target gmm4"]),
}


@pytest.mark.parametrize(("args", "beats"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_option_is_told(
    args: list[str],
    beats: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    check_message(refused(MinimaUnderSamples, [*args, "--output", str(results)], monkeypatch, capsys), beats)
    assert not (results / "minima").exists()
