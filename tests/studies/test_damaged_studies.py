"""Folders of studies that were cut, overwritten or made by others: told in a line; no code runs, no file is lost.

Every row damages a copy of a small trained plan and says three parts of the message: the rule, what came, what to do.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.checkpoint import DamagedObject, Store, write_json
from harness.plan import Branch
from harness.plan_report import write_stages
from harness.plan_run import PlanStudyRun
from harness.tracking import described
from studies.minima import MinimaUnderSamples
from studies.sample import SampleModel
from studies.train_plan import TrainPlan
from tests.harness.test_recording import Remembered
from tests.studies.refusals import Harmful, check_message, refused

SMALL: dict[str, Any] = {
    "runner": "inline",
    "train_samples": 64,
    "hidden": 8,
    "layers": 2,
    "fm_batch": 16,
    "evaluation_samples": 32,
    "evaluation_tolerance": 1e-2,
}
VICTIM = "victim.txt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a plan of one stage and one seed."""
    output = tmp_path_factory.mktemp("trained") / "results"
    study = TrainPlan(**SMALL, seeds="1", stages=("fm=2",)).study()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_SECONDS", 0.0)
        run = PlanStudyRun(study, output=output, runner=InlineRunner(), recorder=Remembered())
        write_json(run.folder / "study.json", described(study))
        write_stages(run, run.run())
    return output


def study_of(output: Path) -> Path:
    return next(output.glob("train_plan/*"))


def edited(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Damage that changes values of study.json."""

    def damage(output: Path) -> None:
        file = study_of(output) / "study.json"
        told = json.loads(file.read_text())
        change(told["study"])
        file.write_text(json.dumps(told))

    return damage


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda output: (study_of(output) / name).write_bytes(text.encode("latin-1")) and None


def segments(output: Path) -> list[Path]:
    return sorted((output / "store" / "segments").glob("*.json"))


def with_state(content: bytes) -> Callable[[Path], None]:
    """Damage that puts another checkpoint under its right name into every segment."""

    def damage(output: Path) -> None:
        name = Store(output / "store").put(content, ".pt")
        for file in segments(output):
            file.write_text(json.dumps({**json.loads(file.read_text()), "state": name}))

    return damage


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def cut_checkpoints(output: Path) -> None:
    for file in (output / "store" / "objects").glob("*.pt"):
        os.truncate(file, file.stat().st_size // 2)


def stray_states(output: Path) -> None:
    """Segments whose checkpoint is a file outside the store, which a reader must neither read nor remove."""
    for file in segments(output):
        file.write_text(json.dumps({**json.loads(file.read_text()), "state": f"../../{VICTIM}"}))


def listed_segments(output: Path) -> None:
    for file in segments(output):
        file.write_text("[1, 2]")


def pickled_records(output: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, x=np.array([Harmful()], dtype=object))
    name = Store(output / "store").put(archive.getvalue(), ".npz")
    for file in (output / "store" / "evaluations").glob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "records": name}))


STORE = "is read from the study's store"
AGAIN = "run the"
SAMPLE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a checkpoint that was cut": (cut_checkpoints, [STORE, "must hash to its name", AGAIN]),
    "a checkpoint with code": (with_state(saved({"weights": Harmful()})), [STORE, "weights only", AGAIN]),
    "a plain pickle": (with_state(pickle.dumps(Harmful(), protocol=2)), [STORE, "weights only", AGAIN]),
    "a checkpoint of a list": (with_state(saved([1, 2])), [STORE, "a list", AGAIN]),
    "a checkpoint of nothing": (with_state(b""), [STORE, "weights only", AGAIN]),
    "another model's weights": (
        with_state(saved({"weights": {"a": torch.ones(2)}, "average": None})),
        [STORE, "cannot be", AGAIN],
    ),
    "a checkpoint without weights": (with_state(saved({"other": 1})), [STORE, "cannot be", AGAIN]),
    "a checkpoint outside the store": (stray_states, [STORE, f"'../../{VICTIM}'", AGAIN]),
    "segments that are lists": (listed_segments, [STORE, "lacks it", AGAIN]),
    "another maker": (
        edited(lambda study: study["setting"].update(build="os:system")),
        ["is made by models.problem:build", "'os:system'", "write the folder"],
    ),
    "a problem of text": (
        edited(lambda study: study["setting"].update(problem="gmm4")),
        ["a problem has the system settings", "none of target", AGAIN],
    ),
    "a problem that was cut": (
        edited(lambda study: study["setting"]["problem"]["evaluation"].pop("tolerance")),
        ["a problem has the evaluation settings", "none of tolerance", AGAIN],
    ),
    "an unknown target": (
        edited(lambda study: study["setting"]["problem"]["system"].update(target="gone:made")),
        ["a target is one of", "'gone:made'", "write the address"],
    ),
    "no setting": (
        edited(lambda study: study.pop("setting")),
        ["tell what was trained|ends with", "got", AGAIN + "|let"],
    ),
    "stages of text": (edited(lambda study: study.update(stages="fm")), ["tell what was trained", "TypeError", AGAIN]),
    "a seed of text": (
        written("stages.csv", "seed,stage,segment\nx,untrained,aa\n"),
        ["tell what was trained", "'x'", AGAIN],
    ),
    "a table without seeds": (written("stages.csv", "a,b\n1,2\n"), ["tell what was trained", "'seed'", AGAIN]),
    "a table of bytes": (written("stages.csv", "\xff\xfe\x00"), ["tell what was trained", "damaged", AGAIN]),
    "a description that was cut": (written("study.json", '{"study": {"se'), ["can be read", "a damaged one", AGAIN]),
}


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    output = tmp_path / "results"
    shutil.copytree(trained, output)
    (output / VICTIM).write_text("kept")
    monkeypatch.chdir(tmp_path)
    return output


def nothing_happened(output: Path) -> None:
    assert (output / VICTIM).read_text() == "kept"
    assert sorted(path.name for path in output.parent.iterdir()) == ["results"]


@pytest.mark.parametrize(("damage", "beats"), SAMPLE.values(), ids=SAMPLE.keys())
def test_a_damaged_study_is_told(
    damage: Callable[[Path], None],
    beats: list[str],
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(copied)
    args = ["--from", str(study_of(copied)), "--samples", "4", "--output", str(copied.parent / "samples.npz")]
    check_message(refused(SampleModel, args, monkeypatch, capsys), beats)
    nothing_happened(copied)


def test_records_with_code_are_told(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled_records(copied)
    args = ["--plan", str(study_of(copied)), "--output", str(copied)]
    check_message(refused(MinimaUnderSamples, args, monkeypatch, capsys), ["are read from", "pickle", AGAIN])
    nothing_happened(copied)


def test_a_whole_study_is_drawn_from(copied: Path) -> None:
    """The control: without damage the same command works."""
    text = SampleModel(source=study_of(copied), samples=4, output=copied.parent / "samples.npz").execute()
    assert "gmm4: fm, seed 0" in text


STRAY = [f"../../{VICTIM}", "/etc/passwd", "", "a.pt", f"{'0' * 64}.pt/../../x", "0" * 64]


@pytest.mark.parametrize("name", STRAY)
def test_no_name_leads_out_of_the_store(name: str, copied: Path) -> None:
    with pytest.raises(DamagedObject, match=r"an object's name is its hash, got .*; run the same command again"):
        Store(copied / "store").get(name)
    nothing_happened(copied)


def test_dropping_a_partial_checkpoint_removes_nothing_outside(copied: Path) -> None:
    store, study = Store(copied / "store"), TrainPlan(**SMALL, stages=("fm=2",)).study()
    branch = Branch(parent=study.setting.root(0), phase=study.phases[0], seed=0)
    store.save_latest(branch, steps=1, state=f"../../{VICTIM}", events=[])
    store.drop_latest(branch)
    assert store.latest(branch) is None
    nothing_happened(copied)
