"""The largest micro-batch whose step stays within a memory cap, found by trying.

Sums are the same whatever the micro-batch, up to rounding, so that it is part of a step's price and not of a segment's
identity.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from harness.loop import Trainer, TrainState
from harness.memory import held_bytes, peak_of
from harness.plan import Phase


class Unheard:
    """One worker of a group while it tries something alone: what it would send is dropped."""

    def __init__(self, rank: int, workers: int) -> None:
        self.rank = rank
        self.workers = workers

    def sum_(self, flat: torch.Tensor) -> None:
        return None

    def gather(self, value: Any) -> list[Any] | None:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


def within_memory(trainer: Trainer, flow: torch.nn.Module, cap_bytes: float) -> Trainer:
    """The trainer with the largest micro-batch, halved from all local rows, whose step stays within the cap.

    One row at a time where nothing does: the price then says by how much.
    """
    collective = trainer.collective
    size = math.ceil(trainer.branch.phase.batch / collective.workers)
    tried = replace(trainer, microbatch=None)
    while True:
        peaks = collective.gather(tried_peak(tried, flow))
        if collective.broadcast(peaks is not None and max(peaks) <= cap_bytes) or size == 1:
            return tried
        size = math.ceil(size / 2)
        tried = replace(trainer, microbatch=size)


def tried_peak(trainer: Trainer, flow: torch.nn.Module) -> float:
    """Peak memory of a step of a copy of the flow, this worker alone; infinite where a GPU has not so much.

    Three micro-batches are enough: the third is made beside the sum over those before it, as are all that follow.
    """
    trainer = replace(trainer, collective=Unheard(trainer.collective.rank, trainer.collective.workers))
    state = warm_state(copy.deepcopy(flow), trainer.branch.phase)

    def step() -> None:
        prepared = trainer.prepare(state.flow.prior, state.step, state.buffer)
        part = prepared if trainer.microbatch is None else prepared.rows(0, 3 * trainer.microbatch)
        replace(trainer, renewal=None).step(state, part)  # a part of a batch tells the buffer nothing

    trainer.renew(state)
    trainer.order.rows_of(state.step)  # an epoch's order is made once and then kept: no part of a step
    held = held_bytes(state_tensors(state))
    try:
        _, made = peak_of(step, next(state.flow.parameters()).device)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return math.inf
    return float(held + made)


def warm_state(flow: torch.nn.Module, phase: Phase) -> TrainState:
    """A fresh state that already holds gradients (zero) and the optimiser's moments, as after a first step."""
    state = TrainState.start(flow, phase)
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimiser.step()
    return state


def state_tensors(state: TrainState) -> Iterator[torch.Tensor]:
    """What a worker holds between steps: weights, gradients, the optimiser's moments, the average, the buffer."""
    yield from state.flow.buffers()
    for parameter in state.flow.parameters():
        yield parameter.detach()
        if parameter.grad is not None:
            yield parameter.grad
    for moments in state.optimiser.state.values():
        yield from (value for value in moments.values() if isinstance(value, torch.Tensor))
    yield from state.average or []
    if state.buffer is not None:
        yield from state.buffer.tensors.values()
