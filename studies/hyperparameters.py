"""Which settings suit a plan? Rates, batches, couplings, noise, solver steps and the split, searched jointly.

    python studies/hyperparameters.py --target gmm4 --plans fm,fm_tail fm,pg --budget 20s --trials 40
    python studies/hyperparameters.py --target dw4 --plans idem,fm_own --budget 30min --warm results/hyperparameters/ID

A point is a plan with settings of its phases and shares of a budget; settings of a phase are drawn only where the plan
has it. Rungs are budgets, each --factor times the one before, and points that lag end there (successive halving). The
first stage goes on from rung to rung, later ones fork anew, as they would if that were all of the budget. The best few
are trained again with fresh seeds, and what they shrink by is told: the best of many looks better than it is. Loss
against cost over all rungs gives a Pareto front. --objectives loss,cost searches for that instead: every point has
a budget of its own, none is pruned, and points of the front are trained again. The same command resumes; a larger
--trials prolongs. A setting that is given (--pg-batch 64) is no longer searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.budget import Budget
from harness.cli import conclude, parse_seeds
from harness.contracts import Choice, FloatRange, IntRange, Ladder, PrunerName
from harness.launch import launch_sweep
from harness.plan_study import Stage
from harness.sweep import Sweep
from harness.sweep_again import Again
from harness.sweep_points import SPEND, PlanPoints, Share
from models.estimators import Estimate
from models.systems import system_of
from studies.options import given, question_for
from studies.plan_options import PlanOptions

Domain = FloatRange | IntRange | Choice
PLAN = "plan"
SPLITS = ("split", "second_split", "third_split")
"""Of two, three and four stages: the share of each but the last of what those before it leave."""
WITHOUT_DENSITY = ("pis", "dds")
BATCH_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class HyperParameters(PlanOptions):
    """Which settings suit a plan?"""

    seeds: str = "1"
    """How many seeds each point is trained with, or a list; their mean loss counts."""
    evaluation_samples: int | None = 512
    """Points of each test set and samples of each model that is judged: few, for many models are."""
    evaluation_tolerance: float = 1e-3
    """Tolerance of dopri5 when models are judged."""
    plans: tuple[str, ...] = ("fm,fm_tail", "fm,pg")
    """Plans that points choose from, each its phases in order with commas between them."""
    budget: str | None = None
    """What a point may spend on the last rung: 60s, 2h or 3e13flop (default: what suits the target)."""
    trials: int = 30
    """Points proposed in all."""
    rate_factor: float = 5.0
    """Learning rates, noises and clips are searched from what suits the target / this to * this."""
    split_range: tuple[float, float] = (0.05, 0.95)
    """Share of what is left that a stage before the last one spends."""
    factor: int = 3
    """Budget of a rung over that of the one before; about one point in so many goes on."""
    rungs: int = 3
    """Rungs: the last one is where a point ends."""
    pruner: PrunerName = "successive_halving"
    """Rule that ends hopeless points early."""
    objectives: Literal["loss", "loss,cost"] = "loss"
    """loss: at --budget, on rungs. loss,cost: the front of both, every point judged once at a budget of its own, from
    that of the first rung to --budget; nothing is pruned."""
    startup: int = 10
    """Random points to begin with."""
    warm: Path | None = None
    """Folder of an earlier sweep: this one begins with the settings of its best points."""
    warm_points: int = 5
    """How many of them."""
    again: int = 3
    """Best points that are trained again with fresh seeds; 0 for none."""
    again_seeds: str = "1001,1002,1003"
    """These seeds."""
    resamples: int = 50
    """Resamples for the intervals of importance."""

    def sweep(self) -> Sweep:
        """The sweep that the options ask for. Starts nothing."""
        self.check()
        space, question = self.space(), question_for(system_of(self.target))
        acts = {name: (PLAN, plans) for name, plans in self.homes().items() if name in space}
        budgets = self.rung_budgets()
        front = self.objectives == "loss,cost"
        return Sweep(
            name="hyperparameters",
            question=replace(question, metric=replace(question.metric, log=False), beside=()),
            setting=self.problem_setting(),
            base=None,
            space=space,
            ladder=Ladder(first=1, factor=self.factor, rungs=1 if front else self.rungs),
            trials=self.trials,
            pruner="none" if front else self.pruner,
            startup=self.startup,
            acts=acts if PLAN in space else {},
            asks={"plans": list(self.plans), "phases": self.fixed_phases(), "budget": str(budgets[-1])},
            conditional=PLAN in space,
            first=self.warm_start(space),
            rung_names=("its own budget",) if front else tuple(str(budget) for budget in budgets),
            objectives=tuple(self.objectives.split(",")),
        )

    def check(self) -> None:
        """Raise ValueError for options that cannot be searched."""
        known = self.named_phases()
        if not self.plans or len(set(self.plans)) < len(self.plans):
            raise ValueError(f"plans differ, and there is one at least, got {list(self.plans)}; write --plans fm,pg")
        for plan in self.plans:
            wrong = [name for name in plan.split(",") if name not in known]
            if wrong or len(plan.split(",")) > len(SPLITS) + 1:
                raise ValueError(
                    f"a plan is one to {len(SPLITS) + 1} of {', '.join(known)}, with commas between them, "
                    f"got {plan!r}; write for example --plans fm,pg"
                )
            if plan.split(",")[-1] in WITHOUT_DENSITY:
                raise ValueError(
                    f"models are compared by their density, which {plan.split(',')[-1]} has none of, got {plan!r}; "
                    f"write for example --plans {plan},fm_own"
                )
            self.shares(plan, {})
        low, high = self.split_range
        if not 0 < low <= high < 1:
            raise ValueError(f"a split lies between 0 and 1, got {low} {high}; write --split-range 0.05 0.95")
        if not 1 < self.rate_factor < math.inf:
            raise ValueError(f"a range is wider than a point, got --rate-factor {self.rate_factor}; write 5")
        if self.objectives != "loss" and (self.pruner not in ("successive_halving", "none") or self.rungs < 2):
            raise ValueError(
                "a search of loss and cost prunes nothing and has budgets from the first to the last rung, got "
                f"--pruner {self.pruner} --rungs {self.rungs}; leave both out, or write --objectives loss"
            )
        if self.warm_points < 1:
            raise ValueError(f"a warm start takes one point or more, got {self.warm_points}; write --warm-points 5")
        if self.resamples < 2:
            raise ValueError(f"intervals need two resamples or more, got {self.resamples}; write --resamples 50")

    def rung_budgets(self) -> tuple[Budget, ...]:
        """Of every rung, the last one being all."""
        whole = Budget.parse(given(self.budget, system_of(self.target).recipe.budget))
        return tuple(
            Budget(amount=whole.amount / self.factor**k, currency=whole.currency) for k in reversed(range(self.rungs))
        )

    def homes(self) -> dict[str, tuple[str, ...]]:
        """By setting, the plans that it acts in."""
        names = {name: phases for phases, settings in self.settings().items() for name in settings}
        found = {
            name: tuple(plan for plan in self.plans if set(phases) & set(plan.split(",")))
            for name, phases in names.items()
        }
        for k, split in enumerate(SPLITS):
            found[split] = tuple(plan for plan in self.plans if len(plan.split(",")) > k + 1)
        return {**found, SPEND: self.plans}

    def settings(self) -> dict[tuple[str, ...], dict[str, Domain]]:
        """What can be searched of phases, by option. Prices depend on choices alone, never on ranges."""
        recipe, energy = system_of(self.target).recipe, self.energy_recipe()
        particles = system_of(self.target).target.space.particles is not None
        couplings = ("optimal-transport", *(("equivariant-optimal-transport",) if particles else ("independent",)))
        return {
            ("fm", "fm_own"): {"fm_learning_rate": self.around(recipe.fm_learning_rate)},
            ("fm_tail",): {"fm_tail_learning_rate": self.around(recipe.fm_tail_learning_rate)},
            ("fm", "fm_tail", "fm_own"): {
                "fm_batch": batches(recipe.fm_batch),
                "coupling": Choice(options=tuple(dict.fromkeys([recipe.coupling, *couplings]))),
            },
            ("pg", "pg_own"): {
                "pg_learning_rate": self.around(recipe.pg_learning_rate),
                "pg_batch": batches(recipe.pg_batch),
            },
            ("ml",): {"ml_learning_rate": self.around(recipe.ml_learning_rate), "ml_batch": batches(recipe.ml_batch)},
            ("pg", "pg_own", "ml"): {"solver_steps": batches(recipe.solver_steps)},
            ("idem", "pdem"): {
                "dem_learning_rate": self.around(energy.learning_rate),
                "noise_min": self.around(energy.sigma_min, at_most=0.5 * energy.sigma_max / self.rate_factor),
                "noise_max": self.around(energy.sigma_max),
                "dem_samples": batches(energy.samples),
                "dem_clip": self.around(energy.clip),
            },
            ("pis",): {"pis_learning_rate": self.around(energy.pis_learning_rate)},
            ("dds",): {"dds_learning_rate": self.around(energy.dds_learning_rate)},
            ("fab",): {"fab_learning_rate": self.around(energy.bootstrap.learning_rate)},
        }

    def around(self, value: float, *, at_most: float = math.inf) -> FloatRange:
        """Log-uniform around a value."""
        high = min(value * self.rate_factor, at_most)
        return FloatRange(low=min(value / self.rate_factor, high), high=high, log=True)

    def space(self) -> dict[str, Domain]:
        """What is searched, by name: the plan first, then what acts in one of the plans and was not given."""
        low, high = self.split_range
        budgets = self.rung_budgets()
        named = {name: domain for settings in self.settings().values() for name, domain in settings.items()}
        named |= dict.fromkeys(SPLITS, FloatRange(low=low, high=high))
        if self.objectives != "loss":
            named[SPEND] = FloatRange(low=budgets[0].amount, high=budgets[-1].amount, log=True)
        homes = self.homes()
        searched = {name: domain for name, domain in named.items() if homes[name] and getattr(self, name, None) is None}
        return {**({PLAN: Choice(options=self.plans)} if len(self.plans) > 1 else {}), **searched}

    def fixed_phases(self) -> dict[str, Any]:
        """Phases of the plans as they are where nothing is searched."""
        names = {name for plan in self.plans for name in plan.split(",")}
        return {name: phase for name, phase in self.named_phases().items() if name in names}

    def shares_of(self, values: Mapping[str, Any]) -> tuple[Share, ...]:
        """The stages of a point."""
        return self.shares(values.get(PLAN, self.plans[0]), values)

    def shares(self, plan: str, values: Mapping[str, Any]) -> tuple[Share, ...]:
        """The stages of a plan with the settings that act in it."""
        homes = self.homes()
        acting = {n: value for n, value in values.items() if n not in (PLAN, SPEND) and plan in homes[n]}
        splits = {name: acting.pop(name) for name in SPLITS if name in acting}
        options = replace(self, **acting)
        phases = options.named_phases()
        stages = options.chained([Stage(phase=phases[name], spend=1) for name in plan.split(",")])
        left, found = 1.0, []
        for number, stage in enumerate(stages):
            part = splits.get(SPLITS[number], 0.5) if number < len(stages) - 1 else 1.0
            found.append(Share(phase=stage.phase, share=left * part))
            left *= 1.0 - part
        return tuple(found)

    def warm_start(self, space: Mapping[str, Domain]) -> tuple[dict[str, Any], ...]:
        """Settings of the best points of an earlier sweep, which the first points take."""
        if self.warm is None:
            return ()
        # Optuna is imported late, so that a study without a warm start does not wait for it.
        from harness.adapters.optuna_journal import best_before

        return best_before(self.warm / "search.journal", space, count=self.warm_points)

    def execute(self) -> str:
        sweep = self.sweep()
        again = Again(top=self.again, seeds=parse_seeds(self.again_seeds)) if self.again else None
        if again is not None:
            again.check(sweep)
        metric = sweep.question.metric

        def loss(estimates: Mapping[str, Estimate]) -> float:
            return metric.loss(estimates[metric.name].value)

        return launch_sweep(
            sweep,
            self,
            meaning=PlanPoints(sweep=sweep, shares_of=self.shares_of, budgets=self.rung_budgets()),
            loss=loss,
            experiment=f"hyperparameters {self.target}",
            resamples=self.resamples,
            again=again,
        )


def batches(value: int) -> Choice:
    """Half, once and twice a whole number, its own first."""
    return Choice(options=tuple(dict.fromkeys([value, *(max(1, round(factor * value)) for factor in BATCH_FACTORS)])))


if __name__ == "__main__":
    conclude(HyperParameters)
