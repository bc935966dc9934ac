"""Identities that options must not move, and test points of a user: an evaluation of its own."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.plan import root_hash
from harness.worker import evaluation_key
from models.problem import build
from models.problem_settings import evaluation_settings, system_settings
from models.targets import gmm4
from studies.budget_split import BudgetSplit
from studies.train_plan import TrainPlan

# Names of version 0.1 for the untrained model of seed 0, the evaluation, the phases and the study: a changed name
# forgets what was trained.
NAMES = {
    "gmm4": {
        "root": "8aa2f81c9df41394310b",
        "evaluation": "0ed5e41e5baa367eb0ab",
        "fm": "defb536888587a875076",
        "pg": "31ca998bada6ba1b3d53",
        "fm_tail": "c159dcf88fb5fc56a31e",
        "study": "b0cc5ec1d14de2f00bcf",
    },
    "dw4": {
        "root": "d49fa466ad5bcacb0b81",
        "evaluation": "c9111ab77e45beaa20ea",
        "fm": "5bff41ab99ad2eee5239",
        "pg": "d56c637c1a076238c718",
        "fm_tail": "b897aac913f2cf06a92c",
        "study": "08ec765166bbc365c16e",
    },
}
SMALL: dict[str, Any] = {"system": system_settings("gmm4", train_samples=64, hidden=8, layers=2)}


@pytest.mark.parametrize("target", NAMES)
def test_names_of_what_is_trained_do_not_change(target: str) -> None:
    options = BudgetSplit(target=target)
    problem = options.problem_setting().problem
    names = {
        "root": root_hash(problem["system"], 0),
        "evaluation": evaluation_key(problem),
        **{phase.name: phase.fingerprint for phase in options.phases().all},
        "study": options.study().id,
    }
    assert names == NAMES[target]


def saved(path: Path, *, rows: int, seed: int = 5) -> Path:
    np.save(path, gmm4().sample(rows, torch.Generator().manual_seed(seed)).numpy())
    return path


def test_test_points_are_the_first_rows_of_the_file_and_validation_points_stay(tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.npy", rows=60)
    own = build({**SMALL, "evaluation": evaluation_settings("gmm4", samples=40)}, cache=tmp_path)
    given = build({**SMALL, "evaluation": evaluation_settings("gmm4", samples=40, data=file)}, cache=tmp_path)
    rows = torch.from_numpy(np.load(file)).double()
    torch.testing.assert_close(given.points("test"), rows[:40], rtol=0.0, atol=1e-6)
    assert torch.equal(given.points("validation"), own.points("validation"))
    assert not torch.equal(given.points("test"), own.points("test"))
    np.testing.assert_array_equal(given.picture(None)["x"], given.points("test").numpy())
    assert str(file) in given.data_report()["source"]
    assert "mine.npy" not in own.data_report()["source"]


def test_records_hold_the_energies_of_the_given_points(tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.npy", rows=40)
    settings = {**SMALL, "evaluation": evaluation_settings("gmm4", samples=40, tolerance=1e-3, data=file)}
    problem = build(settings, cache=tmp_path)
    records = problem.evaluate(problem.flow(0), rank=0, workers=1)
    expected = gmm4().energy(torch.from_numpy(np.load(file)).double()).numpy()
    np.testing.assert_allclose(records["test/energy"], expected, rtol=1e-5)
    assert not np.allclose(records["validation/energy"], expected)
    assert problem.estimates(records, "test")["nll"].n == 40


def test_an_evaluation_on_other_data_is_another_evaluation(tmp_path: Path) -> None:
    default = evaluation_settings("gmm4", samples=40)
    assert default == {"samples": 40, "tolerance": 1e-5, "dtype": "float64"}
    file = saved(tmp_path / "mine.npy", rows=40)
    first = evaluation_settings("gmm4", samples=40, data=file)
    assert first["data_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {name: first[name] for name in default} == default
    saved(file, rows=40, seed=6)
    second = evaluation_settings("gmm4", samples=40, data=file)
    keys = {evaluation_key({"evaluation": settings}) for settings in (default, first, second)}
    assert len(keys) == 3
    options = TrainPlan(target="gmm4", evaluation_data=file, evaluation_samples=40)
    assert options.problem_setting().problem["evaluation"] == second
    assert options.problem_setting().problem["system"] == TrainPlan(target="gmm4").problem_setting().problem["system"]


def test_points_that_do_not_follow_the_target_are_warned_about(tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.npy", rows=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation_settings("gmm4", samples=200, data=file)
    np.save(file, 3.0 * np.load(file))
    with pytest.warns(UserWarning, match="does not look like samples of gmm4"):
        evaluation_settings("gmm4", samples=200, data=file)
