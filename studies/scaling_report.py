"""Tables of the study of scaling: what steps cost over system size, and what finished plans reached."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.answers.report import interval_text, table
from harness.answers.scores import seed_interval
from harness.answers.throughput import Quartiles, Timing
from harness.finished_study import study_folder
from harness.measure import Measured
from harness.trained_plan import TrainedPlan
from models.systems import System

QUALITY = ("nll", "ess_q")
"""Metrics of a plan's last stage."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A system and what its steps cost on one worker."""

    system: System
    measured: Measured


def size_table(sizes: Sequence[Size], *, rows: int) -> str:
    """A row for every system and phase. Args: rows: of the batch that was timed."""
    header = ["system", "dimensions", "field", "phase", "ms a row [quartiles]", "in FM steps", "flop a row"]
    header += ["memory of a step / MiB"]
    lines = []
    for size in sizes:
        first, system = size.measured.timings[0], size.system
        for timing in size.measured.timings:
            cost = size.measured.costs[timing.phase]
            space = system.target.space
            lines.append(
                [
                    system.target.name,
                    str(space.dim),
                    f"{system.hidden} x {system.layers}",
                    timing.phase,
                    quartiles_text(Quartiles.of([1e3 * s / rows for s in timing.seconds])),
                    quartiles_text(ratio(timing, first)),
                    f"{cost['flops'] / rows:.3g}",
                    f"{cost['peak_memory_bytes'] / 2**20:.3g}",
                ]
            )
    rounds = len(sizes[0].measured.timings[0].seconds) if sizes else 0
    legend = f"one worker, batches of {rows} rows of base noise; medians of {rounds} rounds with quartiles"
    return "\n".join([table(header, lines), legend])


def ratio(timing: Timing, first: Timing) -> Quartiles:
    return Quartiles.of([many / one for many, one in zip(timing.seconds, first.seconds, strict=True)])


def quartiles_text(q: Quartiles) -> str:
    return f"{q.median:.3g} [{q.low:.3g}, {q.high:.3g}]"


def quality_table(folders: Sequence[Path]) -> str:
    """The last stage of finished plans: cost and quality, a mean over seeds with its interval."""
    header = ["system", "plan", "seeds", "device-s a seed", *QUALITY]
    lines = []
    for folder in map(study_folder, folders):
        plan = TrainedPlan.read(folder)
        last = {model.segments[plan.stage(None)] for model in plan.models}
        with (folder / "stages.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["segment"] in last]
        costs = seed_interval([float(row["cost_device_seconds"]) for row in rows])
        values = [[float(row[name]) for row in rows if row.get(name)] for name in QUALITY]
        known = [interval_text(seed_interval(each)) if each else "-" for each in values]
        system = str(plan.problem["system"]["target"])
        lines.append([system, " ".join(plan.stages), str(len(rows)), f"{costs.value:.0f}", *known])
    return "\n".join(
        [table(header, lines), "last stages on test points; [ ] 95 % t interval over seeds, from three on"]
    )
