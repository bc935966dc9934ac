"""How much flow matching, how much path gradient? The best split of a compute budget, at every budget.

    python studies/budget_split.py --target gmm4

Question and plan are those of Vaitl and Klein 2025 (Path Gradients after Flow Matching); every setting is a flag.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.cli import BudgetOptions, conclude
from harness.launch import launch_split
from harness.study import Study
from models.systems import system_of
from studies.options import FlowOptions, question_for


@dataclass(frozen=True, kw_only=True)
class BudgetSplit(FlowOptions, BudgetOptions):
    """How much flow matching (FM), how much path gradient (PG)? The best split of a compute budget, at every budget."""

    def study(self) -> Study:
        """The study that the options ask for. Starts nothing."""
        system = system_of(self.target)
        return self.split_study(
            name="budget_split",
            question=question_for(system),
            setting=self.problem_setting(),
            phases=self.phases(),
            budget=system.recipe.budget,
        )

    def execute(self) -> str:
        return launch_split(self.study(), self, experiment=f"budget_split {self.target}")


if __name__ == "__main__":
    conclude(BudgetSplit)
