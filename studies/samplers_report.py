"""How samplers.py tells its answer: samplers.csv and stages.csv, one table, and a picture of every method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.answers.export import write_csv
from harness.answers.figure_samples import draw_samples
from harness.answers.question import MetricChoice
from harness.answers.report import table
from harness.answers.sample_panel import SamplePanel
from harness.answers.scores import seed_interval
from harness.plan_report import conclude_comparison, write_stages
from harness.plan_run import PlanCells, PlanStudyRun
from models.estimators import Estimate
from models.problem import BoltzmannProblem
from studies.samplers_rows import CHAINS, FLOOR, SamplerRow, problem_of, rows_of

LEFT_OUT = ("forward_kl", "ess_p", "path_length", "fm_loss")
"""Metrics of the question that tell one flow from another, but not one sampler from another."""
ALL_SEEDS = "all"


def report(run: PlanStudyRun, cells: PlanCells) -> str:
    """Measure what is not measured yet, write every file and picture; the text to print."""
    rows = rows_of(run, cells)
    metrics = metrics_of(run, rows)
    files = [write_stages(run, cells), run.folder / "samplers.csv"]
    write_csv(files[-1], csv_rows(rows, metrics))
    files += draw(run, rows)
    notes = (
        "sampler: distances of the samples that the flow is fitted to; NLL, ESS and log Z of its density or its path "
        f"weights, where it has them. {CHAINS}: the ends of as many chains from the base, temperature 1, after no more "
        f"energies and forces. {FLOOR}: a second set of reference samples; NLL there: of the target itself. [ ] 95 %: "
        "over samples for one seed, over seeds for three and more."
    )
    return conclude_comparison(run, cells, f"{sampler_table(rows, metrics)}\n{notes}{lacking(run, rows)}", files)


def metrics_of(run: PlanStudyRun, rows: Sequence[SamplerRow]) -> list[MetricChoice]:
    """Those of the question that some row has."""
    asked = [metric for metric in run.study.question.metrics if metric.name not in LEFT_OUT]
    return [metric for metric in asked if any(metric.name in row.estimates for row in rows)]


def grouped(rows: Sequence[SamplerRow]) -> dict[tuple[str, str], list[SamplerRow]]:
    """The seeds of every method and kind, in the order in which they came; Monte Carlo of a method after its flow."""
    found: dict[tuple[str, str], list[SamplerRow]] = {}
    for row in rows:
        found.setdefault((row.method, row.kind), []).append(row)
    order = list(dict.fromkeys(row.method for row in rows))
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))


def over_seeds(held: Sequence[SamplerRow], name: str) -> Estimate | None:
    """The mean over seeds with its t interval; of one seed, its own estimate. None where a seed lacks it."""
    found = [row.estimates[name] for row in held if name in row.estimates]
    if not found or len(found) < len(held):
        return None
    return found[0] if len(held) == 1 else seed_interval([estimate.value for estimate in found])


def sampler_table(rows: Sequence[SamplerRow], metrics: Sequence[MetricChoice]) -> str:
    """A line for every method and kind; the number of samples behind a metric stands in its title."""
    header = ["what", "seeds", *(title(rows, metric) for metric in metrics), "device-s", "energies and forces"]
    lines = []
    for (method, kind), held in grouped(rows).items():
        values = [text(over_seeds(held, metric.name)) for metric in metrics]
        costs = ["-", "-"] if kind == FLOOR else [f"{mean_seconds(held):.4g}", f"{mean_evaluations(held):.4g}"]
        seeds = "-" if kind == FLOOR else str(len(held))
        lines.append([f"{method}, {kind}" if method else kind, seeds, *values, *costs])
    return table(header, lines)


def title(rows: Sequence[SamplerRow], metric: MetricChoice) -> str:
    sizes = sorted({row.estimates[metric.name].n for row in rows if metric.name in row.estimates})
    return f"{metric.title} (n = {' to '.join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1])))})"


def text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    value = f"{estimate.value:.4g}"
    return f"{value} [{estimate.lo:.4g}, {estimate.hi:.4g}]" if math.isfinite(estimate.lo) else value


def mean_seconds(held: Sequence[SamplerRow]) -> float:
    return sum(row.cost.device_seconds for row in held) / len(held)


def mean_evaluations(held: Sequence[SamplerRow]) -> float:
    return sum(row.evaluations for row in held) / len(held)


def lacking(run: PlanStudyRun, rows: Sequence[SamplerRow]) -> str:
    """Methods without chains beside them."""
    judged = problem_of(run).evaluation["samples"]
    with_chains = {row.method for row in rows if row.kind == CHAINS}
    without = [name for name in dict.fromkeys(row.method for row in rows) if name and name not in with_chains]
    if not without:
        return ""
    return f"\n{', '.join(without)}: too few evaluations for {judged} chains of Monte Carlo"


def csv_rows(rows: Sequence[SamplerRow], metrics: Sequence[MetricChoice]) -> list[dict[str, Any]]:
    """A row for every method, kind and seed, then one over its seeds.

    `_eval_lo` and `_eval_hi` are of resampled samples, `_seed_lo` and `_seed_hi` a t interval over seeds; `_n` counts
    samples, or seeds.
    """
    written = []
    for (method, kind), held in grouped(rows).items():
        for row in held:
            place = {"method": method, "kind": kind, "seed": row.seed, "device_seconds": row.cost.device_seconds}
            place |= {
                "energy_evaluations": row.cost.energy_evaluations,
                "force_evaluations": row.cost.force_evaluations,
            }
            for metric in metrics:
                place |= columns(metric.name, row.estimates.get(metric.name), over="eval")
            written.append(place)
        if kind == FLOOR:
            continue
        place = {"method": method, "kind": kind, "seed": ALL_SEEDS, "device_seconds": mean_seconds(held)}
        place |= {
            f"{name}_evaluations": sum(getattr(row.cost, f"{name}_evaluations") for row in held) / len(held)
            for name in ("energy", "force")
        }
        for metric in metrics:
            values = [row.estimates[metric.name].value for row in held if metric.name in row.estimates]
            place |= columns(metric.name, seed_interval(values) if len(values) == len(held) else None, over="seed")
        written.append(place)
    return written


def columns(name: str, estimate: Estimate | None, *, over: str) -> dict[str, Any]:
    """Value, number, and both kinds of interval, of which it has one."""
    e = estimate or Estimate(value=math.nan, lo=math.nan, hi=math.nan, n=0)
    found: dict[str, Any] = {name: e.value, f"{name}_n": e.n or None}
    for kind in ("eval", "seed"):
        found |= {f"{name}_{kind}_lo": e.lo if kind == over else None}
        found |= {f"{name}_{kind}_hi": e.hi if kind == over else None}
    return found


def draw(run: PlanStudyRun, rows: Sequence[SamplerRow]) -> list[Path]:
    """Of each method's first seed: points in the plane, or energies and distances; in the plane energies as well."""
    problem, files = problem_of(run), []
    reference = problem.picture(None)
    plane = "x" in reference
    for method in dict.fromkeys(row.method for row in rows if row.method):
        held = [row for row in rows if row.method == method]
        first = [row for row in held if row.seed == held[0].seed]
        sets = {"reference": reference} | {row.kind: pictured(problem, row) for row in first}
        path = run.folder / f"samples_{method}.png"
        draw_samples(path, [SamplePanel(title=name, **shown) for name, shown in sets.items()])
        files.append(path)
        if plane:
            path = run.folder / f"energies_{method}.png"
            draw_samples(path, [SamplePanel(title=name, energy=shown["energy"]) for name, shown in sets.items()])
            files.append(path)
    return files


def pictured(problem: BoltzmannProblem, row: SamplerRow) -> dict[str, Any]:
    x_BD = row.x_BD.double()
    return problem.picture({"model/x": x_BD.numpy(), "model/energy": problem.physics.target.energy(x_BD).numpy()})
