"""PlanStudy: one plan of any number of stages, trained to its end and judged after every stage.

PlanComparison: several of them side by side. harness/plan_run.py runs either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.answers.question import Question
from harness.budget import Budget
from harness.identity import Settings, content_hash, plain
from harness.plan import Phase, grid_floor
from harness.session import Setting
from harness.split import Prices
from harness.trial import Event
from harness.until import Plateau


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase with what ends it: a budget, a number of steps, or a rule over its own events."""

    phase: Phase
    spend: Budget | int | Plateau

    def steps(self, prices: Prices, events: Sequence[Event]) -> int:
        """Whole steps on the geometric grid for a budget, the number itself where steps were given, a rule's end.

        Args:
            events: of the branch so far, for a rule to read.

        Raises:
            ValueError: where the budget does not pay one step.
        """
        if isinstance(self.spend, int):
            return self.spend
        if isinstance(self.spend, Plateau):
            return self.spend.end(events)
        steps = grid_floor(prices.of(self.phase).steps_within(self.spend))
        if steps < 1:
            price = prices.cost(self.phase, 1).amount(self.spend.currency)
            raise ValueError(
                f"a stage must pay one step at least, got {self.spend} for {self.phase.name} at {price:.3g} a step; "
                "write a larger budget"
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class PlanStudy:
    """Everything that training one plan means. Making one starts nothing.

    Args:
        judge_last: how many of the last stages are judged; None for all, and the untrained model before them.
    """

    name: str
    question: Question
    setting: Setting
    stages: tuple[Stage, ...]
    judge_last: int | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a plan needs at least one stage, got none; write for example --stages fm=60s pg=60s")
        if self.judge_last is not None and not 1 <= self.judge_last <= len(self.stages):
            raise ValueError(
                f"of {len(self.stages)} stages the last 1 to {len(self.stages)} are judged, got {self.judge_last}; "
                "write --judge-last 1, or leave it out for all"
            )

    @property
    def id(self) -> str:
        value = plain(self)
        value["setting"] = self.setting.identity
        if self.judge_last is None:
            del value["judge_last"]
        return content_hash(value)

    @property
    def first_judged(self) -> int:
        """The number of the first stage that is judged, counted from 1; 0 is the untrained model."""
        return 0 if self.judge_last is None else len(self.stages) - self.judge_last + 1

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(stage.phase for stage in self.stages)

    @property
    def plans(self) -> Mapping[str, PlanStudy]:
        """Itself, without a name: a comparison of one."""
        return {"": self}


@dataclass(frozen=True, kw_only=True)
class PlanComparison:
    """Several plans of one system side by side. Making one starts nothing.

    Args:
        plans: by the name that reports use. They share question and setting, and their first phases differ, so that no
            plan trains what another one is training.
        asks: further settings of the question that tell one study from another.
    """

    name: str
    plans: Mapping[str, PlanStudy]
    asks: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.plans:
            raise ValueError("a comparison needs at least one plan, got none; write one or more")
        first = next(iter(self.plans.values()))
        if any(plan.setting != first.setting or plan.question != first.question for plan in self.plans.values()):
            raise ValueError("plans are compared in one setting by one question, got several; write the same for all")
        if len({plan.phases[0].fingerprint for plan in self.plans.values()}) < len(self.plans):
            raise ValueError(
                f"compared plans must differ in their first phase, got some alike among {', '.join(self.plans)}; "
                "write each once"
            )

    @property
    def id(self) -> str:
        plans = {name: plan.id for name, plan in self.plans.items()}
        return content_hash({"name": self.name, "plans": plans, "asks": self.asks})

    @property
    def question(self) -> Question:
        return next(iter(self.plans.values())).question

    @property
    def setting(self) -> Setting:
        return next(iter(self.plans.values())).setting

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(phase for plan in self.plans.values() for phase in plan.phases)
