"""S_K: the score of a noised target estimated from its energy alone, in closed form and in bounded memory.

At noise time tau (0 at the data, 1 at the noise; against flow time) the target exp(-E) is convolved with a Gaussian of
variance h(tau). With K points y_k = x + sqrt(h) eps_k,

    S_K(x) = grad_x log sum_k exp(-E(y_k)) = sum_k w_k s(y_k),    w = softmax_k(-E(y_k)),    s = -grad E

(Akhound-Sadegh et al. 2024). It is consistent, with a bias of order 1 / K.

Shapes: B batch, D coordinates, K noises of each row, M configurations looked at together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from models.contracts import Space, Target, Work
from models.schedules import Schedule

Form = Literal["weighted", "ratio", "jensen"]
BYTES_AT_ONCE = {"cpu": 3 * 2**24, "cuda": 2**30}
"""Bound on the intermediate values of the configurations that are looked at together."""
CLIP_SOFTENING = 1e-6
"""Added to a norm before it divides, as in the published code of Akhound-Sadegh et al. 2024."""


@runtime_checkable
class KnowsBoth(Protocol):
    """A target that gives energies (B,) and scores (B, D) in one call, for less than the two calls cost."""

    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class ScoreEstimate:
    """What K noises around each row say.

    Attributes:
        score_BD: the estimate; zero in a row without a usable noise.
        log_mean_B: log of the mean of exp(-E(y_k)) over all K, the log density of the noised target (unnormalised).
        usable_B: how many of the K had a finite energy and a finite score.
        work: energies and forces that were called.
    """

    score_BD: Tensor
    log_mean_B: Tensor
    usable_B: Tensor
    work: Work


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Shortens vectors to a largest norm: s min(1, norm / (|s| + 1e-6)), finite for every finite s.

    Args:
        norm: the largest norm, in kT per length. of: "particles" clips the vector of each particle by itself (the whole
            row where the space has none), "row" the whole row.
    """

    norm: float
    of: Literal["particles", "row"]

    def __post_init__(self) -> None:
        if not self.norm > 0.0:
            raise ValueError(f"the largest norm must be positive, got norm={self.norm}; write for example norm=20.0")
        if self.of not in ("particles", "row"):
            raise ValueError(f"vectors are clipped of 'particles' or of the 'row', got {self.of!r}; write of='row'")

    def __call__(self, score_BD: Tensor, space: Space) -> Tensor:
        """(B, D) -> (B, D)."""
        width = space.spatial_dim if self.of == "particles" else space.dim
        vectors = score_BD.unflatten(-1, (-1, width))
        # Squares overflow long before the numbers do, so norms are taken in units of the largest component.
        unit = vectors.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(score_BD.dtype).tiny)
        norm = (vectors / unit).norm(dim=-1, keepdim=True)
        shrunk = vectors / unit * torch.minimum(unit, self.norm / (norm + CLIP_SOFTENING / unit))
        return torch.where(unit * norm + CLIP_SOFTENING <= self.norm, vectors, shrunk).flatten(-2)


def rows_at_once(target: Target, like: Tensor, bytes_at_once: int | None = None) -> int:
    """Configurations whose intermediate values stay within the bound, one at least.

    A target holds no more values at a time than an energy has operations, which it declares.
    """
    if bytes_at_once is None:
        bytes_at_once = BYTES_AT_ONCE.get(like.device.type, BYTES_AT_ONCE["cpu"])
    return max(1, bytes_at_once // (max(target.energy_flops, target.space.dim) * like.element_size()))


@torch.no_grad()
def estimate_score(
    target: Target,
    x_BD: Tensor,
    variance: Tensor,
    noise: Iterable[Tensor],
    *,
    form: Form = "weighted",
    clip: Callable[[Tensor], Tensor] | None = None,
    blend: float | None = None,
    bytes_at_once: int | None = None,
) -> ScoreEstimate:
    """S_K at each row of x, without a graph; energies and scores are called once for each of the B x K points.

    Points whose energy or score is not finite (particles that overlap, in single precision) have no weight.

    Args:
        variance: h(tau) of each row, scalar or (B,), length units squared.
        noise: K standard normal arrays (B, D), a tensor (K, B, D) or a stream that is never held as a whole;
            projected to the space, so the points stay mean-free where x is.
        form: "weighted" is S_K. For ablation only: "ratio" differentiates the Gaussian kernel instead of the energy,
            sum_k w_k (y_k - x) / h, and "jensen" moves the logarithm inside, -mean_k E(y_k) (y_k - x) / h.
        clip: of the estimate, (B, D) -> (B, D), before it is blended.
        blend: a length, or None. Then the score is (1 - kappa) S_K + kappa sum_k w_k (y_k - x) / h with
            kappa = h / (h + blend^2), which goes from S_K to the ratio form where noise grows wider than the length
            (De Bortoli et al. 2024). Of one Gaussian of that width it is exact, whatever K. A clip bounds what S_K adds
            far out, where it is off by decades and the ratio form is no longer than the longest noise.
        bytes_at_once: bound on intermediate values, by default that of the device.

    Raises:
        ValueError: for an unknown form, a blend of another form than S_K, or no noise at all.
    """
    if form not in get_args(Form):
        raise ValueError(f"a form is one of {', '.join(get_args(Form))}, got {form!r}; write form='weighted'")
    if blend is not None and (form != "weighted" or not blend > 0.0):
        raise ValueError(
            f"S_K (form='weighted') is blended over a positive length, got {blend} and form={form!r}; write blend=0.5"
        )
    rows = rows_at_once(target, x_BD, bytes_at_once)
    deviation_B11 = variance.to(x_BD).reshape(-1, 1, 1).sqrt()
    average, samples = _BoltzmannAverage(x_BD, plain=form == "jensen", vectors=1 if blend is None else 2), 0
    for noise_KBD in _stacks(noise, max(1, rows // max(1, len(x_BD)))):
        samples += len(noise_KBD)
        # Points are the contiguous axes of memory, coordinates the slowest: operations run along points.
        own_DBK = noise_KBD.permute(2, 1, 0).clone(memory_format=torch.contiguous_format)
        unit_BKD = target.space.project_(own_DBK, dim=0).permute(1, 2, 0)
        y_BKD = unit_BKD.mul_(deviation_B11) if form == "weighted" and blend is None else unit_BKD * deviation_B11
        y_MD = y_BKD.add_(x_BD.unsqueeze(1)).flatten(0, 1)
        energy_M, score_MD = _evaluate(target, y_MD, rows, with_score=form == "weighted")
        energy_BK = energy_M.unflatten(0, unit_BKD.shape[:2])
        if form == "weighted":
            average.add(energy_BK, score_MD.unflatten(0, energy_BK.shape), *(() if blend is None else (unit_BKD,)))
        elif form == "ratio":
            average.add(energy_BK, unit_BKD / deviation_B11)
        else:
            average.add(energy_BK, -energy_BK.unsqueeze(-1) * unit_BKD / deviation_B11)
    if not samples:
        raise ValueError("an estimate needs at least one noise, got none; write samples=100 or so")
    calls = samples * len(x_BD)
    forces = calls if form == "weighted" else 0
    score_BD, *mean_unit = average.results()
    if clip is not None:
        score_BD = clip(score_BD)
    if blend is not None:
        score_BD = blended(score_BD, mean_unit[0], deviation_B11.squeeze(1), blend)
    return ScoreEstimate(
        score_BD=score_BD,
        log_mean_B=average.log_sum() - math.log(samples),
        usable_B=average.usable_B,
        work=Work(
            energy_evaluations=calls,
            force_evaluations=forces,
            declared_flops=(calls + forces) * target.energy_flops,
        ),
    )


def blended(score_BD: Tensor, mean_unit_BD: Tensor, deviation_B1: Tensor, length: float) -> Tensor:
    """(1 - kappa) score + kappa mean_unit / deviation with kappa = deviation^2 / (deviation^2 + length^2), (B, D)."""
    width_B1 = deviation_B1.square() + length**2
    return score_BD * (length**2 / width_B1) + mean_unit_BD * (deviation_B1 / width_B1)


class _BoltzmannAverage:
    """Means over K, weighted by exp(-E) or plain, whose terms come in pieces, as in a streaming log-sum-exp."""

    def __init__(self, like_BD: Tensor, *, plain: bool, vectors: int) -> None:
        self.plain = plain
        # The lowest finite number, since minus infinity minus itself is no number.
        self.largest_B = torch.full_like(like_BD[:, 0], torch.finfo(like_BD.dtype).min)
        self.weight_B = torch.zeros_like(self.largest_B)
        self.sums = [torch.zeros_like(like_BD) for _ in range(vectors)]
        self.usable_B = torch.zeros_like(self.largest_B, dtype=torch.long)

    def add(self, energy_BK: Tensor, *vectors: Tensor) -> None:
        """Energies (B, K) and the vectors (B, K, D) of the terms, of which the first decides which are usable."""
        # One sum over all of a point is finite where its terms are, and costs a fraction of asking each of them.
        usable_BK = (energy_BK + vectors[0].sum(dim=-1)).abs() < math.inf
        log_weight_BK = -energy_BK
        if not bool(usable_BK.all()):
            log_weight_BK = log_weight_BK.masked_fill(~usable_BK, -math.inf)
            vectors = tuple(vector_BKD.masked_fill(~usable_BK.unsqueeze(-1), 0.0) for vector_BKD in vectors)
        largest_B = torch.maximum(self.largest_B, log_weight_BK.amax(dim=1))
        kept_B = torch.exp(self.largest_B - largest_B)
        weight_BK = torch.exp(log_weight_BK - largest_B.unsqueeze(1))
        self.largest_B, self.weight_B = largest_B, kept_B * self.weight_B + weight_BK.sum(dim=1)
        self.usable_B = self.usable_B + usable_BK.sum(dim=1)
        if self.plain:
            self.sums = [sum_BD + vector_BKD.sum(dim=1) for sum_BD, vector_BKD in zip(self.sums, vectors, strict=True)]
        else:
            self.sums = [
                kept_B.unsqueeze(1) * sum_BD + (weight_BK.unsqueeze(-1) * vector_BKD).sum(dim=1)
                for sum_BD, vector_BKD in zip(self.sums, vectors, strict=True)
            ]

    def log_sum(self) -> Tensor:
        """log of the sum of exp(-E), minus infinity in a row without a usable term."""
        return self.largest_B + self.weight_B.log()

    def results(self) -> list[Tensor]:
        """The mean of each vector, (B, D)."""
        divisor_B = self.usable_B.to(self.weight_B) if self.plain else self.weight_B
        # With any usable term the largest weight is one, so the clamp acts on rows without one.
        divisor_B1 = divisor_B.clamp_min(torch.finfo(self.weight_B.dtype).tiny).unsqueeze(1)
        return [sum_BD / divisor_B1 for sum_BD in self.sums]


@dataclass(frozen=True, kw_only=True)
class EstimatedScore:
    """s(tau, x) = S_K with fresh noise at every call: drives a reverse process before there is any network.

    Args:
        target, schedule: what is noised, and how. samples: K. generator: of the noise.
        clip: of the estimate; the whole row is what Akhound-Sadegh et al. 2024 clip when they sample with S_K.
    """

    target: Target
    schedule: Schedule
    samples: int
    generator: torch.Generator
    clip: Clip | None = None

    def __post_init__(self) -> None:
        require_samples(self.samples)

    def __call__(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D), for a noise time that is scalar or (B,)."""
        source = self.generator
        noise = (torch.randn(x_BD.shape, generator=source, device=source.device).to(x_BD) for _ in range(self.samples))
        score_BD = estimate_score(self.target, x_BD, self.schedule.h(tau), noise).score_BD
        return score_BD if self.clip is None else self.clip(score_BD, self.target.space)


def require_samples(samples: int) -> None:
    """Raise ValueError unless K is at least one."""
    if samples < 1:
        raise ValueError(f"a score is estimated from at least one noise, got samples={samples}; write 100 or so")


def _evaluate(target: Target, y_MD: Tensor, rows: int, *, with_score: bool) -> tuple[Tensor, Tensor]:
    """Energies (M,) and scores (M, D) of all points, `rows` at a time; without scores, no columns."""
    pieces = [_energy_and_score(target, piece_MD, with_score) for piece_MD in y_MD.split(rows)]
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([energy_M for energy_M, _ in pieces]), torch.cat([score_MD for _, score_MD in pieces])


def _energy_and_score(target: Target, x_MD: Tensor, with_score: bool) -> tuple[Tensor, Tensor]:
    if not with_score:
        return target.energy(x_MD), x_MD[:, :0]
    if isinstance(target, KnowsBoth):
        return target.energy_and_score(x_MD)
    return target.energy(x_MD), target.score(x_MD)


def _stacks(noise: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The stream in pieces (size or fewer, B, D)."""
    if isinstance(noise, Tensor):
        yield from noise.split(size)
        return
    stream = iter(noise)
    for first in stream:
        yield torch.stack(list(chain([first], islice(stream, size - 1))))
