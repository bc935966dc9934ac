"""The nouns of the mathematics: Space, Target, Field, Flow, Objective, Batch, and what travels between them.

Shape suffixes used everywhere: B batch, D coordinates of a flat configuration (N particles x d), N particles,
d spatial dimensions. Energies are reduced (in kT) and have shape (B,), never (B, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.space import Space as Space


@runtime_checkable
class Target(Protocol):
    """A distribution exp(-energy(x)) / Z. A user's own target fulfils this and passes the same law tests."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> Space: ...

    @property
    def log_z(self) -> float | None:
        """log of the integral of exp(-energy) over the space (the subspace where mean-free), None if unknown."""

    @property
    def energy_flops(self) -> int:
        """Declared floating-point operations of one energy; one score is charged the same again."""

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT. Differentiable, keeps the dtype."""

    def score(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D), minus the gradient of the energy, in closed form where there is one."""


@runtime_checkable
class SampledTarget(Target, Protocol):
    """A target that can be sampled exactly."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n exact, independent draws, (n, D)."""


class Field(Protocol):
    """A vector field v(t, x): an nn.Module that also knows its own exact divergence."""

    def __call__(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """t: scalar tensor or (B,); x: (B, D) -> v: (B, D)."""

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(v (B, D), exact div v (B,)), both differentiable with respect to x and the parameters."""

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]: ...


class Divergence(Protocol):
    """How div v is found along a trajectory: exactly, or by Hutchinson's estimate with a probe held fixed."""

    def __call__(self, field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(v, div or its estimate), differentiable."""


@dataclass(frozen=True, kw_only=True)
class FlowSamples:
    """What a flow carried along n trajectories, base to data (or back).

    Attributes:
        x0_BD: points in the base. x1_BD: points in data space.
        log_q_B: normalised log density of x1 under the flow (on the mean-free subspace where there is one).
        logdet_B: int_0^1 div v dt along the trajectory (so log_q = log q0(x0) - logdet).
        length_B: int_0^1 |v| dt, Euclidean norm in R^D.
    """

    x0_BD: Tensor
    x1_BD: Tensor
    log_q_B: Tensor
    logdet_B: Tensor
    length_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counted work of one worker: what a step or an evaluation really called.

    `declared_flops` are operations that torch's counter cannot see (energies, pairings, element-wise work).
    """

    samples: int = 0
    field_evaluations: int = 0
    energy_evaluations: int = 0
    force_evaluations: int = 0
    declared_flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)})


@dataclass(frozen=True, kw_only=True)
class Random:
    """Randomness of one step, drawn for the whole global batch so that it does not depend on how workers share it.

    Every rank draws the same global array and keeps its own rows [start, stop).
    """

    generator: torch.Generator
    global_size: int
    start: int
    stop: int

    def _mine(self, draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
        full = draw((self.global_size, *shape), generator=self.generator, device=self.generator.device)
        return full[self.start : self.stop].to(device=like.device, dtype=like.dtype)

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        """Standard normal, (local batch, *shape), in the dtype and on the device of `like`."""
        return self._mine(torch.randn, shape, like)

    def uniform(self, *shape: int, like: Tensor) -> Tensor:
        """Uniform on [0, 1), (local batch, *shape)."""
        return self._mine(torch.rand, shape, like)

    def rademacher(self, *shape: int, like: Tensor) -> Tensor:
        """+1 or -1 with equal probability, (local batch, *shape)."""
        return 2.0 * (self._mine(torch.rand, shape, like) < 0.5).to(like.dtype) - 1.0


def whole_batch(size: int, seed: int) -> Random:
    """The randomness of a step that one worker does alone: all `size` rows, from `seed`."""
    return Random(generator=torch.Generator().manual_seed(seed), global_size=size, start=0, stop=size)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of data: a training set, a step's global batch, or one worker's share of it.

    Attributes:
        x_BD: data configurations.
        force_BD: minus the gradient of the energy there (needed by path gradients), or None.
    """

    x_BD: Tensor
    force_BD: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a step needs besides the weights: its base noise, pairing, times and probes, row by row.

    Attributes:
        tensors: by name, with one common first dimension: the rows.
        work: what preparing them called; charged once, however the rows are cut.
    """

    tensors: Mapping[str, Tensor]
    work: Work = Work()

    def __post_init__(self) -> None:
        rows = {tensor.shape[:1] for tensor in self.tensors.values()}
        if len(rows) != 1 or torch.Size() in rows:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"prepared tensors have one common number of rows, got {shapes}; write one row a sample")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def to(self, device: torch.device) -> Prepared:
        """On a device; tensors that are there already stay what they are."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def rows(self, start: int, stop: int) -> Prepared:
        """Rows [start, stop) as views, with all of the work."""
        return replace(self, tensors={name: tensor[start:stop] for name, tensor in self.tensors.items()})

    def slices(self, size: int) -> Iterator[Prepared]:
        """All rows in order, `size` at a time, one slice at least; the first carries the work."""
        if size < 1:
            raise ValueError(f"a slice holds at least one row, got {size}; write for example 64")
        for start in range(0, max(len(self), 1), size):
            part = self.rows(start, start + size)
            yield part if start == 0 else replace(part, work=Work())


@dataclass(frozen=True, kw_only=True)
class GradientSum:
    """What an objective returns for some rows, to be summed over them and over workers before anything is divided.

    Attributes:
        gradients: one tensor per trainable parameter, in the order of `flow.parameters()`: sum over the rows.
        loss_sum: sum over the rows of the monitored loss (0-d tensor, no synchronisation with the host).
        weight: number of rows (the divisor after summing over workers).
        work: what the rows called, with what preparing them did.
        seen_B: what the model said of each row, for an experience to be revised by; None where nobody asks.
    """

    gradients: tuple[Tensor, ...]
    loss_sum: Tensor
    weight: float
    work: Work
    seen_B: Tensor | None = None

    def __add__(self, other: GradientSum) -> GradientSum:
        seen = [part for part in (self.seen_B, other.seen_B) if part is not None]
        return GradientSum(
            gradients=tuple(a + b for a, b in zip(self.gradients, other.gradients, strict=True)),
            loss_sum=self.loss_sum + other.loss_sum,
            weight=self.weight + other.weight,
            work=self.work + other.work,
            seen_B=torch.cat(seen) if seen else None,
        )


class Prior(Protocol):
    """The base distribution, as far as preparing a step needs it. It has no trainable parameters."""

    @property
    def space(self) -> Space: ...

    def from_noise(self, noise_BD: Tensor) -> Tensor:
        """Turn standard normal numbers (B, D) into draws (B, D)."""


class Objective(Protocol):
    """A loss, given as its gradient in two parts: what does not need the weights, and what does."""

    @property
    def needs_force(self) -> bool:
        """True where the batch must carry forces."""

    @property
    def prepares_ahead(self) -> bool:
        """True where preparing a step is dear enough to be done beside the step before it."""

    @property
    def prepares_globally(self) -> bool:
        """True where rows depend on each other across workers: each prepares the global batch and keeps its rows."""

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """All that is random or does not depend on the weights, one row for each of the batch. Runs in any thread.

        Where it is dear, the batch is on the CPU whatever device the weights are on.
        """

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        """The gradient of the loss, summed over the prepared rows. Rows do not see each other."""


@runtime_checkable
class Recordable(Protocol):
    """An objective whose gradient is one fixed list of device operations, so that it can be recorded and replayed.

    Shapes follow from those of the prepared rows, nothing is drawn, and no number is looked at from the host.
    """

    @property
    def recordable(self) -> Literal[True]: ...


class Experience(Protocol):
    """Rows that a model has made to learn from, with all that belongs to them: a plain value, kept in checkpoints.

    Draws depend on the value and on their number alone, so that every worker finds its own share.
    """

    def __len__(self) -> int:
        """How many rows there are."""

    @property
    def ready(self) -> bool:
        """Whether there are enough rows to draw from."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Everything that workers must agree on."""

    def batch(self, start: int, stop: int, *, draw: int) -> Batch:
        """Rows [start, stop) of draw number `draw`."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, from which the same value can be made."""


@runtime_checkable
class LearnsFromExperience(Protocol):
    """What an Objective is besides, whose batches come from rows that the model itself makes anew.

    Before step k, where k > 0 is a multiple of `every`, `rows` new ones are made; before any step, as often as it takes
    until the experience is ready.
    """

    @property
    def every(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def begin(self, data: Batch, *, seed: int) -> Experience:
        """Before the first step, from the phase's data. The seed is that of all draws."""

    def restored(self, state: Mapping[str, Any], *, like: Tensor) -> Experience:
        """What a state was taken from, on the device of `like`."""

    def generate(self, flow: Any, experience: Any, random: Random) -> Prepared:
        """This worker's share of `random`'s rows, in the dtype and on the device of those that there are."""

    def extended(self, experience: Any, made: Mapping[str, Tensor]) -> Experience:
        """With the rows of all workers, in order. Rows that cannot be used are left out."""

    def revised(self, experience: Any, seen_B: Tensor | None, *, draw: int) -> Experience:
        """After the step of a draw: what its global batch showed, row by row (`GradientSum.seen_B`)."""


def parameter_gradients(loss: Tensor, parameters: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    """Gradients of a scalar loss, zeros for parameters that it does not reach (an EGNN has some)."""
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True))
