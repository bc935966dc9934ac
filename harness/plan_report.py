"""What each stage of a plan bought: a table for the reader and a CSV file for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.answers.export import write_csv
from harness.answers.report import table
from harness.answers.surface import Cell
from harness.budget import Currency
from harness.plan_study import PlanStudyRun


def conclude_plan(run: PlanStudyRun, cells: Mapping[int, Sequence[Cell]]) -> str:
    """Write stages.csv and the run's files; the text to print."""
    file = run.folder / "stages.csv"
    write_csv(file, stage_rows(cells))
    for seed in cells:
        key = run.plan_run(seed).key
        run.recorder.attach(key, file)
        run.recorder.attach(key, run.folder / "study.json")
    failed = [f"failed: {result.spec.name}: {result.error}" for result in run.session.failures]
    return "\n".join([stage_table(run, cells), legend(cells), *failed, "", f"in {run.folder}:", f"  {file.name}"])


def stage_table(run: PlanStudyRun, cells: Mapping[int, Sequence[Cell]]) -> str:
    metrics = run.study.question.metrics
    header = ["seed", "stage", "steps", "cost / device-s", *(metric.title for metric in metrics)]
    rows = []
    for seed, judged in cells.items():
        for cell in judged:
            texts = [estimate_text(cell, metric.name) for metric in metrics]
            cost = f"{cell.cost(Currency.DEVICE_SECONDS):.0f}"
            rows.append([str(seed), cell.tail or "untrained", str(cell.tail_steps), cost, *texts])
    return table(header, rows)


def estimate_text(cell: Cell, name: str) -> str:
    """Value on test points with its interval over samples."""
    estimate = cell.test.get(name)
    return "-" if estimate is None else f"{estimate.value:.4g} [{estimate.lo:.4g}, {estimate.hi:.4g}]"


def legend(cells: Mapping[int, Sequence[Cell]]) -> str:
    judged = [cell for each in cells.values() for cell in each]
    sizes = sorted({estimate.n for cell in judged for estimate in cell.test.values()})
    seconds = sum(cell.evaluation_device_seconds for cell in judged)
    return f"[ ] 95 % bootstrap interval over n = {sizes[-1]} samples; judging took {seconds:.0f} device-seconds"


def stage_rows(cells: Mapping[int, Sequence[Cell]]) -> list[dict[str, object]]:
    """A row for every seed and stage: steps, costs, then every metric with _eval_lo, _eval_hi and _n."""
    rows = []
    for seed, judged in cells.items():
        for cell in judged:
            row: dict[str, object] = {"seed": seed, "stage": cell.tail or "untrained", "steps": cell.tail_steps}
            row |= {"steps_before": cell.fork_steps, "cost_device_seconds": cell.cost(Currency.DEVICE_SECONDS)}
            for split, estimates in (("", cell.test), ("validation_", cell.validation)):
                for name, e in estimates.items():
                    key = split + name
                    row |= {key: e.value, f"{key}_eval_lo": e.lo, f"{key}_eval_hi": e.hi, f"{key}_n": e.n}
            rows.append(row)
    return rows
