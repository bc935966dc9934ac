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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.budget import Cost, StepPrice
from harness.collective import Collective
from harness.identity import plain
from harness.loop import Trainer, TrainState
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

    Under a memory cap the price is that of the largest micro-batch that stays within it; see `within_memory`.
    """
    if memory_cap_bytes is not None:
        trainer = within_memory(trainer, flow, memory_cap_bytes)
    phase, collective = trainer.branch.phase, trainer.collective
    state = TrainState.start(flow, phase)
    with closing(trainer.steps(state, to=sys.maxsize)) as steps:
        warm_up = [timed_step(steps) for _ in range(WARM_UP_STEPS)]
        count = int(np.clip(TIMED_SECONDS / max(warm_up[-1], 1e-9), *TIMED_STEPS))
        seconds = [timed_step(steps) for _ in range(collective.broadcast(count))]
    counted = counted_step(trainer, state)
    median, low, high = np.quantile(collective.broadcast(seconds), [0.5, 0.25, 0.75]) * collective.workers
    total = collective.broadcast(sum_costs(collective, counted))
    per_step = Cost(**{**asdict(total), "steps": 1, "device_seconds": float(median)})
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


class MatrixProductCounter(TorchDispatchMode):
    """Counts the operations of matrix products, forward and backward, by torch's own formulas.

    torch's FlopCounterMode does the same, but its module tracker refuses `autograd.grad` with respect to leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


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
    return Cost(
        samples=work.samples,
        field_evaluations=work.field_evaluations,
        energy_evaluations=work.energy_evaluations,
        force_evaluations=work.force_evaluations,
        flops=float(counter.flops + work.declared_flops),
        peak_memory_bytes=held + made,
    )


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
