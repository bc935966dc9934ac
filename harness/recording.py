"""From the store to the recorder: one flat run for each seed and plan, each event once, against the budget spent.

Only what is durable in the store is recorded, so a training step that was repeated after a fault is recorded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.answers.surface import Cell
from harness.budget import Currency
from harness.checkpoint import Store
from harness.contracts import Point, Recorder
from harness.plan import Branch, Phase
from harness.split import PlannedCell, Prices, SeedPlan
from harness.trial import Event
from harness.view import COST

RESOLUTION = {Currency.DEVICE_SECONDS: 1e6, Currency.FLOP: 1e-3}
"""Recorded steps are whole numbers: millionths of a device-second, or thousands of floating-point operations."""


@dataclass(frozen=True, kw_only=True)
class PlanRun:
    """One run of the tracker: a seed's way through the phases of a plan.

    Attributes:
        ways: the branches that the plan passes, each with the steps taken in it. cells: what is judged on the way.
    """

    seed: int
    ways: tuple[tuple[Branch, int], ...]
    cells: tuple[PlannedCell, ...] = field(repr=False)

    @property
    def key(self) -> str:
        *before, (last, _) = self.ways
        passed = [f"{branch.phase.name}@{steps}" for branch, steps in before]
        return "/".join([f"seed{self.seed}", *passed, last.phase.name])

    @property
    def name(self) -> str:
        *before, (last, _) = self.ways
        passed = (f"{branch.phase.name} {steps}" for branch, steps in before)
        return f"seed {self.seed} · " + " → ".join([*passed, last.phase.name])

    @property
    def plan(self) -> str:
        """The kind of plan, to filter on."""
        *before, (last, _) = self.ways
        names = ", ".join(branch.phase.name for branch, _ in before)
        return f"{last.phase.name} after {names}" if before else f"{last.phase.name} only"

    @property
    def steps_before(self) -> int:
        return sum(steps for _, steps in self.ways[:-1])

    def params(self) -> dict[str, Any]:
        """The settings of every phase on the way, and where it began."""
        settings: dict[str, Any] = {"seed": self.seed, "fork_steps": self.steps_before}
        for number, (branch, _) in enumerate(self.ways, start=1):
            settings |= {f"phase{number}.{key}": value for key, value in flat(branch.phase).items()}
        return settings


def flat(phase: Phase) -> dict[str, Any]:
    """A phase's settings in one level, for a tracker's parameters."""
    optimiser = {key: value for key, value in asdict(phase.optimiser).items() if value is not None}
    return {"phase": phase.name, **phase.objective, **optimiser, "batch": phase.batch}


def plan_runs(plan: SeedPlan) -> tuple[PlanRun, ...]:
    """The runs of one seed: the trunk alone, then every tail with the part of the trunk before it."""
    trunk_work, *tails = plan.tree.works
    trunk = trunk_work.branch
    on_trunk = tuple(cell for cell in plan.cells if cell.tail == "")
    runs = [PlanRun(seed=plan.seed, ways=((trunk, trunk_work.stops[-1].steps),), cells=on_trunk)]
    by_segment = {cell.segment: cell for cell in plan.cells}
    for work in tails:
        cells = tuple(by_segment[segment.hash] for segment in work.segments)
        fork = cells[0].fork_steps
        before = tuple(cell for cell in on_trunk if cell.fork_steps <= fork)
        ways = (*(((trunk, fork),) if fork else ()), (work.branch, work.stops[-1].steps))
        runs.append(PlanRun(seed=plan.seed, ways=ways, cells=before + cells))
    return tuple(runs)


def record_run(
    run: PlanRun, *, store: Store, recorder: Recorder, prices: Prices, currency: Currency, judged: Mapping[str, Cell]
) -> None:
    """Write everything that the store knows of a run. Safe to call again at any time."""
    recorder.record(run.key, training_points(run, store, prices, currency) + judged_points(run, judged, currency))


def training_points(run: PlanRun, store: Store, prices: Prices, currency: Currency) -> list[Point]:
    """Losses, gradient norms and skipped steps against as-if cost."""
    spent = 0.0
    points: list[Point] = []
    for branch, up_to in run.ways:
        price = prices.of(branch.phase).per_step.amount(currency)
        for event in store.events(branch, up_to=up_to):
            points += event_points(event, branch.phase.name, spent + event.step * price, currency)
        spent += up_to * price
    return points


def event_points(event: Event, phase: str, cost: float, currency: Currency) -> list[Point]:
    step = round(cost * RESOLUTION[currency])
    return [
        Point(metric=f"{group}/{phase}_{name}", value=value, step=step, timestamp=event.timestamp)
        for name, value in event.values.items()
        for group in (("clock",) if name.endswith("seconds") else ("train",))
    ]


def judged_points(run: PlanRun, judged: Mapping[str, Cell], currency: Currency) -> list[Point]:
    """Every estimate of every evaluated cell of the run, with its interval, against as-if cost."""
    points: list[Point] = []
    for planned in run.cells:
        cell = judged.get(planned.segment)
        if cell is not None:
            points += cell_points(cell, currency)
    return points


def cell_points(cell: Cell, currency: Currency) -> list[Point]:
    step = round(cell.cost(currency) * RESOLUTION[currency])
    points = []
    for split, estimates in (("validation", cell.validation), ("test", cell.test)):
        for name, estimate in estimates.items():
            for suffix, value in (("", estimate.value), ("_eval_lo", estimate.lo), ("_eval_hi", estimate.hi)):
                metric = f"{split}/{name}{suffix}"
                points.append(Point(metric=metric, value=value, step=step, timestamp=cell.timestamp))
    most = (cell.trunk_cost + cell.tail_cost).peak_memory_bytes
    shares = {"cost/peak_memory_bytes": float(most)} if most else {}
    shares[COST] = cell.cost(currency)
    shares |= {"cost/trunk": cell.trunk_cost.amount(currency), "cost/tail": cell.tail_cost.amount(currency)}
    return points + [Point(metric=m, value=v, step=step, timestamp=cell.timestamp) for m, v in shares.items()]


def run_tags(run: PlanRun, cells: Sequence[Cell]) -> dict[str, str]:
    """Tags to filter and group runs by."""
    diverged = any(cell.diverged for cell in cells)
    return {"seed": str(run.seed), "plan": run.plan, "fork_steps": str(run.steps_before), "diverged": str(diverged)}
