"""Lennard-Jones clusters in a weak harmonic trap: LJ13, LJ55.

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


@dataclass(frozen=True, kw_only=True)
class LennardJones:
    """U = pair_factor * eps / tau * sum_{i<j} [(rm/d)^12 - 2 (rm/d)^6] + oscillator / 2 * sum_i |x_i - com|^2.

    The defaults pair_factor = 2, oscillator = 1 are the energy that the published LJ13 samples follow (their virial is
    that of 36 degrees of freedom with these factors only), although papers print others: Klein et al. 2023 has
    pair_factor 1 and no trap, Akhound-Sadegh et al. 2024 a trap of one half.

    Args:
        name: what reports call it.
        particles, spatial_dim: N and d.
        pair_factor: 2 counts ordered pairs, 1 unordered ones. oscillator: trap stiffness, kT per length^2.
        rm: distance of the pair minimum. eps: its depth in kT. tau: temperature factor of the pair energy.
    """

    name: str
    particles: int
    spatial_dim: int = 3
    pair_factor: float = 2.0
    oscillator: float = 1.0
    rm: float = 1.0
    eps: float = 1.0
    tau: float = 1.0
    log_z: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if min(self.pair_factor, self.rm, self.eps, self.tau) <= 0.0 or self.oscillator < 0.0:
            raise ValueError(
                "pair_factor, rm, eps and tau must be positive and oscillator not negative, "
                f"got {(self.pair_factor, self.rm, self.eps, self.tau)} and {self.oscillator}; change their signs"
            )

    @property
    def space(self) -> Space:
        return Space(dim=self.particles * self.spatial_dim, particles=self.particles)

    @property
    def energy_flops(self) -> int:
        """All ordered pairs: distances, then 7 for (rm/d)^6, pair energy and sum; 4 a coordinate for the trap."""
        return pair_flops(self.space, radial_flops=7) + 4 * self.space.dim

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT. Infinite where two particles coincide: nothing is clipped here."""
        require_width(x_BD, self.space, self.name)
        _, d2_BNN = pair_geometry(x_BD, self.space)
        s2 = self.rm**2 / d2_BNN
        s6 = s2 * s2 * s2
        trap_B = 0.5 * self.oscillator * self.space.project(x_BD).square().sum(-1)
        return self.pair_factor * self.eps / self.tau * sum_over_pairs(s6 * (s6 - 2.0)) + trap_B

    def score(self, x_BD: Tensor) -> Tensor:
        """Minus the gradient of the energy, (B, D) -> (B, D), mean-free. Not finite where two particles coincide."""
        require_width(x_BD, self.space, self.name)
        diff_BdNN, d2_BNN = pair_geometry(x_BD, self.space)
        inverse = 1.0 / d2_BNN
        s2 = self.rm**2 * inverse
        s6 = s2 * s2 * s2
        weight_BNN = (12.0 * self.pair_factor * self.eps / self.tau) * s6 * (s6 - 1.0) * inverse
        return central_force(weight_BNN, diff_BdNN) - self.oscillator * self.space.project(x_BD)

    @torch.no_grad()
    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and score (B, D) without a graph, for a fifth of what the two calls take on many rows.

        Coordinates of the score are the slow axis of its memory. Neither is finite where two particles coincide.
        """
        require_width(x_BD, self.space, self.name)
        ring_dRB = ring_of(x_BD, self.space)
        centred_dNB = ring_dRB[:, : self.particles]
        difference_dSNB, inverse_SNB = ring_differences(ring_dRB, self.particles)
        inverse_SNB.reciprocal_()
        s6_SNB = inverse_SNB.pow(3)
        if self.rm != 1.0:
            s6_SNB.mul_(self.rm**6)
        s6_less_s12_SNB = count_once(torch.addcmul(s6_SNB, s6_SNB, s6_SNB, value=-1.0))
        depth = self.pair_factor * self.eps / self.tau
        energy_B = centred_dNB.square().sum((0, 1)).mul_(0.5 * self.oscillator)
        for part_SNB in (count_once(s6_SNB), s6_less_s12_SNB):
            add_pair_sum(energy_B, part_SNB, -depth)
        pull_dNB = ring_force(s6_less_s12_SNB.mul_(inverse_SNB), difference_dSNB)
        pull_dNB.add_(centred_dNB, alpha=self.oscillator / (12.0 * depth))
        return energy_B, flat_rows(pull_dNB, factor=-12.0 * depth)


def lj13(*, pair_factor: float = 2.0, oscillator: float = 1.0, tau: float = 1.0) -> LennardJones:
    """Thirteen particles in three dimensions; the pair minimum is an icosahedron."""
    return LennardJones(name="lj13", particles=13, pair_factor=pair_factor, oscillator=oscillator, tau=tau)


def lj55(*, pair_factor: float = 2.0, oscillator: float = 1.0, tau: float = 1.0) -> LennardJones:
    """Fifty-five particles in three dimensions; the pair minimum is a Mackay icosahedron."""
    return LennardJones(name="lj55", particles=55, pair_factor=pair_factor, oscillator=oscillator, tau=tau)
