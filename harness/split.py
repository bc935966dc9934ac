"""One trunk, K forks, two tails of equal cost at each: the tree that shows every split at every budget.

A naive study trains (splits x budgets x seeds) models from scratch. Here a trunk of the first phase is kept at
geometric step counts. From each of them, and from the untrained model, two tails start: the second phase, and the
first phase again at its fine-tuning rate. Tails end at the last budget that needs them and are evaluated where budgets
cut them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.budget import Budget, Cost, StepPrice
from harness.plan import Branch, BranchWork, Phase, SegmentTree, Stop, grid_floor

SMALLEST_FORK = 0.1
"""Cost of the first fork, as a share of the smallest budget."""
LARGEST_FORK = 0.75
"""Cost of the last fork, as a share of the largest budget."""


@dataclass(frozen=True, kw_only=True)
class SplitPhases:
    """The trunk's phase and the phases of the two tails."""

    trunk: Phase
    second: Phase
    refinement: Phase

    @property
    def all(self) -> tuple[Phase, Phase, Phase]:
        return self.trunk, self.second, self.refinement


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a step of each phase costs, by the phase's price fingerprint."""

    by_phase: Mapping[str, StepPrice]

    def of(self, phase: Phase) -> StepPrice:
        return self.by_phase[phase.price_fingerprint]

    def cost(self, phase: Phase, steps: int) -> Cost:
        return self.of(phase).of(steps)


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A segment that will be evaluated, and its place in the surface."""

    seed: int
    fork_steps: int
    tail: str
    tail_steps: int
    trunk_cost: Cost
    tail_cost: Cost
    segment: str


@dataclass(frozen=True, kw_only=True)
class SeedPlan:
    """The tree of one seed with the meaning of its evaluated segments."""

    seed: int
    tree: SegmentTree
    cells: tuple[PlannedCell, ...]


def fork_points(price: StepPrice, budgets: Sequence[Budget], count: int) -> tuple[int, ...]:
    """Step counts of the trunk's forks: spread geometrically in cost, on the grid, at least one step each."""
    low = SMALLEST_FORK * budgets[0].amount
    high = LARGEST_FORK * budgets[-1].amount
    currency = budgets[0].currency
    costs = np.geomspace(low, high, count)
    steps = (price.steps_within(Budget(amount=float(cost), currency=currency)) for cost in costs)
    return tuple(sorted({grid_floor(max(1, n)) for n in steps}))


def plan_seed(
    phases: SplitPhases,
    prices: Prices,
    budgets: Sequence[Budget],
    *,
    forks: Sequence[int],
    root: str,
    seed: int,
    unrefined: Sequence[int] = (),
) -> SeedPlan:
    """The whole tree of one seed.

    Args:
        budgets: rising, in one currency. forks: trunk steps that tails start from, besides the untrained model.
        root: hash of the untrained model. unrefined: forks that the second phase alone starts from.
    """
    trunk = Branch(parent=root, phase=phases.trunk, seed=seed)
    stops = sorted({0, *forks, *cuts(prices.of(phases.trunk), budgets)})
    works = [BranchWork(branch=trunk, stops=tuple(Stop(steps=n) for n in stops))]
    cells = [_cell(seed, n, "", 0, phases, prices, trunk.at(n).hash) for n in stops]
    for fork in (0, *forks):
        parent = root if fork == 0 else trunk.at(fork).hash
        spent = prices.cost(phases.trunk, fork).amount(budgets[0].currency)
        for phase in (phases.second,) if fork in unrefined else (phases.second, phases.refinement):
            branch = Branch(parent=parent, phase=phase, seed=seed)
            ends = cuts(prices.of(phase), budgets, already_spent=spent)
            if ends:
                works.append(BranchWork(branch=branch, stops=tuple(Stop(steps=n) for n in ends)))
                cells += [_cell(seed, fork, phase.name, n, phases, prices, branch.at(n).hash) for n in ends]
    return SeedPlan(seed=seed, tree=SegmentTree(works=tuple(works), roots=(root,)), cells=tuple(cells))


def cuts(price: StepPrice, budgets: Sequence[Budget], *, already_spent: float = 0.0) -> tuple[int, ...]:
    """Where budgets cut a branch: the grid points just within what each leaves."""
    steps = (grid_floor(price.steps_within(budget, already_spent=already_spent)) for budget in budgets)
    return tuple(sorted({n for n in steps if n > 0}))


def _cell(
    seed: int, fork: int, tail: str, steps: int, phases: SplitPhases, prices: Prices, segment: str
) -> PlannedCell:
    phase = {p.name: p for p in phases.all}.get(tail)
    return PlannedCell(
        seed=seed,
        fork_steps=fork,
        tail=tail,
        tail_steps=steps,
        trunk_cost=prices.cost(phases.trunk, fork),
        tail_cost=Cost() if phase is None else prices.cost(phase, steps),
        segment=segment,
    )
