"""SweepRun: runs a sweep through a session, resumes it from the search's journal and the store, and reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.contracts import Point, Recorder, Runner, SearchWithHistory, Suggestion, Tried
from harness.judging import Split
from harness.plan import Branch, BranchWork, Phase, Stop
from harness.progress import Progress
from harness.session import Session
from harness.sweep import Sweep, SweepSource
from harness.trial import TrialSpec
from models.estimators import Estimate

SPLITS: tuple[Split, ...] = ("validation", "test")

Loss = Callable[[Mapping[str, Estimate]], float]
"""From estimates of a model to what is minimised; not finite where it diverged."""


@dataclass(frozen=True, kw_only=True)
class JudgedRung:
    """A point at one rung: mean loss over seeds, on validation and on test points; its segments by seed."""

    steps: int
    loss: float
    test_loss: float
    segments: Mapping[int, str]


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
        phase_of: the phase that a point means. loss: what is minimised. search: keeps its points on disk.
        output: folder of results; holds the store that all studies share. runner, recorder: adapters.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        phase_of: Callable[[Mapping[str, Any]], Phase],
        loss: Loss,
        search: SearchWithHistory,
        output: Path,
        runner: Runner,
        recorder: Recorder,
        progress: Progress | None = None,
    ) -> None:
        self.sweep = sweep
        self.phase_of, self.loss, self.search, self.recorder = phase_of, loss, search, recorder
        self.session = Session(sweep, output=output, runner=runner, progress=progress)
        self.folder = self.session.folder

    def run(self) -> tuple[SweptPoint, ...]:
        """Train and judge what the store and the search lack; every point of the sweep."""
        source = SweepSource(
            self.search,
            steps=self.sweep.ladder.steps,
            works=self.works,
            is_missing=self.session.is_missing,
            spec=self._spec,
            loss=lambda suggestion, rung: self.mean_loss(suggestion, rung, "validation"),
            on_change=self._changed,
            on_result=self.session.keep_result,
        )
        self.session.run_source(source)
        points = self.points()
        for point in points:
            self._record(point)
        return points

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
            segments = {work.branch.seed: work.segments[-1].hash for work in works}
            rungs.append(JudgedRung(steps=steps, loss=loss, test_loss=test_loss, segments=segments))
        return SweptPoint(tried=tried, rungs=tuple(rungs), device_seconds=self._spent(suggestion))

    def works(self, suggestion: Suggestion, rung: int) -> tuple[BranchWork, ...]:
        """A branch of every seed with a stop at each rung up to this one (counted from 1)."""
        phase = self.phase_of(suggestion.values)
        stops = tuple(Stop(steps=steps) for steps in self.sweep.ladder.steps[:rung])
        setting = self.sweep.setting
        return tuple(
            BranchWork(branch=Branch(parent=setting.root(seed), phase=phase, seed=seed), stops=stops)
            for seed in setting.seeds
        )

    def mean_loss(self, suggestion: Suggestion, rung: int, split: Split) -> float:
        """Mean over seeds of the loss at a rung (counted from 1), infinite where a seed diverged."""
        found = []
        for work in self.works(suggestion, rung):
            value = self.loss(self.session.judgement.estimates(work.segments[-1].hash, split))
            found.append(value if math.isfinite(value) else math.inf)
        return float(np.mean(found))

    def _spec(self, suggestion: Suggestion, rung: int, works: tuple[BranchWork, ...]) -> TrialSpec:
        name = f"point {suggestion.number} to {self.sweep.ladder.steps[rung - 1]} steps"
        return self.session.spec(name, self.sweep.setting.seeds[0], works=works)

    def _changed(self, suggestion: Suggestion) -> None:
        tried = next(t for t in self.search.history if t.number == suggestion.number)
        point = self.point(tried)
        if point.rungs:
            rung = point.rungs[-1]
            text = f"point {tried.number}: {self.sweep.question.metric.title} {rung.loss:.4g} at {rung.steps} steps"
            self.session.progress.note(text if tried.state == "open" else f"{text}, {tried.state}")
        self._record(point)

    def _spent(self, suggestion: Suggestion) -> float:
        last = self.sweep.ladder.steps[-1]
        works = self.works(suggestion, 1)
        events = [event for work in works for event in self.session.store.events(work.branch, up_to=last)]
        return self.sweep.setting.placement.workers * sum(event.values.get("wall_seconds", 0.0) for event in events)

    # records

    def _record(self, point: SweptPoint) -> None:
        """Bring the tracker's run of a point up to date with the store."""
        tried, key = point.tried, f"point{point.tried.number}"
        params = {"number": tried.number, **self.sweep.acting(tried.values)}
        tags = {"state": tried.state, "rungs": str(len(point.rungs))}
        self.recorder.start(key, name=f"point {tried.number}", params=params, tags=tags)
        suggestion = Suggestion(number=tried.number, values=tried.values)
        points: list[Point] = []
        for work in self.works(suggestion, len(self.sweep.ladder.steps)):
            points += self._training_points(work)
        for number, rung in enumerate(point.rungs, start=1):
            points += self._judged_points(self.works(suggestion, number), rung)
        self.recorder.record(key, points)
        if tried.state != "open":
            self.recorder.finish(key, "failed" if tried.state == "failed" else "finished")

    def _training_points(self, work: BranchWork) -> list[Point]:
        prefix = f"train/seed{work.branch.seed}_"
        return [
            Point(metric=prefix + name, value=value, step=event.step, timestamp=event.timestamp)
            for event in self.session.store.events(work.branch, up_to=work.stops[-1].steps)
            for name, value in event.values.items()
        ]

    def _judged_points(self, works: tuple[BranchWork, ...], rung: JudgedRung) -> list[Point]:
        judgement = self.session.judgement
        known = self.session.store.evaluation(next(iter(rung.segments.values())), judgement.evaluation) or {}
        values = {"sweep/loss": rung.loss, "sweep/test_loss": rung.test_loss}
        for work in works:
            for split in SPLITS:
                estimates = judgement.estimates(work.segments[-1].hash, split)
                values |= {f"{split}/seed{work.branch.seed}_{name}": e.value for name, e in estimates.items()}
        timestamp = known.get("timestamp", 0.0)
        return [Point(metric=m, value=v, step=rung.steps, timestamp=timestamp) for m, v in values.items()]
