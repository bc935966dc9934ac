"""When to leave the first phase for the second, decided inside one run from what probes of both just gained.

At every octave of the first phase a short probe of the second one starts from its checkpoint. Two octaves probed alike
tell what an octave of the first phase is still worth once the second one follows (the noise of a constant learning rate
is gone by then), and the probe's own last octave tells what an octave of the second phase gains. Both losses are taken
to go on falling as they just did, a constant amount for every octave of their own steps.

Shapes: n validation points, shared by all models, so that every difference is paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.answers.question import MetricChoice
from harness.budget import Budget, StepPrice
from models.estimators import BootstrapMeans, Estimate

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SwitchRule:
    """How often to look, and at which price.

    Args:
        first_share: of the budget, from which on the octaves of the first phase are looked at.
        probe_share: of the budget that a probe takes at most, as a power of two of its steps.
        fewest_probe_steps: that a probe takes in any case.
        most_probe_share: of the budget; where the fewest steps cost more there is no probe, and no second phase.
        waits: leave only once another octave of the first phase would not pay. Else the first octave at which the
            second phase gains more than a refinement of equal cost is the last one.
    """

    first_share: float = 1 / 16
    probe_share: float = 1 / 8
    fewest_probe_steps: int = 4
    most_probe_share: float = 0.2
    waits: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.first_share < 1 or not 0 < self.probe_share <= self.most_probe_share < 1:
            raise ValueError(
                f"shares must rise between 0 and 1, got {self.first_share}, {self.probe_share} and "
                f"{self.most_probe_share}; write for example 0.0625, 0.125 and 0.2"
            )
        if self.fewest_probe_steps < 2 or self.fewest_probe_steps != power_of_two_within(self.fewest_probe_steps):
            raise ValueError(
                f"a probe takes a power of two of steps from 2 on, got {self.fewest_probe_steps}; write for example 4"
            )

    def probe_steps(self, price: StepPrice, budget: Budget) -> int:
        """Steps of a probe of the second phase; 0 where none is affordable."""
        most = price.steps_within(part_of(budget, self.most_probe_share))
        if most < self.fewest_probe_steps:
            return 0
        wanted = power_of_two_within(price.steps_within(part_of(budget, self.probe_share)))
        return max(self.fewest_probe_steps, wanted)

    def octaves(self, price: StepPrice, budget: Budget) -> tuple[int, ...]:
        """Steps of the first phase at which it is looked at: powers of two from the first share on, one at least."""
        last = power_of_two_within(price.steps_within(budget))
        if last < 1:
            raise ValueError(
                f"a budget must pay one step of the first phase, got {budget} at "
                f"{price.per_step.amount(budget.currency):.3g} a step; write a larger budget"
            )
        first = min(last, 2 * power_of_two_within(price.steps_within(part_of(budget, self.first_share))) or 1)
        return tuple(first * 2**k for k in range(int(math.log2(last // first)) + 1))


def power_of_two_within(count: int) -> int:
    """The largest power of two up to a count, 0 below one."""
    return 1 << (count.bit_length() - 1) if count > 0 else 0


def part_of(budget: Budget, share: float) -> Budget:
    return Budget(amount=share * budget.amount, currency=budget.currency)


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What a look has measured, on the metric's comparison scale (differences of logarithms where it has one).

    Attributes:
        second: fall of the loss in the last octave of the probe's steps.
        first: fall of the probed loss in the last octave of the first phase; None at the first look.
        over_refinement: by how much the probe's loss lies below that of a refinement of equal cost; None where none
            was trained.
    """

    second: Estimate
    first: Estimate | None
    over_refinement: Estimate | None

    def plain_columns(self) -> dict[str, float]:
        """For files; what was not measured is NaN."""
        held = {"second": self.second, "first": self.first, "over_refinement": self.over_refinement}
        columns = {}
        for name, gain in held.items():
            for part in ("value", "lo", "hi"):
                columns[f"gain_{name}" + ("" if part == "value" else f"_eval_{part}")] = (
                    math.nan if gain is None else float(getattr(gain, part))
                )
        return columns


@dataclass(frozen=True, kw_only=True)
class LookTerms:
    """Per-sample terms of the metric at one look: half of the probe, all of it, the same of the look before, and the
    refinement of equal cost."""

    half_n: Array
    probe_n: Array
    before_n: Array | None = None
    refinement_n: Array | None = None

    @property
    def columns(self) -> dict[str, Array]:
        held = {
            "half": self.half_n,
            "probe": self.probe_n,
            "before": self.before_n,
            "refinement": self.refinement_n,
        }
        return {name: terms_n for name, terms_n in held.items() if terms_n is not None}


class Look:
    """One look, with paired intervals over validation points. They tell nothing of the noise of training.

    Args:
        octaves_lost: octaves of the second phase that another octave of the first one would cost (and this probe),
            None where there is no room for another.
    """

    def __init__(self, terms: LookTerms, metric: MetricChoice, *, octaves_lost: float | None) -> None:
        self._means = BootstrapMeans.of(terms.columns, seed=0)
        self._names = set(terms.columns)
        self._metric = metric
        self.octaves_lost = octaves_lost

    @property
    def gains(self) -> Gains:
        first = self._fall("before", "probe") if "before" in self._names else None
        over = self._fall("refinement", "probe") if "refinement" in self._names else None
        return Gains(second=self._fall("half", "probe"), first=first, over_refinement=over)

    @property
    def worth_of_leaving(self) -> Estimate | None:
        """How much lower the loss ends if the first phase is left now and not an octave later; None where unknown."""
        lost = self.octaves_lost
        if lost is None or "before" not in self._names:
            return None

        def worth(m: Mapping[str, Array]) -> Array:
            first = self._loss(m["before"]) - self._loss(m["probe"])
            second = self._loss(m["half"]) - self._loss(m["probe"])
            return lost * second - first

        return self._means.estimate(worth)

    def _fall(self, before: str, after: str) -> Estimate:
        return self._means.estimate(lambda m: self._loss(m[before]) - self._loss(m[after]))

    def _loss(self, mean: Array) -> Array:
        scaled = np.log(mean) if self._metric.log else mean
        return scaled if self._metric.direction == "min" else -scaled


def wants_to_leave(look: Look, rule: SwitchRule) -> bool:
    """Whether the first phase should be left, if the second one proves better than a refinement of equal cost."""
    if look.octaves_lost is None or not rule.waits:
        return True
    worth = look.worth_of_leaving
    return worth is not None and worth.value > 0


def second_is_better(look: Look) -> bool:
    """Against a refinement of equal cost: shown by the interval, or likelier than not where it is the last chance."""
    gain = look.gains.over_refinement
    assert gain is not None, "the refinement is trained before it is compared"
    return (gain.value if look.octaves_lost is None else gain.lo) > 0
