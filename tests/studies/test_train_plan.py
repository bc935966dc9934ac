"""Phases that a plan can name, and the recipes that they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.objectives.maximum_likelihood import MaximumLikelihood
from models.problem import build
from models.problem_settings import evaluation_settings, system_settings
from models.systems import dw4_system, lj13_system, lj55_system
from studies.train_plan import TrainPlan


def test_a_plan_can_name_maximum_likelihood() -> None:
    plan = TrainPlan(target="lj13", stages=("ml=10", "pg=2", "ml=5"), solver_steps=7)
    ml, pg, again = plan.study().phases
    assert (ml.name, pg.name, again) == ("ml", "pg", ml)
    assert (ml.batch, ml.optimiser.learning_rate, ml.optimiser.gradient_clip) == (64, 5e-4, None)
    grid = {"solver_steps": 7, "solver_grading": 0.1}
    assert ml.objective == {"kind": "maximum_likelihood", "divergence": "hutchinson", **grid}
    equal = TrainPlan(target="lj13", stages=("ml=10",), solver_grading=0).study().phases[0]
    assert equal.objective == {"kind": "maximum_likelihood", "divergence": "hutchinson", "solver_steps": 15}
    settings = {"system": system_settings("lj13"), "evaluation": evaluation_settings("lj13")}
    objective = build(settings, cache=Path()).objective(ml.objective)
    assert objective == MaximumLikelihood(solver_steps=7, solver_grading=0.1, divergence="hutchinson")
    other = TrainPlan(target="lj13", ml_batch=32, ml_learning_rate=1e-4, divergence="exact").named_phases()["ml"]
    assert (other.batch, other.optimiser.learning_rate, other.objective["divergence"]) == (32, 1e-4, "exact")
    from_data, without_data = ["fm", "pg", "fm_tail", "ml"], ["idem", "pdem", "pis", "dds", "fab", "fm_own", "pg_own"]
    assert list(plan.named_phases()) == from_data + without_data


def test_recipes_of_particles_differ_where_there_is_a_reason() -> None:
    dw4, lj13, lj55 = (system().recipe for system in (dw4_system, lj13_system, lj55_system))

    def different(a: Any, b: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(b).items() if vars(a)[name] != value}

    assert (dw4.ml_batch, dw4.ml_learning_rate) == (256, 5e-4)
    assert different(dw4, lj13) == {"ml_batch": 64, "solver_grading": 0.1}
    assert different(lj13, lj55) == {
        "evaluation_samples": 128,
        "pg_batch": 16,
        "pg_learning_rate": 5e-5,
        "ml_batch": 2,
    }
