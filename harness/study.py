"""Study: a question, a space, budgets and seeds as one value; and StudyRun, which runs it, resumes it and reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.address import resolve
from harness.budget import Budget, Currency, StepPrice
from harness.calibrate import device_kind, price_from_plain, price_key
from harness.checkpoint import Store, read_json, write_json
from harness.contracts import Problem, Recorder, Runner, Search, SearchSpace
from harness.identity import Settings, content_hash, plain
from harness.judging import Judgement
from harness.plan import BranchWork, Phase, grid_floor, root_hash
from harness.progress import Progress
from harness.question import Question
from harness.recording import PlanRun, plan_runs, record_run, run_tags
from harness.source import StagedSource, parents_are_kept
from harness.split import Prices, SeedPlan, SplitPhases, fork_points, plan_seed
from harness.surface import Cell
from harness.trial import Event, Placement, TrialResult, TrialSpec
from harness.tuning import TUNING_SEED, Judge, Tuning, tune


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a study means. Importing or making one starts nothing.

    Args:
        name: of the kind of study. question: what is compared.
        build: "module:function" that makes the Problem of `problem` = {"system": ..., "evaluation": ...}.
        budgets: rising, in one currency. splits: trunk checkpoints that tails start from, besides the untrained model.
        shares: where the trunk forks, as shares of the largest budget; None spreads `splits` forks geometrically.
        seeds: each varies initialisation, batches and the draw of the training set.
        one_trial_a: what a worker group trains before it is let go: the whole "study" (where starting workers costs
            more than a tail), the tree of a "seed", or a "branch" (on a cluster). The same segments, the same numbers.
        tuning: search of settings before the study, or None.
    """

    name: str
    question: Question
    build: str
    problem: Settings
    phases: SplitPhases
    budgets: tuple[Budget, ...]
    splits: int
    seeds: tuple[int, ...]
    placement: Placement
    shares: tuple[float, ...] | None = None
    one_trial_a: Literal["study", "seed", "branch"] = "study"
    tuning: Tuning | None = None
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.splits < 2:
            raise ValueError(
                f"a surface needs at least two trunk checkpoints, got {self.splits}; write --splits 2 or more"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different and at least one, got {self.seeds}; write for example --seeds 3")
        if not self.budgets or len({budget.currency for budget in self.budgets}) != 1:
            raise ValueError("budgets must be in one currency, got several; write all in s, or all in flop")
        if list(self.budgets) != sorted(set(self.budgets), key=lambda budget: budget.amount):
            raise ValueError(
                f"budgets must rise, got {[str(b) for b in self.budgets]}; write each once, smallest first"
            )

    @property
    def currency(self) -> Currency:
        return self.budgets[0].currency

    @property
    def id(self) -> str:
        """The same study has the same folder, so the same command resumes it. How trials are placed is not part."""
        value = plain(self)
        for key in ("one_trial_a", "checkpoint_seconds"):
            del value[key]
        return content_hash(value)

    def forks(self, price: StepPrice) -> tuple[int, ...]:
        """Step counts of the trunk's forks at this price of its steps."""
        if self.shares is None:
            return fork_points(price, self.budgets, self.splits)
        top = self.budgets[-1]
        costs = (Budget(amount=share * top.amount, currency=top.currency) for share in self.shares)
        return tuple(sorted({grid_floor(max(1, price.steps_within(cost))) for cost in costs}))


class StudyFailed(RuntimeError):
    """A study could not go on; what was made is kept."""


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
        self.output = output
        self.folder = output / study.name / study.id
        self.store = Store(output / "store")
        self.runner = runner
        self.recorder = recorder
        self.make_search = make_search
        self.progress = progress or Progress()
        self.problem: Problem = resolve(study.build)(study.problem, cache=self.store.folder / "reference")
        self.judgement = Judgement(study.question, self.problem, self.store, study.problem)
        self.phases = study.phases
        self.failures: list[TrialResult] = []
        self.plans: list[SeedPlan] = []
        self._branches: dict[str, tuple[str, float]] = {}
        self._last_step: dict[str, int] = {}

    # the run

    def run(self) -> list[Cell]:
        """Train and judge what the store lacks; every cell of the surface that could be had."""
        self.problem.training_data(self.study.seeds[0])
        source = StagedSource(self.stages(), ready=self._ready, on_result=self._ended)
        self.runner.run(source, self._happened)
        self.progress.close()
        cells = self.cells()
        self.record(cells)
        return cells

    def stages(self) -> Iterator[Sequence[TrialSpec]]:
        """Prices first, then settings where they are tuned, then the trees."""
        yield self._calibration()
        if self.study.tuning is not None:
            yield from self._tuning()
        self.plans = self.seed_plans()
        self._announce()
        yield self._trees()

    def _ready(self, spec: TrialSpec) -> bool:
        roots = frozenset(self.root(seed) for seed in (*self.study.seeds, TUNING_SEED))
        return parents_are_kept(spec, self.store, roots)

    def _ended(self, result: TrialResult) -> None:
        if result.status == "failed":
            self.failures.append(result)
            self.progress.note(f"trial {result.spec.name} failed: {result.error}")

    def root(self, seed: int) -> str:
        return root_hash(self.study.problem["system"], seed)

    def spec(self, name: str, seed: int, **work: Any) -> TrialSpec:
        study = self.study
        return TrialSpec(
            name=name,
            build=study.build,
            problem=study.problem,
            store=str(self.store.folder.resolve()),
            seed=seed,
            placement=study.placement,
            checkpoint_seconds=study.checkpoint_seconds,
            **work,
        )

    # prices

    def _calibration(self) -> Sequence[TrialSpec]:
        missing = {p.price_fingerprint: p for p in self.phases.all if self._known_price(p) is None}
        if not missing:
            return []
        return [self.spec("prices", self.study.seeds[0], calibrate=tuple(missing.values()))]

    def _known_price(self, phase: Phase) -> dict[str, Any] | None:
        key = price_key(self.study.problem["system"], phase, self.study.placement, self._device())
        return self.store.price(key)

    def _device(self) -> str:
        """The device that this study's prices hold for: the one that its first calibration met."""
        known = read_json(self.folder / "device.json")
        return known["device"] if known else device_kind()

    def prices(self) -> Prices:
        """The recorded step prices.

        Raises:
            StudyFailed: where a phase was never priced, because the calibration failed.
        """
        found = {}
        for phase in self.phases.all:
            known = self._known_price(phase)
            if known is None:
                why = self.failures[-1].error if self.failures else "no worker measured it"
                raise StudyFailed(
                    f"a step of {phase.name} must have a price before budgets mean steps, got none: {why}"
                )
            found[phase.price_fingerprint] = price_from_plain(known)
        return Prices(by_phase=found)

    # settings

    def _tuning(self) -> Iterator[Sequence[TrialSpec]]:
        tuning = self.study.tuning
        assert tuning is not None
        prices = self.prices()
        judge = Judge(value=self.judgement.scale, budgets=self.study.budgets, prices=prices)
        rounds = tune(
            self.study.phases,
            root=self.root(TUNING_SEED),
            tuning=tuning,
            judge=judge,
            make_search=self.make_search,
            done=self._chose,
        )
        for number, works in enumerate(rounds):
            self.progress.note(f"tuning, round {number + 1}: {len(works)} branches")
            yield self._place(f"tuning round {number + 1}", TUNING_SEED, list(works))

    def _chose(self, phases: SplitPhases) -> None:
        self.phases = phases
        chosen = {phase.name: plain(phase) for phase in phases.all}
        write_json(self.folder / "chosen_settings.json", chosen)
        rates = ", ".join(f"{phase.name} {phase.optimiser.learning_rate:.2g}" for phase in phases.all)
        self.progress.note(f"chosen learning rates: {rates}")

    # trees

    def seed_plans(self) -> list[SeedPlan]:
        prices = self.prices()
        forks = self.study.forks(prices.of(self.phases.trunk))
        return [
            plan_seed(self.phases, prices, self.study.budgets, forks=forks, root=self.root(seed), seed=seed)
            for seed in self.study.seeds
        ]

    def _trees(self) -> Sequence[TrialSpec]:
        missing = {plan.seed: [work for work in plan.tree if self._is_missing(work)] for plan in self.plans}
        if self.study.one_trial_a == "study":
            works = [work for seed in missing for work in missing[seed]]
            return [self.spec("all seeds", self.study.seeds[0], works=tuple(works))] if works else []
        return [spec for seed, works in missing.items() for spec in self._place(f"seed {seed}", seed, works)]

    def _place(self, name: str, seed: int, works: list[BranchWork]) -> list[TrialSpec]:
        """One trial for these branches, or one for each."""
        if not works:
            return []
        if self.study.one_trial_a != "branch":
            return [self.spec(name, seed, works=tuple(works))]
        return [
            self.spec(f"{name} {work.branch.phase.name} {number}", seed, works=(work,))
            for number, work in enumerate(works)
        ]

    def _is_missing(self, work: BranchWork) -> bool:
        return any(
            self.store.segment(segment.hash) is None
            or (stop.evaluate and not self.judgement.is_evaluated(segment.hash))
            for segment, stop in zip(work.segments, work.stops, strict=True)
        )

    # what happens on the way

    def _announce(self) -> None:
        prices = self.prices()
        seconds, cells = 0.0, 0
        for plan in self.plans:
            for work in plan.tree:
                price = prices.of(work.branch.phase).per_step.device_seconds
                self._branches[work.branch.hash] = (f"seed {plan.seed} · {work.branch.phase.name}", price)
                if self._is_missing(work):
                    done = max([0, *self.store.finished_steps(work.branch)])
                    seconds += max(0, work.stops[-1].steps - done) * price
            cells += sum(not self.judgement.is_evaluated(cell.segment) for cell in plan.cells)
        self.progress.plan(device_seconds=seconds, cells=cells)
        for plan in self.plans:
            for run in plan_runs(plan):
                self._start(run)

    def _start(self, run: PlanRun) -> None:
        phase = run.trunk.phase if run.tail is None else run.tail.phase
        params = {
            "seed": run.seed,
            "fork_steps": run.fork_steps,
            **{f"trunk.{k}": v for k, v in flat(run.trunk.phase).items()},
            **{f"tail.{k}": v for k, v in (flat(phase) if run.tail else {}).items()},
            **{f"system.{k}": v for k, v in self.study.problem["system"].items()},
            "workers": self.study.placement.workers,
        }
        self.recorder.start(run.key, name=run.name, params=params, tags=run_tags(run, []))

    def _happened(self, spec: TrialSpec, event: Event) -> None:
        text, price = self._branches.get(event.branch, (spec.name, 0.0))
        if event.kind == "workers":
            self._keep_proof(spec, event)
        if event.kind == "train":
            steps = event.step - self._last_step.get(event.branch, 0)
            self._last_step[event.branch] = event.step
            self.progress.advance(f"{text} {event.step} steps", device_seconds=max(0, steps) * price)
        elif event.kind == "evaluated":
            self.progress.advance(f"{text} judged after {event.step} steps", cells=1)
        else:
            self.progress.advance(f"{text} {event.kind}")

    def _keep_proof(self, spec: TrialSpec, event: Event) -> None:
        """Who worked on what: rank, host, process and device of every worker of every trial."""
        path = self.folder / "workers.json"
        known = read_json(path) or []
        write_json(path, [*known, {"trial": spec.name, "time": event.timestamp, **event.notes}])

    # reading

    def cells(self) -> list[Cell]:
        """The surface, as far as it is evaluated."""
        return [cell for plan in self.plans for cell in self.judgement.cells(plan, trunk=self.phases.trunk.name)]

    def record(self, cells: Sequence[Cell]) -> None:
        """Bring the tracker up to date with the store."""
        prices = self.prices()
        judged = {cell.segment: cell for cell in cells}
        failed = {work.branch.seed for result in self.failures for work in result.spec.works}
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
                self.recorder.finish(run.key, "failed" if plan.seed in failed else "finished")


def flat(phase: Phase) -> dict[str, Any]:
    """A phase's settings in one level, for a tracker's parameters."""
    optimiser = {key: value for key, value in asdict(phase.optimiser).items() if value is not None}
    return {"phase": phase.name, **phase.objective, **optimiser, "batch": phase.batch}
