"""Three particles on springs in the plane: a target with exact samples, so that no test waits for HMC."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.contracts import Space

STIFFNESS = 4.0


@dataclass(frozen=True)
class Harmonic:
    """energy = k/2 |x|^2 on the mean-free subspace."""

    name: str = "harmonic3"
    space: Space = field(default_factory=lambda: Space(dim=6, particles=3))
    energy_flops: int = 12

    @property
    def log_z(self) -> float:
        return 0.5 * self.space.degrees_of_freedom * math.log(2 * math.pi / STIFFNESS)

    def energy(self, x_BD: Tensor) -> Tensor:
        return 0.5 * STIFFNESS * x_BD.square().sum(dim=1)

    def score(self, x_BD: Tensor) -> Tensor:
        return -STIFFNESS * x_BD

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.space.project(torch.randn((n, self.space.dim), generator=generator)) / math.sqrt(STIFFNESS)


def harmonic() -> Harmonic:
    return Harmonic()


def typed_harmonic() -> Harmonic:
    """The first and the last may change places."""
    return Harmonic(space=Space(dim=6, particles=3, types=(0, 1, 0)))


class Column(Harmonic):
    """Energies with a last axis, which every target is refused for."""

    def energy(self, x_BD: Tensor) -> Tensor:
        return super().energy(x_BD)[:, None]


def column() -> Column:
    return Column()
