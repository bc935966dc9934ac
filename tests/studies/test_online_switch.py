"""The online switch as a value and as a whole, in this process: killed anywhere it comes to the same end."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.budget import Budget, Currency
from harness.contracts import TrialSource
from harness.online_rule import SwitchRule
from harness.online_study import OnlineRun
from harness.trial import Event, TrialSpec
from models.estimators.likelihood import divergence_terms
from models.systems import system_of
from studies.online_switch import OnlineSwitch, terms_of
from tests.harness.test_recording import Remembered

SMALL: dict[str, Any] = {
    "runner": "inline",
    "budget": "4e6flop",
    "budgets": "1",
    "splits": 2,
    "seeds": "1",
    "evaluation_samples": 64,
    "evaluation_tolerance": 1e-2,
    "look_tolerance": 1e-2,
    "train_samples": 96,
    "hidden": 8,
    "layers": 2,
    "fm_batch": 16,
    "pg_batch": 8,
    "solver_steps": 2,
    "fewest_probe_steps": 2,
}


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are counted; seconds decide nothing here."""
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)


class Killed(RuntimeError):
    """Stands for a process that ends in the middle of its work."""


class Mortal:
    """An inline runner that dies after so many events."""

    def __init__(self, events: int) -> None:
        self.left = events

    def run(self, source: TrialSource, on_event: Callable[[TrialSpec, Event], None]) -> None:
        def counted(spec: TrialSpec, event: Event) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed
            on_event(spec, event)

        InlineRunner().run(source, counted)


def online_run(output: Path, runner: Any, **changes: Any) -> OnlineRun:
    options = OnlineSwitch(**{**SMALL, **changes}, output=output)
    study = options.online_study()
    return OnlineRun(
        study,
        phases=study.surface.phases,
        terms_of=terms_of(system_of(options.target)),
        output=output,
        runner=runner,
        recorder=Remembered(),
    )


def told(run: OnlineRun) -> list[tuple[Any, ...]]:
    """Everything that does not hang on clocks: where each run went, and what came of it."""
    return [
        (
            *(cell.budget.amount, cell.cell.seed, cell.ended.cell.segment, cell.cell.test["nll"].value),
            *((looked.steps, looked.verdict, looked.gains) for looked in cell.ended.looked),
        )
        for cell in run.run()
    ]


def test_options_make_the_study() -> None:
    study = OnlineSwitch(**SMALL, online_budgets="3e6flop", greedy=True).online_study()
    assert study.budgets == (Budget(amount=3e6, currency=Currency.FLOP),)
    assert study.rule == SwitchRule(waits=False, fewest_probe_steps=2)
    assert study.looking == {**study.setting.problem["evaluation"], "sets": ["validation"]}
    assert study.surface.name == "budget_split"
    plain = OnlineSwitch(**SMALL).online_study()
    assert plain.budgets == study.surface.budgets
    others = [{"greedy": True}, {"look_samples": 33}, {"probe_share": 0.1}, {"online_budgets": "3e6flop"}]
    names = {OnlineSwitch(**{**SMALL, **change}).online_study().id for change in others}
    assert len(names | {plain.id}) == len(others) + 1


def test_budgets_of_another_currency_are_refused() -> None:
    with pytest.raises(ValueError, match="write --online-budgets with the same unit"):
        OnlineSwitch(**SMALL, online_budgets="5s").online_study()


@pytest.mark.parametrize(("text", "beat"), [("4", "needs a unit"), ("", "number with a unit"), ("1s,1s", "each once")])
def test_wrong_lists_of_budgets_are_refused(text: str, beat: str) -> None:
    with pytest.raises(ValueError, match=beat):
        OnlineSwitch(**SMALL, online_budgets=text).online_study()


def test_a_dry_run_tells_of_the_surface_and_of_the_online_runs(tmp_path: Path) -> None:
    text = OnlineSwitch(**SMALL, online_budgets="3e6flop", dry_run=True, output=tmp_path).execute()
    assert "one seed's tree" in text
    assert text.endswith("each within its budget: 3e+06 flop")
    assert not (tmp_path / "online_switch").exists()


def test_decisions_read_validation_points_alone() -> None:
    rng = np.random.default_rng(0)
    log_q_n, energy_n = rng.normal(size=(2, 8))
    records = {"validation/log_q": log_q_n, "validation/energy": energy_n}
    gmm = system_of("gmm4")
    assert gmm.target.log_z is not None
    np.testing.assert_array_equal(terms_of(gmm)(records), divergence_terms(log_q_n + energy_n + gmm.target.log_z))
    np.testing.assert_array_equal(terms_of(system_of("dw4"))(records), -log_q_n)


def test_a_study_runs_tells_its_regret_and_is_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = OnlineSwitch(**SMALL, output=tmp_path)
    first = options.execute()
    (regret,) = tmp_path.glob("online_switch/*/regret.csv")
    rows = list(csv.DictReader(regret.open()))
    assert {row["against"] for row in rows} >= {"best fixed", "of other seeds", "FM only"}
    assert all(float(row["ratio"]) > 0 for row in rows)
    decisions = list(csv.DictReader((regret.parent / "decisions.csv").open()))
    assert {row["verdict"] for row in decisions} <= {"go on", "second", "refinement"}
    assert all(float(row["spent"]) <= float(row["budget"]) for row in decisions)
    segments = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "segments").iterdir()}
    capsys.readouterr()
    assert options.execute() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "segments").iterdir()} == segments


def test_a_run_that_is_killed_again_and_again_decides_as_one_that_was_left_alone(tmp_path: Path) -> None:
    whole = told(online_run(tmp_path / "whole", InlineRunner()))
    assert any(entry[4:] for entry in whole), "some run must have looked"
    lives = 0
    while True:
        lives += 1
        assert lives < 200
        try:
            broken = told(online_run(tmp_path / "broken", Mortal(30), checkpoint_seconds=0.0))
            break
        except Killed:
            continue
    assert lives > 3
    assert broken == whole
