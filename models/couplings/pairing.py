"""How one batch is paired with another of the same size.

A coupling never touches the base: the data are permuted, and under the equivariant coupling their particles are
permuted and rotated as well. A pairing sees the rows it is given and no others, so their number is part of its meaning.

Shapes: B batch, D coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.contracts import Space
from models.couplings.particles import SVD_FLOPS, equivariant_costs, kabsch, permute_particles

EMD_MAX_ITERATIONS = 10_000_000
"""Iterations allowed to POT's network simplex; its default gives up on batches of a few thousand."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Matched rows of two batches.

    Attributes:
        x0_BD: the base, as it came.
        x1_BD: the data, row i matched to base row i (particles permuted and rotated by the equivariant coupling).
        permutation_B: row of the original data that was matched to base row i.
        cost_B: squared Euclidean distance of each pair after matching.
    """

    x0_BD: Tensor
    x1_BD: Tensor
    permutation_B: Tensor
    cost_B: Tensor


class Coupling(Protocol):
    """Pairs a base batch with a data batch of the same size."""

    def __call__(self, x0_BD: Tensor, x1_BD: Tensor) -> Pairs: ...

    def declared_flops(self, batch: int, dim: int) -> int:
        """Operations of one pairing, which torch's counter cannot see."""


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Pairs rows in the order in which they came: two independent draws."""

    def __call__(self, x0_BD: Tensor, x1_BD: Tensor) -> Pairs:
        _check_alike(x0_BD, x1_BD)
        return _pairs(x0_BD, x1_BD, torch.arange(len(x0_BD), device=x0_BD.device))

    def declared_flops(self, batch: int, dim: int) -> int:
        """None: nothing is searched."""
        return 0


@dataclass(frozen=True, kw_only=True)
class OptimalTransport:
    """Minimises the summed squared distance over permutations of the data (Klein et al. 2023, equation 8)."""

    def __call__(self, x0_BD: Tensor, x1_BD: Tensor) -> Pairs:
        _check_alike(x0_BD, x1_BD)
        permutation_B = optimal_permutation(squared_distances(x0_BD, x1_BD)).to(x1_BD.device)
        return _pairs(x0_BD, x1_BD[permutation_B], permutation_B)

    def declared_flops(self, batch: int, dim: int) -> int:
        """3 B^2 D for the cost matrix and B^3 for the network simplex, whose work is cubic in practice."""
        return 3 * batch**2 * dim + batch**3


@dataclass(frozen=True, kw_only=True)
class EquivariantOptimalTransport:
    """Minimises the squared distance over permutations of the data, of particles of one type, and over rotations.

    For every pair of configurations the particles are matched first (Hungarian algorithm on squared distances), then
    rotated (Kabsch): one pass, an upper bound of the joint minimum (Klein et al. 2023, equation 14).

    Args:
        space: a mean-free space of particles; its types say which of them may change places.
        reflections: also allow mirror images (O(d) in place of SO(d)).
    """

    space: Space
    reflections: bool = False

    def __post_init__(self) -> None:
        if self.space.particles is None:
            raise ValueError(
                f"equivariant optimal transport needs particles, got a plain space of dim={self.space.dim}; "
                "write OptimalTransport() there"
            )

    def __call__(self, x0_BD: Tensor, x1_BD: Tensor) -> Pairs:
        _check_alike(x0_BD, x1_BD)
        self.space.check(x0_BD, name="x0")
        self.space.check(x1_BD, name="x1")
        x0_BNd, x1_BNd = self._particles(x0_BD), self._particles(x1_BD)
        types, reflections = self.space.types, self.reflections
        cost_BB, particles_BBN = equivariant_costs(x0_BNd, x1_BNd, types=types, reflections=reflections)
        permutation_B = optimal_permutation(cost_BB)
        matched_BN = particles_BBN[torch.arange(len(cost_BB)), permutation_B]
        y_BNd = permute_particles(x1_BNd[permutation_B], matched_BN)
        aligned_BNd = y_BNd @ kabsch(x0_BNd, y_BNd, reflections=self.reflections).mT
        return _pairs(x0_BD, aligned_BNd.flatten(1).to(x1_BD), permutation_B.to(x1_BD.device))

    def declared_flops(self, batch: int, dim: int) -> int:
        """B^3 for the network simplex, and for each of the B^2 costs the matching and the rotation of particles.

        That is 2 N^2 d for particle costs, N^3 for the assignment, 2 N d^2 + 20 d^3 for Kabsch.
        """
        d, n = self.space.spatial_dim, dim // self.space.spatial_dim
        return batch**2 * (2 * n**2 * d + n**3 + 2 * n * d**2 + SVD_FLOPS * d**3) + batch**3

    def _particles(self, x_BD: Tensor) -> Tensor:
        return x_BD.detach().double().cpu().unflatten(1, (-1, self.space.spatial_dim))


def squared_distances(x0_BD: Tensor, x1_BD: Tensor) -> Tensor:
    """All squared Euclidean distances, (B, D), (C, D) -> (B, C), in float64 on the CPU."""
    x0, x1 = x0_BD.detach().double().cpu(), x1_BD.detach().double().cpu()
    return torch.cdist(x0, x1, compute_mode="donot_use_mm_for_euclid_dist").square()


def optimal_permutation(cost_BB: Tensor) -> Tensor:
    """The permutation pi that minimises sum_i cost[i, pi(i)], from POT's exact solver.

    Between uniform weights of equal number the optimal vertex is a permutation, so nothing is sampled from the plan.
    """
    import ot  # late: it takes as long to import as torch, and few processes need it

    plan_BB = ot.emd([], [], np.ascontiguousarray(cost_BB.numpy()), numItermax=EMD_MAX_ITERATIONS)
    permutation_B = torch.from_numpy(np.asarray(plan_BB).argmax(axis=1))
    if len(permutation_B.unique()) != len(cost_BB):
        raise ArithmeticError(
            f"a transport plan must be a permutation, got {len(permutation_B.unique())} distinct targets for "
            f"{len(cost_BB)} rows; look for non-finite or hugely different costs"
        )
    return permutation_B


def _pairs(x0_BD: Tensor, x1_BD: Tensor, permutation_B: Tensor) -> Pairs:
    cost_B = (x1_BD - x0_BD).square().sum(dim=1)
    return Pairs(x0_BD=x0_BD, x1_BD=x1_BD, permutation_B=permutation_B, cost_B=cost_B)


def _check_alike(x0_BD: Tensor, x1_BD: Tensor) -> None:
    if x0_BD.ndim != 2 or x0_BD.shape != x1_BD.shape or not len(x0_BD):
        raise ValueError(
            f"a coupling pairs two (batch, dim) tensors of one shape, got {tuple(x0_BD.shape)} and "
            f"{tuple(x1_BD.shape)}; draw as many base points as there are data points"
        )
