"""The best points of a sweep trained again with fresh seeds: the best of many looks better than it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.answers.report import interval_text, table
from harness.contracts import Point
from harness.plan import BranchWork
from harness.sweep import Sweep
from harness.sweep_run import SPLITS, SweepRun, SweptPoint
from harness.trial import TrialSpec
from models.estimators import Estimate, paired_t_interval, t_interval


@dataclass(frozen=True, kw_only=True)
class Again:
    """Which points are trained again. Args: top: how many of the best. seeds: that the sweep does not use."""

    top: int
    seeds: tuple[int, ...]

    def check(self, sweep: Sweep) -> None:
        """Raise ValueError for nothing to train, or for seeds that chose the points."""
        if self.top < 1:
            raise ValueError(f"the best points are trained again, got {self.top} of them; write --again 3, or 0")
        if shared := set(self.seeds) & set(sweep.setting.seeds):
            raise ValueError(
                f"fresh seeds are none of the sweep's, got {', '.join(map(str, sorted(shared)))} in both; "
                "write for example --again-seeds 1001,1002,1003"
            )


@dataclass(frozen=True, kw_only=True)
class TrainedAgain:
    """A point on the last rung with fresh seeds: losses by seed, infinite where it diverged or failed."""

    point: SweptPoint
    validation: tuple[float, ...]
    test: tuple[float, ...]
    segments: tuple[str, ...]

    @property
    def swept(self) -> float:
        """The loss that it was chosen by."""
        return self.point.rungs[-1].loss

    @property
    def shrinkage(self) -> Estimate:
        """What the choice flattered it by: fresh losses less the one that it was chosen by, on validation points."""
        return t_interval([loss - self.swept for loss in self.validation])


def train_again(run: SweepRun, points: Sequence[SweptPoint], again: Again) -> tuple[TrainedAgain, ...]:
    """Train and judge what the store lacks of the best finished points; the best on fresh validation points first."""
    chosen = best_of(run, points, again.top)
    run.session.run(stage for point in chosen if (stage := trials(run, point, again)))
    found = [trained_again(run, point, again) for point in chosen]
    for one in found:
        record(run, one, again)
    return tuple(sorted(found, key=lambda one: sum(one.validation)))


def best_of(run: SweepRun, points: Sequence[SweptPoint], top: int) -> list[SweptPoint]:
    """Those of the smallest loss; where cost is an objective too, points of the front, evenly spread from the best."""
    ended = [point for point in points if point.tried.state == "finished" and point.rungs]
    best = sorted(ended, key=lambda point: point.rungs[-1].loss)
    if run.sweep.objectives == ("loss",):
        return best[:top]
    numbers = set(run.search.front)
    front = [point for point in best if point.tried.number in numbers]
    places = [round(k * (len(front) - 1) / max(1, top - 1)) for k in range(top)]
    return [front[place] for place in dict.fromkeys(places)] if front else []


def works_again(run: SweepRun, point: SweptPoint, again: Again) -> Iterator[tuple[int, tuple[BranchWork, ...]]]:
    last = len(run.sweep.ladder.steps)
    for seed in again.seeds:
        yield seed, run.meaning.works(point.tried.values, last, seed, run.prices)


def trials(run: SweepRun, point: SweptPoint, again: Again) -> list[TrialSpec]:
    """A trial for every seed that lacks something. Points follow one another, as they may share branches."""
    found = []
    for seed, works in works_again(run, point, again):
        missing = tuple(work for work in works if run.session.is_missing(work))
        if missing:
            found.append(run.session.spec(f"point {point.tried.number} again, seed {seed}", seed, works=missing))
    return found


def trained_again(run: SweepRun, point: SweptPoint, again: Again) -> TrainedAgain:
    segments = tuple(works[-1].segments[-1].hash for _, works in works_again(run, point, again))
    judged = run.session.judgement.is_evaluated
    losses = {
        split: tuple(run.loss_of(segment, split) if judged(segment) else math.inf for segment in segments)
        for split in SPLITS
    }
    return TrainedAgain(point=point, validation=losses["validation"], test=losses["test"], segments=segments)


def record(run: SweepRun, one: TrainedAgain, again: Again) -> None:
    """Losses of fresh seeds in the run of their point, at the seed as a step."""
    store, evaluation = run.session.store, run.session.judgement.evaluation
    points = []
    for seed, segment, validation, test in zip(again.seeds, one.segments, one.validation, one.test, strict=True):
        timestamp = (store.evaluation(segment, evaluation) or {}).get("timestamp", 0.0)
        for name, value in (("loss", validation), ("test_loss", test)):
            if math.isfinite(value):
                points.append(Point(metric=f"again/{name}", value=value, step=seed, timestamp=timestamp))
    run.record(one.point, points)


def again_text(sweep: Sweep, found: Sequence[TrainedAgain], again: Again) -> str:
    """Every point with the loss that chose it, fresh ones, what it shrank by, and its distance from the best."""
    if not found:
        return "no point reached the last rung, so none was trained again"
    title, best = sweep.question.metric.title, found[0]
    header = ["point", "when chosen", "again, validation", "again, test", "shrinkage", "test - best's"]
    rows = []
    for one in found:
        apart = "-" if one is best else text(paired_t_interval(one.test, best.test))
        cells = [text(t_interval(one.validation)), text(t_interval(one.test)), text(one.shrinkage), apart]
        rows.append([str(one.point.tried.number), f"{one.swept:.4g}", *cells])
    seeds = ", ".join(map(str, again.seeds))
    interval = f"[ ] 95 % t interval over n = {len(again.seeds)} seeds"
    legend = f"{title} after {sweep.rungs[-1]}, fresh seeds {seeds}; {interval}"
    return "\n".join([table(header, rows), legend, verdict(sweep, found)])


def verdict(sweep: Sweep, found: Sequence[TrainedAgain]) -> str:
    """The winner on fresh validation points, and those that test points cannot tell from it."""
    best = found[0]
    settings = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sweep.acting(best.point.tried.values).items()
    )
    stages = best.point.rungs[-1].stages
    if stages:
        settings += f" (--stages {stages})"
    alike = [str(one.point.tried.number) for one in found[1:] if not is_told_from(one, best)]
    rest = f"not told from it: {', '.join(alike)}" if alike else "all others are told from it"
    return f"winner: point {best.point.tried.number}: {settings}" + (f"; {rest}" if len(found) > 1 else "")


def is_told_from(one: TrainedAgain, best: TrainedAgain) -> bool:
    return paired_t_interval(one.test, best.test).lo > 0


def again_rows(found: Sequence[TrainedAgain], again: Again) -> list[dict[str, Any]]:
    """A row for every point and fresh seed; the winner first."""
    return [
        {"point": one.point.tried.number, "swept_loss": one.swept, "seed": seed, "segment": segment}
        | {"loss": validation, "test_loss": test}
        for one in found
        for seed, segment, validation, test in zip(again.seeds, one.segments, one.validation, one.test, strict=True)
    ]


def text(estimate: Estimate) -> str:
    return interval_text(estimate) if math.isfinite(estimate.value) else estimate.reason
