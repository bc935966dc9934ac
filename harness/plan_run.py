"""PlanStudyRun: runs one plan, or several side by side, in one session; resumes them, and reads what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from harness.answers.surface import Cell
from harness.budget import Cost, Currency
from harness.checkpoint import DamagedObject
from harness.contracts import Recorder, Records, Runner
from harness.kept_models import kept_flow
from harness.phase_data import making_cost
from harness.plan import Branch, BranchWork, Phase, Plan, Segment, Stop
from harness.plan_study import PlanComparison, PlanStudy
from harness.progress import Progress
from harness.recording import PlanRun, record_run, run_tags
from harness.session import Session, StudyFailed
from harness.split import PlannedCell, Prices
from harness.trial import TrialSpec
from harness.until import Plateau

MOST_STEPS = 2**62

PlanCells = Mapping[str, Mapping[int, Sequence[Cell]]]
"""Judged cells by the name of their plan ("" for a plan alone) and their seed."""


class PlanStudyRun:
    """One run, or resumption, of a plan or of several side by side. Arguments as for a StudyRun.

    Attributes:
        tracks: what the store holds and lacks of every plan, by its name ("" for a plan alone).
    """

    def __init__(
        self,
        study: PlanStudy | PlanComparison,
        *,
        output: Path,
        runner: Runner,
        recorder: Recorder,
        progress: Progress | None = None,
    ) -> None:
        self.study = study
        self.session = Session(study, output=output, runner=runner, progress=progress)
        self.folder = self.session.folder
        self.recorder = recorder
        self.tracks = {name: PlanTrack(plan, self.session, name=name) for name, plan in study.plans.items()}

    def run(self) -> PlanCells:
        """Train and judge what the store lacks; the judged stages of every plan and seed, the untrained model first."""
        self.session.run(self.stages())
        cells = {name: track.judged() for name, track in self.tracks.items()}
        for name, track in self.tracks.items():
            for seed, judged in cells[name].items():
                self._record(track, seed, judged)
        return cells

    def stages(self) -> Iterator[Sequence[TrialSpec]]:
        """Prices first, then what ends by a rule, then all that is missing; plans and seeds side by side."""
        tracks = list(self.tracks.values())
        yield self.session.calibration(self.study.phases)
        for together in zip_longest(*(track.until() for track in tracks), fillvalue=()):
            yield list(chain.from_iterable(together))
        missing = [(track, seed, track.missing(seed)) for track in tracks for seed in self.study.setting.seeds]
        labelled = [
            (f"{track.label(seed)} · {work.branch.phase.name}", work)
            for track, seed, works in missing
            for work in works
        ]
        self.session.announce(labelled, self.session.prices(self.study.phases))
        for track, seed, _ in missing:
            run = track.plan_run(seed)
            self.recorder.start(run.key, name=run.name, params=run.params(), tags=track.tags(run))
        yield [
            self.session.spec(track.label(seed), seed, works=tuple(works)) for track, seed, works in missing if works
        ]

    def flow(self, segment: str, seed: int) -> Any:
        """The flow of a finished segment, with the weights that are judged.

        Raises:
            StudyFailed: where it is not finished, or its checkpoint cannot be read (it is then forgotten).
        """
        try:
            return kept_flow(self.session.problem, self.session.store, segment, seed)
        except DamagedObject as error:
            raise StudyFailed(str(error)) from error

    def records(self, cell: Cell) -> Records:
        """The per-sample records of a judged cell.

        Raises:
            StudyFailed: where they cannot be read (the cell is then judged again by the same command).
        """
        try:
            return self.session.judgement.records(cell.segment)
        except DamagedObject as error:
            raise StudyFailed(str(error)) from error

    def _record(self, track: PlanTrack, seed: int, judged: Sequence[Cell]) -> None:
        run = track.plan_run(seed)
        record_run(
            run,
            store=self.session.store,
            recorder=self.recorder,
            prices=track.prices(),
            currency=Currency.DEVICE_SECONDS,
            judged={cell.segment: cell for cell in judged},
        )
        lost = {work.branch.hash for result in self.session.failures for work in result.spec.works}
        failed = any(branch.hash in lost for branch, _ in run.ways)
        self.recorder.finish(run.key, "failed" if failed else "finished")


class PlanTrack:
    """One plan of a session: its segments, at recorded prices, and what the store lacks of them.

    Args:
        name: of the plan among others, "" where it is alone.
    """

    def __init__(self, study: PlanStudy, session: Session, *, name: str = "") -> None:
        self.study = study
        self.session = session
        self.name = name

    def label(self, seed: int) -> str:
        return f"{self.name} · seed {seed}" if self.name else f"seed {seed}"

    def until(self) -> Iterator[Sequence[TrialSpec]]:
        """Train what ends by a rule, stage after stage, and what lies before it."""
        for number, stage in enumerate(self.study.stages):
            if isinstance(stage.spend, Plateau):
                yield from self._until(number, stage.spend)

    def _until(self, number: int, rule: Plateau) -> Iterator[Sequence[TrialSpec]]:
        """Train a stage, and those before it, from stop to stop until its rule has ended it for every seed."""
        while True:
            asked = {seed: self._asked(number, rule, seed) for seed in self.study.setting.seeds}
            going = {seed: works for seed, works in asked.items() if works}
            if not going:
                return
            yield [self.session.spec(self.label(seed), seed, works=tuple(works)) for seed, works in going.items()]
            if self.session.failures:
                return

    def _asked(self, number: int, rule: Plateau, seed: int) -> list[BranchWork]:
        before = self.ends(seed, stages=number)
        parent = before[-1].hash if before else self.study.setting.root(seed)
        branch = Branch(parent=parent, phase=self.study.stages[number].phase, seed=seed)
        stop = rule.next_stop(self.session.store.events(branch, up_to=rule.at_most))
        if stop is None:
            return []
        works = [BranchWork(branch=end.branch, stops=(Stop(steps=end.steps, evaluate=False),)) for end in before]
        return [*works, BranchWork(branch=branch, stops=(Stop(steps=stop, evaluate=False),))]

    def prices(self) -> Prices:
        return self.session.prices(self.study.phases)

    def ends(self, seed: int, *, stages: int | None = None) -> tuple[Segment, ...]:
        """The last segment of every stage (or of the first few), each the parent of the next."""
        prices, store, root = self.prices(), self.session.store, self.study.setting.root(seed)
        done: list[tuple[Phase, int]] = []
        for stage in self.study.stages[:stages]:
            ends = Plan(stages=tuple(done)).segments(root=root, seed=seed)
            branch = Branch(parent=ends[-1].hash if ends else root, phase=stage.phase, seed=seed)
            done.append((stage.phase, stage.steps(prices, store.events(branch, up_to=MOST_STEPS))))
        return Plan(stages=tuple(done)).segments(root=root, seed=seed)

    def works(self, seed: int) -> list[BranchWork]:
        """Every stage, with a stop at its end; the first also where it starts, if the untrained model is judged."""
        works = []
        for number, end in enumerate(self.ends(seed), start=1):
            untrained = (Stop(steps=0),) if number == 1 and self.study.first_judged == 0 else ()
            stop = Stop(steps=end.steps, evaluate=number >= self.study.first_judged)
            works.append(BranchWork(branch=end.branch, stops=(*untrained, stop)))
        return works

    def missing(self, seed: int) -> list[BranchWork]:
        return [work for work in self.works(seed) if self.session.is_missing(work)]

    def planned(self, seed: int) -> list[PlannedCell]:
        """What is judged: the untrained model, then the end of every stage, each with its as-if cost.

        Rows that a stage made before its first step are charged to it, beside the steps that its budget paid.
        """
        prices, ends = self.prices(), self.ends(seed)
        cells = [planned_cell(seed, ends[0].branch.at(0), 0, Cost(), Cost())]
        steps, spent = 0, Cost()
        for end in ends:
            made = making_cost(self.session.problem, self.session.store, end.branch)
            cost = prices.cost(end.branch.phase, end.steps) + made
            cells.append(planned_cell(seed, end, steps, spent, cost))
            steps, spent = steps + end.steps, spent + cost
        return cells[self.study.first_judged :]

    def judged(self) -> dict[int, list[Cell]]:
        """What is judged of every seed, the untrained model first."""
        return {seed: self.session.judgement.judged(self.planned(seed)) for seed in self.study.setting.seeds}

    def plan_run(self, seed: int) -> NamedRun:
        ways = tuple((end.branch, end.steps) for end in self.ends(seed))
        return NamedRun(plan_name=self.name, seed=seed, ways=ways, cells=tuple(self.planned(seed)))

    def tags(self, run: PlanRun) -> dict[str, str]:
        return run_tags(run, []) | ({"compared": self.name} if self.name else {})


@dataclass(frozen=True, kw_only=True)
class NamedRun(PlanRun):
    """A run that is told from those of other plans by the name of its own."""

    plan_name: str = ""

    @property
    def key(self) -> str:
        return f"{self.plan_name}/{super().key}" if self.plan_name else super().key

    @property
    def name(self) -> str:
        return f"{self.plan_name} · {super().name}" if self.plan_name else super().name


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
