"""What a point of a sweep means in training: one phase for so many steps, or a plan of phases that share a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from harness.budget import Budget
from harness.contracts import Choice, FloatRange, IntRange, SearchSpace
from harness.identity import canonical
from harness.plan import Branch, BranchWork, Phase, Plan, Stop, grid_floor
from harness.split import Prices
from harness.sweep import Sweep

Values = Mapping[str, Any]
SPEND = "spend"
"""The setting that is a point's own budget, where that is searched."""


class Meaning(Protocol):
    """From the values of a point to branches, and to what they cost."""

    @property
    def currency(self) -> str:
        """That costs are told in, "" where rungs are steps."""

    def phases(self) -> Iterable[Phase]:
        """Phases at the corners of the space: what can be checked before anything starts."""

    def priced(self) -> Sequence[Phase]:
        """Phases whose step price must be known before a point means steps."""

    def works(self, values: Values, rung: int, seed: int, prices: Prices) -> tuple[BranchWork, ...]:
        """A seed's branches up to a rung (counted from 1), parents first; the end of the last one is judged."""

    def cost(self, values: Values, rung: int, prices: Prices) -> float | None:
        """What a point costs up to a rung, in the currency of the budgets; None where rungs are steps."""

    def stages(self, values: Values, rung: int, prices: Prices) -> str:
        """The stages of a plan with their steps, "" where a point is a phase."""

    def label(self, work: BranchWork, rung: int) -> str:
        """Before the name of a training metric, where a point has more branches than one."""


@dataclass(frozen=True, kw_only=True)
class OnePhase:
    """A point is a phase, and the rungs of the ladder are its steps."""

    sweep: Sweep
    phase_of: Callable[[Values], Phase]
    currency: str = ""

    def phases(self) -> Iterable[Phase]:
        return (self.phase_of(values) for values in self.sweep.corners())

    def priced(self) -> Sequence[Phase]:
        return ()

    def works(self, values: Values, rung: int, seed: int, prices: Prices) -> tuple[BranchWork, ...]:
        stops = tuple(Stop(steps=steps) for steps in self.sweep.ladder.steps[:rung])
        branch = Branch(parent=self.sweep.setting.root(seed), phase=self.phase_of(values), seed=seed)
        return (BranchWork(branch=branch, stops=stops),)

    def cost(self, values: Values, rung: int, prices: Prices) -> float | None:
        return None

    def stages(self, values: Values, rung: int, prices: Prices) -> str:
        return ""

    def label(self, work: BranchWork, rung: int) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A phase of a plan, and the share of the plan's budget that it spends."""

    phase: Phase
    share: float


@dataclass(frozen=True, kw_only=True)
class PlanPoints:
    """A point is a plan, and the rungs are budgets: what a rung trains of the first phase goes on on the next one.

    Later phases fork from there anew on every rung, as they would if that were all of the budget.

    Args:
        shares_of: the stages of a point. budgets: of the rungs, rising.
    """

    sweep: Sweep
    shares_of: Callable[[Values], Sequence[Share]]
    budgets: tuple[Budget, ...]

    @property
    def currency(self) -> str:
        return self.budgets[0].currency.value

    def phases(self) -> Iterable[Phase]:
        found = {stage.phase.fingerprint: stage.phase for v in self.corners for stage in self.shares_of(v)}
        return found.values()

    @cached_property
    def corners(self) -> Sequence[Values]:
        """Corners of the space, those that differ in what acts."""
        acting = map(self.sweep.acting, self.sweep.corners())
        return tuple({canonical(values): values for values in acting}.values())

    def priced(self) -> Sequence[Phase]:
        """One phase for every price: ranges do not change it, and stand at their middle."""
        return self._priced

    @cached_property
    def _priced(self) -> Sequence[Phase]:
        points = map(self.representative, self.corners)
        found = {stage.phase.price_fingerprint: stage.phase for v in points for stage in self.shares_of(v)}
        return tuple(found.values())

    def representative(self, values: Values) -> dict[str, Any]:
        """The point of the same price whose ranges stand at their middle."""
        space = self.sweep.space
        return {name: v if isinstance(space[name], Choice) else middle(space[name]) for name, v in values.items()}

    def plan(self, values: Values, rung: int, prices: Prices) -> Plan:
        """Whole steps of every stage, on the geometric grid; none where its share pays none.

        Where that is so of all, the first stage takes one.
        """
        currency = self.budgets[rung - 1].currency
        amount = values.get(SPEND, self.budgets[rung - 1].amount)
        stages = []
        for stage, like in zip(self.shares_of(values), self.shares_of(self.representative(values)), strict=True):
            price, budget = prices.of(like.phase), Budget(amount=stage.share * amount, currency=currency)
            stages.append((stage.phase, grid_floor(price.steps_within(budget))))
        if not any(steps for _, steps in stages):
            stages[0] = (stages[0][0], 1)
        return Plan(stages=tuple(stages))

    def works(self, values: Values, rung: int, seed: int, prices: Prices) -> tuple[BranchWork, ...]:
        ends = self.plan(values, rung, prices).segments(root=self.sweep.setting.root(seed), seed=seed)
        return tuple(
            BranchWork(branch=end.branch, stops=(Stop(steps=end.steps, evaluate=end == ends[-1]),)) for end in ends
        )

    def cost(self, values: Values, rung: int, prices: Prices) -> float | None:
        likes = [stage.phase for stage in self.shares_of(self.representative(values))]
        stages = self.plan(values, rung, prices).stages
        currency = self.budgets[0].currency
        return sum(prices.cost(like, steps).amount(currency) for like, (_, steps) in zip(likes, stages, strict=True))

    def stages(self, values: Values, rung: int, prices: Prices) -> str:
        return " ".join(f"{phase.name}={steps}" for phase, steps in self.plan(values, rung, prices).stages if steps)

    def label(self, work: BranchWork, rung: int) -> str:
        return f"rung{rung}_{work.branch.phase.name}_"


def neutral(space: SearchSpace) -> dict[str, Any]:
    return {name: middle(domain) for name, domain in space.items()}


def middle(domain: FloatRange | IntRange | Choice) -> Any:
    """The middle of a range (on its scale), the first of a few values."""
    if isinstance(domain, Choice):
        return domain.options[0]
    value = (domain.low * domain.high) ** 0.5 if domain.log else 0.5 * (domain.low + domain.high)
    return round(value) if isinstance(domain, IntRange) else value
