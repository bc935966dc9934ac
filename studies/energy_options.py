"""Options of phases that learn from the energy alone, and of those that learn from a trained model's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.answers.question import MetricChoice, Question
from harness.plan import Optimiser, Phase
from harness.plan_study import Stage
from models.energy_recipes import BufferStart, EnergyRecipe
from models.generators import BOOTSTRAP, CONTINUOUS_FLOW, CONTROLLED, model_of
from models.objectives.denoising_energy_matching import Weighting
from models.systems import System, system_of
from studies.options import FlowOptions, given

OWN_TOLERANCE = 1e-4
"""Of dopri5, relative and absolute, where a flow draws the rows that a phase trains on."""
FROM_ENERGY = ("idem", "pdem", "pis", "dds", "fab")
CONTINUING = ("pg", "ml", "pg_own")


@dataclass(frozen=True, kw_only=True)
class EnergyOptions(FlowOptions):
    """Hyperparameters of energy-only phases; what is left out is what suits the target."""

    dem_samples: int | None = None
    """Noises K of a score's estimate in denoising energy matching (idem, pdem)."""
    dem_batch: int | None = None
    """Global batch size of denoising energy matching."""
    dem_learning_rate: float | None = None
    """Its learning rate."""
    dem_clip: float | None = None
    """Largest norm of an estimated score, of every particle or of the whole row."""
    dem_blend: float | None = None
    """Length over which the estimate goes over to its ratio form, the width of a mode (default: never)."""
    dem_noise_clip: float | None = None
    """Largest norm in units of one over the noise's width, in which exact scores are of order one (default: any)."""
    dem_weighting: Weighting | None = None
    """Weight of a noise time in its loss: one, or the variance of the noise, by which wide noise counts too."""
    dem_gradient_clip: float | None = None
    """Largest norm of its gradient."""
    dem_ema_decay: float | None = None
    """Decay of an average of its weights, which is judged and handed on."""
    noise_min: float | None = None
    """sigma_min of the geometric noise schedule."""
    noise_max: float | None = None
    """sigma_max of the geometric noise schedule."""
    score_hidden: int | None = None
    """Hidden size of score networks and controls (default: that of the field)."""
    score_layers: int | None = None
    """Layers of score networks and controls."""
    score_scaled: float | None = None
    """Width of the data, by which score networks see noised rows in units of their own width; 0 for plain networks."""
    score_pinned: float | None = None
    """Width of the noise below which score networks give way to the target's own clipped score (default: never)."""
    buffer_capacity: int | None = None
    """Most rows of idem's replay buffer."""
    buffer_start: BufferStart | None = None
    """What the buffer begins with: base noise, the reverse process of estimated scores, or the phase's data."""
    buffer_start_rows: int | None = None
    """Rows that it begins with."""
    inner_steps: int | None = None
    """Steps between two refills."""
    generated: int | None = None
    """Rows of a refill."""
    sde_steps: int | None = None
    """Steps of the reverse process that makes them."""
    noise_scale: float | None = None
    """Factor of its noise; below one, it concentrates on the modes."""
    own_samples: int = 10_000
    """Rows that fm_own and pg_own draw from the model before them."""
    fm_own_resampled: bool = False
    """Resample the rows of fm_own by importance."""
    pg_own_raw: bool = False
    """Leave the rows of pg_own as the model draws them, instead of resampling them by importance."""
    control_steps: int | None = None
    """Steps of a controlled path (pis, dds)."""
    control_score_clip: float | None = None
    """Largest norm of the target's score that pis and dds know a share of; 0 for networks that know none."""
    control_batch: int | None = None
    """Global batch size of pis and dds."""
    pis_learning_rate: float | None = None
    """Learning rate of pis."""
    pis_sigma: float | None = None
    """Width of its reference process."""
    dds_learning_rate: float | None = None
    """Learning rate of dds."""
    dds_sigma: float | None = None
    """Width of its reference process."""
    dds_rates: tuple[float, float] | None = None
    """Its noise falls linearly between these rates, the smaller one first, as published for particles (default: a
    squared cosine)."""
    fab_learning_rate: float | None = None
    """Learning rate of flow annealed bootstrap (fab)."""
    fab_batch: int | None = None
    """Its global batch size."""
    fab_bridges: int | None = None
    """Intermediate densities of the annealing that makes its rows."""
    fab_rows: int | None = None
    """Rows of a generation."""
    fab_every: int | None = None
    """Steps between two generations."""
    fab_minimum: int | None = None
    """Rows that its buffer holds before the first step."""
    fab_layers: int | None = None
    """Couplings of its flow."""

    def energy_recipe(self) -> EnergyRecipe:
        return system_of(self.target).from_energy

    def energy_phases(self) -> dict[str, Phase]:
        """Every phase that needs no data, or makes its own; those on own samples say so when they stand in a chain."""
        fm, pg, _ = self.phases().all
        phases = [self.matching(replay=True), self.matching(replay=False)]
        phases += [self.path_integral(), self.denoising_diffusion(), self.bootstrap()]
        phases += [replace(fm, name="fm_own"), replace(pg, name="pg_own")]
        return {phase.name: phase for phase in phases}

    def matching(self, *, replay: bool) -> Phase:
        """iDEM with a replay buffer, pDEM without."""
        recipe = self.energy_recipe()

        def clip_of(norm: float) -> dict[str, Any]:
            return {"norm": norm, "of": recipe.clip_of}

        objective: dict[str, Any] = {
            "kind": "denoising_energy_matching",
            "schedule": {
                "kind": "geometric",
                "sigma_min": given(self.noise_min, recipe.sigma_min),
                "sigma_max": given(self.noise_max, recipe.sigma_max),
            },
            "network": self.score_network(),
            "samples": given(self.dem_samples, recipe.samples),
            "clip": clip_of(given(self.dem_clip, recipe.clip)),
            "weighting": given(self.dem_weighting, recipe.weighting),
            **({} if recipe.variance_offset is None else {"variance_offset": recipe.variance_offset}),
            **({} if self.dem_blend is None else {"blend": {"length": self.dem_blend}}),
            **({} if self.dem_noise_clip is None else {"noise_clip": clip_of(self.dem_noise_clip)}),
            "data": {"from": "none"},
        }
        if replay:
            objective |= self.replay_settings(objective)
        optimiser = Optimiser(
            learning_rate=given(self.dem_learning_rate, recipe.learning_rate),
            gradient_clip=given(self.dem_gradient_clip, recipe.gradient_clip),
        )
        return Phase(
            name="idem" if replay else "pdem",
            objective=objective,
            optimiser=optimiser,
            batch=given(self.dem_batch, recipe.batch),
            ema_decay=self.dem_ema_decay,
        )

    def replay_settings(self, objective: dict[str, Any]) -> dict[str, Any]:
        """The buffer, the process that refills it, and what it begins with."""
        recipe, sde = self.energy_recipe(), self.reverse_process()
        start, rows = given(self.buffer_start, recipe.initial), given(self.buffer_start_rows, recipe.initial_rows)
        begins: dict[str, Any] = {"from": start, "rows": rows}
        if start == "estimate":
            begins |= {"samples": objective["samples"], "norm": objective["clip"]["norm"], "sde": sde}
        replay = {
            "capacity": given(self.buffer_capacity, recipe.capacity),
            "every": given(self.inner_steps, recipe.inner_steps),
            "rows": given(self.generated, recipe.generated),
        }
        return {"replay": replay, "sde": sde, "data": begins}

    def reverse_process(self) -> dict[str, Any]:
        recipe = self.energy_recipe()
        climb = {"steps": recipe.climb_steps, "norm": given(self.dem_clip, recipe.clip)}
        return {
            "steps": given(self.sde_steps, recipe.sde_steps),
            "noise_scale": given(self.noise_scale, recipe.noise_scale),
            **({"climb": climb} if recipe.climb_steps else {}),
        }

    def network(self) -> dict[str, Any]:
        recipe = self.energy_recipe()
        sizes = {"hidden": given(self.score_hidden, recipe.hidden), "layers": given(self.score_layers, recipe.layers)}
        scale = {"length": recipe.length} if recipe.network == "sinusoidal" else {}
        return {"kind": recipe.network, **scale, **{name: n for name, n in sizes.items() if n is not None}}

    def score_network(self) -> dict[str, Any]:
        recipe, network = self.energy_recipe(), self.network()
        if scaled := given(self.score_scaled, recipe.scaled):
            network["scaled"] = scaled
        if self.score_pinned is not None:
            clip = {"norm": given(self.dem_clip, recipe.clip), "of": recipe.clip_of}
            network["pinned"] = {"length": self.score_pinned, "clip": clip}
        return network

    def path_integral(self) -> Phase:
        recipe = self.energy_recipe()
        settings = {"kind": "path_integral", "sigma": given(self.pis_sigma, recipe.pis_sigma)}
        return self.controlled("pis", settings, given(self.pis_learning_rate, recipe.pis_learning_rate))

    def denoising_diffusion(self) -> Phase:
        recipe = self.energy_recipe()
        sigma = given(self.dds_sigma, recipe.dds_sigma)
        shape = {"largest": recipe.dds_largest} if self.dds_rates is None else {"rates": list(self.dds_rates)}
        settings = {"kind": "denoising_diffusion", "sigma": sigma, **shape}
        # What this process calls its control is a score, in units of an inverse length.
        network = {"output_scale": 1.0 / recipe.length} if recipe.length != 1.0 else {}
        return self.controlled("dds", settings, given(self.dds_learning_rate, recipe.dds_learning_rate), network)

    def score_share(self) -> dict[str, Any]:
        recipe = self.energy_recipe()
        norm = given(self.control_score_clip, recipe.control_score_clip)
        return {"score_clip": {"norm": norm, "of": recipe.clip_of}} if norm else {}

    def controlled(
        self, name: str, settings: dict[str, Any], rate: float, network: dict[str, Any] | None = None
    ) -> Phase:
        recipe = self.energy_recipe()
        objective = {
            **settings,
            "steps": given(self.control_steps, recipe.control_steps),
            "network": {**self.network(), **(network or {}), **self.score_share()},
            "data": {"from": "none"},
        }
        optimiser = Optimiser(learning_rate=rate, gradient_clip=recipe.control_gradient_clip)
        batch = given(self.control_batch, recipe.control_batch)
        return Phase(name=name, objective=objective, optimiser=optimiser, batch=batch)

    def bootstrap(self) -> Phase:
        """Flow annealed bootstrap.

        Raises:
            ValueError: where a batch is larger than the buffer that it is drawn from.
        """
        recipe = self.energy_recipe().bootstrap
        batch, minimum = given(self.fab_batch, recipe.batch), given(self.fab_minimum, recipe.minimum)
        if batch > minimum:
            raise ValueError(
                f"a batch is drawn without replacement from {minimum} rows at first, got a batch of {batch}; "
                f"write --fab-batch {minimum} or --fab-minimum {batch}"
            )
        objective = {
            "kind": BOOTSTRAP,
            "flow": {
                "prior_std": recipe.prior_std,
                "layers": given(self.fab_layers, recipe.layers),
                **{name: getattr(recipe, name) for name in ("hidden", "couplings", "bins")},
            },
            "annealing": {
                "bridges": given(self.fab_bridges, recipe.bridges),
                "leapfrog_steps": recipe.leapfrog_steps,
                "step_size": recipe.step_size,
            },
            "ratio_clip": recipe.ratio_clip,
            "replay": {
                "capacity": max(recipe.capacity, minimum),
                "minimum": minimum,
                "every": given(self.fab_every, recipe.every),
                "rows": given(self.fab_rows, recipe.rows),
            },
            "data": {"from": "none"},
        }
        rate = given(self.fab_learning_rate, recipe.learning_rate)
        optimiser = Optimiser(learning_rate=rate, gradient_clip=recipe.gradient_clip)
        return Phase(name="fab", objective=objective, optimiser=optimiser, batch=batch)

    def chained(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """The stages, each on the model and the rows that those before it leave.

        Raises:
            ValueError: where a stage would start from nothing and forget what was trained.
        """
        found: list[Stage] = []
        for stage in stages:
            before = found[-1].phase if found else None
            found.append(replace(stage, phase=self.after(before, stage.phase)))
        return tuple(found)

    def after(self, before: Phase | None, phase: Phase) -> Phase:
        """A phase as it stands behind another one (or first)."""
        model = CONTINUOUS_FLOW if before is None else model_of(before.objective)
        if phase.name in ("fm_own", "pg_own") and before is None:
            raise ValueError(
                f"{phase.name} trains on samples of the stage before it, got it as the first stage; "
                f"write for example --stages idem=2000 {phase.name}=2000"
            )
        if phase.name in CONTINUING and model["kind"] == "probability_flow":
            phase = replace(phase, objective={**phase.objective, "model": model})
        if phase.name == "fm_own" or phase.name == "pg_own":
            assert before is not None
            return replace(phase, objective={**phase.objective, "data": self.own_rows(before, phase.name)})
        if phase.objective.get("data", {}).get("from") == "data":
            phase = replace(phase, objective=self.with_warm_start(before, phase))
        elif before is not None and model_of(phase.objective) != model:
            raise ValueError(
                f"a stage goes on with the model of the stage before it, got {phase.name} after {before.name}, which "
                "trains another one and would forget it; write fm_own or pg_own, which train on its samples"
            )
        return phase

    def own_rows(self, before: Phase, name: str, rows: int | None = None) -> dict[str, Any]:
        """How rows are drawn from the model that a phase trained; a score network's by its reverse process."""
        resampled = {"fm_own": self.fm_own_resampled, "pg_own": not self.pg_own_raw}.get(name, False)
        settings: dict[str, Any] = {"from": "parent", "rows": given(rows, self.own_samples), "resampled": resampled}
        if resampled or before.objective["kind"] != "denoising_energy_matching":
            without_tolerance = before.objective["kind"] in (*CONTROLLED, BOOTSTRAP)
            return settings if without_tolerance else {**settings, "tolerance": OWN_TOLERANCE}
        return {**settings, "sde": self.reverse_process(), "schedule": before.objective["schedule"]}

    def with_warm_start(self, before: Phase | None, phase: Phase) -> dict[str, Any]:
        """An objective whose buffer begins with samples of the stage before, or with the training set."""
        objective = dict(phase.objective)
        rows = objective.pop("data")["rows"]
        return objective if before is None else {**objective, "data": self.own_rows(before, phase.name, rows)}


def energy_question(question: Question, system: System) -> Question:
    """A question that also tells what models without density are known by."""
    particles = system.target.space.particles is not None
    further = [
        MetricChoice(name="ess_q_of_16", direction="max", label="ESS_q of 16 draws"),
        MetricChoice(name="log_z", label="log Z"),
        MetricChoice(name="log_z_bound", direction="max", label="bound of log Z"),
        MetricChoice(name="mean_energy", label="energy / kT"),
        MetricChoice(name="energy_w2", label="W2 of energies / kT"),
        MetricChoice(name="tv_distances" if particles else "tv_2d", label="TV"),
        MetricChoice(name="w2", label="W2"),
        *((MetricChoice(name="w2_equivariant", label="W2 modulo symmetry"),) if particles else ()),
        MetricChoice(name="modes_covered", direction="max", label="modes"),
    ]
    return replace(question, beside=(*question.beside, *further))
