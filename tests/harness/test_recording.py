"""Records: one flat run for each seed and plan, every metric once at every cost, trunk costs counted in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.answers.surface import Cell
from harness.budget import Currency
from harness.checkpoint import Store
from harness.contracts import Point
from harness.plan import BranchWork
from harness.recording import RESOLUTION, judged_points, plan_runs, record_run, run_tags, training_points
from harness.split import SeedPlan, fork_points, plan_seed
from harness.trial import Event
from models.estimators import Estimate
from tests.harness.test_split import PHASES, PRICES, budgets
from tests.harness.tiny import FM

ASKED = budgets(Currency.DEVICE_SECONDS, top=2.0, count=3)


@pytest.fixture
def plan() -> SeedPlan:
    forks = fork_points(PRICES.of(FM), ASKED, 3)
    return plan_seed(PHASES, PRICES, ASKED, forks=forks, root="root", seed=4)


@pytest.fixture
def store(plan: SeedPlan, tmp_path: Path) -> Store:
    """Every segment finished, with an event at its end."""
    found = Store(tmp_path)
    for work in plan.tree:
        finish(found, work)
    return found


def finish(store: Store, work: BranchWork) -> None:
    for segment in work.segments:
        values = {"loss": 1.0 / (1 + segment.steps), "wall_seconds": 0.5}
        event = Event(
            kind="train", branch=work.branch.hash, step=segment.steps, timestamp=float(segment.steps), values=values
        )
        events = [event] if segment.steps else []
        store.finish_segment(segment, state="s.pt", checksum="c", events=events)


def judged(plan: SeedPlan, *, diverged: bool = False) -> dict[str, Cell]:
    estimate = {"nll": Estimate(value=1.0, lo=0.5, hi=1.5, n=64)}
    return {
        cell.segment: Cell(
            seed=cell.seed,
            fork_steps=cell.fork_steps,
            tail=cell.tail,
            tail_steps=cell.tail_steps,
            trunk_cost=cell.trunk_cost,
            tail_cost=cell.tail_cost,
            validation=estimate,
            test=estimate,
            diverged=diverged,
            segment=cell.segment,
            timestamp=7.0,
        )
        for cell in plan.cells
    }


@dataclass
class Remembered:
    """Keeps the points of every run."""

    runs: dict[str, list[Point]] = field(default_factory=dict)

    def start(self, key: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self.runs.setdefault(key, [])

    def record(self, key: str, points: Sequence[Point]) -> None:
        self.runs.setdefault(key, []).extend(points)

    def attach(self, key: str, file: Path) -> None: ...

    def describe(self, key: str, text: str) -> None: ...

    def finish(self, key: str, status: str) -> None: ...

    def page(self, server: str) -> None:
        """Nobody shows these records."""

    def close(self) -> None: ...


def test_one_run_for_each_way_through_the_tree(plan: SeedPlan) -> None:
    runs = plan_runs(plan)
    assert len(runs) == len(plan.tree.works)
    assert len({run.key for run in runs}) == len({run.name for run in runs}) == len(runs)
    trunk, *tails = runs
    assert (len(trunk.ways), trunk.plan, trunk.steps_before) == (1, "fm only", 0)
    assert {run.plan for run in tails} == {"pg only", "pg after fm", "fm_tail only", "fm_tail after fm"}
    for run in tails:
        tail, steps = run.ways[-1]
        ends = [cell for cell in run.cells if cell.tail]
        assert {cell.tail for cell in ends} == {tail.phase.name}
        assert {cell.fork_steps for cell in ends} == {run.steps_before}
        assert max(cell.tail_steps for cell in ends) == steps
        assert all(cell.fork_steps <= run.steps_before for cell in run.cells if not cell.tail)


@pytest.mark.parametrize("currency", list(Currency))
def test_every_metric_comes_once_at_every_cost(plan: SeedPlan, store: Store, currency: Currency) -> None:
    recorder = Remembered()
    for run in plan_runs(plan):
        record_run(run, store=store, recorder=recorder, prices=PRICES, currency=currency, judged=judged(plan))
    for key, points in recorder.runs.items():
        counts = Counter((point.metric, point.step) for point in points)
        assert max(counts.values()) == 1, key
        assert {"validation/nll", "test/nll_eval_hi", "cost/trunk", "cost/tail"} <= {p.metric for p in points}


def test_training_is_recorded_against_what_the_plan_would_have_cost(plan: SeedPlan, store: Store) -> None:
    run = plan_runs(plan)[-1]
    tail_phase = run.ways[-1][0].phase
    assert run.steps_before > 0
    points = training_points(run, store, PRICES, Currency.DEVICE_SECONDS)
    before = PRICES.cost(FM, run.steps_before).device_seconds
    price = PRICES.of(tail_phase).per_step.device_seconds
    tail = [p for p in points if p.metric == f"train/{tail_phase.name}_loss"]
    ends = sorted(cell.tail_steps for cell in run.cells if cell.tail)
    assert [p.step for p in tail] == [round(RESOLUTION[Currency.DEVICE_SECONDS] * (before + n * price)) for n in ends]
    assert [p.timestamp for p in tail] == [float(n) for n in ends]
    trunk = [p for p in points if p.metric == "train/fm_loss"]
    assert max(p.step for p in trunk) == round(RESOLUTION[Currency.DEVICE_SECONDS] * before)
    assert {p.metric.split("/")[0] for p in points if p.metric.endswith("seconds")} == {"clock"}


def test_judgements_are_recorded_with_their_interval_and_shares(plan: SeedPlan) -> None:
    for run in plan_runs(plan):
        points = judged_points(run, judged(plan), Currency.FLOP)
        by_metric = {metric: [p for p in points if p.metric == metric] for metric in {p.metric for p in points}}
        assert {p.value for p in by_metric["test/nll_eval_lo"]} == {0.5}
        total = [a.value + b.value for a, b in zip(by_metric["cost/trunk"], by_metric["cost/tail"], strict=True)]
        assert [p.value for p in by_metric["cost/total"]] == pytest.approx(total)
        steps = [p.step for p in by_metric["cost/trunk"]]
        assert steps == [round(cost * RESOLUTION[Currency.FLOP]) for cost in total]
        assert all(a < b for a, b in pairwise(sorted(steps)))


def test_what_is_not_judged_is_left_out(plan: SeedPlan) -> None:
    run = plan_runs(plan)[0]
    kept = dict(list(judged(plan).items())[:1])
    assert {p.step for p in judged_points(run, kept, Currency.FLOP)} == {0}
    assert judged_points(run, {}, Currency.FLOP) == []


def test_tags_tell_seed_plan_and_divergence(plan: SeedPlan) -> None:
    run = plan_runs(plan)[1]
    cells = list(judged(plan, diverged=True).values())
    assert run_tags(run, cells)["diverged"] == "True"
    tags = run_tags(run, [])
    assert (tags["seed"], tags["plan"], tags["diverged"]) == ("4", run.plan, "False")
