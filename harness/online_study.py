"""OnlineStudy: runs that decide on the way, one for every budget and seed, beside the surface that they are held to.

OnlineRun runs or resumes it. Decisions are read from the store whenever they are needed, so that nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.answers.question import Question
from harness.answers.surface import Cell
from harness.budget import Budget, Currency
from harness.checkpoint import DamagedObject
from harness.contracts import Recorder, Records, Runner
from harness.identity import Settings, content_hash, plain
from harness.online_rule import Array, SwitchRule
from harness.online_walk import Asks, Ended, Walk, merged
from harness.plan import Branch
from harness.plan_run import NamedRun
from harness.progress import Progress
from harness.recording import record_run, run_tags
from harness.session import Session, Setting, StudyFailed
from harness.split import PlannedCell, SplitPhases
from harness.study import Study
from harness.trial import TrialSpec
from harness.worker import evaluation_key

TermsOf = Callable[[Records], Array]
"""The per-sample terms on validation points whose mean is the deciding metric."""


@dataclass(frozen=True, kw_only=True)
class OnlineStudy:
    """Making one starts nothing.

    Args:
        surface: the study of fixed splits; its question, setting, phases and seeds hold here too.
        budgets: of the online runs, in the surface's currency.
        looking: settings of the evaluation by which probes are judged.
    """

    name: str
    surface: Study
    budgets: tuple[Budget, ...]
    rule: SwitchRule
    looking: Settings

    def __post_init__(self) -> None:
        if not self.budgets or {budget.currency for budget in self.budgets} != {self.surface.currency}:
            raise ValueError(
                f"online runs have the surface's currency, {self.surface.currency}, got "
                f"{[str(budget) for budget in self.budgets]}; write --online-budgets with the same unit"
            )

    @property
    def id(self) -> str:
        value = {key: plain(getattr(self, key)) for key in ("name", "budgets", "rule", "looking")}
        return content_hash(value | {"surface": self.surface.id})

    @property
    def setting(self) -> Setting:
        return self.surface.setting

    @property
    def question(self) -> Question:
        return self.surface.question

    @property
    def currency(self) -> Currency:
        return self.surface.currency


@dataclass(frozen=True, kw_only=True)
class OnlineCell:
    """One finished online run: how it got there, and its last model as judged with all others."""

    budget: Budget
    ended: Ended
    cell: Cell


class OnlineRun:
    """One run, or resumption.

    Args:
        phases: with the settings that were chosen for the surface. terms_of: reads the deciding metric of records.
        Others as for a StudyRun.
    """

    def __init__(
        self,
        study: OnlineStudy,
        *,
        phases: SplitPhases,
        terms_of: TermsOf,
        output: Path,
        runner: Runner,
        recorder: Recorder,
        progress: Progress | None = None,
    ) -> None:
        self.study = study
        self.phases = phases
        self.terms_of = terms_of
        self.session = Session(study, output=output, runner=runner, progress=progress)
        self.folder = self.session.folder
        self.recorder = recorder
        self.looking = {**study.setting.problem, "evaluation": study.looking}
        self._terms: dict[str, Array] = {}

    def run(self) -> list[OnlineCell]:
        """Train and judge what the store lacks; every run that got to its end."""
        self.session.run(self.stages())
        cells = self.cells()
        for online in cells:
            self._record(online)
        return cells

    def stages(self) -> Iterator[Sequence[TrialSpec]]:
        """Prices, then look after look of all seeds and budgets side by side, then the ends."""
        yield self.session.calibration(self.phases.all)
        while specs := self._looks():
            yield specs
            if self.session.failures:
                return
        yield self._ends()

    def walks(self, seed: int) -> list[Walk]:
        """The runs of one seed at the recorded prices, one a budget."""
        study, prices = self.study, self.session.prices(self.phases.all)
        return [
            Walk(
                seed=seed,
                budget=budget,
                root=study.setting.root(seed),
                phases=self.phases,
                prices=prices,
                rule=study.rule,
                metric=study.question.metric,
            )
            for budget in study.budgets
        ]

    def cells(self) -> list[OnlineCell]:
        """What has ended and been judged."""
        found = []
        for walk in (walk for seed in self.study.setting.seeds for walk in self.walks(seed)):
            ended = walk.next(self.terms)
            if isinstance(ended, Ended):
                untrained = _untrained(walk, ended)
                judged = {cell.segment: cell for cell in self.session.judgement.judged([untrained, ended.cell])}
                if ended.cell.segment in judged:
                    found.append(OnlineCell(budget=walk.budget, ended=ended, cell=judged[ended.cell.segment]))
        return found

    def terms(self, segment: str) -> Array | None:
        """Of a segment that was judged for a decision; None where it is not."""
        if segment not in self._terms:
            key, store = evaluation_key(self.looking), self.session.store
            known = store.evaluation(segment, key)
            if known is None:
                return None
            try:
                self._terms[segment] = np.asarray(self.terms_of(store.get_arrays(known["records"])))
            except DamagedObject as error:
                store.forget_evaluation(segment, key)
                raise StudyFailed(str(error)) from error
        return self._terms[segment]

    def looking_seconds(self, cells: Sequence[OnlineCell]) -> float:
        """Device-seconds of judging probes, each model once."""
        key = evaluation_key(self.looking)
        judged = {name for online in cells for looked in online.ended.looked for name in looked.judged}
        records = (self.session.store.evaluation(name, key) for name in judged)
        return sum(record["device_seconds"] for record in records if record is not None)

    def _looks(self) -> list[TrialSpec]:
        specs = []
        for seed in self.study.setting.seeds:
            asked = [step for walk in self.walks(seed) if isinstance(step := walk.next(self.terms), Asks)]
            if asked:
                spec = self.session.spec(f"seed {seed} · looks", seed, works=tuple(merged(asked)))
                specs.append(replace(spec, problem=self.looking))
        return specs

    def _ends(self) -> list[TrialSpec]:
        specs = []
        for seed in self.study.setting.seeds:
            ended = [step for walk in self.walks(seed) if isinstance(step := walk.next(self.terms), Ended)]
            works = [work for work in merged(ended) if self.session.is_missing(work)]
            if works:
                specs.append(self.session.spec(f"seed {seed}", seed, works=tuple(works)))
        return specs

    def _record(self, online: OnlineCell) -> None:
        ended, prices = online.ended, self.session.prices(self.phases.all)
        trunk, *tail = ended.works
        ways: list[tuple[Branch, int]] = [(trunk.branch, trunk.stops[-1].steps)]
        ways += [(work.branch, work.stops[-1].steps) for work in tail]
        run = NamedRun(plan_name=str(online.budget), seed=online.cell.seed, ways=tuple(ways), cells=(ended.cell,))
        self.recorder.start(run.key, name=run.name, params=run.params(), tags=run_tags(run, [online.cell]))
        record_run(
            run,
            store=self.session.store,
            recorder=self.recorder,
            prices=prices,
            currency=self.study.currency,
            judged={online.cell.segment: online.cell},
        )
        self.recorder.finish(run.key, "finished")


def _untrained(walk: Walk, ended: Ended) -> PlannedCell:
    return replace(
        ended.cell,
        fork_steps=0,
        tail="",
        tail_steps=0,
        trunk_cost=walk.prices.cost(walk.phases.trunk, 0),
        tail_cost=walk.prices.cost(walk.phases.trunk, 0),
        segment=walk.trunk.at(0).hash,
    )
