"""How many solver steps does a flow need, on which grid, and does a straighter one need fewer?

    python studies/integration_error.py --target dw4 --fm 1800s --fm-tail 900s

The question of Klein et al. 2023 (figures 2f and 6c), for flows of several couplings and for grids whose steps shrink
towards the data: errors against an adaptive reference in positions and log densities, field evaluations at equal error,
and the error of the path gradient (PG) at its number of steps. Flows of trajectory_length.py are found in the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.cli import conclude
from harness.launch import launch_comparison
from harness.plan_study import PlanComparison
from models.accuracy import check_steps
from models.flows.solvers import Dopri5, RungeKutta4
from models.systems import system_of
from studies.accuracy_report import report
from studies.coupling_plans import FOR_PARTICLES, PLAIN, CouplingOptions

STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60)


@dataclass(frozen=True, kw_only=True)
class IntegrationError(CouplingOptions):
    """How many solver steps does a flow of each coupling need? The last stage of each plan is measured."""

    pg: str | None = None
    """What PG may spend after FM (default: it is left out)."""
    steps: tuple[int, ...] = STEPS
    """Steps of the fixed-step method, rising."""
    error_samples: int = 256
    """Samples that errors are measured on, each way."""
    gradings: tuple[float, ...] | None = None
    """Widths that grids are graded by; 0 is for equal steps (default: those, and the grid that suits the target)."""
    reference_tolerance: float = 1e-7
    """Tolerance of the adaptive reference."""
    gradient_reference_steps: int = 60
    """Steps of the path gradient that those with fewer are compared with, on the last grid."""
    gradient_batches: int = 4
    """Batches, of PG's size, that path gradients are compared on."""

    def study(self) -> PlanComparison:
        """The study that the options ask for. Starts nothing.

        Raises:
            ValueError: where steps do not rise, a grid or the tolerance is none, or there are too few rows for what is
                measured.
        """
        check_steps(self.steps)
        gradings = self.graded()
        Dopri5(rtol=self.reference_tolerance, atol=self.reference_tolerance)
        pg, problem = self.phases().second, self.problem_setting().problem
        points, rows = problem["evaluation"]["samples"], problem["system"]["train_samples"]
        if not 2 <= self.error_samples <= points:
            raise ValueError(
                f"errors are measured on 2 to {points} samples, those of the evaluation, got {self.error_samples}; "
                "write --error-samples 256, or more --evaluation-samples"
            )
        if not 1 <= self.gradient_batches <= rows // pg.batch:
            raise ValueError(
                f"gradients take 1 to {rows // pg.batch} batches of {pg.batch} rows from {rows} of training, got "
                f"{self.gradient_batches}; write --gradient-batches 1, or more --train-samples"
            )
        asks = {
            "steps": self.steps,
            "gradings": gradings,
            "samples": self.error_samples,
            "tolerance": self.reference_tolerance,
            "gradient_reference_steps": self.gradient_reference_steps,
            "gradient_batches": self.gradient_batches,
            "gradient_batch": pg.batch,
            "divergence": pg.objective["divergence"],
        }
        suitable = PLAIN if system_of(self.target).target.space.particles is None else FOR_PARTICLES[1:]
        return self.comparison(name="integration_error", default=suitable, pg=self.pg, asks=asks)

    def graded(self) -> tuple[float, ...]:
        """The grids that are compared, each once.

        Raises:
            ValueError: where there is none, one twice, or one with a negative width.
        """
        suits = system_of(self.target).recipe.solver_grading
        gradings = self.gradings
        if gradings is None:
            gradings = (0.0,) if suits is None else (0.0, suits)
        if not gradings or len(set(gradings)) < len(gradings):
            raise ValueError(f"grids differ, and there is one at least, got {list(gradings)}; write --gradings 0 0.1")
        for grading in gradings:
            RungeKutta4(steps=1, grading=grading or None)
        return gradings

    def execute(self) -> str:
        experiment = f"integration_error {self.target}"
        return launch_comparison(self.study(), self, experiment=experiment, conclude=report, dry_run=self.dry_run)


if __name__ == "__main__":
    conclude(IntegrationError)
