"""Options of studies that compare couplings of flow matching (FM): one plan for each, the same in all else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.plan_study import PlanComparison, PlanStudy
from models.systems import CouplingName, system_of
from studies.options import FlowOptions, given, question_for
from studies.train_plan import parse_stage

PLAIN: tuple[CouplingName, ...] = ("independent", "optimal-transport")
FOR_PARTICLES: tuple[CouplingName, ...] = (*PLAIN, "equivariant-optimal-transport")


@dataclass(frozen=True, kw_only=True)
class CouplingOptions(FlowOptions):
    """The couplings, and what FM may spend on each."""

    couplings: tuple[CouplingName, ...] = ()
    """Couplings of FM to compare (default: all that suit the target)."""
    fm: str | None = None
    """What FM may spend: a budget (1800s), a number of steps, or plateau:GAIN (default: what suits the target)."""
    fm_tail: str | None = None
    """What FM at its fine-tuning rate may spend after that (default: it is left out)."""
    judge_last: int | None = None
    """Judge the models of so many of the last stages only (default: of all, and the untrained one)."""
    dry_run: bool = False
    """Print what would be done and what it would cost, and stop."""

    def comparison(
        self, *, name: str, default: tuple[CouplingName, ...], pg: str | None, asks: Mapping[str, Any]
    ) -> PlanComparison:
        """A plan for every coupling. Starts nothing.

        Args:
            default: the couplings where none are given. pg: what PG may spend, or None where it is left out.
            asks: further settings of the question.

        Raises:
            ValueError: for a coupling given by the option of studies that train with one, or given twice.
        """
        couplings = self.couplings or default
        if self.coupling is not None:
            raise ValueError(
                f"this study compares couplings, got --coupling {self.coupling}; write --couplings {self.coupling}"
            )
        if len(set(couplings)) < len(couplings):
            raise ValueError(f"couplings differ, got {' '.join(couplings)}; write each once")
        spends = {"fm": given(self.fm, system_of(self.target).recipe.budget), "fm_tail": self.fm_tail, "pg": pg}
        stages = [f"{phase}={amount}" for phase, amount in spends.items() if amount is not None]
        plans: dict[str, PlanStudy] = {
            coupling: replace(self, coupling=coupling)._plan(name, stages) for coupling in couplings
        }
        return PlanComparison(name=name, plans=plans, asks=asks)

    def _plan(self, name: str, stages: list[str]) -> PlanStudy:
        phases = {phase.name: phase for phase in self.phases().all}
        return PlanStudy(
            name=name,
            question=question_for(system_of(self.target)),
            setting=self.problem_setting(),
            stages=tuple(parse_stage(text, phases) for text in stages),
            judge_last=self.judge_last,
        )
