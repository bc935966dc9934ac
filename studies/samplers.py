"""What do samplers that know the energy alone reach, and what does plain Monte Carlo at equal cost?

    python studies/samplers.py --target gmm40 --spend 1h --own 600s --seeds 3
    python studies/samplers.py --target dw4 --methods idem pis --spend 2000 --own 5000 --dry-run

The comparison of Akhound-Sadegh et al. 2024 (tables 2, 3, 5 and 6). Each method trains from the energy, then a flow is
fitted to its samples by optimal-transport flow matching, which gives a likelihood to all of them. Beside each stands
Hamiltonian Monte Carlo with as many energy and force evaluations, and under all of them what a second set of reference
samples of the same size shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.cli import conclude
from harness.launch import launch_comparison
from harness.plan_study import PlanComparison, PlanStudy
from models.reference.within import FEWEST_EVALUATIONS
from models.systems import CouplingName, system_of
from studies.energy_options import FROM_ENERGY, EnergyOptions, energy_question
from studies.options import given, question_for
from studies.samplers_report import report
from studies.train_plan import parse_stage


@dataclass(frozen=True, kw_only=True)
class Samplers(EnergyOptions):
    """What do samplers that know the energy alone reach, and what does plain Monte Carlo at equal cost?"""

    methods: tuple[str, ...] = FROM_ENERGY
    """Phases to compare, each of which learns from the energy alone."""
    spend: str | None = None
    """What each may spend: a budget such as 600s, or a number of steps (default: what suits the target)."""
    own: str | None = None
    """What the flow that is fitted to its samples may spend (default: what suits the target)."""
    mcmc_evaluations: int | None = None
    """Most energies and forces of Monte Carlo (default: as many as the sampler it stands beside called)."""
    coupling: CouplingName | None = "optimal-transport"
    """Pairing of base and data points where the flow is fitted."""
    transport: bool = True
    """Judge transport distances between configurations (W2) as well, which takes seconds a model."""
    dry_run: bool = False
    """Print what would be done and what it would cost, and stop."""

    def study(self) -> PlanComparison:
        """The study that the options ask for. Starts nothing.

        Raises:
            ValueError: for a method that does not learn from the energy alone or is given twice, or too few samples.
        """
        unknown = [name for name in self.methods if name not in FROM_ENERGY]
        if unknown:
            raise ValueError(
                f"a method learns from the energy alone: {', '.join(FROM_ENERGY)}, got {unknown[0]}; write one of these"
            )
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods differ, got {' '.join(self.methods)}; write each once")
        plans = {method: self.plan(method) for method in self.methods}
        asks = {} if self.mcmc_evaluations is None else {"mcmc_evaluations": self.mcmc_evaluations}
        study = PlanComparison(name="samplers", plans=plans, asks=asks)
        self.check_sizes(study.setting.problem["evaluation"]["samples"])
        return study

    def check_sizes(self, judged: int) -> None:
        """Raise ValueError where samples are fewer than are judged, or chains could not move."""
        if self.own_samples < judged:
            raise ValueError(
                f"distances compare at one number of samples, got --own-samples {self.own_samples} where {judged} are "
                f"judged; write --own-samples {judged} or more"
            )
        fewest = FEWEST_EVALUATIONS * judged
        if self.mcmc_evaluations is not None and self.mcmc_evaluations < fewest:
            raise ValueError(
                f"{judged} chains call {fewest} energies and forces at least, got --mcmc-evaluations "
                f"{self.mcmc_evaluations}; write {fewest} or more"
            )

    def plan(self, method: str) -> PlanStudy:
        """The sampler, then the flow that is fitted to its samples."""
        system, phases = system_of(self.target), self.energy_phases()
        spends = {method: self.spend, "fm_own": self.own}
        stages = [
            parse_stage(f"{phase}={given(amount, system.recipe.budget)}", phases) for phase, amount in spends.items()
        ]
        return PlanStudy(
            name="samplers",
            question=energy_question(question_for(system), system),
            setting=self.problem_setting(),
            stages=self.chained(stages),
            judge_last=len(stages),
        )

    def execute(self) -> str:
        experiment = f"samplers {self.target}"
        return launch_comparison(self.study(), self, experiment=experiment, conclude=report, dry_run=self.dry_run)


if __name__ == "__main__":
    conclude(Samplers)
