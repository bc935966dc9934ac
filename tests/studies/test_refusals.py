"""Wrong inputs, faults and hostile names on every study's command line: one line each, and nothing started or left.

Every row says what is given and three parts of the message: the rule, what came, what to write instead. Further rows on
the options of budgets and plans stand in test_wrong_input.py, those on damaged studies in test_damaged_studies.py.
"""

from __future__ import annotations

import json
import pickle
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import dashboard, extrapolate, launch, measure
from harness.cli import conclude
from harness.dashboard import Dashboard
from harness.identity import plain
from harness.told import one_line
from harness.tracking import described
from models.reference.forces import forces_at
from models.systems import system_of
from studies.budget_split import BudgetSplit
from studies.free_energy import FreeEnergy
from studies.hyperparameters import HyperParameters
from studies.integration_error import IntegrationError
from studies.minima import MinimaUnderSamples
from studies.noise_count import NoiseCount
from studies.noise_schedule import NoiseSchedule
from studies.online_switch import OnlineSwitch
from studies.sample import SampleModel
from studies.samplers import Samplers
from studies.scaling import Scaling
from studies.score_estimator import ScoreEstimatorStudy
from studies.score_in_noise import ScoreInNoise
from studies.train_plan import TrainPlan
from studies.trajectory_length import TrajectoryLength
from studies.transport_cost import TransportCost
from tests.studies.refusals import Harmful, check_message, refused_by

Beats = list[str]
OWN = "tests.studies.hostile_targets"
IN_PROCESS = (BudgetSplit, TrainPlan, HyperParameters, NoiseSchedule, NoiseCount, Samplers, IntegrationError)
IN_PROCESS += (TrajectoryLength, OnlineSwitch, Scaling)
LONG = "n" * 300

# Study, options, and the three beats. Targets:
TARGETS: dict[str, tuple[type[Any], list[str], Beats]] = {
    "climbs out of the folder": (
        TrainPlan,
        ["--target", "../evil:run"],
        ["a target is one of", "'../evil:run'", "write"],
    ),
    "relative": (NoiseCount, ["--target", ".evil:run"], ["a target is one of", "'.evil:run'", "write the address"]),
    "two lines": (Samplers, ["--target", "gmm4\n"], ["a target is one of", r"'gmm4\n'", "--target gmm4"]),
    "a null character": (TrainPlan, ["--target", "a\0b:c"], ["a target is one of", r"'a\x00b:c'", "write the address"]),
    "shell characters": (
        HyperParameters,
        ["--target", "gmm4;rm -rf ~:x"],
        ["a target is one of", "'gmm4;rm -rf ~:x'", "write the address"],
    ),
    "look-alike letters": (NoiseSchedule, ["--target", "ｇｍｍ4"], ["a target is one of", "'ｇｍｍ4'", "gmm4"]),
    "hidden character": (TransportCost, ["--target", "gmm4\u200b"], ["a target is one of", r"gmm4\u200b", "gmm4"]),
    "over-long": (IntegrationError, ["--target", "x" * 9000], ["a target is one of", " ... ", "--target gmm4"]),
    "two colons": (TrajectoryLength, ["--target", "math:pi:x"], ["a target is one of", "'math:pi:x'", "write"]),
    "module that quits": (
        TrainPlan,
        ["--target", "quits_when_imported:made"],
        ["a target is one of", "fails with SystemExit", "write the address"],
    ),
    "module that raises": (
        TrainPlan,
        ["--target", "raises_when_imported:made"],
        ["a target is one of", "fails with ZeroDivisionError", "write the address"],
    ),
    "module that is no Python": (
        MinimaUnderSamples,
        ["--samples", "rows.npy", "--target", "half_written:made"],
        ["a target is one of", "fails with SyntaxError", "write the address"],
    ),
    "function that raises": (
        TrainPlan,
        ["--target", f"{OWN}:raises"],
        ["module:function", "OSError: no such force", "write"],
    ),
    "function that quits": (BudgetSplit, ["--target", f"{OWN}:quits"], ["module:function", "SystemExit: 0", "write"]),
    "function of text": (Samplers, ["--target", f"{OWN}:text"], ["module:function", "returns str", "write a function"]),
    "energy not a number": (TrainPlan, ["--target", f"{OWN}:not_a_number"], ["are finite", "8 of 8", "cap the energy"]),
    "energy in half precision": (
        TrainPlan,
        ["--target", f"{OWN}:single"],
        ["keeps the dtype", "float32", "dtype=x.dtype"],
    ),
    "energy that changes": (
        TrainPlan,
        ["--target", f"{OWN}:random"],
        ["the same each time", "one that changes", "at random"],
    ),
    "energy of three numbers": (
        TrainPlan,
        ["--target", f"{OWN}:slow_to_say"],
        ["takes rows", "fails with", "write it for"],
    ),
    "energy of columns": (
        TransportCost,
        ["--target", "tests.studies.harmonic:column"],
        ["has shape", "(8, 1)", "one number"],
    ),
    "score of the wrong sign": (
        HyperParameters,
        ["--target", f"{OWN}:uphill"],
        ["minus the gradient", "falls by", "write"],
    ),
    "particles told apart": (
        TrainPlan,
        ["--target", f"{OWN}:pinned"],
        ["stay what they are", "permuted", "write it by"],
    ),
    "no name": (TrainPlan, ["--target", f"{OWN}:nameless"], ["name is a text", "''", 'name="ring"']),
}

# Numbers, units, and flags that contradict each other:
OPTIONS: dict[str, tuple[type[Any], list[str], Beats]] = {
    "seeds: a billion": (TrainPlan, ["--seeds", "1000000000"], ["a count up to 1000", "'1000000000'", "--seeds 3"]),
    "seeds: beyond a word": (NoiseCount, ["--seeds", f"{2**64},1"], ["numbers up to", str(2**64), "--seeds 3"]),
    "seeds: a power": (HyperParameters, ["--seeds", "1e3"], ["whole numbers", "'1e3'", "--seeds 3"]),
    "budgets: too many": (BudgetSplit, ["--budgets", "5000"], ["at most 64", "5000", "--budgets 4"]),
    "budgets: a raised digit": (BudgetSplit, ["--budgets", "²"], ["a budget is a number", "'²'", "60s"]),
    "budget: not a number": (HyperParameters, ["--budget", "nan s"], ["a number with a unit", "'nan s'", "60s"]),
    "budget: no unit": (HyperParameters, ["--budget", "60"], ["needs a unit", "'60'", "60s"]),
    "spend: unknown unit": (Samplers, ["--spend", "3 weeks"], ["needs a unit", "'3 weeks'", "60s"]),
    "steps: too many": (TrainPlan, ["--stages", f"fm={10**20}"], ["at most", f"'fm={10**20}'", "fm=100"]),
    "steps: a raised digit": (TrainPlan, ["--stages", "fm=²"], ["a number with a unit", "'²'", "60s"]),
    "stages: none": (TrainPlan, ["--stages"], ["at least one stage", "none", "--stages fm=60s"]),
    "stages: nothing to draw from": (TrainPlan, ["--stages", "fm_own=5"], ["samples of the stage", "fm_own", "write"]),
    "plateau: not a number": (
        TrainPlan,
        ["--stages", "fm=plateau:nan"],
        ["smallest gain", "plateau:nan", "plateau:0.01"],
    ),
    "sigma: infinite": (TrainPlan, ["--sigma", "inf"], ["finite", "inf", "write 0.01"]),
    "GPUs: not a number": (TrainPlan, ["--gpus-per-worker", "nan"], ["--gpus-per-worker", "nan", "write 0"]),
    "memory: not a number": (TrainPlan, ["--memory-cap-gib", "nan"], ["must be positive", "nan", "--memory-cap-gib 8"]),
    "checkpoints: not a number": (TrainPlan, ["--checkpoint-seconds", "nan"], ["some seconds", "nan", "20"]),
    "inline and a cluster": (
        TrainPlan,
        ["--address", "10.0.0.1:6379"],
        ["inline runner", "10.0.0.1:6379", "leave it out"],
    ),
    "inline and many trials": (
        HyperParameters,
        ["--concurrent", "4"],
        ["inline runner", "--concurrent 4", "leave it out"],
    ),
    "a search of nothing": (BudgetSplit, ["--search", "grid"], ["how --tune proposes", "grid", "--tune 6"]),
    "plans: unknown phase": (
        HyperParameters,
        ["--plans", "fm,rm -rf"],
        ["a plan is one to", "'fm,rm -rf'", "--plans fm,pg"],
    ),
    "split: of one": (HyperParameters, ["--split-range", "0", "1"], ["between 0 and 1", "0.0 1.0", "--split-range"]),
    "range: falling": (NoiseSchedule, ["--clip-range", "9", "1"], ["from low to high", "9.0 1.0", "--clip-range"]),
    "range: not a number": (NoiseSchedule, ["--exponent-range", "nan", "2"], ["from low to high", "nan", "write"]),
    "counts: none": (NoiseCount, ["--counts", "0"], ["are positive", "[0]", "--counts 10 100"]),
    "counts and one count": (NoiseCount, ["--dem-samples", "5"], ["compares numbers", "--dem-samples 5", "--counts 5"]),
    "own samples: too few": (Samplers, ["--own-samples", "3"], ["distances compare", "--own-samples 3", "write"]),
    "couplings and one": (
        TrajectoryLength,
        ["--coupling", "independent"],
        ["compares couplings", "independent", "write"],
    ),
    "steps: falling": (IntegrationError, ["--steps", "8", "4"], ["rise|rising", "8", "write"]),
    "gradings: twice": (IntegrationError, ["--gradings", "0", "0"], ["grids differ", "[0.0, 0.0]", "--gradings 0 0.1"]),
    "batches: falling": (TransportCost, ["--batches", "8", "4"], ["rise from 1", "[8, 4]", "--batches"]),
    "pairs: too few": (TransportCost, ["--pairs", "1"], ["measured on", "--pairs 1", "or more"]),
    "rows: one": (
        MinimaUnderSamples,
        ["--samples", "rows.npy", "--rows", "1"],
        ["two rows", "--rows 1", "--rows 1000"],
    ),
    "minima of nothing": (MinimaUnderSamples, [], ["a model's samples", "none", "--samples FILE.npy"]),
    "times: beyond one": (ScoreEstimatorStudy, ["--times", "2"], ["noise times|times", "2", "write"]),
    "width: none": (ScoreInNoise, ["--widths", "0"], ["rise from above zero", "0", "--widths 0.4 3"]),
    "online budgets: no currency": (
        OnlineSwitch,
        ["--budget", "1e9flop", "--online-budgets", "10s"],
        ["surface's currency", "10", "--online-budgets with the same unit"],
    ),
    "beyond: nearer": (Scaling, ["--parts", "law", "--beyond", "0.5"], ["beyond", "0.5", "write"]),
    "samples: one": (SampleModel, ["--from", "empty", "--samples", "1"], ["two samples", "1", "--samples 10000"]),
    "seed: negative": (SampleModel, ["--from", "empty", "--seed", "-1"], ["not negative", "-1", "--seed 0"]),
    "tolerance: none": (SampleModel, ["--from", "empty", "--tolerance", "nan"], ["positive and finite", "nan", "1e-5"]),
}

# Files, folders, and what is in them:
FILES: dict[str, tuple[type[Any], list[str], Beats]] = {
    "from: an empty folder": (
        SampleModel,
        ["--from", "empty"],
        ["OUTPUT/NAME/ID", "none for empty", "write the folder"],
    ),
    "from: no folder": (SampleModel, ["--from", "gone"], ["OUTPUT/NAME/ID", "none for gone", "write the folder"]),
    "from: a file": (SampleModel, ["--from", "rows.npy"], ["OUTPUT/NAME/ID", "none for rows.npy", "write the folder"]),
    "from: the root": (SampleModel, ["--from", "/"], ["OUTPUT/NAME/ID", "none for /", "write the folder"]),
    "from: two lines": (
        SampleModel,
        ["--from", "a\nb"],
        ["printable characters", r"'a\nb' for source", "write it without"],
    ),
    "from: over-long": (
        SampleModel,
        ["--from", LONG],
        ["reads and writes files", "File name too long", "another path"],
    ),
    "from: half a description": (
        SampleModel,
        ["--from", "half/x/y"],
        ["can be read", "a damaged one", "run the study"],
    ),
    "from: a list": (SampleModel, ["--from", "list/x/y"], ["can be read", "a damaged one", "run the study"]),
    "plan: a file": (
        MinimaUnderSamples,
        ["--plan", "rows.npy"],
        ["a folder with study.json", "rows.npy", "write the folder"],
    ),
    "plan: half a description": (
        FreeEnergy,
        ["--plan", "half/x/y"],
        ["tell what was trained", "damaged", "command again"],
    ),
    "plan: a list": (FreeEnergy, ["--plan", "list/x/y"], ["tell what was trained", "damaged", "command again"]),
    "plan: over-long": (FreeEnergy, ["--plan", LONG], ["reads and writes files", "File name too long", "another path"]),
    "plan: a null character": (FreeEnergy, ["--plan", "a\0b"], ["printable", r"'a\x00b' for plan", "write it without"]),
    "warm: no journal": (HyperParameters, ["--warm", "empty"], ["journal of an earlier", "no file", "--warm with"]),
    "warm: a damaged journal": (HyperParameters, ["--warm", "half/x/y"], ["a journal", "half/x/y", "--warm"]),
    "samples: Python objects": (
        MinimaUnderSamples,
        ["--samples", "objects.npy", "--target", "gmm4"],
        ["plain .npy array", "objects.npy", "numpy.save"],
    ),
    "samples: a pickle": (
        MinimaUnderSamples,
        ["--samples", "pickled.npy", "--target", "gmm4"],
        ["plain .npy array", "pickled.npy", "numpy.save"],
    ),
    "data: a pickle": (TrainPlan, ["--data", "pickled.npy"], ["plain .npy array", "pickled.npy", "numpy.save"]),
    "data: a folder": (TrainPlan, ["--data", "."], ["read from a file", "no file at", ".npy file"]),
    "data: a device": (TrainPlan, ["--data", "/dev/zero"], ["read from a file", "/dev/zero", ".npy file"]),
    "output: another file": (
        SampleModel,
        ["--from", "empty", "--output", "archive.npz"],
        ["do not overwrite", "archive.npz", "another --output"],
    ),
    "output: no archive": (
        SampleModel,
        ["--from", "empty", "--output", "x.txt"],
        [".npz file", "x.txt", "samples.npz"],
    ),
    "output: over-long archive": (
        SampleModel,
        ["--from", "empty", "--output", f"{LONG}.npz"],
        ["reads and writes files", "File name too long", "another path"],
    ),
}

# Servers:
SERVERS: dict[str, tuple[type[Any], list[str], Beats]] = {
    "tracking: no address": (
        TrainPlan,
        ["--tracking-uri", "results"],
        ["http://host:port", "'results'", "leave it out"],
    ),
    "tracking: empty": (TrainPlan, ["--tracking-uri", ""], ["http://host:port", "''", "leave it out"]),
    "tracking: a file": (
        Samplers,
        ["--tracking-uri", "file:///etc"],
        ["http://host:port", "'file:///etc'", "leave it out"],
    ),
    "tracking: a wild port": (
        BudgetSplit,
        ["--tracking-uri", "http://127.0.0.1:99999"],
        ["http://host:port", "99999", "leave it out"],
    ),
    "tracking: nobody there": (
        HyperParameters,
        ["--tracking-uri", "http://somebody:secret@127.0.0.1:{closed}"],
        ["must answer", "http://***@127.0.0.1:{closed}", "start it"],
    ),
    "cluster: nobody there": (
        TrainPlan,
        ["--runner", "ray", "--address", "127.0.0.1:{closed}"],
        ["must answer", "127.0.0.1:{closed}", "unset RAY_ADDRESS"],
    ),
    "cluster: no address": (
        TrainPlan,
        ["--runner", "ray", "--address", "nonsense"],
        ["must answer", "nonsense", "write"],
    ),
    "cluster: a wild port": (
        TrainPlan,
        ["--runner", "ray", "--address", "h:99999"],
        ["must answer", "h:99999", "write"],
    ),
    "page: the port is taken": (Dashboard, ["--port", "{taken}"], ["a port of its own", "{taken} is in use", "--port"]),
    "page: no port": (Dashboard, ["--port", "99999"], ["from 1 to 65535", "99999", "--port 5000"]),
    "page: no records": (Dashboard, ["--output", "empty"], ["the records of a study", "no /", "run a study first"]),
    "page: no database": (
        Dashboard,
        ["--output", "half"],
        ["an SQLite file", "not a database", "another output folder"],
    ),
}

TABLE = {
    f"{group}: {name}": row
    for group, rows in {"target": TARGETS, "option": OPTIONS, "file": FILES, "server": SERVERS}.items()
    for name, row in rows.items()
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to start studies in, with everything that the table names."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "quits_when_imported.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "raises_when_imported.py").write_text("made = 1 / 0\n")
    (folder / "half_written.py").write_text("def made(:\n")
    np.save(folder / "rows.npy", np.zeros((40, 2), np.float32))
    np.save(folder / "objects.npy", np.array([[1.0, None]], dtype=object), allow_pickle=True)
    np.savez(folder / "archive.npz", a=np.zeros(2))
    (folder / "pickled.npy").write_bytes(pickle.dumps(Harmful()))
    (folder / "empty").mkdir()
    for name, text in {"half": '{"study": {"sett', "list": "[1, 2]"}.items():
        study = folder / name / "x" / "y"
        study.mkdir(parents=True)
        (study / "study.json").write_text(text)
        (study / "stages.csv").write_text("seed,stage,segment\n")
        (study / "search.journal").write_text("[1]\nnonsense\n")
        (folder / name / "mlflow.db").write_text("this is no database, however long it may be" * 9)
    return folder


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """A port of this machine that is taken, and one that nobody listens at."""
    with socket.socket() as taken, socket.socket() as closed:
        for probe in (taken, closed):
            probe.bind(("127.0.0.1", 0))
        taken.listen()
        yield {"{taken}": str(taken.getsockname()[1]), "{closed}": str(closed.getsockname()[1])}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is not refused fails at once instead of running its study."""

    def too_late(*_: object) -> AbstractContextManager[Any]:
        raise AssertionError("wrong input must be refused before the records are opened, but the study was started")

    for module in (launch, extrapolate, measure):
        monkeypatch.setattr(module, "recorder_of", too_late)
    monkeypatch.setattr(dashboard, "serve", too_late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file with its content, but for locks and what Python compiles."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock" and "__pycache__" not in p.parts
    }


def complete(kind: type[Any], args: list[str], output: Path, here: Path) -> list[str]:
    """The options of a row with what every study needs beside them."""
    common = [] if kind is SampleModel or "--output" in args else ["--output", str(output)]
    if kind is Dashboard and not common:
        return args
    if kind is Dashboard:
        return ["--output", str(here / "half"), *args]
    inline = kind in IN_PROCESS and "--runner" not in args
    return [*common, *(["--runner", "inline"] if inline else []), *args]


@pytest.mark.parametrize(("kind", "args", "beats"), TABLE.values(), ids=TABLE.keys())
def test_what_is_wrong_is_told_and_leaves_nothing(
    kind: type[Any],
    args: list[str],
    beats: Beats,
    here: Path,
    ports: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    before = files_in(here)
    for name, port in ports.items():
        args, beats = ([text.replace(name, port) for text in texts] for texts in (args, beats))
    program = dashboard.main if kind is Dashboard else partial(conclude, kind)
    told = refused_by(program, complete(kind, args, tmp_path / "results", here), monkeypatch, capsys)
    check_message(told, beats)
    assert "Traceback" not in told
    assert "secret" not in told
    assert files_in(here) == before
    assert files_in(tmp_path) == {}


def test_the_table_has_every_study_and_three_beats_a_row() -> None:
    programs = {kind for kind, _, _ in TABLE.values()}
    files = Path(__file__).parents[2].joinpath("studies").glob("*.py")
    studies = [file.stem for file in files if "\n    conclude(" in file.read_text()]
    assert len(programs - {Dashboard}) == len(studies)
    assert len(TABLE) >= 40
    assert all(len(beats) == 3 for _, _, beats in TABLE.values())


def test_a_wrong_ray_address_of_the_environment_is_told(
    ports: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{ports['{closed}']}")
    args = ["--output", str(tmp_path / "results")]
    told = refused_by(partial(conclude, NoiseSchedule), args, monkeypatch, capsys)
    check_message(told, ["must answer", ports["{closed}"], "unset RAY_ADDRESS"])
    assert files_in(tmp_path) == {}


def test_a_target_whose_name_climbs_stays_in_the_folder(tmp_path: Path) -> None:
    target, folder = system_of(f"{OWN}:climbs_out").target, tmp_path / "a" / "b"
    assert target.name == "../../../escaped"
    forces_at(target, torch.zeros(2, target.space.dim), cache_dir=folder)
    assert [file.parent for file in tmp_path.rglob("*") if file.is_file()] == [folder]


def test_a_password_is_in_no_record_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://somebody:secret@tracking.example:5000/path"
    monkeypatch.setattr(sys, "argv", ["studies/train_plan.py", "--tracking-uri", address, f"--tracking-uri={address}"])
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    study = TrainPlan(runner="inline", tracking_uri=address, train_samples=64).study()
    told = described(study)
    assert told["command"][2:] == [
        "https://***@tracking.example:5000/path",
        "--tracking-uri=https://***@tracking.example:5000/path",
    ]
    assert "secret" not in json.dumps(plain(told))
    assert one_line(f"no answer from\n{address}\x1b[2J") == (
        r"no answer from https://***@tracking.example:5000/path\x1b[2J"
    )
