"""What the tree spent, against what every cell would have cost from scratch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from harness.answers.curves import counts_as_measured
from harness.answers.surface import Cell
from harness.budget import Budget, Currency


@dataclass(frozen=True, kw_only=True)
class GridCost:
    """The same cells, paid for in two ways, counted exactly from the steps of each.

    Attributes:
        cells: models that answer a budget without interpolation. naive: each trained alone. tree: with shared trunks
            and one tail for all budgets, including what was trained only to be forked.
    """

    splits: int
    budgets: int
    seeds: int
    cells: int
    naive: float
    tree: float

    @property
    def ratio(self) -> float:
        """How many times dearer the naive grid is."""
        return self.naive / self.tree if self.tree > 0 else 1.0


def naive_grid_cost(
    cells: Iterable[Cell], budgets: Sequence[Budget], *, tails: Collection[str] | None = None
) -> GridCost:
    """Compare at equal cells.

    Args:
        tails: names of the tails whose cells count, all if None. The trunk's own cells always count.
    """
    currency = budgets[0].currency
    kept = [c for c in cells if tails is None or c.tail == "" or c.tail in tails]
    answering = {
        c.segment: c
        for c in kept
        if any(counts_as_measured(c, b.amount, currency) for b in budgets) and c.cost(currency) > 0
    }
    splits = {(c.fork_steps, c.tail) for c in answering.values() if c.tail} | {("all", "") for c in kept if not c.tail}
    return GridCost(
        splits=len(splits),
        budgets=len(budgets),
        seeds=len({c.seed for c in kept}),
        cells=len(answering),
        naive=sum(c.cost(currency) for c in answering.values()),
        tree=sum(spent_costs(kept, currency).values()),
    )


def spent_costs(cells: Iterable[Cell], currency: Currency) -> dict[str, float]:
    """What each cell added to the bill, by segment: the stretch from the model before it on the same branch.

    They sum to what the tree has spent; a cell's as-if cost is what its plan would have cost alone.
    """
    branches: dict[tuple[int, int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        branches[cell.seed, cell.fork_steps if cell.tail else 0, cell.tail].append(cell)
    spent: dict[str, float] = {}
    for branch in branches.values():
        before = 0.0
        for cell in sorted(branch, key=lambda c: (c.fork_steps, c.tail_steps)):
            reached = (cell.tail_cost if cell.tail else cell.trunk_cost).amount(currency)
            spent[cell.segment] = reached - before
            before = reached
    return spent
