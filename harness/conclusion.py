"""From judged cells to the answer: tables for the reader, files for other programs, pictures, one summary run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.answers.crossover import crossover
from harness.answers.export import answer, write_answer, write_frontier, write_surface
from harness.answers.figure_samples import draw_samples
from harness.answers.figures import draw_frontier, draw_shares, draw_surface
from harness.answers.frontier import BudgetAnswer, Outcome, best_splits
from harness.answers.laws import laws_of
from harness.answers.report import answer_table, crossover_table, laws_text, savings_table
from harness.answers.sample_panel import SamplePanel
from harness.answers.savings import GridCost, naive_grid_cost
from harness.answers.surface import Cell
from harness.budget import Cost, Currency, Ledger
from harness.contracts import Point
from harness.identity import plain
from harness.recording import RESOLUTION
from harness.study import StudyRun
from harness.view import BUDGET, SHOWN

SUMMARY = "summary"
JUDGING, DATA = "judging", "data"


def conclude_study(run: StudyRun, cells: Sequence[Cell]) -> str:
    """Write everything under the study's folder and into the summary run; the text to print."""
    study = run.study
    answers = best_splits(cells, study.budgets, study.question)
    savings = grid_costs(run, cells)
    ledger = ledger_of(run, cells)
    report = run.session.problem.data_report()
    files = write_files(run, cells, answers, savings, ledger)
    text = "\n\n".join([*tables(run, cells, answers, savings), ledger_text(ledger), data_text(report), *failures(run)])
    summarise(run, answers, files, text)
    return f"{text}\n\n{where(run, files)}"


def grid_costs(run: StudyRun, cells: Sequence[Cell]) -> dict[str, GridCost]:
    question, budgets = run.study.question, run.study.budgets
    return {
        "all tails": naive_grid_cost(cells, budgets),
        f"{question.second_title} tails": naive_grid_cost(cells, budgets, tails=(question.second,)),
    }


def ledger_of(run: StudyRun, cells: Sequence[Cell]) -> Ledger:
    """What the whole tree spent, phase by phase at recorded prices; judging and data beside it, off the clock."""
    ledger, prices = Ledger(), run.prices()
    for work in (work for plan in run.plans for work in plan.tree if work.stops):
        phase = work.branch.phase
        ledger = ledger.charge(phase.name, prices.cost(phase, work.stops[-1].steps))
    judging = Cost(device_seconds=sum(cell.evaluation_device_seconds for cell in cells))
    ledger = ledger.charge(JUDGING, judging, on_the_clock=False)
    return ledger.charge(DATA, Cost(**run.session.problem.data_cost()), on_the_clock=False)


def tables(
    run: StudyRun, cells: Sequence[Cell], answers: Sequence[BudgetAnswer], savings: dict[str, GridCost]
) -> list[str]:
    question, currency = run.study.question, run.study.currency
    parts = [
        answer_table(answers, question),
        crossover_table(crossover(cells, currency, question), currency, question),
        savings_table(list(savings.items()), currency),
        laws_text(laws_of(answers, question), question, currency),
    ]
    return [part for part in parts if part]


def ledger_text(ledger: Ledger) -> str:
    phases = ", ".join(f"{name} {cost.device_seconds:.0f}" for name, cost in ledger.accounts.items())
    sizes = {name: cost.peak_memory_bytes for name, cost in ledger.accounts.items()}
    memory = ", ".join(
        f"{name} {f'{size / 2**20:.3g} MiB' if size else 'not measured'}" for name, size in sizes.items()
    )
    judging, data = ledger.off_the_clock[JUDGING], ledger.off_the_clock[DATA]
    return (
        f"spent on training: {ledger.total.device_seconds:.0f} device-seconds at recorded prices ({phases})\n"
        f"peak memory of a step and worker: {memory}\n"
        f"off the clock: judging {judging.device_seconds:.0f} device-seconds, data {data.device_seconds:.1f} "
        f"device-seconds ({data.energy_evaluations:,} energies, {data.force_evaluations:,} forces)"
    )


def failures(run: StudyRun) -> list[str]:
    return [f"failed: {result.spec.name}: {result.error}" for result in run.session.failures]


def where(run: StudyRun, files: Sequence[Path]) -> str:
    names = ", ".join(file.name for file in files)
    return f"in {run.folder}:\n  {names}"


def write_files(
    run: StudyRun,
    cells: Sequence[Cell],
    answers: Sequence[BudgetAnswer],
    savings: dict[str, GridCost],
    ledger: Ledger,
) -> list[Path]:
    study, folder = run.study, run.folder
    question, currency = study.question, study.currency
    names = ("surface.csv", "frontier.csv", "answer.json", "surface.png", "frontier.png", "shares.png", "samples.png")
    surface, frontier, told, surface_png, frontier_png, shares_png, samples_png = (folder / name for name in names)
    write_surface(surface, cells, currency, question)
    write_frontier(frontier, answers, question)
    crossings = crossover(cells, currency, question)
    value = answer(answers, question, crossings=crossings, laws=laws_of(answers, question), savings=savings)
    write_answer(told, with_ledger(value, ledger, currency) | {"data": run.session.problem.data_report()})
    draw_surface(surface_png, cells, study.budgets, question)
    draw_frontier(frontier_png, answers, question)
    draw_shares(shares_png, answers, question)
    draw_samples(samples_png, sample_panels(run, answers))
    return [folder / name for name in names]


def with_ledger(value: dict[str, Any], ledger: Ledger, currency: Currency) -> dict[str, Any]:
    """Answers with and without the cost of the data: all plans use the same data, so it shifts every budget alike."""
    data = ledger.off_the_clock[DATA].amount(currency)
    for budget in value["budgets"]:
        budget["budget_with_data"] = budget["budget"] + data
    return value | {"spent": plain(ledger)}


def data_text(report: Mapping[str, Any]) -> str:
    """How the data came about, with what its sampler says of itself."""
    numbers = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in report.items() if key != "source")
    return f"data: {report['source']}" + (f" ({numbers})" if numbers else "")


def sample_panels(run: StudyRun, answers: Sequence[BudgetAnswer]) -> list[SamplePanel]:
    """The data, and the models of the first seed at the largest budget: first phase only, and the best hybrid."""
    question, problem = run.study.question, run.session.problem
    panels = [SamplePanel(title="data", **problem.picture(None))]
    if not answers:
        return panels
    last = answers[-1]
    for title, outcome in ((f"{question.first_title} only", last.first_only), ("best hybrid", last.hybrid)):
        if outcome is not None:
            records = run.session.judgement.records(segment_of(outcome))
            panels.append(SamplePanel(title=f"{title}, {last.budget}", **problem.picture(records)))
    return panels


def segment_of(outcome: Outcome) -> str:
    first_seed = min(outcome.readings)
    return outcome.readings[first_seed].segments[-1]


def summarise(run: StudyRun, answers: Sequence[BudgetAnswer], files: Sequence[Path], text: str) -> None:
    """One run of the tracker that holds the study's parameters, its answer against budget, files and pictures."""
    study, recorder = run.study, run.recorder
    params = {
        "budgets": ", ".join(str(budget) for budget in study.budgets),
        "seeds": len(study.setting.seeds),
        "workers": study.setting.placement.workers,
        **{f"system.{key}": value for key, value in study.setting.problem["system"].items()},
        **{f"evaluation.{key}": value for key, value in study.setting.problem["evaluation"].items()},
    }
    recorder.start(SUMMARY, name=f"summary · {study.name}", params=params, tags={"plan": SUMMARY, **SHOWN})
    recorder.record(SUMMARY, [point for answered in answers for point in answer_points(run, answered)])
    for file in [*files, run.folder / "study.json"]:
        if file.exists():
            recorder.attach(SUMMARY, file)
    recorder.describe(SUMMARY, f"```\n{text}\n```")
    recorder.finish(SUMMARY, "failed" if run.session.failures else "finished")


def answer_points(run: StudyRun, answered: BudgetAnswer) -> list[Point]:
    question = run.study.question
    step = round(answered.budget.amount * RESOLUTION[answered.budget.currency])
    now = time.time()
    told = {"answer/best_share": answered.best.share, BUDGET: answered.budget.amount}
    points = [Point(metric=metric, value=value, step=step, timestamp=now) for metric, value in told.items()]
    ways = {
        "best": answered.best,
        "hybrid": answered.hybrid,
        f"{question.first}_only": answered.first_only,
        f"{question.second}_only": answered.second_only,
    }
    for way, outcome in ways.items():
        for name, score in ({} if outcome is None else outcome.scores).items():
            points.append(Point(metric=f"answer/{way}_{name}", value=score.value, step=step, timestamp=now))
    return points
