"""From events to the live view: which branch a trial is at, what its steps cost, and the best model judged so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.checkpoint import DamagedObject
from harness.judging import Judgement
from harness.plan import BranchWork
from harness.progress import Progress
from harness.split import Prices
from harness.trial import Event, TrialSpec
from models.estimators import Estimate


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A branch in the view.

    Args:
        label: that people see. steps: of its last stop.
        price: device-seconds of a step; None where nobody announced it: its cost is then what workers measure.
    """

    label: str
    steps: int
    price: float | None = None


class Watch:
    """Tells a progress what the events of a study's trials mean. Args: judgement: of what is judged on the way."""

    def __init__(self, progress: Progress, judgement: Judgement) -> None:
        self.progress, self.judgement = progress, judgement
        self._followed: dict[str, Followed] = {}
        self._last_step: dict[str, int] = {}
        self._least = math.inf

    def announce(self, works: Sequence[tuple[str, BranchWork]], prices: Prices) -> None:
        """What is to come. Args: works: branches with the name that people see."""
        seconds, stops = 0.0, 0
        for label, work in works:
            price = prices.of(work.branch.phase).per_step.device_seconds
            kept = max([0, *self.judgement.store.finished_steps(work.branch)])
            self._followed[work.branch.hash] = Followed(label=label, steps=work.stops[-1].steps, price=price)
            self._last_step[work.branch.hash] = kept
            seconds += max(0, work.stops[-1].steps - kept) * price
            stops += sum(
                stop.evaluate and not self.judgement.is_evaluated(segment.hash)
                for segment, stop in zip(work.segments, work.stops, strict=True)
            )
        self.progress.plan(device_seconds=seconds, cells=stops)

    def begun(self, spec: TrialSpec, workers: int) -> None:
        for work in spec.works:
            known = self._followed.get(work.branch.hash)
            if known is None or known.price is None:
                label = f"{spec.name} · {work.branch.phase.name}"
                self._followed[work.branch.hash] = Followed(label=label, steps=work.stops[-1].steps)
        self.progress.advance(f"{spec.name}: {workers} worker{'' if workers == 1 else 's'}", trial=spec.name)

    def trained(self, spec: TrialSpec, event: Event) -> None:
        known, last = self._of(spec, event), self._last_step.get(event.branch, 0)
        self._last_step[event.branch] = max(event.step, last)
        if known.price is None:
            seconds = event.values.get("wall_seconds", 0.0) * spec.placement.workers
        else:
            seconds = max(0, event.step - last) * known.price
        self.progress.advance(
            f"{known.label}, {event.step:,} of {known.steps:,} steps", trial=spec.name, device_seconds=seconds
        )

    def judged(self, spec: TrialSpec, event: Event) -> None:
        """A cell of what was announced; only those compete for the best."""
        known = self._of(spec, event)
        if known.price is not None:
            self._compare(event.notes["segment"], f"{known.label} after {event.step:,} steps")
        self.progress.advance(
            f"{known.label}, judged after {event.step:,} steps",
            trial=spec.name,
            cells=0 if known.price is None else 1,
        )

    def better(self, loss: float, estimate: Estimate, where: str) -> None:
        """Show a result if no smaller loss was shown before."""
        if loss < self._least:
            self._least = loss
            interval = f" [{estimate.lo:.4g}, {estimate.hi:.4g}]" if math.isfinite(estimate.hi - estimate.lo) else ""
            self.progress.best = f"{self.judgement.question.metric.title} {estimate.value:.4g}{interval}  ({where})"

    def _compare(self, segment: str, where: str) -> None:
        metric = self.judgement.question.metric
        try:
            found = self.judgement.estimates(segment, "validation")
        except (AssertionError, DamagedObject):  # not there (yet): the study's end will say what that means
            return
        if metric.name in found:
            self.better(metric.loss(found[metric.name].value), found[metric.name], where)

    def _of(self, spec: TrialSpec, event: Event) -> Followed:
        return self._followed.get(event.branch) or Followed(label=spec.name, steps=event.step)
