"""The surface metric(first phase spent, second phase spent): one cell for every evaluated segment of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.budget import Cost, Currency
from models.estimators import Estimate


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One evaluated model: so many steps of the trunk, then so many of a tail.

    Attributes:
        seed: of initialisation, batches and training set.
        fork_steps: trunk steps before the tail (all steps where there is no tail).
        tail: name of the tail's phase ("pg", "fm_tail"), "" on the trunk itself.
        tail_steps: steps of the tail.
        trunk_cost, tail_cost: as-if cost of each part, at the study's step prices.
        validation, test: estimates by name, from the validation and the test points.
        diverged: non-finite, or NLL worse than the untrained flow's.
        segment: hash of the segment. timestamp: when it was evaluated, seconds since the epoch.
        evaluation_device_seconds: what judging it took, off the clock.
    """

    seed: int
    fork_steps: int
    tail: str
    tail_steps: int
    trunk_cost: Cost
    tail_cost: Cost
    validation: Mapping[str, Estimate]
    test: Mapping[str, Estimate]
    diverged: bool
    segment: str
    timestamp: float = 0.0
    evaluation_device_seconds: float = 0.0

    def cost(self, currency: Currency) -> float:
        """As-if cost: what this plan would have cost alone."""
        return self.trunk_cost.amount(currency) + self.tail_cost.amount(currency)

    def trunk_share(self, currency: Currency) -> float:
        """Share of the cost that the trunk's objective took; a tail of the same objective counts to it as well."""
        total = self.cost(currency)
        return self.trunk_cost.amount(currency) / total if total > 0 else 1.0
