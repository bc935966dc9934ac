"""TrainState and the one training loop, a generator of events.

Randomness is counter-based: the batch and the noise of a step are functions of (branch, step) alone, drawn for the
whole global batch on every rank. The step count is therefore the state of every random stream and the position in the
data, and a resumed run repeats the interrupted one bit by bit.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.collective import Collective
from harness.identity import derived_seed
from harness.plan import Branch, Phase, geometric_grid
from harness.trial import Event
from models.contracts import Batch, Objective, Random, Work


@dataclass
class Tally:
    """Sums since the last train event; part of the checkpoint, so that a resumed event is the same event."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    steps: int = 0
    skipped: int = 0


@dataclass
class TrainState:
    """The one mutable thing of a worker: weights, optimiser, average, and how many steps are done."""

    flow: torch.nn.Module
    optimiser: torch.optim.Optimizer
    average: list[Tensor] | None
    step: int = 0
    tally: Tally = field(default_factory=Tally)

    @staticmethod
    def start(flow: torch.nn.Module, phase: Phase) -> TrainState:
        """A fresh optimiser (and average) on the given weights."""
        settings = phase.optimiser
        parameters = list(flow.parameters())
        optimiser = torch.optim.Adam(
            parameters, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True
        )
        average = None if phase.ema_decay is None else [p.detach().clone() for p in parameters]
        return TrainState(flow=flow, optimiser=optimiser, average=average)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: training on leaves it as it is."""
        return {
            "weights": {name: value.detach().clone() for name, value in self.flow.state_dict().items()},
            "average": None if self.average is None else [a.clone() for a in self.average],
            "optimiser": copy.deepcopy(self.optimiser.state_dict()),
            "step": self.step,
            "tally": dict(vars(self.tally)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.flow.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self.step = state["step"]
        self.tally = Tally(**state["tally"])
        if self.average is not None:
            for mine, saved in zip(self.average, state["average"], strict=True):
                mine.copy_(saved)


class BatchOrder:
    """Which rows make up each step's global batch: every epoch a fresh permutation, each row once an epoch."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.rows, generator=generator)
        return self._order

    def rows_of(self, step: int) -> Tensor:
        """The row numbers of a step's global batch, (batch,). A batch may straddle epochs."""
        first, last = step * self.batch, (step + 1) * self.batch
        parts = []
        while first < last:
            epoch, offset = divmod(first, self.rows)
            take = min(last - first, self.rows - offset)
            parts.append(self._permutation(epoch)[offset : offset + take])
            first += take
        return torch.cat(parts)


def share(size: int, rank: int, workers: int) -> tuple[int, int]:
    """The rows [start, stop) of a global batch that belong to one rank; sizes differ by one at most."""
    return size * rank // workers, size * (rank + 1) // workers


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Everything that a branch's steps need besides the state."""

    branch: Branch
    objective: Objective
    data: Batch
    order: BatchOrder
    collective: Collective
    seed: int

    @staticmethod
    def of(branch: Branch, objective: Objective, data: Batch, collective: Collective) -> Trainer:
        if objective.needs_force and data.force_BD is None:
            raise ValueError("this objective needs forces at the data, got a batch without; precompute them once")
        seed = derived_seed(branch.hash, branch.seed)
        order = BatchOrder(len(data.x_BD), branch.phase.batch, seed)
        return Trainer(branch=branch, objective=objective, data=data, order=order, collective=collective, seed=seed)

    def local_batch(self, step: int) -> tuple[Batch, Random]:
        size = self.branch.phase.batch
        start, stop = share(size, self.collective.rank, self.collective.workers)
        rows = self.order.rows_of(step)[start:stop]
        forces = self.data.force_BD
        batch = Batch(x_BD=self.data.x_BD[rows], force_BD=None if forces is None else forces[rows])
        generator = torch.Generator().manual_seed(derived_seed("noise", self.seed, step))
        return batch, Random(generator=generator, global_size=size, start=start, stop=stop)

    def step(self, state: TrainState) -> Work:
        """One optimiser step: local gradient sums, one flat all-reduce, clip, Adam. Returns this worker's work."""
        batch, random = self.local_batch(state.step)
        local = self.objective.gradient(state.flow, batch, random)
        flat = flatten_gradients(local.gradients, local.loss_sum, local.weight)
        self.collective.sum_(flat)
        loss, norm = self._apply(state, flat)
        state.step += 1
        count_step(state.tally, loss, norm)
        return local.work

    def _apply(self, state: TrainState, flat: Tensor) -> tuple[float, float]:
        gradient = flat[:-2] / flat[-1]
        loss, norm = torch.stack([flat[-2] / flat[-1], gradient.norm()]).tolist()
        if not (abs(loss) < float("inf") and norm < float("inf")):
            return float("nan"), float("nan")
        clip = self.branch.phase.optimiser.gradient_clip
        if clip is not None and norm > clip:
            gradient = gradient * (clip / norm)
        install_gradient(state.flow, gradient)
        state.optimiser.step()
        update_average(state, self.branch.phase.ema_decay)
        return loss, norm


def flatten_gradients(gradients: tuple[Tensor, ...], loss_sum: Tensor, weight: float) -> Tensor:
    """All gradient sums, the loss sum and the weight in one vector, so that one all-reduce carries them."""
    tail = torch.stack(
        [loss_sum.detach().to(gradients[0].dtype), loss_sum.new_tensor(weight, dtype=gradients[0].dtype)]
    )
    return torch.cat([*(g.reshape(-1) for g in gradients), tail])


def install_gradient(flow: torch.nn.Module, gradient: Tensor) -> None:
    parameters = list(flow.parameters())
    for parameter, piece in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)


def update_average(state: TrainState, decay: float | None) -> None:
    if state.average is not None and decay is not None:
        torch._foreach_lerp_(state.average, [p.detach() for p in state.flow.parameters()], 1.0 - decay)


def count_step(tally: Tally, loss: float, norm: float) -> None:
    """Non-finite steps were skipped by every rank alike; they are counted and leave the means alone."""
    if loss != loss:
        tally.skipped += 1
        return
    tally.steps += 1
    tally.loss += loss
    tally.gradient_norm += norm


def train(trainer: Trainer, state: TrainState, *, to: int) -> Iterator[Event | None]:
    """Train up to `to` steps. Yields after every step: a train event on the geometric grid, else None.

    Every rank yields at the same steps, so what a caller does with events may be collective.
    """
    grid = {point for point in geometric_grid(to) if point > state.step} | {to}
    before = time.perf_counter()
    while state.step < to:
        trainer.step(state)
        if state.step in grid:
            seconds = time.perf_counter() - before
            yield train_event(trainer.branch, state, seconds)
            before = time.perf_counter()
        else:
            yield None


def train_event(branch: Branch, state: TrainState, seconds: float) -> Event:
    """The means since the last event; the tally starts anew."""
    tally, state.tally = state.tally, Tally()
    done = max(tally.steps, 1)
    nothing = tally.steps == 0
    values = {
        "loss": float("nan") if nothing else tally.loss / done,
        "gradient_norm": float("nan") if nothing else tally.gradient_norm / done,
        "skipped_steps": float(tally.skipped),
        "wall_seconds": seconds,
    }
    return Event(kind="train", branch=branch.hash, step=state.step, timestamp=time.time(), values=values)
