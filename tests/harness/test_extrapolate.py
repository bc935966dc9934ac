"""Beyond the budgets of a study: which split a share means there, and a prediction that is written down once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import calibrate
from harness.adapters.inline_runner import InlineRunner
from harness.answers.frontier import best_splits
from harness.answers.question import MetricChoice, Question
from harness.budget import Budget, Currency
from harness.extrapolate import Beyond, extrapolate, foretell, fork_of, judged, prediction_file, write_trial
from harness.session import Setting, StudyFailed
from harness.split import LARGEST_FORK, SplitPhases
from harness.study import Study, StudyRun
from harness.trial import Placement, TrialResult, TrialSpec
from models.problem_settings import evaluation_settings
from tests.harness.test_recording import Remembered
from tests.harness.test_split import PHASES, PRICES
from tests.harness.tiny import FM, PG, SETTINGS, TAIL

TINY = SETTINGS | {"evaluation": evaluation_settings("gmm4", samples=32, tolerance=1e-2)}
TOP = Budget(amount=16.0, currency=Currency.DEVICE_SECONDS)
QUESTION = Question(
    first="fm", second="pg", refinement="fm_tail", metric=MetricChoice(name="forward_kl", log=True), quality="nll"
)


def test_a_share_is_a_fork_of_the_trunk() -> None:
    assert fork_of(0.0, TOP, PHASES, PRICES) == 0
    assert fork_of(1.0, TOP, PHASES, PRICES) is None
    steps = fork_of(0.5, TOP, PHASES, PRICES)
    assert steps is not None
    assert 8000 / 2 ** (1 / 8) < steps <= 8000


def test_a_share_that_leaves_no_step_to_the_second_phase_is_the_first_alone() -> None:
    second = PRICES.of(PG).per_step.device_seconds
    small = Budget(amount=3 * second, currency=Currency.DEVICE_SECONDS)
    assert fork_of(0.5, small, PHASES, PRICES) is not None
    assert fork_of(0.9, small, PHASES, PRICES) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"factor": 1.0}, "got a factor of 1; write --beyond 4"),
        ({"factor": float("nan")}, "write --beyond 4"),
        ({"also": (0.5, 1.0)}, "got 0.5 1; write for example --also"),
    ],
)
def test_what_lies_beyond_must_lie_beyond(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Beyond(**options)


def study(budgets: tuple[float, ...]) -> Study:
    return Study(
        name="law",
        question=QUESTION,
        setting=Setting(build="models.problem:build", problem=TINY, seeds=(0,), placement=Placement(workers=1)),
        phases=SplitPhases(trunk=FM, second=PG, refinement=TAIL),
        budgets=tuple(Budget(amount=amount, currency=Currency.FLOP) for amount in budgets),
        splits=2,
    )


def started(asked: Study, output: Path) -> StudyRun:
    return StudyRun(asked, output=output, runner=InlineRunner(), recorder=Remembered(), make_search=no_search)


def no_search(name: str, space: Any) -> Any:
    raise AssertionError("this study tunes nothing")


def test_the_larger_study_forks_at_its_shares_and_refines_from_late_ones_alone() -> None:
    asked = study((1e9, 4e9))
    larger = Beyond(factor=4.0).study(asked, PHASES, (0.2,))
    assert larger.budgets == (Budget(amount=1.6e10, currency=Currency.FLOP),)
    early, late = (fork_of(share, larger.budgets[0], PHASES, PRICES) for share in (0.2, LARGEST_FORK))
    (plan,) = larger.seed_plans(PHASES, PRICES)
    tails = {(cell.fork_steps, cell.tail) for cell in plan.cells if cell.tail}
    assert tails == {(0, "pg"), (0, "fm_tail"), (early, "pg"), (late, "pg"), (late, "fm_tail")}


def test_a_chosen_share_that_is_run_anyway_is_refined() -> None:
    larger = Beyond(factor=4.0, also=(0.2,)).study(study((1e9, 4e9)), PHASES, (0.2,))
    (plan,) = larger.seed_plans(PHASES, PRICES)
    assert len({cell.fork_steps for cell in plan.cells if cell.tail == "fm_tail"}) == 2


def test_a_study_whose_forks_are_all_refined_keeps_its_name() -> None:
    plainly = study((1e9, 4e9))
    assert plainly.id == replace(plainly, unrefined=()).id != replace(plainly, unrefined=(0.2,)).id


def test_too_few_budgets_are_told_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="at least six budgets over two decades, got 2"):
        extrapolate(study((1e6, 4e6)), None, Beyond(), experiment="none")  # type: ignore[arg-type]


@pytest.mark.faults
def test_a_prediction_is_written_once_and_tried_by_its_own_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    beyond = Beyond(factor=2.0)
    first = started(study((1.2e4, 3e4, 8e4, 2e5, 5e5, 1.2e6)), tmp_path)
    answers = best_splits(first.run(), first.study.budgets, QUESTION)
    told, larger = foretell(first, answers, beyond)
    path = prediction_file(first, beyond)
    kept = json.loads(path.read_text())
    assert kept["judged_before"] == 0
    assert kept["prediction"]["share_before"] == answers[-1].best.share == told.share_before

    # What was told is told still, whatever the laws would say by now.
    path.write_text(json.dumps(kept | {"prediction": kept["prediction"] | {"share_before": 0.0}}))
    again, larger = foretell(first, answers, beyond)
    assert again.share_before == 0.0

    second = started(larger, tmp_path)
    trial = judged(again, second, best_splits(second.run(), larger.budgets, QUESTION))
    assert trial.same.fork_steps == 0
    share = trial.predicted.share
    assert share == pytest.approx(again.share.value, rel=0.1) or share == 1.0
    files = write_trial(first, answers, trial, beyond)
    assert [file.name for file in files] == ["prediction_2B.json", "law_2B.csv", "law_2B.png"]
    assert all(file.is_file() for file in files)


def test_a_surface_with_holes_has_no_law(tmp_path: Path) -> None:
    run = started(study((1e6, 4e6)), tmp_path)
    spec = TrialSpec(name="lost", build="", problem={}, store="")
    run.session.failures.append(TrialResult(spec=spec, status="failed", error="disk full"))
    with pytest.raises(StudyFailed, match=r"a whole surface, got 1 failed trials \(disk full\); run the same command"):
        foretell(run, (), Beyond())
