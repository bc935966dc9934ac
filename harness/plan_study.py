"""PlanStudy: one plan of any number of stages, trained to its end and judged after every stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.answers.question import Question
from harness.answers.surface import Cell
from harness.budget import Budget, Cost, Currency
from harness.checkpoint import Store
from harness.contracts import Recorder, Runner
from harness.identity import content_hash, plain
from harness.plan import Branch, BranchWork, Phase, Plan, Segment, Stop, grid_floor
from harness.progress import Progress
from harness.recording import PlanRun, record_run, run_tags
from harness.session import Session, Setting
from harness.split import PlannedCell, Prices
from harness.trial import Event, TrialSpec
from harness.until import Plateau

MOST_STEPS = 2**62


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase with what ends it: a budget, a number of steps, or a rule over its own events."""

    phase: Phase
    spend: Budget | int | Plateau

    def steps(self, prices: Prices, events: Sequence[Event]) -> int:
        """Whole steps on the geometric grid for a budget, the number itself where steps were given, a rule's end.

        Args:
            events: of the branch so far, for a rule to read.

        Raises:
            ValueError: where the budget does not pay one step.
        """
        if isinstance(self.spend, int):
            return self.spend
        if isinstance(self.spend, Plateau):
            return self.spend.end(events)
        steps = grid_floor(prices.of(self.phase).steps_within(self.spend))
        if steps < 1:
            price = prices.cost(self.phase, 1).amount(self.spend.currency)
            raise ValueError(
                f"a stage must pay one step at least, got {self.spend} for {self.phase.name} at {price:.3g} a step; "
                "write a larger budget"
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class PlanStudy:
    """Everything that training one plan means. Making one starts nothing."""

    name: str
    question: Question
    setting: Setting
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a plan needs at least one stage, got none; write for example --stages fm=60s pg=60s")

    @property
    def id(self) -> str:
        value = plain(self)
        del value["setting"]["checkpoint_seconds"]
        return content_hash(value)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(stage.phase for stage in self.stages)


class PlanStudyRun:
    """One run, or resumption, of a plan study. Arguments as for a StudyRun."""

    def __init__(
        self,
        study: PlanStudy,
        *,
        output: Path,
        runner: Runner,
        recorder: Recorder,
        progress: Progress | None = None,
        memory_cap_bytes: float | None = None,
    ) -> None:
        self.study = study
        self.folder = output / study.name / study.id
        self.store = Store(output / "store")
        self.session = Session(
            study.setting,
            study.question,
            folder=self.folder,
            store=self.store,
            runner=runner,
            progress=progress,
            memory_cap_bytes=memory_cap_bytes,
        )
        self.recorder = recorder

    def run(self) -> dict[int, list[Cell]]:
        """Train and judge what the store lacks; the judged stages of every seed, the untrained model first."""
        self.session.run(self.stages())
        cells = {seed: self.session.judgement.judged(self.planned(seed)) for seed in self.study.setting.seeds}
        self._record(cells)
        return cells

    def stages(self) -> Iterator[Sequence[TrialSpec]]:
        yield self.session.calibration(self.study.phases)
        for number, stage in enumerate(self.study.stages):
            if isinstance(stage.spend, Plateau):
                yield from self._until(number, stage.spend)
        seeds = self.study.setting.seeds
        works = {seed: [work for work in self.works(seed) if self.session.is_missing(work)] for seed in seeds}
        labelled = [(f"seed {seed} · {work.branch.phase.name}", work) for seed in seeds for work in works[seed]]
        self.session.announce(labelled, self.prices())
        for seed in seeds:
            run = self.plan_run(seed)
            self.recorder.start(run.key, name=run.name, params=run.params(), tags=run_tags(run, []))
        yield [self.session.spec(f"seed {seed}", seed, works=tuple(works[seed])) for seed in seeds if works[seed]]

    def _until(self, number: int, rule: Plateau) -> Iterator[Sequence[TrialSpec]]:
        """Train a stage, and those before it, from stop to stop until its rule has ended it for every seed."""
        while True:
            asked = {seed: self._asked(number, rule, seed) for seed in self.study.setting.seeds}
            going = {seed: works for seed, works in asked.items() if works}
            if not going:
                return
            yield [self.session.spec(f"seed {seed}", seed, works=tuple(works)) for seed, works in going.items()]
            if self.session.failures:
                return

    def _asked(self, number: int, rule: Plateau, seed: int) -> list[BranchWork]:
        before = self.ends(seed, stages=number)
        parent = before[-1].hash if before else self.study.setting.root(seed)
        branch = Branch(parent=parent, phase=self.study.stages[number].phase, seed=seed)
        stop = rule.next_stop(self.store.events(branch, up_to=rule.at_most))
        if stop is None:
            return []
        works = [BranchWork(branch=end.branch, stops=(Stop(steps=end.steps, evaluate=False),)) for end in before]
        return [*works, BranchWork(branch=branch, stops=(Stop(steps=stop, evaluate=False),))]

    def prices(self) -> Prices:
        return self.session.prices(self.study.phases)

    def ends(self, seed: int, *, stages: int | None = None) -> tuple[Segment, ...]:
        """The last segment of every stage (or of the first few), each the parent of the next."""
        prices, root = self.prices(), self.study.setting.root(seed)
        done: list[tuple[Phase, int]] = []
        for stage in self.study.stages[:stages]:
            ends = Plan(stages=tuple(done)).segments(root=root, seed=seed)
            branch = Branch(parent=ends[-1].hash if ends else root, phase=stage.phase, seed=seed)
            done.append((stage.phase, stage.steps(prices, self.store.events(branch, up_to=MOST_STEPS))))
        return Plan(stages=tuple(done)).segments(root=root, seed=seed)

    def works(self, seed: int) -> list[BranchWork]:
        ends = self.ends(seed)
        untrained = BranchWork(branch=ends[0].branch, stops=(Stop(steps=0), Stop(steps=ends[0].steps)))
        later = [BranchWork(branch=end.branch, stops=(Stop(steps=end.steps),)) for end in ends[1:]]
        return [untrained, *later]

    def planned(self, seed: int) -> list[PlannedCell]:
        """The untrained model, then the end of every stage, each with its as-if cost."""
        prices, ends = self.prices(), self.ends(seed)
        cells = [planned_cell(seed, ends[0].branch.at(0), 0, Cost(), Cost())]
        steps, spent = 0, Cost()
        for end in ends:
            cost = prices.cost(end.branch.phase, end.steps)
            cells.append(planned_cell(seed, end, steps, spent, cost))
            steps, spent = steps + end.steps, spent + cost
        return cells

    def plan_run(self, seed: int) -> PlanRun:
        ways = tuple((end.branch, end.steps) for end in self.ends(seed))
        return PlanRun(seed=seed, ways=ways, cells=tuple(self.planned(seed)))

    def _record(self, cells: dict[int, list[Cell]]) -> None:
        for seed, judged in cells.items():
            run = self.plan_run(seed)
            record_run(
                run,
                store=self.store,
                recorder=self.recorder,
                prices=self.prices(),
                currency=Currency.DEVICE_SECONDS,
                judged={cell.segment: cell for cell in judged},
            )
            self.recorder.finish(run.key, "failed" if seed in self.session.failed_seeds else "finished")


def planned_cell(seed: int, end: Segment, before: int, spent: Cost, cost: Cost) -> PlannedCell:
    return PlannedCell(
        seed=seed,
        fork_steps=before,
        tail=end.branch.phase.name if end.steps else "",
        tail_steps=end.steps,
        trunk_cost=spent,
        tail_cost=cost,
        segment=end.hash,
    )
