"""The study of trajectory lengths as a value, as a dry run, and as a whole in this process."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import calibrate, plan_dry_run
from harness.adapters.inline_runner import InlineRunner
from harness.checkpoint import Store
from harness.contracts import TrialSource
from harness.launch import check_problem
from harness.plan_run import PlanCells, PlanStudyRun
from harness.plan_study import PlanComparison, PlanStudy
from harness.trained_plan import TrainedPlan
from harness.trial import Event, TrialSpec
from studies.train_plan import TrainPlan
from studies.trajectory_length import COLUMNS, TrajectoryLength, pairs_of, paths_of, report
from tests.harness.test_recording import Remembered

SMALL: dict[str, Any] = {
    "target": "tests.studies.harmonic:harmonic",
    "runner": "inline",
    "seeds": "2",
    "evaluation_samples": 64,
    "evaluation_tolerance": 1e-2,
    "train_samples": 96,
    "hidden": 8,
    "layers": 1,
    "fm_batch": 8,
    "pg_batch": 8,
    "solver_steps": 2,
    "fm": "3",
    "fm_tail": "2",
    "pg": "2",
}
COUPLINGS = ("independent", "optimal-transport", "equivariant-optimal-transport")


@pytest.fixture(autouse=True)
def short_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)


class Counting(InlineRunner):
    """The inline runner, with the kinds of everything that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def run(self, source: TrialSource, on_event: Any) -> None:
        def listen(spec: TrialSpec, event: Event) -> None:
            self.kinds.append(event.kind)
            on_event(spec, event)

        super().run(source, listen)


class Described(Remembered):
    """A recorder that also keeps names, tags, files, texts and how runs ended."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, dict[str, str]] = {}
        self.files: dict[str, list[str]] = {}
        self.texts: dict[str, str] = {}
        self.ends: dict[str, str] = {}

    def start(self, key: str, *, name: str, params: Any, tags: Any) -> None:
        super().start(key, name=name, params=params, tags=tags)
        self.tags[key] = dict(tags)

    def attach(self, key: str, file: Path) -> None:
        self.files.setdefault(key, []).append(file.name)

    def describe(self, key: str, text: str) -> None:
        self.texts[key] = text

    def finish(self, key: str, status: str) -> None:
        self.ends[key] = status


def run_of(study: PlanStudy | PlanComparison, output: Path) -> tuple[PlanStudyRun, Described, Counting]:
    recorder, runner = Described(), Counting()
    return PlanStudyRun(study, output=output, runner=runner, recorder=recorder), recorder, runner


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlanStudyRun, PlanCells, str, Described]:
    """A whole study with its report."""
    output = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_SECONDS", 0.0)
        run, recorder, _ = run_of(TrajectoryLength(**SMALL).study(), output)
        cells = run.run()
        (run.folder / "study.json").write_text("{}")
        return run, cells, report(run, cells), recorder


def test_options_make_one_plan_a_coupling() -> None:
    study = TrajectoryLength(**SMALL).study()
    assert tuple(study.plans) == COUPLINGS
    for coupling, plan in study.plans.items():
        assert [stage.phase.name for stage in plan.stages] == ["fm", "fm_tail", "pg"]
        assert [stage.spend for stage in plan.stages] == [3, 2, 2]
        assert {plan.phases[0].objective["coupling"], plan.phases[1].objective["coupling"]} == {coupling}
    assert tuple(TrajectoryLength(target="gmm4").study().plans) == COUPLINGS[:2]
    assert [s.phase.name for s in TrajectoryLength().study().plans["independent"].stages] == ["fm", "pg"]


def test_the_study_has_a_name_of_its_own_for_every_question() -> None:
    base = TrajectoryLength(**SMALL).study().id
    assert TrajectoryLength(**SMALL, output=Path("x"), checkpoint_seconds=1.0).study().id == base
    changes = [
        {"fm": "4"},
        {"pg": "3"},
        {"fm_tail": None},
        {"seeds": "3"},
        {"judge_last": 3},
        {"couplings": COUPLINGS[1:]},
    ]
    names = {TrajectoryLength(**{**SMALL, **change}).study().id for change in changes}
    assert len(names | {base}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"coupling": "independent"}, "write --couplings independent"),
        ({"couplings": ("independent", "independent")}, "write each once"),
        ({"fm": "0"}, "write for example fm=100"),
        ({"pg": "many"}, "write"),
        ({"judge_last": 1}, "write 2 or more"),
        ({"judge_last": 4}, "write --judge-last 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrajectoryLength(**{**SMALL, **change}).study()


def test_an_equivariant_coupling_without_particles_is_told_before_anything_starts(tmp_path: Path) -> None:
    options = TrajectoryLength(target="gmm4", couplings=COUPLINGS, runner="inline", output=tmp_path)
    study = options.study()
    with pytest.raises(ValueError, match="needs particles"):
        check_problem(study.setting, study.phases, tmp_path)
    with pytest.raises(ValueError, match="needs particles"):
        options.execute()
    assert not (tmp_path / "mlflow.db").exists()


def test_plans_that_would_train_the_same_are_no_comparison() -> None:
    plan = next(iter(TrajectoryLength(**SMALL).study().plans.values()))
    with pytest.raises(ValueError, match="write each once"):
        PlanComparison(name="same", plans={"a": plan, "b": plan})
    with pytest.raises(ValueError, match="got none"):
        PlanComparison(name="empty", plans={})


def test_a_dry_run_tells_the_cost_and_starts_nothing(tmp_path: Path) -> None:
    text = TrajectoryLength(**SMALL, output=tmp_path, dry_run=True).execute()
    for word in (*COUPLINGS, "fm_tail", "3 steps", "2 steps", "training:", "24 models, 24 to be judged", "cores: 1"):
        assert word in text
    assert not (tmp_path / "store" / "segments").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_dry_run_afterwards_has_nothing_to_do(done: tuple[PlanStudyRun, PlanCells, str, Described]) -> None:
    run, *_ = done
    study = run.study
    assert isinstance(study, PlanComparison)
    text = plan_dry_run.describe_plans(study, run.folder.parents[1])
    assert "step prices, on record" in text
    assert "of which 0 are to be done" in text
    assert "24 models, 0 to be judged, at least 0 device-seconds" in text
    longer = plan_dry_run.describe_plans(TrajectoryLength(**{**SMALL, "pg": "4"}).study(), run.folder.parents[1])
    assert "24 models, 6 to be judged" in longer
    ruled = plan_dry_run.describe_plans(
        TrajectoryLength(**{**SMALL, "fm": "plateau:0.1"}).study(), run.folder.parents[1]
    )
    assert "until an octave gains less than 0.1, 1048576 steps at most" in ruled
    assert "6 models, 0 to be judged" in ruled


def test_changes_are_those_of_the_records(done: tuple[PlanStudyRun, PlanCells, str, Described]) -> None:
    run, cells, _, _ = done
    pairs = pairs_of(run, cells)
    assert [(pair.plan, pair.seed) for pair in pairs] == [(c, s) for c in COUPLINGS for s in (0, 1)]
    for pair in pairs:
        assert (pair.before.tail, pair.after.tail) == ("fm_tail", "pg")
        before, after = pair.before.test, pair.after.test
        nll, length = pair.changes["nll"], pair.changes["path_length"]
        assert nll.estimate.value == pytest.approx(after["nll"].value - before["nll"].value, abs=1e-9)
        assert nll.estimate.value != 0
        ratio = after["path_length"].value / before["path_length"].value
        assert length.estimate.value == pytest.approx(100 * (ratio - 1), rel=1e-9)
        assert 0 < nll.standard_error < (before["nll"].hi - before["nll"].lo)
        records = [run.records(cell)["test/log_q"] for cell in (pair.before, pair.after)]
        difference = records[0] - records[1]
        assert nll.standard_error == pytest.approx(np.std(difference, ddof=1) / np.sqrt(64))


def test_the_files_hold_every_coupling_and_seed(done: tuple[PlanStudyRun, PlanCells, str, Described]) -> None:
    run, _, text, recorder = done
    stages = rows_of(run.folder / "stages.csv")
    assert len(stages) == 3 * 2 * 4
    assert {row["stage"] for row in stages} == {"untrained", "fm", "fm_tail", "pg"}
    assert {row["plan"] for row in stages} == set(COUPLINGS)
    trained = [row for row in stages if row["stage"] != "untrained"]
    assert all(float(row["peak_memory_bytes"]) > 1e4 for row in trained)
    assert {row["peak_memory_bytes"] for row in stages if row["stage"] == "untrained"} == {""}
    assert "memory / MiB" in text
    changes = rows_of(run.folder / "changes.csv")
    assert [row["seed"] for row in changes] == ["0", "1", "all"] * 3
    for one, two, mean in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
        for name in (f"{c.name}_change" + ("_percent" if c.relative else "") for c in COLUMNS):
            assert float(mean[name]) == pytest.approx((float(one[name]) + float(two[name])) / 2)
            assert mean[f"{name}_n"] == "2"
            assert mean[f"{name}_seed_lo"] == ""  # two seeds are too few for an interval
            assert float(one[f"{name}_eval_lo"]) <= float(one[name]) <= float(one[f"{name}_eval_hi"])
            assert one[f"{name}_n"] == "64"
        assert 0 < float(one["ess_q_before"]) <= 1
        assert float(one["transport_distance_after"]) <= float(one["path_length_after"]) + 1e-6
    for name in ("lengths.png", "paths.png", "change.png"):
        assert (run.folder / name).read_bytes().startswith(b"\x89PNG")
    assert "change of NLL" in text
    assert recorder.files["summary"] == [
        "stages.csv",
        "changes.csv",
        "lengths.png",
        "paths.png",
        "change.png",
        "study.json",
    ]
    assert "change of trajectory length / %" in recorder.texts["summary"]


def test_every_coupling_and_seed_has_a_run_of_its_own(done: tuple[PlanStudyRun, PlanCells, str, Described]) -> None:
    _, _, _, recorder = done
    plans = [f"{coupling}/seed{seed}/fm@3/fm_tail@2/pg" for coupling in COUPLINGS for seed in (0, 1)]
    assert list(recorder.runs) == [*plans, "summary"]
    assert {recorder.ends[key] for key in plans} == {"finished"}
    assert [recorder.tags[key]["compared"] for key in plans] == [c for c in COUPLINGS for _ in (0, 1)]
    for key in plans:
        assert {"test/nll", "test/path_length", "train/pg_loss"} <= {point.metric for point in recorder.runs[key]}


def test_paths_start_in_the_base_and_have_the_length_of_the_flow(
    done: tuple[PlanStudyRun, PlanCells, str, Described],
) -> None:
    run, cells, _, _ = done
    judged = cells[COUPLINGS[0]][0]
    trained, untrained = (paths_of(run, cell.segment, 0) for cell in (judged[-1], judged[0]))
    assert trained.shape == (3, 41, 3, 2)
    np.testing.assert_array_equal(trained[:, 0], untrained[:, 0])
    assert np.abs(trained[:, -1] - untrained[:, -1]).max() > 1e-3


def test_what_is_trained_is_never_trained_again(done: tuple[PlanStudyRun, PlanCells, str, Described]) -> None:
    run, cells, text, _ = done
    output = run.folder.parents[1]
    again, _, runner = run_of(TrajectoryLength(**SMALL).study(), output)
    assert repr(again.run()) == repr(cells)
    assert runner.kinds == []
    assert report(again, cells) == text

    fewer, _, runner = run_of(TrajectoryLength(**{**SMALL, "couplings": COUPLINGS[1:], "seeds": "1"}).study(), output)
    assert list(fewer.run()) == list(COUPLINGS[1:])
    assert runner.kinds == []

    common = {key: value for key, value in SMALL.items() if key not in ("fm", "fm_tail", "pg")}
    single = TrainPlan(**common, coupling="optimal-transport", stages=("fm=3", "fm_tail=2", "pg=2")).study()
    plan, _, runner = run_of(single, output)
    assert repr(plan.run()[""]) == repr(cells["optimal-transport"])
    assert runner.kinds == []


def test_only_the_last_stages_are_judged_where_that_is_asked(tmp_path: Path) -> None:
    options = {**SMALL, "couplings": COUPLINGS[:1], "seeds": "1", "judge_last": 2}
    run, _, runner = run_of(TrajectoryLength(**options).study(), tmp_path)
    dry = plan_dry_run.describe_plans(run.study, tmp_path)  # type: ignore[arg-type]
    assert "2 models, 2 to be judged" in dry
    cells = run.run()
    assert [cell.tail for cell in cells[COUPLINGS[0]][0]] == ["fm_tail", "pg"]
    # One that got worse is not called diverged: the untrained model, which would tell, was not judged.
    assert not any(cell.diverged for cell in cells[COUPLINGS[0]][0])
    assert runner.kinds.count("evaluated") == 2
    (run.folder / "study.json").write_text("{}")
    assert "fm_tail" in report(run, cells)
    assert [row["stage"] for row in rows_of(run.folder / "stages.csv")] == ["fm_tail", "pg"]
    whole, _, runner = run_of(TrajectoryLength(**{**options, "judge_last": None}).study(), tmp_path)
    assert [cell.tail for cell in whole.run()[COUPLINGS[0]][0]] == ["", "fm", "fm_tail", "pg"]
    assert runner.kinds.count("evaluated") == 2


def test_a_failed_plan_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrajectoryLength(**{**SMALL, "seeds": "1", "couplings": COUPLINGS[:2], "fm_tail": None})
    run, recorder, _ = run_of(options.study(), tmp_path)
    finish = Store.finish_segment
    lost = run.study.plans["independent"].phases[0].fingerprint

    def broken(store: Store, segment: Any, **kept: Any) -> None:
        if segment.branch.phase.fingerprint == lost and segment.steps:
            raise OSError("no space left")
        finish(store, segment, **kept)

    monkeypatch.setattr(Store, "finish_segment", broken)
    cells = run.run()
    (run.folder / "study.json").write_text("{}")
    text = report(run, cells)
    assert "failed: independent · seed 0" in text
    assert [pair.plan for pair in pairs_of(run, cells)] == ["optimal-transport"]
    assert {key.split("/")[0]: end for key, end in recorder.ends.items()} == {
        "independent": "failed",
        "optimal-transport": "finished",
        "summary": "failed",
    }


def test_the_program_itself_leaves_its_records(tmp_path: Path) -> None:
    changes = {"seeds": "1", "couplings": COUPLINGS[1:2], "fm_tail": None, "output": tmp_path}
    text = TrajectoryLength(**{**SMALL, **changes}).execute()
    assert "stages.csv, changes.csv, lengths.png, paths.png, change.png" in text
    (folder,) = (tmp_path / "trajectory_length").iterdir()
    assert str(folder) in text
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        keys = {value for (value,) in database.execute("select value from tags where key = 'key'")}
    assert keys == {"optimal-transport/seed0/fm@3/pg", "summary"}
    kept = {path.name for path in (tmp_path / "artifacts").rglob("*.*")}
    assert {"study.json", "change.png", "changes.csv"} <= kept
    found = TrainedPlan.read(folder)
    (model,) = found.models
    assert found.title(model, 2) == "optimal-transport, pg, seed 0"
    assert found.records(model, 2)["model/x"].shape == (64, 6)


def test_one_share_of_an_evaluation_stands_for_all(tmp_path: Path) -> None:
    study = TrajectoryLength(**SMALL).study()
    assert plan_dry_run.evaluation_seconds(study, Store(tmp_path / "store")) > 0
