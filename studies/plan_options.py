"""Options of every phase that a plan can name."""

from __future__ import annotations

from dataclasses import dataclass

from harness.plan import Optimiser, Phase
from models.systems import system_of
from studies.energy_options import EnergyOptions
from studies.options import given


@dataclass(frozen=True, kw_only=True)
class PlanOptions(EnergyOptions):
    """Hyperparameters of phases that learn from data, from the energy, and from a model's own samples."""

    ml_learning_rate: float | None = None
    """Learning rate of maximum likelihood (ML)."""
    ml_batch: int | None = None
    """Global batch size of ML; its memory grows with the solver's steps, see --memory-cap-gib."""

    def likelihood_phase(self) -> Phase:
        """ML, in the divergence and the solver steps of PG."""
        recipe = system_of(self.target).recipe
        objective = {
            "kind": "maximum_likelihood",
            "divergence": given(self.divergence, recipe.pg_divergence),
            **self.solver_settings(),
        }
        rate = given(self.ml_learning_rate, recipe.ml_learning_rate)
        batch = given(self.ml_batch, recipe.ml_batch)
        return Phase(name="ml", objective=objective, optimiser=Optimiser(learning_rate=rate), batch=batch)

    def named_phases(self) -> dict[str, Phase]:
        """Every phase that a stage of a plan can name."""
        from_data = {phase.name: phase for phase in (*self.phases().all, self.likelihood_phase())}
        return {**from_data, **self.energy_phases()}
