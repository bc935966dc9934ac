"""What integration_error.py measures of trained flows, and how it tells it: files, tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.answers.error_curves import (
    ErrorCurve,
    curve_rows,
    drawn_curves,
    error_table,
    speed_rows,
    speed_table,
    speeds,
)
from harness.answers.export import write_csv
from harness.answers.figure_changes import Curve, CurvePanel, draw_curves
from harness.answers.report import table
from harness.checkpoint import DamagedObject, read_json, write_json
from harness.identity import content_hash
from harness.plan_report import conclude_comparison
from harness.plan_run import PlanCells, PlanStudyRun
from harness.plan_study import PlanComparison
from models.accuracy import EVALUATIONS_A_STEP, accuracy_records
from models.contracts import Batch
from models.estimators import Estimate, t_interval
from models.paths import base_points
from models.problem import EVALUATION_SEED, BoltzmannProblem

WAYS = {"push": "base to data", "pull": "data to base"}
QUANTITIES = {"position": "position", "log_q": "log q"}
EVALUATIONS = "field_evaluations"


def report(run: PlanStudyRun, cells: PlanCells) -> str:
    """Measure what the store lacks, write every file and the picture; the text to print."""
    measured = {
        (plan, seed): records_of(run, judged[-1].segment, seed)
        for plan, by_seed in cells.items()
        for seed, judged in by_seed.items()
        if len(judged) == len(run.tracks[plan].planned(seed))
    }
    curves = [curve for (plan, seed), records in measured.items() for curve in curves_of(plan, seed, records)]
    found, gradients = speeds(curves), gradient_rows(measured)
    files = [run.folder / name for name in ("errors.csv", "speed_up.csv", "pg_steps.csv", "errors.png")]
    write_csv(files[0], curve_rows(curves, cost=EVALUATIONS))
    write_csv(files[1], speed_rows(found, cost=EVALUATIONS))
    write_csv(files[2], gradients)
    draw(files[3], run, curves, gradients)
    way = WAYS["push"]
    parts = [
        f"median error, {way}\n{error_table(curves, way, cost='evaluations')}",
        f"evaluations at equal median error, {way}\n{speed_table(found, way, cost='evaluations')}",
        gradient_table(gradients),
        "* interpolated in the logarithms of error and evaluations; [ ] 95 %: bootstrap over samples for one seed, "
        f"over seeds for three and more; n = {len(curves[0].errors_SB[0]) if curves else 0} samples a seed",
    ]
    return conclude_comparison(run, cells, "\n\n".join(parts), files)


def records_of(run: PlanStudyRun, segment: str, seed: int) -> dict[str, np.ndarray]:
    """The errors of one flow, from the store where they were measured before."""
    store, study, problem = run.session.store, run.study, run.session.problem
    assert isinstance(study, PlanComparison)
    assert isinstance(problem, BoltzmannProblem)
    asks = study.asks
    path = store.folder / "accuracy" / f"{segment}-{content_hash(asks)}.json"
    known = read_json(path)
    if known is not None:
        try:
            return store.get_arrays(known["records"])
        except DamagedObject:
            path.unlink(missing_ok=True)
    run.session.progress.note(f"measuring solver errors of segment {segment}, seed {seed}")
    flow, data, size = run.flow(segment, seed), problem.training_data(seed), asks["gradient_batch"]
    rows = (slice(k * size, (k + 1) * size) for k in range(asks["gradient_batches"]))
    records = accuracy_records(
        flow,
        x0_BD=base_points(flow, asks["samples"], seed=EVALUATION_SEED),
        x1_BD=problem.points("test")[: asks["samples"]],
        batches=[Batch(x_BD=data.x_BD[r], force_BD=None if data.force_BD is None else data.force_BD[r]) for r in rows],
        steps=asks["steps"],
        gradings=[grading or None for grading in asks["gradings"]],
        tolerance=asks["tolerance"],
        gradient_reference_steps=asks["gradient_reference_steps"],
        divergence=asks["divergence"],
    )
    write_json(path, {"records": store.put_arrays(records)})
    return records


def curves_of(plan: str, seed: int, records: dict[str, np.ndarray]) -> list[ErrorCurve]:
    """A curve for every grid, way and quantity."""
    curves = []
    for grading in dict.fromkeys(records["grading"]):
        rows = records["grading"] == grading
        steps = tuple(int(n) for n in records["steps"][rows])
        curves += [
            ErrorCurve(
                plan=labelled(plan, grading),
                seed=seed,
                way=way,
                quantity=quantity,
                steps=steps,
                costs=tuple(float(EVALUATIONS_A_STEP * n) for n in steps),
                errors_SB=records[f"{direction}/{name}"][rows],
                floor=float(np.median(records[f"{direction}/{name}_floor"])),
            )
            for direction, way in WAYS.items()
            for name, quantity in QUANTITIES.items()
        ]
    return curves


def labelled(plan: str, grading: float) -> str:
    """What tables and the picture call a plan on a grid."""
    return f"{plan}, graded {grading:g}" if grading else plan


def gradient_rows(measured: dict[tuple[str, int], dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The error of the path gradient for every coupling, seed and number of steps: the mean over batches."""
    rows = []
    for (plan, seed), records in measured.items():
        for grading, steps, errors in zip(records["grading"], records["steps"], records["gradient"].T, strict=True):
            if np.isnan(errors).all():
                continue
            e: Estimate = t_interval(errors)
            row = {"plan": labelled(plan, grading), "seed": seed, "steps": int(steps), "pg_gradient_error": e.value}
            rows.append(row | {"pg_gradient_error_lo": e.lo, "pg_gradient_error_hi": e.hi, "batches": e.n})
    return rows


def gradient_table(rows: Sequence[dict[str, Any]]) -> str:
    plans = list(dict.fromkeys(row["plan"] for row in rows))
    lines = []
    for steps in dict.fromkeys(row["steps"] for row in rows):
        each = [[r["pg_gradient_error"] for r in rows if (r["plan"], r["steps"]) == (plan, steps)] for plan in plans]
        lines.append([str(steps), *(f"{np.mean(values):.2e}" for values in each)])
    return "relative error of the path gradient\n" + table(["PG steps, each way", *plans], lines)


def draw(path: Path, run: PlanStudyRun, curves: Sequence[ErrorCurve], gradients: Sequence[dict[str, Any]]) -> None:
    """Errors in position and log q from base to data, and of the path gradient, for the first seed."""
    seed = run.study.setting.seeds[0]
    panels = []
    for quantity, unit in (("position", "|x - x_ref| / length unit"), ("log q", "|log q - log q_ref| / nats")):
        held = [c for c in curves if (c.quantity, c.way, c.seed) == (quantity, WAYS["push"], seed)]
        floor = max((c.floor for c in held), default=None)
        title = f"{quantity.capitalize()}, base to data"
        panels.append(
            CurvePanel(title=title, xlabel="field evaluations", ylabel=unit, curves=drawn_curves(held), floor=floor)
        )
    plans = dict.fromkeys(row["plan"] for row in gradients)
    by_plan = {plan: [r for r in gradients if (r["plan"], r["seed"]) == (plan, seed)] for plan in plans}
    columns = {"x": "steps", "y": "pg_gradient_error", "lo": "pg_gradient_error_lo", "hi": "pg_gradient_error_hi"}
    lines = [
        Curve(label=plan, **{axis: [row[name] for row in rows] for axis, name in columns.items()})
        for plan, rows in by_plan.items()
    ]
    panels.append(CurvePanel(title="Path gradient", xlabel="steps each way", ylabel="relative L2 error", curves=lines))
    caption = (
        f"Medians over n = {len(curves[0].errors_SB[0]) if curves else 0} samples with 95 % bootstrap intervals, seed "
        f"{seed}; dotted: the reference's own error. Path gradient: mean over batches with 95 % t interval."
    )
    draw_curves(path, panels, caption=caption)
