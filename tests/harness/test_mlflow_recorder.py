"""MlflowRecorder keeps the laws of a recorder on a real SQLite store, and through being killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from harness.adapters import mlflow_database
from harness.adapters.mlflow_recorder import MlflowRecorder, pages
from harness.adapters.mlflow_view import shared_view
from harness.contracts import Point, RecordRefused, TrackerAway
from harness.view import plan_view
from tests.harness.test_view import QUESTION
from tests.laws.recorder_laws import RecorderLaws, StoredRun, line


def opened(folder: Path, study: str, experiment: str = "laws") -> MlflowRecorder:
    return MlflowRecorder(
        database=folder / "mlflow.db",
        tracking_uri=None,
        artifacts=folder / "artifacts",
        study=study,
        experiment=experiment,
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: building its tables takes seconds."""
    return tmp_path_factory.mktemp("store")


def client_of(store: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")


def runs_of(store: Path, study: str) -> list[Run]:
    client = client_of(store)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(everywhere, filter_string=f"tags.study = '{study}'"))


def as_stored(store: Path, run: Run) -> StoredRun:
    histories = {metric: client_of(store).get_metric_history(run.info.run_id, metric) for metric in run.data.metrics}
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return StoredRun(
        name=run.info.run_name,
        status=run.info.status.lower(),
        params=run.data.params,
        tags=run.data.tags,
        points={metric: sorted((p.step, p.value, p.timestamp) for p in found) for metric, found in histories.items()},
        files={file.name: file.read_text() for file in folder.glob("*")},
        description=run.data.tags.get("mlflow.note.content", ""),
    )


class TestMlflowRecorder(RecorderLaws):
    @pytest.fixture(autouse=True)
    def _in_store(self, store: Path) -> None:
        self.store = store

    def open(self, study: str) -> MlflowRecorder:
        return opened(self.store, study)

    def stored(self, study: str) -> dict[str, list[StoredRun]]:
        found: dict[str, list[StoredRun]] = {}
        for run in runs_of(self.store, study):
            found.setdefault(run.data.tags["key"], []).append(as_stored(self.store, run))
        return found


def test_more_points_than_a_batch_holds(store: Path) -> None:
    recorder = opened(store, "batches")
    recorder.start("a", name="a", params={}, tags={})
    recorder.record("a", line("train/loss", range(2300)))
    (run,) = runs_of(store, "batches")
    assert len(as_stored(store, run).points["train/loss"]) == 2300


def test_a_changed_parameter_keeps_its_first_value_and_shows_the_new_one(store: Path) -> None:
    for rate in (0.1, 0.1, 0.2):
        opened(store, "changed").start("a", name="a", params={"rate": rate, "sizes": (8, 8)}, tags={})
    (run,) = runs_of(store, "changed")
    assert run.data.params == {"rate": "0.1", "sizes": "[8,8]"}
    assert run.data.tags["changed/rate"] == "0.2"


def test_many_and_long_texts_are_stored_cut(store: Path) -> None:
    recorder = opened(store, "long")
    many = {f"p{number}": "x" * 7000 for number in range(120)}
    for _ in range(2):
        recorder.start("a", name="a", params=many, tags={"note": "y" * 9000})
        recorder.describe("a", "z" * 9000)
    (run,) = runs_of(store, "long")
    assert set(run.data.params.values()) == {"x" * 5999 + "…"}
    assert [len(run.data.tags[name]) for name in ("note", "mlflow.note.content")] == [8000, 8000]
    assert not any(name.startswith("changed/") for name in run.data.tags)


def test_a_run_that_is_not_open_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match=r"call start\('a'"):
        opened(store, "closed").record("a", line("train/loss", range(2)))


def test_a_file_that_is_not_there_is_refused(store: Path) -> None:
    recorder = opened(store, "no file")
    recorder.start("a", name="a", params={}, tags={})
    with pytest.raises(ValueError, match="write it before attaching"):
        recorder.attach("a", store / "nowhere.csv")


def test_pages_are_the_views_of_studies_or_else_all_runs(store: Path) -> None:
    server = "http://127.0.0.1:5001"
    recorder = opened(store, "linked", experiment="linked experiment")
    plain = f"linked experiment: {server}/#/experiments/{recorder.experiment_id}/runs?compareRunsMode=CHART"
    assert plain in pages(store / "mlflow.db", server)
    recorder.arrange(plan_view(QUESTION))
    recorder.arrange(plan_view(QUESTION))
    found = pages(store / "mlflow.db", server)
    assert f"linked experiment: {recorder.page(server)}" in found
    assert recorder.page(server) == plain.removeprefix("linked experiment: ") + "&viewStateShareKey=linked"
    assert plain not in found
    assert not [line for line in found if line.startswith("Default")]
    tags = client_of(store).get_experiment(recorder.experiment_id).tags
    assert tags["mlflow.sharedViewState.linked"] == shared_view(plan_view(QUESTION), "linked")
    assert "device-second" in tags["mlflow.note.content"]


def test_a_deleted_experiment_is_refused(store: Path) -> None:
    number = opened(store, "deleted", experiment="deleted").experiment_id
    client_of(store).delete_experiment(number)
    with pytest.raises(ValueError, match=f"restore --experiment-id {number}"):
        opened(store, "deleted", experiment="deleted")


def test_a_database_and_a_server_at_once_are_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="one and None for the other"):
        MlflowRecorder(
            database=store / "mlflow.db", tracking_uri="http://x", artifacts=store, study="s", experiment="e"
        )


def test_a_study_name_with_a_quote_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="write it without '"):
        opened(store, "it's")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("something else " * 100)
    with pytest.raises(ValueError, match="write another output folder"):
        opened(tmp_path, "s")


def test_a_locked_database_is_away(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_database, "LOCK_SECONDS", 0.1)
    opened(store, "locked")
    with closing(sqlite3.connect(store / "mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackerAway, match=r"locked\); stop the program that locks it"):
            opened(store, "locked")


def test_a_refused_write_says_how_to_go_on(store: Path) -> None:
    recorder = opened(store, "refused")
    recorder.start("a", name="a", params={}, tags={})
    with pytest.raises(RecordRefused, match="run the same command again"):
        recorder.record("a", [Point(metric="no|such*name", value=1.0, step=0, timestamp=0.0)])


def child_of(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Another Python process, started where the project is importable."""
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, cwd=root)


CHILD = """
import sys
from pathlib import Path
from tests.harness.test_mlflow_recorder import opened
from tests.laws.recorder_laws import line
recorder = opened(Path(sys.argv[1]), "killed")
recorder.start("a", name="a", params={"rate": 0.1}, tags={})
for first in range(0, 20000, 50):
    recorder.record("a", line("train/loss", range(first, first + 50)) + line("train/norm", range(first, first + 50)))
    print("recorded", flush=True)
"""


@pytest.mark.faults
def test_every_point_is_there_once_after_kills(store: Path) -> None:
    opened(store, "killed")
    for batches in (2, 15):
        with child_of(CHILD, str(store)) as child:
            assert child.stdout is not None
            assert [child.stdout.readline() for _ in range(batches)] == ["recorded\n"] * batches
            child.send_signal(signal.SIGKILL)
    (killed,) = runs_of(store, "killed")
    written = len(as_stored(store, killed).points["train/loss"])
    assert 750 <= written < 20000
    recorder = opened(store, "killed")
    recorder.start("a", name="a", params={"rate": 0.1}, tags={})
    recorder.record("a", line("train/loss", range(written + 500)) + line("train/norm", range(written + 500)))
    (run,) = runs_of(store, "killed")
    stored = as_stored(store, run)
    for metric in ("train/loss", "train/norm"):
        assert [step for step, *_ in stored.points[metric]] == list(range(written + 500))
    assert run.info.run_id == killed.info.run_id
    assert stored.status == "running"


@pytest.mark.slow
def test_processes_that_open_a_fresh_store_together_take_turns(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.harness.test_mlflow_recorder import opened; "
        "r = opened(Path(sys.argv[1]), sys.argv[2]); r.start('a', name='a', params={}, tags={})"
    )
    children = [child_of(code, str(tmp_path), f"s{i}") for i in range(3)]
    assert [child.communicate() and child.returncode for child in children] == [0, 0, 0]
    assert [len(runs_of(tmp_path, f"s{i}")) for i in range(3)] == [1, 1, 1]
