"""The exchange rate between steps and currencies: what one step of a phase costs on this kind of device."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from harness.budget import Cost, StepPrice
from harness.collective import Collective
from harness.generation_price import cost_of, refill_cost, with_refill, without_refills
from harness.identity import plain
from harness.loop import Trainer, TrainState
from harness.matrix_products import MatrixProductCounter
from harness.memory import held_bytes, peak_of
from harness.microbatch import state_tensors, within_memory
from harness.plan import Phase
from harness.trial import Placement
from models.contracts import Work

WARM_UP_STEPS = 3
TIMED_SECONDS = 3.0
TIMED_STEPS = (7, 400)


def device_kind() -> str:
    """The name of the device that a worker computes on, as far as it decides the price of a step."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}"


def price_key(
    problem: Mapping[str, Any],
    phase: Phase,
    placement: Placement,
    device: str,
    memory_cap_bytes: float | None = None,
) -> dict[str, Any]:
    """What a price depends on; the same key is never measured twice."""
    return {
        **({} if memory_cap_bytes is None else {"memory_cap_bytes": memory_cap_bytes}),
        "problem": plain(problem),
        "phase": phase.price_fingerprint,
        "workers": placement.workers,
        "threads": placement.threads,
        "device": device,
    }


def measure_price(trainer: Trainer, flow: torch.nn.Module, *, memory_cap_bytes: float | None = None) -> StepPrice:
    """Train a throw-away copy for a few steps: seconds are the median after warm-up, operations are counted once.

    Where the model refills a replay buffer, one refill is timed by itself and shared over the steps between two.
    Under a memory cap the price is that of the largest micro-batch that stays within it; see `within_memory`.
    """
    if memory_cap_bytes is not None:
        trainer = within_memory(trainer, flow, memory_cap_bytes)
    phase, collective, renewal = trainer.branch.phase, trainer.collective, trainer.renewal
    state = TrainState.start(flow, phase)
    trainer = without_refills(trainer)
    with closing(trainer.steps(state, to=sys.maxsize)) as steps:
        warm_up = [timed_step(steps) for _ in range(WARM_UP_STEPS)]
        count = int(np.clip(TIMED_SECONDS / max(warm_up[-1], 1e-9), *TIMED_STEPS))
        seconds = [timed_step(steps) for _ in range(collective.broadcast(count))]
    counted = counted_step(trainer, state)
    median, low, high = np.quantile(collective.broadcast(seconds), [0.5, 0.25, 0.75]) * collective.workers
    total = collective.broadcast(sum_costs(collective, counted))
    per_step = Cost(**{**asdict(total), "steps": 1, "device_seconds": float(median)})
    if renewal is not None:
        refill = collective.broadcast(sum_costs(collective, refill_cost(trainer, state)))
        per_step = with_refill(per_step, refill, renewal.every)
        low, high = (quartile + refill.device_seconds / renewal.every for quartile in (low, high))
    return StepPrice(
        phase=phase.price_fingerprint,
        device=device_kind(),
        workers=collective.workers,
        per_step=per_step,
        timed_steps=len(seconds),
        device_seconds_lo=float(low),
        device_seconds_hi=float(high),
        microbatch=trainer.microbatch,
    )


def timed_step(steps: Iterator[Work]) -> float:
    """Seconds of the next step as the loop takes it: what is prepared ahead costs what it holds up."""
    start = time.perf_counter()
    next(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def counted_step(trainer: Trainer, state: TrainState) -> Cost:
    """One worker's counted cost of a step: torch's matrix products plus what the objective declares.

    Its peak memory is what the state holds plus what the step makes, its batch included and the training set not.
    """
    trainer.order.rows_of(state.step)  # an epoch's order is made once and then kept: no part of a step
    held = held_bytes(state_tensors(state))
    with MatrixProductCounter() as counter:
        work, made = peak_of(lambda: trainer.step(state), next(state.flow.parameters()).device)
    return cost_of(work, flops=counter.flops, peak_bytes=held + made)


def sum_costs(collective: Collective, mine: Cost) -> Cost | None:
    gathered = collective.gather(mine)
    return None if gathered is None else sum(gathered, Cost())


def price_from_plain(value: Mapping[str, Any]) -> StepPrice:
    """The price of a record. Older ones hold the size of the whole process, which is no step's peak: left out."""
    fields = {key: item for key, item in value.items() if key != "key"}
    per_step = Cost(**fields["per_step"])
    if "microbatch" not in fields:
        per_step = replace(per_step, peak_memory_bytes=0)
    return StepPrice(**{**fields, "per_step": per_step})
