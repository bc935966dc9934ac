"""RecorderLaws: what every Recorder promises, read back through the tool it writes to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from harness.contracts import Point, Recorder


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as its tool shows it. Points are (step, value, milliseconds since the epoch) by metric."""

    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    points: dict[str, list[tuple[int, float, int]]]
    files: dict[str, str]
    description: str


def line(metric: str, steps: range, *, slope: float = 0.5) -> list[Point]:
    return [Point(metric=metric, value=slope * step, step=step, timestamp=1_700_000_000.25 + step) for step in steps]


class RecorderLaws:
    """Every test writes to a study of its own name, so that members may share one slow store between tests."""

    def open(self, study: str) -> Recorder:
        """A recorder of this study, as a new process would open it."""
        raise AssertionError("a member of the laws says how its recorder is opened")

    def stored(self, study: str) -> dict[str, list[StoredRun]]:
        """Everything in the store under this study, by key."""
        raise AssertionError("a member of the laws says how its store is read")

    def begun(self, study: str, *keys: str) -> Recorder:
        recorder = self.open(study)
        for key in keys:
            recorder.start(key, name=f"run {key}", params={"rate": 0.1}, tags={"method": "fm"})
        return recorder

    def only(self, study: str, key: str) -> StoredRun:
        (run,) = self.stored(study)[key]
        return run

    def test_a_point_is_stored_as_it_happened(self) -> None:
        self.begun("stored", "a").record("a", line("train/loss", range(1, 3)))
        run = self.only("stored", "a")
        assert run.points == {"train/loss": [(1, 0.5, 1_700_000_001_250), (2, 1.0, 1_700_000_002_250)]}
        assert (run.name, run.params["rate"], run.tags["method"]) == ("run a", "0.1", "fm")

    def test_recording_twice_leaves_it_there_once(self) -> None:
        recorder = self.begun("twice", "a")
        recorder.record("a", line("train/loss", range(5)) + line("train/loss", range(5)))
        recorder.record("a", line("train/loss", range(3, 8), slope=9.0))
        points = self.only("twice", "a").points["train/loss"]
        assert [step for step, *_ in points] == list(range(8))
        assert points[4][1] == 2.0

    def test_a_restart_takes_up_the_same_run(self) -> None:
        self.begun("restart", "a").record("a", line("train/loss", range(5)))
        again = self.begun("restart", "a")
        again.record("a", line("train/loss", range(3, 8)) + line("validation/ess", range(2)))
        points = self.only("restart", "a").points
        assert [step for step, *_ in points["train/loss"]] == list(range(8))
        assert [step for step, *_ in points["validation/ess"]] == [0, 1]

    def test_starting_an_open_run_changes_nothing(self) -> None:
        recorder = self.begun("open", "a")
        recorder.record("a", line("train/loss", range(2)))
        before = self.stored("open")
        recorder.start("a", name="run a", params={"rate": 0.1}, tags={"method": "fm"})
        assert self.stored("open") == before

    def test_a_finished_run_is_taken_up_and_runs_again(self) -> None:
        first = self.begun("finished", "a")
        first.record("a", line("train/loss", range(2)))
        first.finish("a", "finished")
        first.close()
        assert self.only("finished", "a").status == "finished"
        self.begun("finished", "a")
        assert self.only("finished", "a").status == "running"

    def test_a_failed_run_is_marked(self) -> None:
        self.begun("failed", "a").finish("a", "failed")
        assert self.only("failed", "a").status == "failed"

    def test_two_runs_do_not_mix(self) -> None:
        recorder = self.begun("two", "a", "b")
        recorder.record("a", line("train/loss", range(3)))
        recorder.record("b", line("train/loss", range(3), slope=7.0))
        assert self.only("two", "a").points["train/loss"][2][1] == 1.0
        assert self.only("two", "b").points["train/loss"][2][1] == 14.0

    def test_two_studies_do_not_mix(self) -> None:
        self.begun("one study", "a").record("a", line("train/loss", range(3)))
        self.begun("other study", "a").record("a", line("train/loss", range(2), slope=7.0))
        assert len(self.only("one study", "a").points["train/loss"]) == 3
        assert len(self.only("other study", "a").points["train/loss"]) == 2

    def test_a_diverged_value_is_kept_and_visible(self) -> None:
        recorder = self.begun("diverged", "a")
        wild = [
            Point(metric="train/loss", value=value, step=step, timestamp=1.0 + step)
            for step, value in enumerate((1.0, math.inf, -math.inf, math.nan))
        ]
        recorder.record("a", wild)
        self.begun("diverged", "a").record("a", wild)
        run = self.only("diverged", "a")
        assert [step for step, *_ in run.points["train/loss"]] == [0, 1, 2, 3]
        assert [math.isfinite(value) for _, value, _ in run.points["train/loss"]] == [True, False, False, False]
        assert "train/loss" in run.tags["not_finite"]
        assert "step 1" in run.tags["not_finite"]

    def test_an_attached_file_is_kept_and_replaced(self, tmp_path: Path) -> None:
        recorder, file = self.begun("attach", "a"), tmp_path / "surface.csv"
        for text in ("old", "new"):
            file.write_text(text)
            recorder.attach("a", file)
        file.unlink()
        assert self.only("attach", "a").files == {"surface.csv": "new"}

    def test_the_description_is_the_last_one(self) -> None:
        recorder = self.begun("describe", "a")
        recorder.describe("a", "first")
        recorder.describe("a", "**second**")
        assert self.only("describe", "a").description == "**second**"
