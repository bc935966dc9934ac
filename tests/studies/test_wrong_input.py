"""A wrong command line gets one clear message and starts nothing: no records, no training, no Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import launch
from studies.budget_split import BudgetSplit
from studies.train_plan import TrainPlan
from tests.studies.refusals import check_message, refused

ROOT = Path(__file__).parents[2]
# Rising, small, and never reached: every row below is refused before anything is trained.
FLOP = ("--budget", "6e9flop")

# Options, the rule that they break, what came, and what to write instead: all three stand in the message.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "target: unknown": (["--target", "gmm5"], ["gmm4, gmm40, dw4", "'gmm5'", "--target gmm4"]),
    "target: no such module": (["--target", "nowhere:made"], ["module:function", "'nowhere:made'", "write"]),
    "target: no such function": (["--target", "math:missing"], ["module:function", "'math:missing'", "write"]),
    "target: not a function": (["--target", "math:pi"], ["module:function", "'math:pi'", "write"]),
    "target: needs arguments": (["--target", "math:sin"], ["module:function", "'math:sin'", "without arguments"]),
    "target: returns none": (["--target", "time:time"], ["'time:time'", "returns float", "energy(x)"]),
    "target: breaks a law": (
        ["--target", "tests.studies.harmonic:column"],
        ["has shape (8,)", "harmonic:column has shape (8, 1)", "write one number a row"],
    ),
    "target: no function": (["--target", "math:"], ["module:function", "'math:'", "write"]),
    "target: no module": (["--target", ":pi"], ["module:function", "':pi'", "write"]),
    "budget: zero": (["--budget", "0s"], ["positive", "got 0;", "write"]),
    "budget: no unit": (["--budget", "10"], ["needs a unit (s, ", "'10'", "60s"]),
    "budget: negative": (["--budget=-5s"], ["positive", "got -5;", "write"]),
    "budget: unknown unit": (["--budget", "10 parsecs"], ["budget", "parsecs", "flop"]),
    "budget: no number": (["--budget", "much"], ["budget", "much", "write"]),
    "budget: infinite": (["--budget", "1e999s"], ["finite", "got inf;", "write"]),
    "budget: two dots": (["--budget", "1.2.3s"], ["budget", "1.2.3s", "write"]),
    "budget: nothing": (["--budget", ""], ["budget", "''", "write"]),
    "budgets: none": (["--budgets", "0"], ["at least one budget", "0", "--budgets 4"]),
    "budgets: falling": (["--budgets", "4s,2s"], ["must rise", "4", "smallest first"]),
    "budgets: repeated": (["--budgets", "2s,2s"], ["must rise", "2", "each once"]),
    "budgets: two currencies": (["--budgets", "1s,1e9flop"], ["one currency", "1e+09 flop", "write all in"]),
    "budgets: list without units": (["--budgets", "1,2"], ["needs a unit (s, ", "'1'", "60s"]),
    "workers: none": (["--runner", "ray", "--workers", "0"], ["at least one worker", "0", "--workers 1"]),
    "workers: too many": (["--runner", "ray", "--workers", "9999"], ["must fit", "9999", "fewer --workers"]),
    "threads: none": (["--threads", "0"], ["at least one thread", "0", "--threads 1"]),
    "threads: too many": (["--runner", "ray", "--threads", "9999"], ["must fit", "9999 threads", "--threads"]),
    "gpus: negative": (["--gpus-per-worker", "-1"], ["cannot be negative", "-1", "write 0"]),
    "gpus: none there": (["--runner", "ray", "--gpus-per-worker", "64"], ["must fit", "128 GPUs", "fewer --workers"]),
    "concurrent: none": (["--runner", "ray", "--concurrent", "0"], ["at a time", "0", "--concurrent 1"]),
    "shares: above one": (["--shares", "0.1,1.5"], ["(0, 1)", "'0.1,1.5'", "--shares 0.05,0.2,0.5"]),
    "shares: below zero": (["--shares=-0.1,0.5"], ["(0, 1)", "'-0.1,0.5'", "--shares 0.05,0.2,0.5"]),
    "shares: no numbers": (["--shares", "a,b"], ["numbers between 0 and 1", "'a,b'", "--shares 0.05,0.2,0.5"]),
    "shares: only one": (["--shares", "0.5"], ["at least two shares", "'0.5'", "--shares 0.05,0.2,0.5"]),
    "shares: twice the same": (["--shares", "0.5,0.5"], ["at least two shares", "'0.5,0.5'", "--shares 0.05,0.2,0.5"]),
    "shares: not a number": (["--shares", "nan,0.5"], ["(0, 1)", "'nan,0.5'", "--shares 0.05,0.2,0.5"]),
    "splits: only one": (["--splits", "1"], ["two trunk checkpoints", "1", "--splits 2"]),
    "seeds: none": (["--seeds", "0"], ["at least one seed", "'0'", "--seeds 3"]),
    "seeds: not a number": (["--seeds", "x"], ["whole numbers", "'x'", "--seeds 3"]),
    "seeds: twice the same": (["--seeds", "3,3"], ["different", "3, 3", "--seeds 3"]),
    "seeds: negative": (["--seeds=-1,2"], ["none of them negative", "'-1,2'", "--seeds 3"]),
    "coupling: no particles": (["--coupling", "equivariant-optimal-transport"], ["particles", "write"]),
    "sigma: negative": (["--sigma", "-1"], ["sigma", "-1", "write"]),
    "sigma: not a number": (["--sigma", "nan"], ["sigma", "nan", "write"]),
    "learning rate: zero": (["--fm-learning-rate", "0"], ["learning rate must be positive", "0", "1e-3"]),
    "learning rate: negative": (["--pg-learning-rate", "-1e-3"], ["learning rate must be positive", "-0.001", "1e-3"]),
    "learning rate: infinite": (["--fm-tail-learning-rate", "inf"], ["learning rate", "inf", "1e-3"]),
    "gradient clip: zero": (["--pg-gradient-clip", "0"], ["gradient clip", "0", "leave it out"]),
    "batch: empty": (["--fm-batch", "0"], ["at least one sample", "0", "write"]),
    "batch: fewer than workers": (
        ["--runner", "ray", "--workers", "2", "--pg-batch", "1"],
        ["a sample for each worker", "1", "write"],
    ),
    "evaluation: one sample": (["--evaluation-samples", "1"], ["32 to", "1", "2048"]),
    "evaluation: no tolerance": (["--evaluation-tolerance", "0"], ["tolerance", "0", "1e-5"]),
    "solver: no steps": (["--solver-steps", "0"], ["at least one step", "steps=0", "steps=15"]),
    "solver: negative width": (["--solver-grading", "-1"], ["positive width", "grading=-1.0", "0.1"]),
    "training set: one row": (["--train-samples", "1"], ["two rows", "1", "2000"]),
    "field: no hidden units": (["--hidden", "0"], ["positive", "0", "write"]),
    "field: negative layers": (["--layers", "-1"], ["positive", "-1", "write"]),
    "tuning: negative": (["--tune", "-1"], ["--tune", "-1", "write"]),
    "checkpoints: negative seconds": (["--checkpoint-seconds", "-1"], ["checkpoint", "-1", "write"]),
}

# Options of maximum likelihood are there where a stage can name it.
LIKELIHOOD: dict[str, tuple[list[str], list[str]]] = {
    "learning rate: zero": (["--ml-learning-rate", "0"], ["learning rate must be positive", "0", "1e-3"]),
    "batch: empty": (["--ml-batch", "0"], ["at least one sample", "0", "write"]),
    "solver: no steps": (["--solver-steps", "0"], ["at least one step", "steps=0", "steps=15"]),
    "solver: negative width": (["--solver-grading", "-1"], ["positive width", "grading=-1.0", "0.1"]),
}

STAGES: dict[str, tuple[str, list[str]]] = {
    "unknown phase": ("xx=5s", ["fm, pg, fm_tail, ml, idem", "'xx=5s'", "fm=60s"]),
    "no steps": ("fm=0", ["at least one step", "'fm=0'", "fm=100"]),
    "no amount": ("fm=", ["may spend", "'fm='", "fm=60s"]),
    "no equals sign": ("fm", ["may spend", "'fm'", "fm=60s"]),
    "negative steps": ("fm=-3", ["budget", "-3", "write"]),
    "unknown unit": ("fm=3x", ["budget", "3x", "write"]),
}

# The parser's own messages: it names the option and what it takes, in a frame of its own.
UNPARSED: dict[str, tuple[list[str], str]] = {
    "unknown runner": (["--runner", "nonsense"], "nonsense"),
    "unknown flag": (["--splitz", "3"], "--splitz"),
    "unknown coupling": (["--coupling", "close"], "close"),
    "unknown divergence": (["--divergence", "none"], "none"),
    "not a whole number": (["--splits", "2.5"], "2.5"),
    "no value": (["--budget"], "--budget"),
}

ROWS: dict[str, tuple[Any, list[str]]] = {
    "wrong width": (np.zeros((8, 3), np.float32), ["shape (rows, 2)", "(8, 3)", "write|flatten|give"]),
    "one dimension": (np.zeros(8, np.float32), ["shape (rows, 2)", "(8,)", "flatten"]),
    "Python objects": (np.array([[1.0, None]], dtype=object), ["plain .npy array", "got", "numpy.save"]),
    "texts": (np.array([["a", "b"]]), ["real numbers", "dtype <U1", "float32"]),
    "NaN": (np.array([[0.0, np.nan], [0.0, 1.0]]), ["finite", "1 of 2 rows", "drop those rows"]),
    "no rows": (np.zeros((0, 2)), ["at least two rows", "got 0", "more samples"]),
    "not an array": (None, ["plain .npy array", "got", "numpy.save"]),
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is not refused fails at once instead of running its study."""

    def too_late(*_: object) -> AbstractContextManager[Any]:
        raise AssertionError("wrong input must be refused before the records are opened, but the study was started")

    monkeypatch.setattr(launch, "recorder_of", too_late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def check_nothing_started(output: Path) -> None:
    """Reference samples may be there (checks read them); records, prices and weights may not."""
    made = {path.name for path in output.rglob("*")}
    assert not made & {"mlflow.db", "segments", "branches", "prices", "budget_split", "train_plan", "study.json"}


@pytest.mark.parametrize(("args", "beats"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_option_is_told(
    args: list[str],
    beats: list[str],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--runner", "inline", *FLOP, "--train-samples", "64", "--output", str(output)]
    check_message(refused(BudgetSplit, [*common, *args], monkeypatch, capsys), beats)
    check_nothing_started(output)


@pytest.mark.parametrize(("stage", "beats"), STAGES.values(), ids=STAGES.keys())
def test_a_wrong_stage_is_told(
    stage: str,
    beats: list[str],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--runner", "inline", "--output", str(output), "--stages", stage]
    check_message(refused(TrainPlan, args, monkeypatch, capsys), beats)
    check_nothing_started(output)


@pytest.mark.parametrize(("args", "beats"), LIKELIHOOD.values(), ids=LIKELIHOOD.keys())
def test_a_wrong_option_of_maximum_likelihood_is_told(
    args: list[str],
    beats: list[str],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--runner", "inline", "--output", str(output), "--stages", "ml=2"]
    check_message(refused(TrainPlan, [*common, *args], monkeypatch, capsys), beats)
    check_nothing_started(output)


@pytest.mark.parametrize(("args", "named"), UNPARSED.values(), ids=UNPARSED.keys())
def test_what_cannot_be_parsed_is_named(
    args: list[str],
    named: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = refused(BudgetSplit, ["--output", str(output), *args], monkeypatch, capsys)
    assert named in text
    assert "Traceback" not in text
    assert not output.exists()


@pytest.mark.parametrize("option", ["--data", "--evaluation-data"])
@pytest.mark.parametrize(("rows", "beats"), ROWS.values(), ids=ROWS.keys())
def test_a_wrong_data_file_is_told(
    option: str,
    rows: np.ndarray | None,
    beats: list[str],
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "rows.npy"
    if rows is None:
        file.write_text("x y\n0 1\n")
    else:
        np.save(file, rows, allow_pickle=True)
    args = ["--runner", "inline", "--output", str(output), option, str(file)]
    check_message(refused(BudgetSplit, args, monkeypatch, capsys), [str(file), *beats])
    check_nothing_started(output)


def test_too_few_test_points_are_told(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((40, 2), np.float32))
    args = ["--output", str(output), "--evaluation-data", str(tmp_path / "rows.npy"), "--evaluation-samples", "41"]
    for kind in (BudgetSplit, TrainPlan):
        check_message(refused(kind, args, monkeypatch, capsys), ["the 41 rows", "got 40", "ask for fewer"])
    check_nothing_started(output)


@pytest.mark.parametrize("option", ["--data", "--evaluation-data"])
def test_a_missing_data_file_is_told(
    option: str, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--runner", "inline", "--output", str(output), option, str(tmp_path / "gone.npy")]
    beats = ["read from a file", "gone.npy", "write the path of a .npy file"]
    check_message(refused(BudgetSplit, args, monkeypatch, capsys), beats)
    check_nothing_started(output)


@pytest.mark.parametrize("place", ["a file in its place", "below a file", "/proc"])
def test_an_output_folder_that_cannot_be_written_is_told(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # No test of permissions: the administrator's processes ignore them.
    file = tmp_path / "taken"
    file.write_text("")
    folder = {"a file in its place": file, "below a file": file / "results", "/proc": Path("/proc/results")}[place]
    for kind in (BudgetSplit, TrainPlan):
        text = refused(kind, ["--runner", "inline", "--output", str(folder)], monkeypatch, capsys)
        check_message(text, ["must be writable", str(folder), "write --output"])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_too_many_workers_of_a_plan_are_told(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--workers", "9999", "--train-samples", "64", "--output", str(output)]
    check_message(refused(TrainPlan, args, monkeypatch, capsys), ["must fit", "9999", "fewer --workers"])
    check_nothing_started(output)


@pytest.mark.parametrize(
    ("args", "beat"),
    [(["--target", "gmm5"], "'gmm5'"), (["--budget", "10"], "'10'"), (["--workers", "9999"], "9999 workers")],
    ids=["unknown target", "budget without unit", "too many workers"],
)
def test_the_program_itself_ends_with_one_line(args: list[str], beat: str, output: Path) -> None:
    command = [sys.executable, "studies/budget_split.py", "--output", str(output), *args]
    known = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env = {**known, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert ended.returncode == 2
    assert ended.stdout == ""
    check_message(ended.stderr, [beat])
    check_nothing_started(output)
