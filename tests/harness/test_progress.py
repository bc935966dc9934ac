"""The live view: one block on a terminal, plain lines in a file, and what it says of a study."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.answers.question import MetricChoice, Question
from harness.judging import Judgement
from harness.progress import MOST_TRIALS, SECONDS_BETWEEN_LINES, Progress, duration
from harness.session import Session, Setting
from harness.trial import Event, Placement
from harness.watch import Watch
from models.estimators import Estimate
from tests.harness.tiny import SETTINGS, trial, trunk_and_tails

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
UP = re.compile(r"\x1b\[(\d+)A\x1b\[J")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that are there in the end. The only control sequence known here is the one for an old block."""
        lines: list[str] = []
        position = 0
        text = self.getvalue()
        for found in UP.finditer(text):
            lines += text[position : found.start()].splitlines()
            up = int(found[1])
            assert up <= len(lines), "a block must not climb over the first line"
            lines = lines[: len(lines) - up]
            position = found.end()
        lines += text[position:].splitlines()
        assert not CONTROL.search("".join(lines))
        return lines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_a_terminal_has_one_block_that_is_drawn_anew(terminal: Terminal, clock: Clock) -> None:
    progress = Progress(terminal, title="split", clock=clock)
    progress.plan(device_seconds=40.0, cells=8)
    for step in range(1, 5):
        clock.now += 10.0
        progress.advance(f"seed 0 · fm {step}", trial="a", device_seconds=5.0, cells=1)
        progress.advance(f"seed 1 · fm {step}", trial="b")
    clock.now += 10.0
    progress.best = "KL 0.5 [0.4, 0.6]"
    progress.advance("seed 0 · pg 1", trial="a")
    assert terminal.screen() == [
        "split  ·  50%  ·  4 of 8 cells  ·  20 of 40 device-s  ·  about 50 s left",
        "  best  KL 0.5 [0.4, 0.6]",
        "  now   seed 1 · fm 4",
        "  now   seed 0 · pg 1",
    ]
    progress.note("a line that stays")
    assert terminal.screen() == ["a line that stays"]
    clock.now += 10.0
    progress.ended("b")
    progress.advance("seed 0 · pg 2", trial="a")
    assert terminal.screen()[0] == "a line that stays"
    assert terminal.screen()[-2:] == ["  best  KL 0.5 [0.4, 0.6]", "  now   seed 0 · pg 2"]
    progress.close()
    assert terminal.screen() == ["a line that stays"]


def test_many_trials_are_counted_and_wide_lines_cut(terminal: Terminal, clock: Clock) -> None:
    progress = Progress(terminal, clock=clock)
    for number in range(MOST_TRIALS + 3):
        clock.now += 1.0
        progress.advance(f"trial {number} " + "x" * 200, trial=str(number))
    *_, newest, rest = terminal.screen()
    assert newest.startswith(f"  now   trial {MOST_TRIALS + 2} ")
    assert len(newest) == 79
    assert rest.strip() == "and 3 more"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_file_and_a_dumb_terminal_get_lines(
    kind: type[io.StringIO], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = kind()
    progress = Progress(stream, clock=clock)
    progress.plan(device_seconds=100.0, cells=8)
    for _ in range(60):
        progress.advance("seed 0 · fm", trial="a", device_seconds=1.0)
        clock.now += SECONDS_BETWEEN_LINES / 20
    progress.note("kept")
    progress.close()
    text = stream.getvalue()
    assert text.endswith("kept\n")
    assert not CONTROL.search(text)
    *lines, _ = text.splitlines()
    assert lines[0] == "  1%  seed 0 · fm  ·  0 of 8 cells  ·  1 of 100 device-s"
    assert lines[-1] == " 41%  seed 0 · fm  ·  0 of 8 cells  ·  41 of 100 device-s  ·  about 43 s left"
    assert len(lines) == 3


def test_without_prices_cells_tell_how_far_it_is(clock: Clock) -> None:
    progress = Progress(io.StringIO(), clock=clock)
    assert progress.fraction() is None
    assert progress.line() == ""
    progress.plan(device_seconds=0.0, cells=4, unit="points")
    clock.now = 20.0
    progress.advance("point 1", device_seconds=2.0)
    progress.count(1)
    assert progress.line() == " 25%  point 1  ·  1 of 4 points  ·  2 device-s  ·  about 60 s left"


def test_times_are_told_in_one_unit() -> None:
    assert [duration(s) for s in (0.4, 89, 90, 600, 5400, 9000, 200_000)] == [
        *("0 s", "89 s", "2 min", "10 min", "1.5 h", "2.5 h", "2.31 days")
    ]


KL = MetricChoice(name="forward_kl", log=True, label="forward KL / nats")
QUESTION = Question(first="fm", second="pg", refinement="fm_tail", metric=KL, quality="nll")


class Asked:
    name, id, question = "tiny", "0", QUESTION
    setting = Setting(build="models.problem:build", problem=SETTINGS, seeds=(0,), placement=Placement(workers=1))


def test_a_study_shows_its_phases_its_cost_and_its_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    stream = io.StringIO()
    progress = Progress(stream)
    session = Session(Asked(), output=tmp_path, runner=InlineRunner(), progress=progress)
    works = trunk_and_tails()
    specs = [trial(tmp_path / "store", works)]
    phases = [work.branch.phase for work in works]

    def stages() -> object:
        yield session.calibration(phases)
        session.announce([(f"seed 0 · {w.branch.phase.name}", w) for w in works], session.prices(phases))
        yield specs

    session.run(stages())  # type: ignore[arg-type]
    assert not session.failures
    prices = session.prices(phases)
    cost = sum(prices.of(w.branch.phase).per_step.device_seconds * w.stops[-1].steps for w in works)
    assert progress.planned_cost == pytest.approx(cost)
    assert progress.spent == pytest.approx(cost)
    assert progress.cells == progress.planned_cells == 6
    judged = [segment.hash for w in works for segment, stop in zip(w.segments, w.stops, strict=True) if stop.evaluate]
    found = [session.judgement.estimates(segment, "validation")["forward_kl"] for segment in judged]
    best = min(found, key=lambda one: one.value)
    assert progress.best.startswith(f"forward KL / nats {best.value:.4g} [{best.lo:.4g}, {best.hi:.4g}]  (seed 0 · ")


def test_trials_that_nobody_announced_cost_what_workers_measured(tmp_path: Path) -> None:
    progress = Progress(io.StringIO())
    session = Session(Asked(), output=tmp_path, runner=InlineRunner(), progress=progress)
    watch, spec = Watch(progress, session.judgement), trial(tmp_path / "store", placement=Placement(workers=3))
    watch.begun(spec, 3)
    branch = spec.works[0].branch.hash
    watch.trained(spec, Event(kind="train", branch=branch, step=4, timestamp=0.0, values={"wall_seconds": 2.0}))
    watch.trained(spec, Event(kind="segment", branch=branch, step=4, timestamp=0.0))
    assert progress.spent == pytest.approx(6.0)
    assert "tiny · fm, 4 of 9 steps" in progress.line()


def test_the_best_shown_never_gets_worse(tmp_path: Path) -> None:
    session = Session(Asked(), output=tmp_path, runner=InlineRunner(), progress=Progress(io.StringIO()))
    watch: Watch = session.watch
    assert isinstance(watch.judgement, Judgement)
    nan, progress = float("nan"), session.progress
    for loss, lo in ((float("inf"), 0.0), (3.0, nan), (2.0, 1.5), (2.5, 1.0)):
        watch.better(loss, Estimate(value=loss, lo=lo, hi=lo + 1, n=2), f"loss {loss:g}")
        if loss == 3.0:
            assert progress.best == "forward KL / nats 3  (loss 3)"
    assert progress.best == "forward KL / nats 2 [1.5, 2.5]  (loss 2)"
