"""Is a law of budgets to be trusted? Fit it up to a budget, write down what it says of a larger one, then run that.

The first study is a budget split up to B. Its laws choose a split of the larger budget and foretell the metric there;
this is on disk before a step of the larger study starts, and a resumed run keeps it. The larger study runs the chosen
split, the guess (the same share as at B), both ends, and further shares, from which the first phase is refined as well:
a late one if none are given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from harness.answers.export import write_csv
from harness.answers.extrapolation import Prediction, Trial, judge_prediction, predict
from harness.answers.extrapolation_report import prediction_text, trial_rows, trial_text
from harness.answers.fit import too_few
from harness.answers.frontier import BudgetAnswer, best_splits
from harness.answers.laws import laws_of
from harness.budget import Budget
from harness.checkpoint import read_json, write_json
from harness.cli import BudgetOptions
from harness.dry_run import describe
from harness.identity import plain
from harness.launch import check_machine, check_options, check_problem, recorder_of, runner_of, split_run
from harness.plan import grid_floor
from harness.session import StudyFailed
from harness.split import LARGEST_FORK, Prices, SplitPhases
from harness.study import Study, StudyRun

UNKNOWN_SHARES = (0.25, 0.5)
"""A dry run knows no prediction and no guess: forks as dear as these stand for them."""


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """What lies beyond a study's budgets.

    Args:
        factor: of the larger budget over the study's largest. also: further shares to run there, with refinements of
            the first phase from them.
    """

    factor: float = 4.0
    also: tuple[float, ...] = (LARGEST_FORK,)

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"a law is tried beyond its budgets, got a factor of {self.factor:g}; write --beyond 4")
        if not all(0 < share < 1 for share in self.also):
            raise ValueError(
                f"shares lie inside (0, 1), got {' '.join(f'{share:g}' for share in self.also)}; "
                "write for example --also 0.1 0.5"
            )

    def budget(self, study: Study) -> Budget:
        return Budget(amount=self.factor * study.budgets[-1].amount, currency=study.currency)

    def study(self, study: Study, phases: SplitPhases, shares: Sequence[float]) -> Study:
        """The larger study. Args: phases: with the settings that the first one chose. shares: inside (0, 1)."""
        return replace(
            study,
            phases=phases,
            budgets=(self.budget(study),),
            shares=tuple(sorted(self.also)),
            unrefined=tuple(sorted(shares)),
            tuning=None,
        )


def extrapolate(study: Study, options: BudgetOptions, beyond: Beyond, *, experiment: str) -> str:
    """Run, resume or only describe both studies; the text to print.

    Raises:
        ValueError: before anything starts, where the budgets allow no law.
        StudyFailed: where trials of the first study failed, so that a law would lack some of it.
    """
    if note := too_few([budget.amount for budget in study.budgets]):
        raise ValueError(note)
    check_options(options)
    if options.dry_run:
        larger = beyond.study(study, study.phases, UNKNOWN_SHARES)
        stand_in = f"beyond, with forks at {UNKNOWN_SHARES} for what is not known yet:"
        return "\n\n".join([describe(study, options.output), stand_in, describe(larger, options.output)])
    check_machine(study.setting.placement, options)
    check_problem(study.setting, study.phases.all, options.output)
    from harness.conclusion import SUMMARY, conclude_study

    with ExitStack() as stack:
        runner = stack.enter_context(runner_of(options, options.output / study.name / study.id))
        recorder = stack.enter_context(recorder_of(study, options, experiment))
        first = split_run(study, options, runner, recorder)
        cells = first.run()
        texts = [conclude_study(first, cells)]
        answers = best_splits(cells, study.budgets, study.question)
        told, larger = foretell(first, answers, beyond)
        first.session.progress.note(prediction_text(told, study.question))
        recorder = stack.enter_context(recorder_of(larger, options, experiment))
        second = split_run(larger, options, runner, recorder)
        found = second.run()
        texts.append(conclude_study(second, found))
        trial = judged(told, second, best_splits(found, larger.budgets, larger.question))
        files = write_trial(first, answers, trial, beyond)
        for file in files:
            first.recorder.attach(SUMMARY, file)
        names = ", ".join(file.name for file in files)
        parts = [prediction_text(told, study.question), known_text(first, beyond), trial_text(trial, study.question)]
        text = "\n\n".join(part for part in parts if part)
        return "\n\n".join([*texts, text, f"in {first.folder}:\n  {names}"])


def foretell(run: StudyRun, answers: Sequence[BudgetAnswer], beyond: Beyond) -> tuple[Prediction, Study]:
    """What is written down of the larger budget (now, or by an earlier run), and the study that tries it."""
    if run.session.failures:
        raise StudyFailed(
            f"a law is fitted to a whole surface, got {len(run.session.failures)} failed trials "
            f"({run.session.failures[0].error}); run the same command again"
        )
    path = prediction_file(run, beyond)
    kept = read_json(path)
    told = (
        Prediction.from_plain(kept["prediction"])
        if kept
        else predict(answers, beyond.budget(run.study), run.study.question)
    )
    forks = [(share, fork_of(share, told.budget, run.phases, run.prices())) for share in splits_of(told)]
    larger = beyond.study(run.study, run.phases, [share for share, fork in forks if fork])
    if kept is None:
        write_json(path, {"prediction": plain(told), "time": time.time(), "judged_before": judged_before(run, larger)})
    return told, larger


def judged_before(run: StudyRun, larger: Study) -> int:
    """Models of the larger study that other studies left in the store, judged, before anything was told of them."""
    other = StudyRun(
        larger,
        output=run.folder.parents[1],
        runner=run.session.runner,
        recorder=run.recorder,
        make_search=run.make_search,
    )
    costly = {cell.segment for plan in other.seed_plans() for cell in plan.cells if cell.fork_steps + cell.tail_steps}
    known = {cell.segment for plan in run.plans for cell in plan.cells}
    return sum(run.session.judgement.is_evaluated(segment) for segment in costly - known)


def known_text(run: StudyRun, beyond: Beyond) -> str:
    """What of the larger study was there when the prediction was written, "" for nothing."""
    count = (read_json(prediction_file(run, beyond)) or {}).get("judged_before", 0)
    return f"the store held {count} models of that budget by then, which no law reads" if count else ""


def splits_of(told: Prediction) -> tuple[float, float]:
    """The share that the law chose, and the guess."""
    return told.share.value, told.share_before


def fork_of(share: float, budget: Budget, phases: SplitPhases, prices: Prices) -> int | None:
    """Where the trunk forks for this share of a budget; 0 for the second phase alone, None for the first alone.

    A share that leaves no step to the second phase is the first phase alone.
    """
    rest = (1 - share) * budget.amount
    if prices.of(phases.second).per_step.amount(budget.currency) > rest:
        return None
    if share <= 0:
        return 0
    return grid_floor(prices.of(phases.trunk).steps_within(replace(budget, amount=share * budget.amount)))


def judged(told: Prediction, run: StudyRun, answers: Sequence[BudgetAnswer]) -> Trial:
    """The prediction against what the larger study found.

    Raises:
        StudyFailed: where it judged nothing at its budget, or lacks a split.
    """
    forks = (fork_of(share, told.budget, run.phases, run.prices()) for share in splits_of(told))
    predicted, same = forks
    try:
        (answer,) = answers
        return judge_prediction(told, answer, run.study.question, predicted=predicted, same=same)
    except ValueError as error:
        why = run.session.failures[0].error if run.session.failures else str(error)
        raise StudyFailed(f"a prediction is judged by models at {told.budget}, got too few: {why}") from error


def write_trial(run: StudyRun, answers: Sequence[BudgetAnswer], trial: Trial, beyond: Beyond) -> list[Path]:
    from harness.answers.figure_law import draw_law

    rows, picture = (run.folder / f"law_{beyond.factor:g}B.{end}" for end in ("csv", "png"))
    write_csv(rows, trial_rows(trial))
    question = run.study.question
    draw_law(picture, answers, laws_of(answers, question), trial, question)
    return [prediction_file(run, beyond), rows, picture]


def prediction_file(run: StudyRun, beyond: Beyond) -> Path:
    return run.folder / f"prediction_{beyond.factor:g}B.json"
