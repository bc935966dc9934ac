"""The budget-split study as a value, as a dry run, and as a whole in this process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.answers.export import write_surface
from harness.budget import Budget, Currency
from harness.checkpoint import write_json
from harness.contracts import TrialSource
from harness.finished_study import FinishedStudy
from harness.session import StudyFailed
from harness.study import StudyRun
from harness.tracking import described
from harness.trial import Event, TrialSpec
from studies.budget_split import BudgetSplit
from tests.harness.test_recording import Remembered

SMALL: dict[str, Any] = {
    "runner": "inline",
    "budget": "4e6flop",
    "budgets": "3",
    "splits": 2,
    "seeds": "2",
    "evaluation_samples": 64,
    "evaluation_tolerance": 1e-3,
    "train_samples": 96,
    "hidden": 8,
    "layers": 2,
    "fm_batch": 16,
    "pg_batch": 8,
    "solver_steps": 2,
}


def test_options_make_the_study() -> None:
    study = BudgetSplit(**SMALL, fm_learning_rate=0.5, pg_gradient_clip=2.0).study()
    assert study.budgets == tuple(Budget(amount=a, currency=Currency.FLOP) for a in (1e6, 2e6, 4e6))
    assert study.setting.seeds == (0, 1)
    assert study.setting.placement.workers == 1
    assert [phase.name for phase in study.phases.all] == ["fm", "pg", "fm_tail"]
    assert study.phases.trunk.optimiser.learning_rate == 0.5
    assert study.phases.second.optimiser.gradient_clip == 2.0
    assert study.phases.second.objective["solver_steps"] == 2
    assert study.phases.refinement.objective == study.phases.trunk.objective
    assert study.phases.refinement.optimiser.learning_rate < study.phases.trunk.optimiser.learning_rate


def test_the_metric_is_one_that_the_target_has() -> None:
    assert BudgetSplit(target="gmm4").study().question.metric.name == "forward_kl"
    assert BudgetSplit(target="dw4").study().question.quality == "nll"


def test_the_same_study_has_the_same_name_however_it_is_placed() -> None:
    base = BudgetSplit(**SMALL).study()
    assert BudgetSplit(**SMALL).study().id == base.id
    for change in ({"place": "branch"}, {"place": "seed"}, {"checkpoint_seconds": 1.0}, {"output": Path("x")}):
        assert BudgetSplit(**{**SMALL, **change}).study().id == base.id
    others = [{"seeds": "3"}, {"budget": "5e6flop"}, {"fm_batch": 17}, {"evaluation_samples": 65}, {"tune": 4}]
    names = {BudgetSplit(**{**SMALL, **change}).study().id for change in others}
    assert len(names | {base.id}) == len(others) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"splits": 1},
        {"seeds": "0"},
        {"seeds": "-1,2"},
        {"seeds": "1,1"},
        {"seeds": "many"},
        {"budget": "60"},
        {"budgets": "0"},
        {"budgets": "2s,1s"},
        {"budgets": "1s,2flop"},
        {"shares": "0.5"},
        {"shares": "0.5,1.5"},
        {"target": "gmm5"},
        {"evaluation_samples": 1},
        {"evaluation_tolerance": 0.0},
        {"train_samples": 1},
        {"fm_batch": 0},
        {"fm_learning_rate": -1.0},
        {"tune": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"[,;] "):
        BudgetSplit(**{**SMALL, **change}).study()


def test_a_dry_run_tells_the_cost_and_starts_no_tool(tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    code = (
        "import sys; from harness import calibrate; calibrate.TIMED_SECONDS = 0.0; from harness.cli import conclude; "
        "from studies.budget_split import BudgetSplit; "
        "conclude(BudgetSplit); tools = {'ray', 'optuna', 'mlflow'} & sys.modules.keys(); sys.exit(len(tools))"
    )
    command = [sys.executable, "-c", code, *options, f"--output={tmp_path}", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("budgets: 1e+06 flop", "training steps", "device-seconds", "evaluation", "cores", "fm_tail"):
        assert word in done.stdout
    assert not (tmp_path / "store" / "segments").exists()
    assert not (tmp_path / "mlflow.db").exists()


class Listening(InlineRunner):
    """The inline runner, with everything that happened kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def run(self, source: TrialSource, on_event: Any) -> None:
        def listen(spec: TrialSpec, event: Event) -> None:
            self.kinds.append(event.kind)
            on_event(spec, event)

        super().run(source, listen)


def study_run(output: Path, **changes: Any) -> StudyRun:
    study = replace(BudgetSplit(**SMALL).study(), **changes)
    return StudyRun(study, output=output, runner=Listening(), recorder=Remembered(), make_search=no_search)


def no_search(name: str, space: Any) -> Any:
    raise AssertionError("this study tunes nothing")


def kept(run: StudyRun) -> dict[str, str]:
    found = {s.hash: run.store.segment(s.hash) for plan in run.plans for s in plan.tree.segments}
    return {name: value["checksum"] for name, value in found.items() if value is not None}


def kinds(run: StudyRun) -> set[str]:
    assert isinstance(run.session.runner, Listening)
    return set(run.session.runner.kinds)


def test_a_whole_study_fills_its_surface_and_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    first = study_run(tmp_path / "study")
    cells = first.run()
    assert first.session.failures == []
    planned = {cell.segment for plan in first.plans for cell in plan.cells}
    assert {cell.segment for cell in cells} == planned
    assert {cell.seed for cell in cells} == {0, 1}
    assert {cell.tail for cell in cells} == {"", "pg", "fm_tail"}
    assert all(cell.validation["nll"].n == 64 for cell in cells)
    assert all(cell.cost(Currency.FLOP) <= 4e6 * (1 + 1e-9) for cell in cells)

    write_json(first.folder / "study.json", described(first.study))
    write_surface(first.folder / "surface.csv", cells, Currency.FLOP, first.study.question)
    sound = [cell for cell in cells if not cell.diverged]
    best = min(sound, key=lambda cell: cell.validation["forward_kl"].value)
    winner = FinishedStudy.read(first.folder).winner()
    assert (winner.segment, winner.seed) == (best.segment, best.seed)

    again = study_run(tmp_path / "study")
    assert repr(again.run()) == repr(cells)  # equal also where an interval is NaN
    assert kinds(again) == set()


@pytest.mark.faults
def test_a_larger_study_and_other_placements_find_the_same_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    first = study_run(tmp_path / "study", one_trial_a="seed")
    first.run()
    before = kept(first)
    assert len(before) == sum(len(plan.tree.segments) for plan in first.plans)

    larger = study_run(tmp_path / "study", budgets=(*first.study.budgets, Budget.parse("6e6flop")), shares=(0.1, 0.3))
    larger.run()
    assert larger.session.failures == []
    assert "price" not in kinds(larger)
    assert {"train", "evaluated"} <= kinds(larger)

    branches = study_run(tmp_path / "branches", one_trial_a="branch")
    (tmp_path / "branches" / "store").mkdir(parents=True)
    (tmp_path / "branches" / "store" / "prices").symlink_to(tmp_path / "study" / "store" / "prices")
    branches.run()
    assert kept(branches) == before


def test_a_step_beyond_the_memory_cap_ends_the_study_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    with pytest.raises(StudyFailed, match=r"must fit into 1e-06 GiB .* one row at a time; write a larger"):
        BudgetSplit(**SMALL, memory_cap_gib=1e-6, output=tmp_path).execute()
    assert not (tmp_path / "store" / "segments").exists()


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_memory_cap_is_positive(cap: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write for example --memory-cap-gib 8"):
        BudgetSplit(**SMALL, memory_cap_gib=cap, output=tmp_path).execute()
