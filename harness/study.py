"""Study: a question, a space, budgets and seeds as one value; StudyRun runs it, resumes it and reads its surface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.answers.question import Question
from harness.answers.surface import Cell
from harness.budget import Budget, Currency, StepPrice
from harness.checkpoint import write_json
from harness.contracts import Recorder, Runner, Search, SearchSpace
from harness.identity import content_hash, plain
from harness.plan import BranchWork, grid_floor
from harness.progress import Progress
from harness.recording import PlanRun, plan_runs, record_run, run_tags
from harness.session import Session, Setting
from harness.split import Prices, SeedPlan, SplitPhases, fork_points, plan_seed
from harness.trial import TrialSpec
from harness.tuning import TUNING_SEED, Judge, Tuning, tune
from harness.view import SHOWN


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a budget study means. Importing or making one starts nothing.

    Args:
        name: of the kind of study. question: what is compared. setting: what its trials share.
        budgets: rising, in one currency. splits: trunk checkpoints that tails start from, besides the untrained model.
        shares: where the trunk forks, as shares of the largest budget; None spreads `splits` forks geometrically.
        unrefined: further such shares, from which the second phase starts and the first is not refined.
        one_trial_a: what a worker group trains before it is let go: the whole "study" (where starting workers costs
            more than a tail), the tree of a "seed", or a "branch" (on a cluster). The same segments, the same numbers.
        tuning: search of settings before the study, or None.
    """

    name: str
    question: Question
    setting: Setting
    phases: SplitPhases
    budgets: tuple[Budget, ...]
    splits: int
    shares: tuple[float, ...] | None = None
    unrefined: tuple[float, ...] = ()
    one_trial_a: Literal["study", "seed", "branch"] = "study"
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        if self.splits < 2:
            raise ValueError(
                f"a surface needs two trunk checkpoints or more, got {self.splits}; write --splits 2 or more"
            )
        if len({phase.fingerprint for phase in self.phases.all}) < len(self.phases.all):
            raise ValueError("the three phases must differ, got two alike; write a fine-tuning rate below the trunk's")
        given = [str(budget) for budget in self.budgets]
        if len({budget.currency for budget in self.budgets}) != 1:
            raise ValueError(f"budgets must be in one currency, got {given}; write all in s, or all in flop")
        if list(self.budgets) != sorted(set(self.budgets), key=lambda budget: budget.amount):
            raise ValueError(f"budgets must rise, got {given}; write each once, smallest first")

    @property
    def currency(self) -> Currency:
        return self.budgets[0].currency

    @property
    def id(self) -> str:
        """The same study has the same folder, so the same command resumes it. How trials are placed is not part."""
        value = plain(self)
        del value["one_trial_a"]
        if not self.unrefined:
            del value["unrefined"]
        value["setting"] = self.setting.identity
        return content_hash(value)

    def forks(self, price: StepPrice) -> tuple[int, ...]:
        """Step counts of the trunk's forks at this price of its steps."""
        if self.shares is None:
            return fork_points(price, self.budgets, self.splits)
        return self._steps(self.shares, price)

    def _steps(self, shares: Sequence[float], price: StepPrice) -> tuple[int, ...]:
        top = self.budgets[-1]
        costs = (Budget(amount=share * top.amount, currency=top.currency) for share in shares)
        return tuple(sorted({grid_floor(max(1, price.steps_within(cost))) for cost in costs}))

    def seed_plans(self, phases: SplitPhases, prices: Prices) -> list[SeedPlan]:
        """The tree of every seed at these prices. Args: phases: with the settings that were chosen."""
        price = prices.of(phases.trunk)
        refined, bare = self.forks(price), self._steps(self.unrefined, price)
        return [
            plan_seed(
                phases,
                prices,
                self.budgets,
                forks=sorted({*refined, *bare}),
                root=self.setting.root(seed),
                seed=seed,
                unrefined=sorted({*bare} - {*refined}),
            )
            for seed in self.setting.seeds
        ]


class StudyRun:
    """One run, or resumption, of a study.

    Args:
        output: folder of results; holds the store that all studies share.
        runner, recorder: adapters. make_search: makes the search for a phase's settings.
    """

    def __init__(
        self,
        study: Study,
        *,
        output: Path,
        runner: Runner,
        recorder: Recorder,
        make_search: Callable[[str, SearchSpace], Search],
        progress: Progress | None = None,
    ) -> None:
        self.study = study
        self.session = Session(
            study,
            output=output,
            runner=runner,
            progress=progress,
            on_judged=lambda: self.record(self.cells()),
        )
        self.folder = self.session.folder
        self.store = self.session.store
        self.recorder = recorder
        self.make_search = make_search
        self.phases = study.phases
        self.plans: list[SeedPlan] = []

    def run(self) -> list[Cell]:
        """Train and judge what the store lacks; every cell of the surface that could be had."""
        self.session.run(self.stages())
        cells = self.cells()
        self.record(cells)
        for plan in self.plans:
            for run in plan_runs(plan):
                self.recorder.finish(run.key, "failed" if plan.seed in self.session.failed_seeds else "finished")
        return cells

    def stages(self) -> Iterator[Sequence[TrialSpec]]:
        """Prices first, then settings where they are tuned, then the trees."""
        yield self.session.calibration(self.phases.all)
        if self.study.tuning is not None:
            yield from self._tuning(self.study.tuning)
        self.plans = self.seed_plans()
        self._announce()
        yield self._trees()

    def prices(self) -> Prices:
        return self.session.prices(self.phases.all)

    # settings

    def _tuning(self, tuning: Tuning) -> Iterator[Sequence[TrialSpec]]:
        judge = Judge(value=self.session.judgement.scale, budgets=self.study.budgets, prices=self.prices())
        rounds = tune(
            self.study.phases,
            root=self.study.setting.root(TUNING_SEED),
            tuning=tuning,
            judge=judge,
            make_search=self.make_search,
            done=self._chose,
        )
        for number, works in enumerate(rounds, start=1):
            missing = [work for work in works if self.session.is_missing(work)]
            self.session.progress.note(f"tuning, round {number}: {len(missing)} of {len(works)} branches to train")
            yield self._place(f"tuning round {number}", TUNING_SEED, missing)

    def _chose(self, phases: SplitPhases) -> None:
        self.phases = phases
        write_json(self.folder / "chosen_settings.json", {phase.name: plain(phase) for phase in phases.all})
        rates = ", ".join(f"{phase.name} {phase.optimiser.learning_rate:.2g}" for phase in phases.all)
        self.session.progress.note(f"chosen learning rates: {rates}")

    # trees

    def seed_plans(self) -> list[SeedPlan]:
        """The tree of every seed at the recorded prices."""
        return self.study.seed_plans(self.phases, self.prices())

    def _trees(self) -> Sequence[TrialSpec]:
        missing = {plan.seed: [w for w in plan.tree if self.session.is_missing(w)] for plan in self.plans}
        if self.study.one_trial_a == "study":
            works = [work for seed in missing for work in missing[seed]]
            return self._place("all seeds", self.study.setting.seeds[0], works)
        return [spec for seed, works in missing.items() for spec in self._place(f"seed {seed}", seed, works)]

    def _place(self, name: str, seed: int, works: Sequence[BranchWork]) -> list[TrialSpec]:
        """One trial for these branches, or one for each."""
        if not works:
            return []
        if self.study.one_trial_a != "branch":
            return [self.session.spec(name, seed, works=tuple(works))]
        return [
            self.session.spec(f"{name} {work.branch.phase.name} {number}", work.branch.seed, works=(work,))
            for number, work in enumerate(works)
        ]

    def _announce(self) -> None:
        labelled = [
            (f"seed {plan.seed} · {work.branch.phase.name}", work)
            for plan in self.plans
            for work in plan.tree
            if self.session.is_missing(work)
        ]
        self.session.announce(labelled, self.prices())
        for plan in self.plans:
            for run in plan_runs(plan):
                self._start(run)

    # records

    def _start(self, run: PlanRun) -> None:
        setting = self.study.setting
        system = {f"system.{key}": value for key, value in setting.problem["system"].items()}
        params = run.params() | {"workers": setting.placement.workers} | system
        tags = run_tags(run, []) | (SHOWN if run.seed == setting.seeds[0] else {})
        self.recorder.start(run.key, name=run.name, params=params, tags=tags)

    def cells(self) -> list[Cell]:
        """The surface, as far as it is evaluated."""
        return [cell for plan in self.plans for cell in self.session.judgement.judged(plan.cells)]

    def record(self, cells: Sequence[Cell]) -> None:
        """Bring the tracker up to date with the store."""
        prices, judged = self.prices(), {cell.segment: cell for cell in cells}
        for plan in self.plans:
            for run in plan_runs(plan):
                record_run(
                    run,
                    store=self.store,
                    recorder=self.recorder,
                    prices=prices,
                    currency=self.study.currency,
                    judged=judged,
                )
