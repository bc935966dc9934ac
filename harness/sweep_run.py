"""SweepRun: runs a sweep through a session, resumes it from the search's journal and the store, and reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.contracts import Point, Recorder, Runner, SearchWithHistory, Suggestion, Told, Tried
from harness.judging import Split
from harness.plan import BranchWork
from harness.progress import Progress
from harness.session import Session
from harness.split import Prices
from harness.sweep import Sweep, SweepSource
from harness.sweep_points import Meaning
from harness.trial import TrialSpec
from harness.view import FIRST_RUNG
from models.estimators import Estimate, t_interval

SPLITS: tuple[Split, ...] = ("validation", "test")
MOST_CHARACTERS = 60
"""Of a run's name."""

Loss = Callable[[Mapping[str, Estimate]], float]
"""From estimates of a model to what is minimised; not finite where it diverged."""


@dataclass(frozen=True, kw_only=True)
class JudgedRung:
    """A point at one rung: mean loss over seeds, on validation and on test points; its segments by seed.

    Attributes:
        steps: of the ladder. cost: of one seed, alone, at recorded prices; None where rungs are steps.
        stages: of a plan, with their steps.
    """

    steps: int
    loss: float
    test_loss: float
    segments: Mapping[int, str]
    cost: float | None = None
    stages: str = ""


@dataclass(frozen=True, kw_only=True)
class SweptPoint:
    """A point of the sweep, what became of it, and the rungs that it was judged on.

    Attributes:
        device_seconds: of its training, all seeds and workers together, as it was measured.
    """

    tried: Tried
    rungs: tuple[JudgedRung, ...]
    device_seconds: float


class SweepRun:
    """One run, or resumption, of a sweep.

    Args:
        meaning: what a point is in training. loss: what is minimised. search: keeps its points on disk.
        output: folder of results; holds the store that all studies share. runner, recorder: adapters.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        meaning: Meaning,
        loss: Loss,
        search: SearchWithHistory,
        output: Path,
        runner: Runner,
        recorder: Recorder,
        progress: Progress | None = None,
    ) -> None:
        self.sweep = sweep
        self.meaning, self.loss, self.search, self.recorder = meaning, loss, search, recorder
        self.session = Session(sweep, output=output, runner=runner, progress=progress)
        self.folder = self.session.folder

    def run(self) -> tuple[SweptPoint, ...]:
        """Train and judge what the store and the search lack; every point of the sweep."""
        if calibration := self.session.calibration(self.meaning.priced()):
            self.session.run(iter([calibration]))
        source = SweepSource(
            self.search,
            steps=self.sweep.ladder.steps,
            works=self.works,
            is_missing=self.session.is_missing,
            spec=self._spec,
            loss=lambda suggestion, rung: self.mean_loss(suggestion, rung, "validation"),
            on_change=self._changed,
            on_result=self.session.keep_result,
            told=self.told,
        )
        ended = sum(tried.state != "open" for tried in self.search.history)
        self.session.progress.plan(device_seconds=0.0, cells=max(0, self.sweep.trials - ended), unit="points")
        self.session.run_source(source)
        points = self.points()
        for point in points:
            self.record(point)
        return points

    @cached_property
    def prices(self) -> Prices:
        """What steps cost, where budgets mean steps."""
        return self.session.prices(self.meaning.priced())

    def points(self) -> tuple[SweptPoint, ...]:
        """What is known of every point that was drawn."""
        return tuple(self.point(tried) for tried in self.search.history if tried.values)

    def point(self, tried: Tried) -> SweptPoint:
        suggestion, rungs = Suggestion(number=tried.number, values=tried.values), []
        for number, steps in enumerate(self.sweep.ladder.steps, start=1):
            works = self.works(suggestion, number)
            if any(self.session.is_missing(work) for work in works):
                break
            loss, test_loss = (self.mean_loss(suggestion, number, split) for split in SPLITS)
            cost = self.meaning.cost(tried.values, number, self.prices)
            rungs.append(
                JudgedRung(
                    steps=steps,
                    loss=loss,
                    test_loss=test_loss,
                    segments=self.judged(suggestion, number),
                    cost=cost,
                    stages=self.meaning.stages(tried.values, number, self.prices),
                )
            )
        return SweptPoint(tried=tried, rungs=tuple(rungs), device_seconds=self._spent(suggestion))

    def works(self, suggestion: Suggestion, rung: int) -> tuple[BranchWork, ...]:
        """The branches of every seed up to a rung (counted from 1)."""
        seeds = self.sweep.setting.seeds
        return tuple(w for seed in seeds for w in self.meaning.works(suggestion.values, rung, seed, self.prices))

    def judged(self, suggestion: Suggestion, rung: int) -> dict[int, str]:
        """The segment that is judged on a rung (counted from 1), by seed."""
        return {work.branch.seed: work.segments[-1].hash for work in self.works(suggestion, rung)}

    def mean_loss(self, suggestion: Suggestion, rung: int, split: Split) -> float:
        """Mean over seeds of the loss at a rung (counted from 1), infinite where a seed diverged."""
        return float(np.mean([self.loss_of(segment, split) for segment in self.judged(suggestion, rung).values()]))

    def told(self, suggestion: Suggestion, loss: float) -> Told:
        """What the search minimises: the loss, and the cost where that is an objective."""
        if self.sweep.objectives == ("loss",):
            return loss
        cost = self.meaning.cost(suggestion.values, 1, self.prices)
        assert cost is not None, "where cost is an objective, steps have a price"
        return loss, cost

    def loss_of(self, segment: str, split: Split) -> float:
        """The loss of a judged segment, infinite where it diverged."""
        value = self.loss(self.session.judgement.estimates(segment, split))
        return value if math.isfinite(value) else math.inf

    def _spec(self, suggestion: Suggestion, rung: int, works: tuple[BranchWork, ...]) -> TrialSpec:
        name = f"point {suggestion.number} to {self.sweep.rungs[rung - 1]}"
        return self.session.spec(name, self.sweep.setting.seeds[0], works=works)

    def _changed(self, suggestion: Suggestion) -> None:
        tried = next(t for t in self.search.history if t.number == suggestion.number)
        point = self.point(tried)
        if point.rungs:
            rung = point.rungs[-1]
            name = self.sweep.rungs[len(point.rungs) - 1]
            text = f"point {tried.number}: {self.sweep.question.metric.title} {rung.loss:.4g} at {name}"
            self.session.progress.note(text if tried.state == "open" else f"{text}, {tried.state}")
            if len(point.rungs) == len(self.sweep.rungs):
                self._show(point)
        if tried.state != "open":
            self.session.progress.count(1)
        self.record(point)

    def _show(self, point: SweptPoint) -> None:
        """Let a point on the last rung compete for the best that is shown: its mean over seeds, or its one model."""
        rung, metric = point.rungs[-1], self.sweep.question.metric
        shown = t_interval([self.loss_of(segment, "validation") for segment in rung.segments.values()])
        if len(rung.segments) == 1:
            (segment,) = rung.segments.values()
            own = self.session.judgement.estimates(segment, "validation").get(metric.name)
            shown = own if own is not None and metric.loss(own.value) == rung.loss else shown
        self.session.watch.better(rung.loss, shown, f"point {point.tried.number} at {self.sweep.rungs[-1]}")

    def _spent(self, suggestion: Suggestion) -> float:
        rungs = range(1, len(self.sweep.ladder.steps) + 1)
        lasts: dict[str, BranchWork] = {}
        for work in (work for rung in rungs for work in self.works(suggestion, rung)):
            known = lasts.setdefault(work.branch.hash, work)
            if work.stops[-1].steps > known.stops[-1].steps:
                lasts[work.branch.hash] = work
        events = [
            event
            for work in lasts.values()
            for event in self.session.store.events(work.branch, up_to=work.stops[-1].steps)
        ]
        return self.sweep.setting.placement.workers * sum(event.values.get("wall_seconds", 0.0) for event in events)

    # records

    def record(self, point: SweptPoint, further: Sequence[Point] = ()) -> None:
        """Bring the tracker's run of a point up to date with the store. Args: further: numbers of it."""
        tried, key = point.tried, f"point{point.tried.number}"
        params = {"number": tried.number, **self.sweep.acting(tried.values)}
        tags = {"state": tried.state, "rungs": str(len(point.rungs))}
        self.recorder.start(key, name=self._title(tried), params=params, tags=tags)
        suggestion = Suggestion(number=tried.number, values=tried.values)
        points: list[Point] = []
        for number in range(1, len(self.sweep.ladder.steps) + 1):
            for work in self.works(suggestion, number):
                points += self._training_points(work, number)
        for rung in point.rungs:
            points += self._judged_points(rung)
        if point.rungs and 0 < point.rungs[0].loss < math.inf:
            points.append(replace(points[-1], metric=FIRST_RUNG, value=math.log10(point.rungs[0].loss), step=0))
        points += further
        self.recorder.record(key, list({(p.metric, p.step): p for p in points}.values()))
        if tried.state != "open":
            self.recorder.finish(key, "failed" if tried.state == "failed" else "finished")

    def _title(self, tried: Tried) -> str:
        """A name that tells what the point is: its number and the settings that act, as far as there is room."""
        settings = [
            value if isinstance(value, str) else f"{name} {f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in self.sweep.acting(tried.values).items()
        ]
        text = f"{tried.number}: {', '.join(settings)}"
        return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"

    def _training_points(self, work: BranchWork, rung: int) -> list[Point]:
        prefix = f"train/{self.meaning.label(work, rung)}seed{work.branch.seed}_"
        return [
            Point(metric=prefix + name, value=value, step=event.step, timestamp=event.timestamp)
            for event in self.session.store.events(work.branch, up_to=work.stops[-1].steps)
            for name, value in event.values.items()
        ]

    def _judged_points(self, rung: JudgedRung) -> list[Point]:
        judgement = self.session.judgement
        known = self.session.store.evaluation(next(iter(rung.segments.values())), judgement.evaluation) or {}
        values = {"sweep/loss": rung.loss, "sweep/test_loss": rung.test_loss}
        if rung.cost is not None:
            values["sweep/cost"] = rung.cost
        for seed, segment in rung.segments.items():
            for split in SPLITS:
                estimates = judgement.estimates(segment, split)
                values |= {f"{split}/seed{seed}_{name}": e.value for name, e in estimates.items()}
        timestamp = known.get("timestamp", 0.0)
        return [Point(metric=m, value=v, step=rung.steps, timestamp=timestamp) for m, v in values.items()]
