"""Which noise schedule suits denoising energy matching? A search over schedules and settings, hopeless trials pruned.

    python studies/noise_schedule.py --target gmm4 --trials 30
    python studies/noise_schedule.py --target lj13 --trials 60 --first-rung 1000 --metric energy_w2

Family of the schedule, its noise, K, clip and learning rate of iDEM (Akhound-Sadegh et al. 2024) are proposed by
Optuna; a trial is judged on rungs of training steps, and those that lag end there. The same command resumes; a larger
--trials prolongs. A setting that is given (--noise-max 3) is no longer searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from harness.answers.question import MetricChoice
from harness.cli import conclude
from harness.contracts import Choice, FloatRange, IntRange, Ladder, PrunerName
from harness.launch import launch_sweep
from harness.plan import Phase
from harness.sweep import Sweep
from harness.sweep_points import OnePhase
from models.estimators import Estimate
from models.systems import System, system_of
from studies.energy_options import EnergyOptions
from studies.options import question_for

Family = Literal["geometric", "linear", "quadratic", "power", "cosine"]
Metric = Literal["forward_kl", "nll", "energy_w2", "log_z_error", "ess_q"]
LOG_Z_ERROR = "log_z_error"
LABELS: dict[str, str] = {
    "forward_kl": "forward KL / nats",
    "nll": "NLL / nats",
    "energy_w2": "W2 of energies / kT",
    "log_z": "|error of log Z|",
    "ess_q": "ESS_q",
}
ACTS = {"noise_min": "geometric", "exponent": "power", "data_scale": "cosine"}
"""Settings that act in one family only."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule(EnergyOptions):
    """Which noise schedule suits denoising energy matching (iDEM)?"""

    seeds: str = "1"
    """How many seeds each point is trained with, or a list; their mean loss counts."""
    evaluation_samples: int | None = 512
    """Points of each test set and samples of each model that is judged: few, for many models are."""
    evaluation_tolerance: float = 1e-3
    """Tolerance of dopri5 when models are judged."""
    trials: int = 30
    """Points proposed in all."""
    metric: Metric | None = None
    """What is minimised (default: forward KL where log Z is known, else NLL); ess_q is maximised."""
    families: tuple[Family, ...] = get_args(Family)
    """Families of schedules."""
    noise_min_range: tuple[float, float] | None = None
    """sigma_min of the geometric schedule (default: the target's / 10 to * 10)."""
    noise_max_range: tuple[float, float] | None = None
    """Width of the largest noise (default: the target's / 3 to * 3)."""
    exponent_range: tuple[float, float] = (1.0, 6.0)
    """Exponent of the power schedule."""
    samples_range: tuple[int, int] | None = None
    """K (default: the target's / 10 to * 2)."""
    clip_range: tuple[float, float] | None = None
    """Largest norm of an estimated score (default: the target's / 5 to * 5)."""
    learning_rate_range: tuple[float, float] | None = None
    """Learning rate (default: the target's / 5 to * 5)."""
    first_rung: int = 200
    """Steps after which a trial is first judged."""
    factor: int = 3
    """Steps of a rung over those of the one before; about one trial in so many goes on."""
    rungs: int = 3
    """Rungs: the last one is where a trial ends."""
    pruner: PrunerName = "successive_halving"
    """Rule that ends hopeless trials early."""
    startup: int = 10
    """Random points to begin with."""
    resamples: int = 50
    """Resamples for the intervals of importance."""

    def sweep(self) -> Sweep:
        """The sweep that the options ask for. Starts nothing."""
        self.check()
        system, space = system_of(self.target), self.space()
        question = question_for(system)
        metric = self.metric_of(system)
        return Sweep(
            name="noise_schedule",
            question=replace(question, metric=metric, beside=()),
            setting=self.problem_setting(),
            base=self.matching(replay=True),
            space=space,
            ladder=Ladder(first=self.first_rung, factor=self.factor, rungs=self.rungs),
            trials=self.trials,
            pruner=self.pruner,
            startup=self.startup,
            acts={name: ("family", family) for name, family in ACTS.items() if name in space},
            asks={"fixed": self.fixed(), "families": list(self.families)},
        )

    def check(self) -> None:
        """Raise ValueError for options that cannot be searched."""
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(
                f"families differ, and there is one at least, got {list(self.families)}; write --families geometric"
            )
        if self.resamples < 2:
            raise ValueError(f"intervals need two resamples or more, got {self.resamples}; write --resamples 50")
        for name in ("noise_min", "noise_max", "exponent", "samples", "clip", "learning_rate"):
            low, high = self.range_of(name)
            if not 0 < low <= high < math.inf:
                option = f"--{name.replace('_', '-')}-range"
                raise ValueError(f"a range runs from low to high above 0, got {low} {high}; write {option} LOW HIGH")
        if self.exponent_range[0] < 1:
            raise ValueError(
                f"exponents of power schedules start at 1, got {self.exponent_range[0]}; write --exponent-range 1 6"
            )
        least = self.range_of("noise_max")[0] if self.noise_max is None else self.noise_max
        most = self.range_of("noise_min")[1] if self.noise_min is None else self.noise_min
        if "geometric" in self.families and not most < least:
            raise ValueError(
                f"every sigma_min must lie below every sigma_max, got {most:g} and {least:g}; "
                "write a lower --noise-min-range, or a higher --noise-max-range"
            )

    def range_of(self, name: str) -> tuple[float, float]:
        """What was given, or an interval around what suits the target."""
        asked = getattr(self, f"{name}_range")
        if asked is not None:
            return (asked[0], asked[1])
        recipe = self.energy_recipe()
        largest = recipe.sigma_max / 3
        return {
            "noise_min": (recipe.sigma_min / 10, min(10 * recipe.sigma_min, 0.5 * largest)),
            "noise_max": (largest, 3 * recipe.sigma_max),
            "samples": (max(1, recipe.samples // 10), 2 * recipe.samples),
            "clip": (recipe.clip / 5, 5 * recipe.clip),
            "learning_rate": (recipe.learning_rate / 5, 5 * recipe.learning_rate),
        }[name]

    def fixed(self) -> dict[str, Any]:
        """Settings that were given, and are not searched."""
        given = {
            "noise_min": self.noise_min,
            "noise_max": self.noise_max,
            "samples": self.dem_samples,
            "clip": self.dem_clip,
            "learning_rate": self.dem_learning_rate,
        }
        return {name: value for name, value in given.items() if value is not None}

    def space(self) -> dict[str, FloatRange | IntRange | Choice]:
        """What is searched, by name; what acts in one family only is there where the family is."""
        largest = self.range_of("noise_max")[1] if self.noise_max is None else self.noise_max
        k_low, k_high = self.range_of("samples")
        found: dict[str, FloatRange | IntRange | Choice] = {
            "family": Choice(options=self.families),
            "noise_min": self.interval("noise_min"),
            "noise_max": self.interval("noise_max"),
            "exponent": FloatRange(low=self.exponent_range[0], high=self.exponent_range[1]),
            "data_scale": FloatRange(low=largest / 30, high=largest, log=True),
            "samples": IntRange(low=round(k_low), high=round(k_high), log=True),
            "clip": self.interval("clip"),
            "learning_rate": self.interval("learning_rate"),
        }
        absent = [name for name, family in ACTS.items() if family not in self.families]
        alone = ["family"] if len(self.families) == 1 else []
        return {name: domain for name, domain in found.items() if name not in (*self.fixed(), *absent, *alone)}

    def interval(self, name: str) -> FloatRange:
        low, high = self.range_of(name)
        return FloatRange(low=low, high=high, log=True)

    def phase_of(self, values: Mapping[str, Any]) -> Phase:
        """iDEM with the settings of a point."""
        held = {"family": self.families[0], **self.fixed(), **values}
        options = replace(
            self, dem_samples=held["samples"], dem_clip=held["clip"], dem_learning_rate=held["learning_rate"]
        )
        phase = options.matching(replay=True)
        return replace(phase, objective={**phase.objective, "schedule": schedule_settings(held)})

    def metric_of(self, system: System) -> MetricChoice:
        """What is minimised, on a plain scale: pruning, the sampler and importance go by ranks."""
        known = system.target.log_z is not None
        name: str = self.metric or ("forward_kl" if known else "nll")
        if name in (LOG_Z_ERROR, "forward_kl") and not known:
            raise ValueError(f"{name} needs a target whose log Z is known, got {self.target}; write --metric nll")
        name = "log_z" if name == LOG_Z_ERROR else name
        return MetricChoice(name=name, direction="max" if name == "ess_q" else "min", label=LABELS[name])

    def loss(self) -> Callable[[Mapping[str, Estimate]], float]:
        """From estimates to what is minimised."""
        system = system_of(self.target)
        metric, log_z = self.metric_of(system), system.target.log_z
        if metric.name == "log_z":
            assert log_z is not None
            return lambda estimates: abs(estimates["log_z"].value - log_z)
        return lambda estimates: metric.loss(estimates[metric.name].value)

    def execute(self) -> str:
        sweep = self.sweep()
        return launch_sweep(
            sweep,
            self,
            meaning=OnePhase(sweep=sweep, phase_of=self.phase_of),
            loss=self.loss(),
            experiment=f"noise_schedule {self.target}",
            resamples=self.resamples,
        )


def schedule_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule of a point; `noise_max` is the width of the noise at noise time one in every family."""
    family, width = values["family"], values["noise_max"]
    if family == "geometric":
        return {"kind": family, "sigma_min": values["noise_min"], "sigma_max": width}
    own = {"power": {"exponent": "exponent"}, "cosine": {"scale": "data_scale"}}.get(family, {})
    return {"kind": family, "total_variance": width**2, **{key: values[name] for key, name in own.items()}}


if __name__ == "__main__":
    conclude(NoiseSchedule)
