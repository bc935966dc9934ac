"""Samples of a study's winner: found by the folder, drawn, reweighted, interrupted and drawn again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import calibrate, cli
from harness.adapters.inline_runner import InlineRunner
from harness.checkpoint import write_json
from harness.finished_study import FinishedStudy, points_trained_again, swept_points
from harness.kept_models import kept_flow
from harness.plan_report import write_stages
from harness.plan_run import PlanStudyRun
from harness.tracking import described
from models.estimators import configuration_observables, self_normalised_mean, self_normalised_mean_estimate
from models.flows.solvers import Dopri5
from models.problem import build
from models.space import Space
from models.targets import gmm4
from studies import sample
from studies.sample import SampleModel
from studies.train_plan import TrainPlan
from tests.harness.test_recording import Remembered

SMALL: dict[str, Any] = {
    "runner": "inline",
    "train_samples": 64,
    "hidden": 8,
    "layers": 2,
    "fm_batch": 16,
    "pg_batch": 8,
    "solver_steps": 2,
    "evaluation_samples": 40,
    "evaluation_tolerance": 1e-3,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plan of two stages and two seeds."""
    output = tmp_path_factory.mktemp("results")
    study = TrainPlan(**SMALL, seeds="2", stages=("fm=3", "pg=2")).study()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_SECONDS", 0.0)
        run = PlanStudyRun(study, output=output, runner=InlineRunner(), recorder=Remembered())
        write_json(run.folder / "study.json", described(study))
        write_stages(run, run.run())
    return run.folder


def stages(folder: Path) -> list[dict[str, str]]:
    with (folder / "stages.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_the_winner_is_drawn_and_reweighted(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    text = SampleModel(source=trained, samples=50, batch=20, output=file).execute()
    last = [row for row in stages(trained) if row["stage"] == "pg"]
    best = min(last, key=lambda row: float(row["validation_forward_kl"]))
    assert text.startswith(f"gmm4: pg, seed {best['seed']}, segment {best['segment']}")
    columns = read(file)
    assert {name: array.shape for name, array in columns.items()} == {
        "x": (50, 2),
        "log_q": (50,),
        "energy": (50,),
        "log_weight": (50,),
    }
    x_BD = torch.from_numpy(columns["x"])
    assert x_BD.dtype == torch.float64
    np.testing.assert_allclose(columns["energy"], gmm4().energy(x_BD).numpy(), rtol=1e-12)
    np.testing.assert_allclose(columns["log_weight"], -columns["energy"] - columns["log_q"], rtol=1e-12)
    # The density that goes with the samples is the model's: pulled back, it is the same number.
    study = FinishedStudy.read(trained)
    flow = kept_flow(build(study.problem, cache=tmp_path), study.store, best["segment"], int(best["seed"])).double()
    log_q_B = flow.log_prob(x_BD, solver=Dopri5(rtol=1e-8, atol=1e-8))
    np.testing.assert_allclose(columns["log_q"], log_q_B.numpy(), atol=5e-3)

    told = json.loads(file.with_suffix(".json").read_text())
    assert told["segment"] == best["segment"]
    assert told["weights"]["ess_q"]["n"] == 50
    w = np.exp(columns["log_weight"])
    assert told["weights"]["ess_q"]["value"] == pytest.approx(w.sum() ** 2 / (50 * (w**2).sum()))
    assert told["weights"]["log_z"]["value"] == pytest.approx(np.log(w.mean()))
    energy = told["means"]["energy / kT"]
    assert energy["drawn"]["value"] == pytest.approx(columns["energy"].mean())
    assert energy["reweighted"]["value"] == pytest.approx((w * columns["energy"]).sum() / w.sum())
    assert energy["reweighted"]["lo"] < energy["reweighted"]["value"] < energy["reweighted"]["hi"]
    assert f"{energy['reweighted']['value']:.3g} [" in text
    assert "n = 50 samples" in text


def test_an_interrupted_run_goes_on_and_the_same_seed_gives_the_same_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again, other = (tmp_path / f"{name}.npz" for name in ("whole", "again", "other"))
    SampleModel(source=trained, samples=50, batch=20, output=whole).execute()
    drawn: list[int] = []
    draw = sample.weighted_draws

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(kwargs["rows"])
        return draw(*args, **kwargs)

    monkeypatch.setattr(sample, "weighted_draws", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SampleModel(source=trained, samples=50, batch=20, output=again).execute()
    assert not again.exists()
    parts = sorted((tmp_path / "again.npz.parts").glob("*.npz"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:99])  # torn: it is drawn anew

    def counted(*args: Any, **kwargs: Any) -> Any:
        drawn.append(kwargs["rows"])
        return draw(*args, **kwargs)

    drawn.clear()
    monkeypatch.setattr(sample, "weighted_draws", counted)
    SampleModel(source=trained, samples=50, batch=20, output=again).execute()
    assert sorted(drawn) == [10, 20]
    assert not (tmp_path / "again.npz.parts").exists()
    assert again.read_bytes() == whole.read_bytes()
    SampleModel(source=trained, samples=50, batch=20, output=again).execute()
    assert again.read_bytes() == whole.read_bytes()
    SampleModel(source=trained, samples=50, batch=20, seed=1, output=other).execute()
    assert not np.isin(read(other)["x"], read(whole)["x"]).any()


def test_any_segment_is_found_by_the_start_of_its_hash(trained: Path, tmp_path: Path) -> None:
    rows = stages(trained)
    untrained = next(row for row in rows if row["stage"] == "untrained" and row["seed"] == "1")
    text = SampleModel(
        source=trained, segment=untrained["segment"][:12], samples=8, output=tmp_path / "x.npz"
    ).execute()
    assert text.startswith(f"gmm4: fm, 0 steps, seed 1, segment {untrained['segment']}")
    assert FinishedStudy.read(trained.parent / trained.name[:6]).folder == trained
    assert FinishedStudy.read(trained.parent).folder == trained


def test_segments_of_another_study_in_the_store_are_not_this_one_s(trained: Path) -> None:
    """The same table under settings that start from other untrained models."""
    study, kept = FinishedStudy.read(trained), stages(trained)[0]["segment"]
    assert study.model(kept).segment == kept
    other = replace(study, contenders=(), problem={**study.problem, "system": {**study.problem["system"], "hidden": 9}})
    with pytest.raises(ValueError, match="got none for"):
        other.model(kept)
    with pytest.raises(ValueError, match="got none in"):
        other.winner()
    without_metric = tuple(replace(one, loss=np.inf) for one in study.contenders)
    with pytest.raises(ValueError, match=r"got 2 models without one .*; write one of: pg, seed 0 \(--segment"):
        replace(study, contenders=without_metric).winner()


def test_the_best_finished_point_of_a_sweep_is_its_winner() -> None:
    rows = [
        {"point": "0", "state": "finished", "steps": "2", "loss": "0.1", "segments": "a b"},
        {"point": "0", "state": "finished", "steps": "6", "loss": "0.5", "segments": "c d"},
        {"point": "1", "state": "finished", "steps": "6", "loss": "0.4", "segments": "e f"},
        {"point": "2", "state": "pruned", "steps": "6", "loss": "0.2", "segments": "g h"},
        {"point": "3", "state": "failed", "steps": "0", "loss": "", "segments": ""},
    ]
    found = list(swept_points(rows, [0, 7]))
    assert [(one.segment, one.seed, one.loss) for one in found] == [
        ("c", 0, 0.5),
        ("d", 7, 0.5),
        ("e", 0, 0.4),
        ("f", 7, 0.4),
    ]


def test_fresh_seeds_decide_where_a_sweep_trained_its_best_again() -> None:
    rows = [
        {"point": "4", "seed": "7", "segment": "a", "loss": "0.3"},
        {"point": "4", "seed": "8", "segment": "b", "loss": "0.5"},
        {"point": "1", "seed": "7", "segment": "c", "loss": "0.1"},
        {"point": "1", "seed": "8", "segment": "d", "loss": "inf"},
        {"point": "2", "seed": "7", "segment": "e", "loss": ""},
    ]
    found = {one.segment: one for one in points_trained_again(rows)}
    assert {name: one.loss for name, one in found.items()} == {
        "a": 0.4,
        "b": 0.4,
        "c": np.inf,
        "d": np.inf,
        "e": np.inf,
    }
    assert (found["b"].seed, found["b"].title) == (8, "point 4 trained again, seed 8")


def damaged_checkpoint(folder: Path) -> None:
    for path in (folder.parents[1] / "store" / "objects").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-7])


DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no description": (lambda f: (f / "study.json").unlink(), ["OUTPUT/NAME/ID", "got none", "write the folder"]),
    "damaged description": (lambda f: (f / "study.json").write_text("{"), ["can be read", "damaged", "run the study"]),
    "not at its end": (lambda f: (f / "stages.csv").unlink(), ["stages.csv, surface.csv", "got none", "to its end"]),
    "damaged table": (
        lambda f: (f / "stages.csv").write_text("seed\n0\n"),
        ["stages.csv tell what", "a damaged stages.csv", "command again"],
    ),
    "damaged checkpoint": (damaged_checkpoint, ["read from the study's store", "it is damaged", "command again"]),
}


@pytest.mark.parametrize(("damage", "beats"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_study_is_told(
    damage: Callable[[Path], None], beats: list[str], trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.parents[1], tmp_path / "copy")
    folder = tmp_path / "copy" / "train_plan" / trained.name
    damage(folder)
    with pytest.raises(ValueError, match=r"[,;] ") as told:
        SampleModel(source=folder, samples=8, output=tmp_path / "x.npz").execute()
    assert [beat for beat in beats if beat not in str(told.value)] == []
    assert not (tmp_path / "x.npz").exists()


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such folder": ({"source": Path("gone")}, ["OUTPUT/NAME/ID", "got none for gone", "write the folder"]),
    "no such segment": ({"segment": "0123456789"}, ["one segment", "got none", "write more"]),
    "several segments": ({"segment": ""}, ["0-9 and a-f", "got ''", "write more"]),
    "no hash": ({"segment": "../x"}, ["0-9 and a-f", "'../x'", "write more"]),
    "one sample": ({"samples": 1}, ["at least two", "got 1", "--samples 10000"]),
    "empty batches": ({"batch": 0}, ["at least one", "got 0", "--batch 1000"]),
    "negative seed": ({"seed": -1}, ["not negative", "-1", "--seed 0"]),
    "no tolerance": ({"tolerance": 0.0}, ["positive", "0.0", "1e-5"]),
    "another suffix": ({"output": Path("samples.csv")}, [".npz", "samples.csv", "--output samples.npz"]),
}


@pytest.mark.parametrize(("change", "beats"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told_before_anything_is_drawn(
    change: dict[str, Any], beats: list[str], trained: Path, tmp_path: Path
) -> None:
    options = {"source": trained, "output": tmp_path / "x.npz", "samples": 8, **change}
    with pytest.raises(ValueError, match=r"[,;] ") as told:
        SampleModel(**options).execute()
    assert [beat for beat in beats if beat not in str(told.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_overwritten(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez(file, mine=np.zeros(3))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"do not overwrite other files, got .*mine.npz"):
        SampleModel(source=trained, samples=8, output=file).execute()
    assert file.read_bytes() == before
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"must be writable, got .*taken"):
        SampleModel(source=trained, samples=8, output=tmp_path / "taken" / "x.npz").execute()


def test_several_segments_are_named(trained: Path) -> None:
    study = FinishedStudy.read(trained)
    kept = [path.stem for path in (study.store.folder / "segments").glob("*.json")]
    # Six segments rarely share a digit, so a seventh is put beside one of them.
    twin = kept[0][:8] + "0" * 12
    shutil.copy(study.store.folder / "segments" / f"{kept[0]}.json", study.store.folder / "segments" / f"{twin}.json")
    try:
        with pytest.raises(ValueError, match=r"names one segment .*, got \w{20}, \w{20} for"):
            study.model(kept[0][:8])
    finally:
        (study.store.folder / "segments" / f"{twin}.json").unlink()


def test_the_command_line_has_the_option_from(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cli.npz"
    monkeypatch.setattr(
        "sys.argv", ["sample.py", "--from", str(trained), "--samples", "8", "--output", str(file), "--device", "cpu"]
    )
    cli.conclude(SampleModel)
    assert "ESS_q" in capsys.readouterr().out
    assert len(read(file)["x"]) == 8


def test_reweighted_means_ignore_what_has_no_weight() -> None:
    rng = np.random.default_rng(0)
    f, lw = rng.normal(size=400), rng.normal(size=400)
    known = self_normalised_mean_estimate(f, lw, seed=0)
    assert known.value == pytest.approx(self_normalised_mean(f, lw))
    assert known.lo < known.value < known.hi
    with_lost = self_normalised_mean_estimate([*f, np.inf, np.nan], [*lw, -np.inf, -np.inf], seed=0)
    assert with_lost.value == pytest.approx(known.value)
    assert self_normalised_mean_estimate([1.0, 2.0], [-np.inf, -np.inf], seed=0).reason == "no sample has a weight"


def test_reweighting_a_wide_gaussian_gives_the_moments_of_a_narrow_one() -> None:
    """x ~ N(0, 1.5^2) weighted to N(0, 1): E x^2 = 1 lies within the 95 % intervals of most seeds."""
    inside = 0
    for seed in range(40):
        x = 1.5 * np.random.default_rng(seed).normal(size=500)
        found = self_normalised_mean_estimate(x**2, -(x**2) / 2 + x**2 / 4.5, seed=seed)
        inside += found.lo <= 1.0 <= found.hi
    assert 33 <= inside <= 40


def test_configurations_are_described_by_their_distances() -> None:
    x = np.random.default_rng(1).normal(size=(3, 8))
    found = configuration_observables(x, Space(dim=8, particles=4))
    for row, points in enumerate(x.reshape(3, 4, 2)):
        distances = [np.linalg.norm(points[i] - points[j]) for i in range(4) for j in range(i)]
        centred = points - points.mean(axis=0)
        assert found["pair distance"][row] == pytest.approx(np.mean(distances))
        assert found["smallest distance"][row] == pytest.approx(np.min(distances))
        assert found["radius of gyration"][row] == pytest.approx(np.sqrt((centred**2).sum(axis=1).mean()))
    plane = configuration_observables(x[:, :2], Space(dim=2))
    assert list(plane) == ["x1", "x2", "squared norm"]
    assert plane["squared norm"] == pytest.approx(x[:, 0] ** 2 + x[:, 1] ** 2)
    assert list(configuration_observables(x, Space(dim=8))) == ["squared norm"]
