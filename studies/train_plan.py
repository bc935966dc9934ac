"""What does each stage of one plan buy? Any chain of phases, judged after each.

    python studies/train_plan.py --target dw4 --stages fm=1800s fm_tail=900s pg=1200s
    python studies/train_plan.py --target lj13 --stages ml=600s
    python studies/train_plan.py --target dw4 --stages idem=600s fm_own=600s pg_own=100

From data: fm, fm_tail (fine-tuning), ml (maximum likelihood), pg (path gradients). From the energy alone: idem and pdem
(denoising energy matching), pis and dds (controlled paths), fab (flow annealed bootstrap of a coupling flow). On
samples of the stage before: fm_own, pg_own. After idem, pg and pg_own go on with its score network, as the velocity of
its probability flow.

A stage is a phase with a budget (device-seconds or flop) or a number of steps. What is trained already is not trained
again, so a plan can be prolonged.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.budget import Budget
from harness.cli import conclude
from harness.launch import launch_plan
from harness.plan import Phase
from harness.plan_study import PlanStudy, Stage
from harness.until import Plateau
from models.systems import system_of
from studies.energy_options import FROM_ENERGY, energy_question
from studies.options import question_for
from studies.plan_options import PlanOptions

PLATEAU = "plateau:"
MOST_STEPS = 2**20
"""Of a stage that ends at a plateau."""
MOST_GIVEN_STEPS = 10**12


@dataclass(frozen=True, kw_only=True)
class TrainPlan(PlanOptions):
    """What does each stage of one plan buy? Phases: fm, fm_tail, pg, ml, idem, pdem, pis, dds, fab, fm_own, pg_own."""

    stages: tuple[str, ...] = ("fm=5s", "pg=5s")
    """Stages in order, each phase=budget, phase=steps or phase=plateau:GAIN (until an octave gains less)."""
    judge_last: int | None = None
    """Judge the models of so many of the last stages only (default: of all, and the untrained one)."""

    def study(self) -> PlanStudy:
        """The study that the options ask for. Starts nothing."""
        phases, system = self.named_phases(), system_of(self.target)
        stages = self.chained([parse_stage(text, phases) for text in self.stages])
        question = question_for(system)
        if any(stage.phase.name in FROM_ENERGY for stage in stages):
            question = energy_question(question, system)
        return PlanStudy(
            name="train_plan",
            question=question,
            setting=self.problem_setting(),
            stages=stages,
            judge_last=self.judge_last,
        )

    def execute(self) -> str:
        return launch_plan(self.study(), self, experiment=f"train_plan {self.target}")


def parse_stage(text: str, phases: dict[str, Phase]) -> Stage:
    """Read "pg=60s", "pg=100" or "fm=plateau:0.01".

    Raises:
        ValueError: for an unknown phase, or an amount that is neither a budget nor a positive number of steps.
    """
    name, _, amount = text.partition("=")
    if name not in phases:
        raise ValueError(f"a stage is one of {', '.join(phases)}, got {text!r}; write for example fm=60s")
    if not amount:
        raise ValueError(f"a stage says what it may spend, got {text!r}; write for example {name}=60s or {name}=100")
    if amount.startswith(PLATEAU):
        return Stage(phase=phases[name], spend=parse_plateau(amount))
    if not amount.isdecimal():
        return Stage(phase=phases[name], spend=Budget.parse(amount))
    if not 1 <= int(amount) <= MOST_GIVEN_STEPS:
        raise ValueError(
            f"a stage needs at least one step and takes at most {MOST_GIVEN_STEPS}, got {text!r}; "
            f"write for example {name}=100"
        )
    return Stage(phase=phases[name], spend=int(amount))


def parse_plateau(text: str) -> Plateau:
    """Read "plateau:0.01".

    Raises:
        ValueError: where what follows the colon is not a positive number.
    """
    try:
        return Plateau(gain=float(text.removeprefix(PLATEAU)), at_most=MOST_STEPS)
    except ValueError as error:
        raise ValueError(f"a plateau takes the smallest gain an octave, got {text!r}; write plateau:0.01") from error


if __name__ == "__main__":
    conclude(TrainPlan)
