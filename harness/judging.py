"""From per-sample records to judged cells: estimates are made once, kept beside the records, and read again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from harness.answers.question import Question
from harness.answers.surface import Cell
from harness.checkpoint import DamagedObject, Store, read_json, write_json
from harness.contracts import Problem, Records
from harness.identity import Settings
from harness.split import PlannedCell
from harness.worker import evaluation_key
from models.estimators import Estimate

ESTIMATES_VERSION = 3
"""Raise this when an estimator changes its meaning, so that kept estimates are made anew from the records."""

Split = Literal["validation", "test"]


class Judgement:
    """Estimates of evaluated segments under one evaluation's settings.

    Args:
        question: which metrics decide. problem: makes estimates of records. settings: of the problem.
    """

    def __init__(self, question: Question, problem: Problem, store: Store, settings: Settings) -> None:
        self.question = question
        self.problem = problem
        self.store = store
        self.evaluation = evaluation_key(settings)
        self.quality = question.quality or question.metric.name

    def is_evaluated(self, segment: str) -> bool:
        return self.store.evaluation(segment, self.evaluation) is not None

    def estimates(self, segment: str, split: Split) -> dict[str, Estimate]:
        """Estimates with intervals of one evaluated segment.

        Raises:
            DamagedObject: where its records cannot be read (it then counts as not evaluated).
        """
        known = self.store.evaluation(segment, self.evaluation)
        assert known is not None, f"segment {segment} is not evaluated"
        path = self.store.folder / "estimates" / f"{known['records']}-{split}-{ESTIMATES_VERSION}.json"
        kept = read_json(path)
        if kept is None:
            made = self.problem.estimates(self.records(segment), split)
            kept = {name: asdict(estimate) for name, estimate in made.items()}
            write_json(path, kept)
        return {name: Estimate(**kept[name]) for name in sorted(kept)}

    def records(self, segment: str) -> Records:
        """The per-sample records of an evaluated segment.

        Raises:
            DamagedObject: where they cannot be read.
        """
        known = self.store.evaluation(segment, self.evaluation)
        assert known is not None, f"segment {segment} is not evaluated"
        try:
            return self.store.get_arrays(known["records"])
        except DamagedObject:
            self.store.forget_evaluation(segment, self.evaluation)
            raise

    def scale(self, segment: str) -> float:
        """The validation metric of a segment on the scale that is averaged; infinite where it diverged or failed."""
        if not self.is_evaluated(segment):
            return math.inf
        metric = self.question.metric
        return metric.loss(self.estimates(segment, "validation")[metric.name].value)

    def judged(self, planned: Sequence[PlannedCell]) -> list[Cell]:
        """The judged cells of one seed; what is not evaluated yet is left out.

        What is worse than the untrained model has diverged, where that is the first planned cell (a plan may leave it
        out) and the quality is known of both.
        """
        first, *_ = planned
        if not self.is_evaluated(first.segment):
            return []
        before = self.estimates(first.segment, "validation").get(self.quality) if is_untrained(first) else None
        worst = math.inf if before is None else before.value
        return [self._cell(cell, worst) for cell in planned if self.is_evaluated(cell.segment)]

    def _cell(self, planned: PlannedCell, worst: float) -> Cell:
        validation = self.estimates(planned.segment, "validation")
        test = self.estimates(planned.segment, "test")
        known = self.store.evaluation(planned.segment, self.evaluation) or {}
        return Cell(
            seed=planned.seed,
            fork_steps=planned.fork_steps,
            tail=planned.tail,
            tail_steps=planned.tail_steps,
            trunk_cost=planned.trunk_cost,
            tail_cost=planned.tail_cost,
            validation=validation,
            test=test,
            diverged=not is_untrained(planned) and has_diverged(validation, self.quality, worst),
            segment=planned.segment,
            timestamp=known.get("timestamp", 0.0),
            evaluation_device_seconds=known.get("device_seconds", 0.0),
        )


def is_untrained(planned: PlannedCell) -> bool:
    return planned.fork_steps == 0 and planned.tail_steps == 0


def has_diverged(estimates: Mapping[str, Estimate], quality: str, untrained: float) -> bool:
    """Non-finite, or worse than the untrained model. A model that the quality says nothing of has not diverged."""
    if quality not in estimates:
        return False
    value = estimates[quality].value
    return not math.isfinite(value) or value > untrained
