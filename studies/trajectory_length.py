"""Does fine-tuning with path gradients keep the short paths that optimal-transport couplings gave?

    python studies/trajectory_length.py --target dw4 --fm 1800s --fm-tail 900s --pg 600s --seeds 5

The question of Vaitl and Klein 2025 (table 3, figure 3). FM is trained with each coupling, then PG follows; length,
likelihood and effective sample size stand before and after PG, with changes paired over test points and base noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.answers.changes import CellPair, Column, change_rows, change_table, paired_change
from harness.answers.export import write_csv
from harness.answers.figure_changes import draw_changes, draw_distributions, draw_paths
from harness.answers.question import MetricChoice
from harness.cli import conclude
from harness.launch import launch_comparison
from harness.plan_report import conclude_comparison, stage_table, write_stages
from harness.plan_run import PlanCells, PlanStudyRun
from harness.plan_study import PlanComparison
from models.paths import base_points, planar_paths
from models.problem import EVALUATION_SEED
from models.systems import system_of
from studies.coupling_plans import FOR_PARTICLES, PLAIN, CouplingOptions
from studies.options import given

METRICS = (
    MetricChoice(name="path_length", label="trajectory length"),
    MetricChoice(name="transport_distance", label="|x1 - x0|"),
    MetricChoice(name="nll", label="NLL / nats"),
    MetricChoice(name="nll_no_constant", label="NLL without constant"),
    MetricChoice(name="ess_q", direction="max", label="ESS_q"),
    MetricChoice(name="ess_p", direction="max", label="ESS_p"),
)
ONLY_IN_FILES = (
    MetricChoice(name="path_length_data", label="trajectory length from data"),
    MetricChoice(name="transport_distance_data", label="|x1 - x0| from data"),
)
NLL = Column(name="nll", key="test/log_q", label="NLL / nats", sign=-1.0)
LENGTH = Column(name="path_length", key="model/length", label="trajectory length", relative=True)
LENGTH_DATA = Column(name="path_length_data", key="test/length", label="length from data", relative=True)
DISTANCE = Column(name="transport_distance", key="model/displacement", label="|x1 - x0|", relative=True)
COLUMNS = (NLL, LENGTH, LENGTH_DATA, DISTANCE)
PATHS_SHOWN, TIMES_SHOWN = 3, 41


@dataclass(frozen=True, kw_only=True)
class TrajectoryLength(CouplingOptions):
    """Does path-gradient fine-tuning (PG) keep the short paths of flow matching (FM) with each coupling?"""

    pg: str | None = None
    """What PG may spend: a budget such as 600s, or a number of steps (default: what suits the target)."""

    def study(self) -> PlanComparison:
        """The study that the options ask for. Starts nothing.

        Raises:
            ValueError: where what comes before PG is not judged.
        """
        if self.judge_last is not None and self.judge_last < 2:
            raise ValueError(
                f"models are compared before and after PG, got --judge-last {self.judge_last}; write 2 or more"
            )
        system = system_of(self.target)
        suitable = PLAIN if system.target.space.particles is None else FOR_PARTICLES
        pg = given(self.pg, system.recipe.budget)
        return self.comparison(name="trajectory_length", default=suitable, pg=pg, asks={})

    def execute(self) -> str:
        experiment = f"trajectory_length {self.target}"
        return launch_comparison(self.study(), self, experiment=experiment, conclude=report, dry_run=self.dry_run)


def report(run: PlanStudyRun, cells: PlanCells) -> str:
    """Write every file and picture; the text to print."""
    pairs = pairs_of(run, cells)
    files = [write_stages(run, cells), run.folder / "changes.csv"]
    write_csv(files[-1], change_rows(pairs, (*METRICS, *ONLY_IN_FILES), COLUMNS))
    files += draw(run, pairs) if pairs else []
    parts = [stage_table(run, cells), change_table(pairs, METRICS, COLUMNS[:2])]
    notes = (
        "before PG -> after it; a change: [ ] 95 % interval, over samples for a seed (with its distance from zero in "
        "standard errors, se), over seeds for all of them. Lengths and distances: from base to data."
    )
    return conclude_comparison(run, cells, "\n\n".join(parts) + f"\n{notes}", files)


def pairs_of(run: PlanStudyRun, cells: PlanCells) -> list[CellPair]:
    """The cells before and after PG of every coupling and seed that got there."""
    pairs = []
    for plan, track in run.tracks.items():
        for seed, judged in cells[plan].items():
            *_, before, after = track.planned(seed)
            found = {cell.segment: cell for cell in judged}
            if before.segment in found and after.segment in found:
                first, last = found[before.segment], found[after.segment]
                records = run.records(first), run.records(last)
                changes = {column.name: paired_change(*records, column) for column in COLUMNS}
                pairs.append(CellPair(plan=plan, before=first, after=last, changes=changes))
    return pairs


def draw(run: PlanStudyRun, pairs: list[CellPair]) -> list[Path]:
    """lengths.png and paths.png of each coupling's first seed, change.png of all."""
    files = [run.folder / name for name in ("lengths.png", "paths.png", "change.png")]
    firsts = {pair.plan: pair for pair in reversed(pairs)}
    shown = {plan: firsts[plan] for plan in run.tracks if plan in firsts}
    states = {
        plan: {f"before PG, seed {pair.seed}": pair.before, f"after PG, seed {pair.seed}": pair.after}
        for plan, pair in shown.items()
    }
    lengths = {
        plan: {state: LENGTH.of(run.records(cell)) for state, cell in each.items()} for plan, each in states.items()
    }
    draw_distributions(files[0], lengths, label="trajectory length, base to data / length unit of the target")
    paths = {
        plan: {state: paths_of(run, cell.segment, cell.seed) for state, cell in each.items()}
        for plan, each in states.items()
    }
    draw_paths(files[1], paths, labels=("x / length unit of the target", "y / length unit of the target"))
    draw_changes(files[2], pairs, x=LENGTH, y=NLL)
    return files


def paths_of(run: PlanStudyRun, segment: str, seed: int) -> np.ndarray:
    flow = run.flow(segment, seed)
    points = PATHS_SHOWN if flow.space.particles is not None else 12 * PATHS_SHOWN
    x0_BD = base_points(flow, points, seed=EVALUATION_SEED)
    return planar_paths(flow, x0_BD, times_T=torch.linspace(0, 1, TIMES_SHOWN).double()).numpy()


if __name__ == "__main__":
    conclude(TrajectoryLength)
