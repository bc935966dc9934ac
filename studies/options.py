"""Options of every study that trains with flow matching (FM) and path gradients (PG), and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness.answers.question import MetricChoice, Question
from harness.cli import StudyOptions
from harness.plan import Optimiser, Phase
from harness.session import Setting
from harness.split import SplitPhases
from models.objectives.flow_matching import CouplingScope
from models.problem_settings import evaluation_settings, system_settings
from models.systems import AtomClasses, CouplingName, DivergenceName, System, system_of

Value = TypeVar("Value")
BUILD = "models.problem:build"
"""What makes the problem of every study, on every worker."""


@dataclass(frozen=True, kw_only=True)
class FlowOptions(StudyOptions):
    """The system, and the hyperparameters of FM and PG; what is left out is what suits the target."""

    target: str = "gmm4"
    """gmm4, gmm40, dw4, lj13, lj55, ad2-classical, ad2-xtb, or module:function for a target of your own."""
    train_samples: int | None = None
    """Rows of a training set (default: what suits the target)."""
    data: Path | None = None
    """Train on a published .npy file (rows x dim) instead of on own reference samples."""
    hidden: int | None = None
    """Hidden size of the field."""
    layers: int | None = None
    """Layers of the field."""
    atom_classes: AtomClasses = "distinct"
    """Atoms of a molecule that a field tells apart: all but hydrogens on one carbon, or elements and the backbone."""
    evaluation_samples: int | None = None
    """Points of each test set and samples of each model that is judged."""
    evaluation_data: Path | None = None
    """Test points from a published .npy file, its first rows, instead of own ones; validation points stay own ones."""
    evaluation_tolerance: float = 1e-5
    """Tolerance of dopri5 when models are judged."""
    transport: bool = False
    """Judge transport distances between configurations (W2) as well, which takes seconds a model."""
    coupling: CouplingName | None = None
    """Pairing of base and data points in FM (default: what suits the target)."""
    coupling_scope: CouplingScope = "local"
    """Rows that a pairing sees: each worker's own (local), or the whole batch whatever the workers (global)."""
    sigma: float | None = None
    """Width of FM's conditional path."""
    fm_learning_rate: float | None = None
    """Learning rate of the FM trunk."""
    fm_tail_learning_rate: float | None = None
    """Learning rate of FM's fine-tuning, the tail that PG has to beat at equal cost."""
    fm_batch: int | None = None
    """Global batch size of FM, shared by the workers."""
    pg_learning_rate: float | None = None
    """Learning rate of PG."""
    pg_batch: int | None = None
    """Global batch size of PG."""
    pg_gradient_clip: float | None = None
    """Largest norm of PG's gradient."""
    divergence: DivergenceName | None = None
    """Divergence in PG (and ML): exact, or Hutchinson's unbiased estimate."""
    solver_steps: int | None = None
    """Runge-Kutta steps of PG, each way (and of ML)."""
    solver_grading: float | None = None
    """Width that these steps are graded by: they shrink towards the data down to it. 0 for equal steps."""

    def problem_setting(self) -> Setting:
        """The problem of these options and how its trials run."""
        problem: dict[str, Any] = {
            "system": system_settings(
                self.target,
                train_samples=self.train_samples,
                data=self.data,
                hidden=self.hidden,
                layers=self.layers,
                atom_classes=self.atom_classes,
            ),
            "evaluation": evaluation_settings(
                self.target,
                samples=self.evaluation_samples,
                tolerance=self.evaluation_tolerance,
                data=self.evaluation_data,
                transport=self.transport,
            ),
        }
        return self.setting(build=BUILD, problem=problem)

    def solver_settings(self) -> dict[str, Any]:
        """The grid of PG and ML; equal steps go without saying."""
        recipe = system_of(self.target).recipe
        grading = given(self.solver_grading, recipe.solver_grading)
        steps = {"solver_steps": given(self.solver_steps, recipe.solver_steps)}
        return {**steps, "solver_grading": grading} if grading else steps

    def phases(self) -> SplitPhases:
        """FM trunk, PG tail, and FM tail at its fine-tuning rate."""
        recipe = system_of(self.target).recipe
        fm = {
            "kind": "flow_matching",
            "coupling": given(self.coupling, recipe.coupling),
            "sigma": given(self.sigma, recipe.sigma),
            **({} if self.coupling_scope == "local" else {"scope": self.coupling_scope}),
        }
        pg = {
            "kind": "path_gradient",
            "kl": "forward",
            "divergence": given(self.divergence, recipe.pg_divergence),
            **self.solver_settings(),
        }
        fm_batch = given(self.fm_batch, recipe.fm_batch)
        fm_rate = given(self.fm_learning_rate, recipe.fm_learning_rate)
        tail_rate = given(self.fm_tail_learning_rate, recipe.fm_tail_learning_rate)
        pg_optimiser = Optimiser(
            learning_rate=given(self.pg_learning_rate, recipe.pg_learning_rate),
            gradient_clip=given(self.pg_gradient_clip, recipe.pg_gradient_clip),
        )
        return SplitPhases(
            trunk=Phase(name="fm", objective=fm, optimiser=Optimiser(learning_rate=fm_rate), batch=fm_batch),
            second=Phase(name="pg", objective=pg, optimiser=pg_optimiser, batch=given(self.pg_batch, recipe.pg_batch)),
            refinement=Phase(
                name="fm_tail", objective=fm, optimiser=Optimiser(learning_rate=tail_rate), batch=fm_batch
            ),
        )


def question_for(system: System) -> Question:
    """Forward KL decides where log Z is known, the negative log-likelihood elsewhere: they differ by a constant."""
    nll = MetricChoice(name="nll", label="NLL / nats")
    kl = MetricChoice(name="forward_kl", log=True, label="forward KL / nats")
    known = system.target.log_z is not None
    return Question(
        first="fm",
        second="pg",
        refinement="fm_tail",
        metric=kl if known else nll,
        beside=(
            *((nll,) if known else ()),
            MetricChoice(name="ess_q", direction="max", label="ESS_q"),
            MetricChoice(name="ess_p", direction="max", label="ESS_p"),
            MetricChoice(name="path_length", label="trajectory length"),
            MetricChoice(name="fm_loss", label="FM loss"),
        ),
        quality="nll",
    )


def given(value: Value | None, default: Value) -> Value:
    """What was asked for, or else what suits the target."""
    return default if value is None else value
