"""How many noises K does training on estimated scores need? The same training at several K, judged side by side.

    python studies/noise_count.py --target dw4 --counts 10 100 1000 --spend 3000 --own 4096
    python studies/noise_count.py --target dw4 --counts 10 100 1000 --spend 300s --own 4096 --dry-run

An estimate is biased by order 1 / K and fluctuates by order 1 / sqrt(K) (studies/score_estimator.py); a step costs K
energies and forces a row. At equal steps the comparison shows what a better estimate buys, at an equal budget
(--spend 300s) whether it is worth its price. The estimate and its training are those of Akhound-Sadegh et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.cli import conclude
from harness.launch import launch_comparison
from harness.plan_report import conclude_comparison, stage_table, write_stages
from harness.plan_run import PlanCells, PlanStudyRun
from harness.plan_study import PlanComparison, PlanStudy
from models.systems import CouplingName, system_of
from studies.energy_options import EnergyOptions, energy_question
from studies.options import given, question_for
from studies.train_plan import parse_stage


@dataclass(frozen=True, kw_only=True)
class NoiseCount(EnergyOptions):
    """How many noises K does training on estimated scores need?"""

    counts: tuple[int, ...] = (10, 100, 1000)
    """Numbers K of noises to compare."""
    spend: str | None = None
    """What iDEM may spend at each K: a number of steps, or a budget such as 300s (default: what suits the target)."""
    own: str | None = None
    """What the flow that is fitted to its samples may spend (default: what suits the target)."""
    coupling: CouplingName | None = "optimal-transport"
    """Pairing of base and data points where the flow is fitted."""
    dry_run: bool = False
    """Print what would be done and what it would cost, and stop."""

    def study(self) -> PlanComparison:
        """The study that the options ask for. Starts nothing.

        Raises:
            ValueError: for counts that are not positive or given twice.
        """
        if not self.counts or min(self.counts) < 1 or len(set(self.counts)) < len(self.counts):
            raise ValueError(
                f"numbers of noises are positive and differ, got {list(self.counts)}; write --counts 10 100 1000"
            )
        if self.dem_samples is not None:
            raise ValueError(
                f"this study compares numbers of noises, got --dem-samples {self.dem_samples}; "
                f"write --counts {self.dem_samples}"
            )
        return PlanComparison(name="noise_count", plans={f"K={count}": self.plan(count) for count in self.counts})

    def plan(self, count: int) -> PlanStudy:
        """iDEM with K noises, then the flow that is fitted to its samples."""
        system = system_of(self.target)
        phases = replace(self, dem_samples=count).energy_phases()
        spends = {"idem": self.spend, "fm_own": self.own}
        stages = [
            parse_stage(f"{phase}={given(amount, system.recipe.budget)}", phases) for phase, amount in spends.items()
        ]
        return PlanStudy(
            name="noise_count",
            question=energy_question(question_for(system), system),
            setting=self.problem_setting(),
            stages=self.chained(stages),
            judge_last=len(stages),
        )

    def execute(self) -> str:
        experiment = f"noise_count {self.target}"
        return launch_comparison(self.study(), self, experiment=experiment, conclude=report, dry_run=self.dry_run)


def report(run: PlanStudyRun, cells: PlanCells) -> str:
    """Write stages.csv; the table to print."""
    return conclude_comparison(run, cells, stage_table(run, cells), [write_stages(run, cells)])


if __name__ == "__main__":
    conclude(NoiseCount)
