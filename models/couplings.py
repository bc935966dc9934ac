"""Couplings of base and data points: independent, optimal transport, equivariant optimal transport.

A coupling pairs one batch with another of the same size. It never touches the base: the data are permuted, and under
the equivariant coupling their particles are permuted and rotated as well. A pairing sees the local batch only, so the
size of the local batch is part of what it means.

Shapes: B batch, D coordinates, N particles, d spatial dimensions, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import ot
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.contracts import Space

EMD_MAX_ITERATIONS = 10_000_000
"""Iterations allowed to POT's network simplex; its default gives up on batches of a few thousand."""

ELEMENTS_PER_BLOCK = 2**23
"""Particle costs held at once while pairing; bounds the memory of large systems (LJ55 at batch 256 has 2e8)."""

SVD_FLOPS = 20
"""Declared operations of a d x d singular value decomposition, in units of d^3."""


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
    """Minimises the squared distance over permutations of the data, of their particles, and over rotations.

    For every pair of configurations the particles are matched first (Hungarian algorithm on squared distances), then
    rotated (Kabsch): one pass, an upper bound of the joint minimum (Klein et al. 2023, equation 14).

    Args:
        space: a mean-free space of particles.
        types: one label per particle; only particles of equal label may change places. None: all are alike.
        reflections: also allow mirror images (O(d) in place of SO(d)).
    """

    space: Space
    types: tuple[int, ...] | None = None
    reflections: bool = False

    def __post_init__(self) -> None:
        if self.space.particles is None:
            raise ValueError(
                f"equivariant optimal transport needs particles, got a plain space of dim={self.space.dim}; "
                "write OptimalTransport() there"
            )
        if self.types is not None and len(self.types) != self.space.particles:
            raise ValueError(
                f"types must hold one label per particle, got {len(self.types)} for {self.space.particles} particles; "
                "write one integer each"
            )

    def __call__(self, x0_BD: Tensor, x1_BD: Tensor) -> Pairs:
        _check_alike(x0_BD, x1_BD)
        self.space.check(x0_BD, name="x0")
        self.space.check(x1_BD, name="x1")
        x0_BNd, x1_BNd = self._particles(x0_BD), self._particles(x1_BD)
        cost_BB, particles_BBN = equivariant_costs(x0_BNd, x1_BNd, types=self.types, reflections=self.reflections)
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
    plan_BB = ot.emd([], [], np.ascontiguousarray(cost_BB.numpy()), numItermax=EMD_MAX_ITERATIONS)
    permutation_B = torch.from_numpy(np.asarray(plan_BB).argmax(axis=1))
    if len(permutation_B.unique()) != len(cost_BB):
        raise ArithmeticError(
            f"a transport plan must be a permutation, got {len(permutation_B.unique())} distinct targets for "
            f"{len(cost_BB)} rows; look for non-finite or hugely different costs"
        )
    return permutation_B


def equivariant_costs(
    x0_BNd: Tensor, x1_BNd: Tensor, *, types: tuple[int, ...] | None = None, reflections: bool = False
) -> tuple[Tensor, Tensor]:
    """Squared distance of every pair after matching particles and rotating, and the matching itself.

    Args:
        x0_BNd, x1_BNd: mean-free configurations, (B, N, d) and (C, N, d), float64 on the CPU.
        types: one label per particle, or None. reflections: allow mirror images.

    Returns:
        costs (B, C), and particles (B, C, N): particle k of x0[i] goes with particle [i, j, k] of x1[j].
    """
    forbidden_NN = _different_types(types)
    rows = max(1, ELEMENTS_PER_BLOCK // (len(x1_BNd) * x1_BNd.shape[1] ** 2))
    blocks = [_pair_block(x0, x1_BNd, forbidden_NN, reflections) for x0 in x0_BNd.split(rows)]
    return torch.cat([cost for cost, _ in blocks]), torch.cat([particles for _, particles in blocks])


def assign_particles(cost_PNN: np.ndarray) -> Tensor:
    """The cheapest matching of rows to columns of every N x N matrix, (P, N, N) -> (P, N)."""
    return torch.from_numpy(np.stack([linear_sum_assignment(cost_NN)[1] for cost_NN in cost_PNN]))


def permute_particles(x_PNd: Tensor, particles_PN: Tensor) -> Tensor:
    """Row k of the result is particle `particles[:, k]`."""
    return x_PNd.gather(1, particles_PN[..., None].expand(-1, -1, x_PNd.shape[2]))


def kabsch(x_PNd: Tensor, y_PNd: Tensor, *, reflections: bool = False) -> Tensor:
    """Rotations R (P, d, d) that minimise |x - y R^T|^2 for mean-free particles (Kabsch 1976).

    With `reflections` the minimum is over O(d), else over proper rotations SO(d).
    """
    u_Pdd, _, vh_Pdd = torch.linalg.svd(x_PNd.mT @ y_PNd)
    if not reflections:
        handedness_P = torch.linalg.det(u_Pdd) * torch.linalg.det(vh_Pdd)
        u_Pdd = torch.cat([u_Pdd[..., :-1], u_Pdd[..., -1:] * handedness_P[:, None, None]], dim=-1)
    return u_Pdd @ vh_Pdd


def aligned_costs(x_PNd: Tensor, y_PNd: Tensor, *, reflections: bool = False) -> Tensor:
    """min_R |x - y R^T|^2 per pair, from singular values alone: no rotation has to be formed."""
    h_Pdd = x_PNd.mT @ y_PNd
    singular_Pd = torch.linalg.svdvals(h_Pdd)
    overlap_P = singular_Pd.sum(dim=1)
    if not reflections:
        overlap_P = overlap_P - 2 * singular_Pd[:, -1] * (torch.linalg.det(h_Pdd) < 0)
    return (x_PNd.square().sum(dim=(1, 2)) + y_PNd.square().sum(dim=(1, 2)) - 2 * overlap_P).clamp(min=0)


def _pair_block(
    x0_BNd: Tensor, x1_CNd: Tensor, forbidden_NN: Tensor | None, reflections: bool
) -> tuple[Tensor, Tensor]:
    shape = (len(x0_BNd), len(x1_CNd), -1)
    # Squared norms add the same to every matching of a pair, so minus the inner products give the same assignment.
    cost_BCNN = -torch.einsum("bnd,cmd->bcnm", x0_BNd, x1_CNd)
    if forbidden_NN is not None:
        cost_BCNN = cost_BCNN.masked_fill(forbidden_NN, torch.inf)
    particles_PN = assign_particles(cost_BCNN.flatten(0, 1).numpy())
    x0_PNd = x0_BNd.repeat_interleave(len(x1_CNd), dim=0)
    y_PNd = permute_particles(x1_CNd.repeat(len(x0_BNd), 1, 1), particles_PN)
    return aligned_costs(x0_PNd, y_PNd, reflections=reflections).view(shape[:2]), particles_PN.view(shape)


def _different_types(types: tuple[int, ...] | None) -> Tensor | None:
    if types is None:
        return None
    types_N = torch.tensor(types)
    return types_N[:, None] != types_N[None, :]


def _pairs(x0_BD: Tensor, x1_BD: Tensor, permutation_B: Tensor) -> Pairs:
    cost_B = (x1_BD - x0_BD).square().sum(dim=1)
    return Pairs(x0_BD=x0_BD, x1_BD=x1_BD, permutation_B=permutation_B, cost_B=cost_B)


def _check_alike(x0_BD: Tensor, x1_BD: Tensor) -> None:
    if x0_BD.ndim != 2 or x0_BD.shape != x1_BD.shape or not len(x0_BD):
        raise ValueError(
            f"a coupling pairs two (batch, dim) tensors of one shape, got {tuple(x0_BD.shape)} and "
            f"{tuple(x1_BD.shape)}; draw as many base points as there are data points"
        )
