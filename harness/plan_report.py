"""What each stage of a plan bought: a table for the reader and a CSV file for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.answers.export import write_csv
from harness.answers.report import table
from harness.answers.surface import Cell
from harness.budget import Currency
from harness.plan_run import PlanCells, PlanStudyRun

SUMMARY = "summary"


def conclude_plan(run: PlanStudyRun, cells: PlanCells) -> str:
    """Write stages.csv and the run's files; the text to print."""
    file = write_stages(run, cells)
    for track in run.tracks.values():
        for seed in run.study.setting.seeds:
            key = track.plan_run(seed).key
            run.recorder.attach(key, file)
            run.recorder.attach(key, run.folder / "study.json")
    return "\n".join([stage_table(run, cells), legend(cells), *failures(run), "", where(run, [file])])


def conclude_comparison(run: PlanStudyRun, cells: PlanCells, text: str, files: Sequence[Path]) -> str:
    """Keep a comparison's text and files in a summary run beside those of its plans; the text to print."""
    study, recorder = run.study, run.recorder
    problem = study.setting.problem
    params = {
        "plans": ", ".join(run.tracks),
        "seeds": len(study.setting.seeds),
        "workers": study.setting.placement.workers,
        **{f"{group}.{key}": value for group in ("system", "evaluation") for key, value in problem[group].items()},
    }
    text = "\n".join([text, legend(cells), *failures(run)])
    recorder.start(SUMMARY, name=f"{SUMMARY} · {study.name}", params=params, tags={"plan": SUMMARY})
    for file in (*files, run.folder / "study.json"):
        recorder.attach(SUMMARY, file)
    recorder.describe(SUMMARY, f"```\n{text}\n```")
    recorder.finish(SUMMARY, "failed" if run.session.failures else "finished")
    return f"{text}\n\n{where(run, files)}"


def failures(run: PlanStudyRun) -> list[str]:
    return [f"failed: {result.spec.name}: {result.error}" for result in run.session.failures]


def where(run: PlanStudyRun, files: Sequence[Path]) -> str:
    return f"in {run.folder}:\n  {', '.join(file.name for file in files)}"


def write_stages(run: PlanStudyRun, cells: PlanCells) -> Path:
    """Write stages.csv, see `stage_rows`; its path."""
    file = run.folder / "stages.csv"
    write_csv(file, stage_rows(cells))
    return file


def stage_table(run: PlanStudyRun, cells: PlanCells) -> str:
    """Every stage of every plan and seed, with the metrics of the question on test points."""
    metrics = run.study.question.metrics
    compared = any(cells)
    start = ["seed", "stage", "steps", "cost / device-s", "memory / MiB"]
    header = [*(["plan"] if compared else []), *start, *(m.title for m in metrics)]
    rows = []
    for plan, cell in each_cell(cells):
        texts = [estimate_text(cell, metric.name) for metric in metrics]
        cost = f"{cell.cost(Currency.DEVICE_SECONDS):.0f}"
        place = [str(cell.seed), stage_name(cell), str(cell.tail_steps), cost, memory_text(cell)]
        rows.append([*([plan] if compared else []), *place, *texts])
    return table(header, rows)


def each_cell(cells: PlanCells) -> Iterator[tuple[str, Cell]]:
    """Every judged cell with the name of its plan."""
    for plan, by_seed in cells.items():
        for judged in by_seed.values():
            yield from ((plan, cell) for cell in judged)


def stage_name(cell: Cell) -> str:
    return cell.tail or "untrained"


def memory_text(cell: Cell) -> str:
    """Peak of a step of the stage on one worker, where it was measured."""
    most = cell.tail_cost.peak_memory_bytes
    return f"{most / 2**20:.3g}" if most else "-"


def estimate_text(cell: Cell, name: str) -> str:
    """Value on test points with its interval over samples."""
    estimate = cell.test.get(name)
    return "-" if estimate is None else f"{estimate.value:.4g} [{estimate.lo:.4g}, {estimate.hi:.4g}]"


def legend(cells: PlanCells) -> str:
    judged = [cell for _, cell in each_cell(cells)]
    if not judged:
        return "no model was judged"
    sizes = sorted({estimate.n for cell in judged for estimate in cell.test.values()})
    seconds = sum(cell.evaluation_device_seconds for cell in judged)
    return f"[ ] 95 % bootstrap interval over n = {sizes[-1]} samples; judging took {seconds:.0f} device-seconds"


def stage_rows(cells: PlanCells) -> list[dict[str, object]]:
    """A row for every seed and stage: steps, cost so far, memory, then every metric with _eval_lo, _eval_hi and _n.

    Where plans are compared, the name of the plan comes first.
    """
    rows = []
    for plan, cell in each_cell(cells):
        row: dict[str, object] = {"plan": plan} if plan else {}
        row |= {"seed": cell.seed, "stage": stage_name(cell), "steps": cell.tail_steps}
        row |= {"steps_before": cell.fork_steps, "cost_device_seconds": cell.cost(Currency.DEVICE_SECONDS)}
        row |= {"peak_memory_bytes": cell.tail_cost.peak_memory_bytes or None, "segment": cell.segment}
        for split, estimates in (("", cell.test), ("validation_", cell.validation)):
            for name, e in estimates.items():
                key = split + name
                row |= {key: e.value, f"{key}_eval_lo": e.lo, f"{key}_eval_hi": e.hi, f"{key}_n": e.n}
        rows.append(row)
    return rows
