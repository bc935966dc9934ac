"""Particles bound pairwise by a double well in their distance: DW4 and its relatives.

Shape suffixes: B batch, D = N * d flat coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.contracts import Space
from models.targets.pairs import central_force, pair_flops, pair_geometry, sum_over_pairs
from models.targets.rings import add_pair_sum, count_once, flat_rows, ring_differences, ring_force, ring_of
from models.targets.width import require_width

SMALLEST_DISTANCE_SQUARED = 1e-12
"""Below this the distance is held fixed: the energy has a cusp where two particles meet, and no force there."""


@dataclass(frozen=True, kw_only=True)
class DoubleWell:
    """U = 1/tau sum_{i<j} a u + b u^2 + c u^4 with u = d_ij - offset (Klein et al. 2023, section on DW4).

    Args:
        name: what reports call it.
        particles, spatial_dim: N and d.
        a, b, c: coefficients in kT per length, length^2, length^4. offset: length. tau: temperature factor.
    """

    name: str = "dw4"
    particles: int = 4
    spatial_dim: int = 2
    a: float = 0.0
    b: float = -4.0
    c: float = 0.9
    offset: float = 4.0
    tau: float = 1.0
    log_z: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (self.tau > 0.0 and self.c > 0.0):
            raise ValueError(
                f"tau and c must be positive, got tau={self.tau}, c={self.c}; else exp(-U) has no integral"
            )

    @property
    def space(self) -> Space:
        return Space(dim=self.particles * self.spatial_dim, particles=self.particles)

    @property
    def energy_flops(self) -> int:
        """All ordered pairs: distances, then 9 for root, shift, polynomial and sum."""
        return pair_flops(self.space, radial_flops=9)

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT."""
        require_width(x_BD, self.space, self.name)
        _, d2_BNN = pair_geometry(x_BD, self.space)
        u = d2_BNN.clamp_min(SMALLEST_DISTANCE_SQUARED).sqrt() - self.offset
        return sum_over_pairs(u * (self.a + u * (self.b + self.c * u.square()))) / self.tau

    def score(self, x_BD: Tensor) -> Tensor:
        """Minus the gradient of the energy, (B, D) -> (B, D), mean-free; zero between particles that coincide."""
        require_width(x_BD, self.space, self.name)
        diff_BdNN, d2_BNN = pair_geometry(x_BD, self.space)
        d_BNN = d2_BNN.clamp_min(SMALLEST_DISTANCE_SQUARED).sqrt()
        u = d_BNN - self.offset
        slope_BNN = self.a + u * (2.0 * self.b + 4.0 * self.c * u.square())
        return central_force(slope_BNN / (-self.tau * d_BNN), diff_BdNN)

    @torch.no_grad()
    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and score (B, D) without a graph, for less than the two calls take on many rows.

        Coordinates of the score are the slow axis of its memory.
        """
        require_width(x_BD, self.space, self.name)
        difference_dSNB, d_SNB = ring_differences(ring_of(x_BD, self.space), self.particles)
        d_SNB.clamp_min_(SMALLEST_DISTANCE_SQUARED).sqrt_()
        u_SNB = d_SNB - self.offset
        square_SNB = u_SNB.square()
        slope_SNB = square_SNB.mul(4.0 * self.c).add_(2.0 * self.b).mul_(u_SNB).add_(self.a)
        energy_SNB = square_SNB.mul_(self.c).add_(self.b).mul_(u_SNB).add_(self.a).mul_(u_SNB)
        energy_B = torch.zeros_like(x_BD[:, 0])
        add_pair_sum(energy_B, count_once(energy_SNB), 1.0 / self.tau)
        pull_dNB = ring_force(count_once(slope_SNB.div_(d_SNB)), difference_dSNB)
        return energy_B, flat_rows(pull_dNB, factor=-1.0 / self.tau)


def dw4(*, tau: float = 1.0) -> DoubleWell:
    """Four particles in the plane: U = sum_{i<j} 0.9 (d - 4)^4 - 4 (d - 4)^2 at tau = 1."""
    return DoubleWell(tau=tau)
