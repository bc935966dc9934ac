"""The tree of one seed: every cell just within a budget, forks geometric, parents in the tree, work shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from harness.budget import Budget, Cost, Currency, StepPrice
from harness.plan import Phase, geometric_grid
from harness.split import LARGEST_FORK, SMALLEST_FORK, Prices, SeedPlan, SplitPhases, cuts, fork_points, plan_seed
from tests.harness.tiny import FM, PG, TAIL

PHASES = SplitPhases(trunk=FM, second=PG, refinement=TAIL)
CURRENCIES = (Currency.DEVICE_SECONDS, Currency.FLOP)


def priced(phase: Phase, seconds: float) -> StepPrice:
    per_step = Cost(steps=1, device_seconds=seconds, flops=1e9 * seconds)
    return StepPrice(
        phase=phase.price_fingerprint,
        device="d",
        workers=1,
        per_step=per_step,
        timed_steps=9,
        device_seconds_lo=seconds,
        device_seconds_hi=seconds,
    )


PRICES = Prices(by_phase={p.price_fingerprint: priced(p, s) for p, s in ((FM, 0.001), (PG, 0.013), (TAIL, 0.0011))})


def budgets(currency: Currency, *, top: float = 64.0, count: int = 4) -> tuple[Budget, ...]:
    unit = 1.0 if currency is Currency.DEVICE_SECONDS else 1e9
    return tuple(Budget(amount=unit * top / 2**k, currency=currency) for k in reversed(range(count)))


def planned(asked: Sequence[Budget], splits: int = 5) -> SeedPlan:
    forks = fork_points(PRICES.of(FM), asked, splits)
    return plan_seed(PHASES, PRICES, asked, forks=forks, root="root", seed=2)


@pytest.mark.parametrize("currency", CURRENCIES)
def test_every_tail_ends_just_within_a_budget(currency: Currency) -> None:
    asked = budgets(currency)
    plan = planned(asked)
    for cell in plan.cells:
        if cell.tail == "":
            continue
        cost = (cell.trunk_cost + cell.tail_cost).amount(currency)
        within = [b.amount for b in asked if cost <= b.amount * (1 + 1e-9)]
        left = min(within) - cell.trunk_cost.amount(currency)
        step = PRICES.of({p.name: p for p in PHASES.all}[cell.tail]).per_step.amount(currency)
        spent = cell.tail_cost.amount(currency)
        assert spent <= left * (1 + 1e-9)
        assert spent > left / 2 ** (1 / 8) - 2 * step


@pytest.mark.parametrize("currency", CURRENCIES)
def test_every_budget_that_a_fork_leaves_something_of_has_its_cell(currency: Currency) -> None:
    asked = budgets(currency)
    plan = planned(asked)
    forks = sorted({cell.fork_steps for cell in plan.cells if cell.tail})
    for fork in forks:
        spent = PRICES.cost(FM, fork).amount(currency)
        for phase in (PG, TAIL):
            ends = {cell.tail_steps for cell in plan.cells if (cell.fork_steps, cell.tail) == (fork, phase.name)}
            step = PRICES.of(phase).per_step.amount(currency)
            assert len(ends) == sum(b.amount - spent >= step for b in asked)


def test_the_trunk_is_judged_at_nothing_at_forks_and_at_budgets() -> None:
    asked = budgets(Currency.DEVICE_SECONDS)
    plan = planned(asked)
    forks = fork_points(PRICES.of(FM), asked, 5)
    on_trunk = [cell.fork_steps for cell in plan.cells if cell.tail == ""]
    assert on_trunk == sorted({0, *forks, *cuts(PRICES.of(FM), asked)})
    assert all(cell.tail_cost == Cost() and cell.tail_steps == 0 for cell in plan.cells if cell.tail == "")


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_forks_are_geometric(count: int) -> None:
    asked = budgets(Currency.DEVICE_SECONDS, top=1000.0)
    forks = fork_points(PRICES.of(FM), asked, count)
    assert len(forks) == count
    assert set(forks) <= set(geometric_grid(10**7))
    assert forks[0] == pytest.approx(SMALLEST_FORK * asked[0].amount / 0.001, rel=0.1)
    assert forks[-1] == pytest.approx(LARGEST_FORK * asked[-1].amount / 0.001, rel=0.1)
    ratios = np.array([b / a for a, b in pairwise(forks)])
    assert ratios.max() / ratios.min() < 2 ** (2 / 8) * 1.01


def test_forks_of_a_budget_of_few_steps_are_merged() -> None:
    asked = budgets(Currency.DEVICE_SECONDS, top=0.004, count=2)
    assert fork_points(PRICES.of(FM), asked, 5) == (1, 3)


def test_parents_of_tails_are_in_the_tree() -> None:
    plan = planned(budgets(Currency.DEVICE_SECONDS))
    segments = {segment.hash for segment in plan.tree.segments}
    assert all(work.branch.parent in segments | {"root"} for work in plan.tree)
    assert {cell.segment for cell in plan.cells} <= segments
    assert {work.branch.seed for work in plan.tree} == {2}
    assert all(stop.evaluate for work in plan.tree for stop in work.stops)


def test_cells_are_told_apart() -> None:
    plan = planned(budgets(Currency.FLOP))
    assert len({cell.segment for cell in plan.cells}) == len(plan.cells) == len(plan.tree.segments)
    places = {(cell.fork_steps, cell.tail, cell.tail_steps) for cell in plan.cells}
    assert len(places) == len(plan.cells)


def test_the_tree_takes_fewer_steps_than_training_every_cell_from_scratch() -> None:
    plan = planned(budgets(Currency.DEVICE_SECONDS))
    naive = sum(cell.fork_steps + cell.tail_steps for cell in plan.cells)
    assert plan.tree.steps == sum(work.stops[-1].steps for work in plan.tree)
    assert plan.tree.steps < naive / 2


def test_a_larger_study_finds_the_smaller_ones_segments() -> None:
    small, large = budgets(Currency.DEVICE_SECONDS, count=3), budgets(Currency.DEVICE_SECONDS, top=128.0, count=4)
    forks = fork_points(PRICES.of(FM), small, 3)
    plans = [plan_seed(PHASES, PRICES, asked, forks=forks, root="root", seed=0) for asked in (small, large)]
    first, second = ({segment.hash for segment in plan.tree.segments} for plan in plans)
    assert first < second


def test_cuts_leave_out_what_pays_for_no_step() -> None:
    asked = budgets(Currency.DEVICE_SECONDS, top=0.04, count=4)
    assert cuts(PRICES.of(PG), asked) == (1, 3)
    assert cuts(PRICES.of(PG), asked, already_spent=0.03) == ()
    assert cuts(priced(FM, 100.0), asked) == ()


def test_phases_that_differ_in_rate_share_a_price() -> None:
    quick = replace(FM, optimiser=replace(FM.optimiser, learning_rate=0.5))
    assert PRICES.of(quick) == PRICES.of(FM)
    assert PRICES.cost(quick, 3) == PRICES.of(FM).of(3)
