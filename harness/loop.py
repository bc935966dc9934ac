"""TrainState and the one training loop, a generator of events.

Randomness is counter-based: the batch and the noise of a step are functions of (branch, step) alone, drawn for the
whole global batch on every rank. The step count is therefore the state of every random stream and the position in the
data, and a resumed run repeats the interrupted one bit by bit.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from harness.captured import CapturedGradient
from harness.collective import Collective, share
from harness.identity import derived_seed
from harness.plan import Branch, Phase, geometric_grid
from harness.prefetch import prefetched
from harness.renewal import Renewal, restored
from harness.trial import Event
from models.contracts import Batch, Experience, GradientSum, Objective, Prepared, Random, Recordable, Work


@dataclass
class Tally:
    """Sums since the last train event; part of the checkpoint, so that a resumed event is the same event."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    steps: int = 0
    skipped: int = 0


@dataclass
class TrainState:
    """The one mutable thing of a worker: weights, optimiser, average, buffer of own rows, and how many steps are done.

    `recorded` is the gradient as a graph of the GPU, where there is one; no part of a checkpoint.
    """

    flow: torch.nn.Module
    optimiser: torch.optim.Optimizer
    average: list[Tensor] | None
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    buffer: Experience | None = None
    recorded: CapturedGradient | None = None

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
            **({} if self.buffer is None else {"buffer": self.buffer.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any], objective: object = None) -> None:
        """Go on from a snapshot. `objective`: of the phase, where the snapshot has a buffer."""
        self.flow.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self.step = state["step"]
        self.tally = Tally(**state["tally"])
        self.buffer = None
        if "buffer" in state:
            self.buffer = restored(state["buffer"], objective, like=next(self.flow.parameters()))
        if self.average is not None:
            for mine, saved in zip(self.average, state["average"], strict=True):
                mine.copy_(saved)


class BatchOrder:
    """Which rows make up each step's global batch: every epoch a fresh permutation, each row once an epoch."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._last = (-1, torch.empty(0, dtype=torch.long))

    def _permutation(self, epoch: int) -> Tensor:
        known, order = self._last
        if epoch != known:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
            order = torch.randperm(self.rows, generator=generator)
            self._last = (epoch, order)
        return order

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


def on_host(data: Batch) -> Batch:
    """A batch in the memory of the CPU, where a thread can work on it beside a device."""
    return Batch(x_BD=data.x_BD.cpu(), force_BD=None if data.force_BD is None else data.force_BD.cpu())


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Everything that a branch's steps need besides the state.

    Attributes:
        microbatch: most rows of one gradient call; their sums are added in order. None: all local rows in one call.
        renewal: of the buffer of own rows that batches are drawn from; None where they are rows of the data.
    """

    branch: Branch
    objective: Objective
    data: Batch
    order: BatchOrder
    collective: Collective
    seed: int
    microbatch: int | None = None
    renewal: Renewal | None = None

    @staticmethod
    def of(
        branch: Branch, objective: Objective, data: Batch, collective: Collective, *, microbatch: int | None = None
    ) -> Trainer:
        if objective.needs_force and data.force_BD is None:
            raise ValueError("this objective needs forces at the data, got a batch without; precompute them once")
        if microbatch is not None and microbatch < 1:
            raise ValueError(f"a micro-batch holds at least one row, got {microbatch}; write for example 64, or None")
        seed = derived_seed(branch.hash, branch.seed)
        renewal = Renewal.of(objective, collective, seed)
        if renewal is not None and objective.prepares_ahead:
            raise ValueError(
                "batches of a replay buffer wait for its refill, got an objective that prepares ahead; "
                "write prepares_ahead = False"
            )
        return Trainer(
            branch=branch,
            objective=objective,
            data=on_host(data) if objective.prepares_ahead else data,
            order=BatchOrder(len(data.x_BD), branch.phase.batch, seed),
            collective=collective,
            seed=seed,
            microbatch=microbatch,
            renewal=renewal,
        )

    def renew(self, state: TrainState) -> Work:
        """Bring the buffer of own rows up to the state's step, where there is one; this worker's work."""
        if self.renewal is None:
            return Work()
        if state.buffer is None:
            state.buffer = self.renewal.begin(self.data)
        state.buffer, work = self.renewal.brought_to(state.step, state.buffer, state.flow)
        return work

    def prepare(self, prior: Any, step: int, buffer: Experience | None = None) -> Prepared:
        """This worker's rows of a step, made by a function of the step's number (and of the buffer) alone."""
        size = self.branch.phase.batch
        mine = share(size, self.collective.rank, self.collective.workers)
        if not self.objective.prepares_globally:
            return self.objective.prepare(prior, *self._drawn(step, *mine, buffer))
        return self.objective.prepare(prior, *self._drawn(step, 0, size, buffer)).rows(*mine)

    def _drawn(self, step: int, start: int, stop: int, buffer: Experience | None) -> tuple[Batch, Random]:
        """Data and randomness of rows [start, stop) of a step's global batch."""
        if buffer is not None:
            batch = buffer.batch(start, stop, draw=step)
        else:
            rows, forces = self.order.rows_of(step)[start:stop], self.data.force_BD
            batch = Batch(x_BD=self.data.x_BD[rows], force_BD=None if forces is None else forces[rows])
        generator = torch.Generator().manual_seed(derived_seed("noise", self.seed, step))
        return batch, Random(generator=generator, global_size=self.branch.phase.batch, start=start, stop=stop)

    def preparing(self, state: TrainState, *, to: int) -> AbstractContextManager[Callable[[int], Prepared]]:
        """How the steps up to `to` are prepared: ahead, where the objective finds that worth a thread, or in line."""
        prior = state.flow.prior

        def make(step: int) -> Prepared:
            return self.prepare(prior, step, state.buffer)

        return prefetched(make, start=state.step, stop=to) if self.objective.prepares_ahead else nullcontext(make)

    def steps(self, state: TrainState, *, to: int) -> Generator[Work, None, None]:
        """The steps up to `to`, one after another, each with its work."""
        with self.preparing(state, to=to) as prepared_at:
            while state.step < to:
                generated = self.renew(state)
                yield generated + self.step(state, prepared_at(state.step))

    def step(self, state: TrainState, prepared: Prepared | None = None) -> Work:
        """One optimiser step: local gradient sums, one flat all-reduce, clip, Adam. Returns this worker's work.

        `prepared` is what `prepare` makes of the state's step; made here, after a refill where one is due, where it is
        not given.
        """
        generated = Work()
        if prepared is None:
            generated = self.renew(state)
            prepared = self.prepare(state.flow.prior, state.step, state.buffer)
        local = self._gradient(state, prepared)
        flat = flatten_gradients(local.gradients, local.loss_sum, local.weight)
        self.collective.sum_(flat)
        loss, norm = self._apply(state, flat)
        if self.renewal is not None and state.buffer is not None:
            size = self.branch.phase.batch
            state.buffer = self.renewal.revised(state.buffer, local.seen_B, step=state.step, batch=size)
        state.step += 1
        count_step(state.tally, loss, norm)
        return generated + local.work

    def _gradient(self, state: TrainState, prepared: Prepared) -> GradientSum:
        device = next(state.flow.parameters()).device
        prepared, call = prepared.to(device), self._call(state, device)
        if self.microbatch is None:
            return call(prepared)
        return reduce(add, (call(piece) for piece in prepared.slices(self.microbatch)))

    def _call(self, state: TrainState, device: torch.device) -> Callable[[Prepared], GradientSum]:
        """The objective's gradient; on a GPU as one recorded graph, where the objective allows it."""
        if device.type != "cuda" or not isinstance(self.objective, Recordable):
            return partial(self.objective.gradient, state.flow)
        if state.recorded is None:
            state.recorded = CapturedGradient(self.objective, state.flow)
        return state.recorded

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
    with closing(trainer.steps(state, to=to)) as steps:
        for _ in steps:
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
