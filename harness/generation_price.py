"""What refilling a replay buffer costs, and how that is shared over the steps between two refills."""

from __future__ import annotations

import sys
import time
from dataclasses import fields, replace
from typing import Any

import torch

from harness.budget import Cost
from harness.collective import share
from harness.loop import Trainer, TrainState
from harness.matrix_products import MatrixProductCounter
from harness.memory import peak_of
from models.contracts import Work, whole_batch

COUNTED_ROWS = 16
"""Operations and memory grow in proportion to the rows; they are counted on so many."""


def without_refills(trainer: Trainer) -> Trainer:
    """The trainer whose buffer stays as it begins, so that its steps are steps alone."""
    if trainer.renewal is None:
        return trainer
    return replace(trainer, renewal=replace(trainer.renewal, every=sys.maxsize))


def refill_cost(trainer: Trainer, state: TrainState) -> Cost:
    """One worker's cost of one refill, its own wall-clock seconds included; nothing where there is no buffer."""
    renewal = trainer.renewal
    if renewal is None:
        return Cost()
    trainer.renew(state)
    assert state.buffer is not None
    start = time.perf_counter()
    _, work = renewal.refilled(state.buffer, state.flow, state.step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    first, last = share(renewal.objective.rows, trainer.collective.rank, trainer.collective.workers)
    few, experience = max(1, min(COUNTED_ROWS, last - first)), state.buffer
    device = next(state.flow.parameters()).device
    with MatrixProductCounter() as counter:
        _, peak = peak_of(lambda: renewal.objective.generate(state.flow, experience, whole_batch(few, 0)), device)
    scale = (last - first) / few
    return cost_of(work, flops=scale * counter.flops, seconds=seconds, peak_bytes=round(scale * peak))


def cost_of(work: Work, *, flops: float, seconds: float = 0.0, peak_bytes: int = 0) -> Cost:
    """Counted work as a cost. Args: flops: of matrix products, to which the declared ones are added."""
    return Cost(
        samples=work.samples,
        field_evaluations=work.field_evaluations,
        energy_evaluations=work.energy_evaluations,
        force_evaluations=work.force_evaluations,
        flops=float(flops + work.declared_flops),
        device_seconds=seconds,
        peak_memory_bytes=peak_bytes,
    )


def with_refill(step: Cost, refill: Cost, every: int) -> Cost:
    """A step with its share of a refill; whole numbers stay whole. Peak memory is that of the larger of the two."""
    shared: dict[str, Any] = {}
    for f in fields(Cost):
        value = getattr(refill, f.name) / every
        shared[f.name] = value if isinstance(getattr(refill, f.name), float) else round(value)
    return step + Cost(**{**shared, "peak_memory_bytes": refill.peak_memory_bytes})
