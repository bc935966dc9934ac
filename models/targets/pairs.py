"""Geometry of all ordered particle pairs, and the force that radial pair energies make.

Shape suffixes: B batch, D = N * d flat coordinates, N particles, d spatial dimensions; any leading shape may be B.
Coordinates come before pairs (BdNN), so that the sums over neighbours run along contiguous memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Space


def pair_geometry(x_BD: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """Differences x_i - x_j (B, d, N, N) and squared distances (B, N, N) of all ordered pairs.

    The diagonal of the squared distances is one instead of zero: powers and roots stay finite there, and so do all
    derivatives. Its energy must be masked (`sum_over_pairs`); its force vanishes with the difference.
    """
    assert space.particles is not None
    x_BdN = x_BD.unflatten(-1, (space.particles, space.spatial_dim)).transpose(-1, -2).contiguous()
    diff_BdNN = x_BdN.unsqueeze(-1) - x_BdN.unsqueeze(-2)
    identity_NN = torch.eye(space.particles, dtype=x_BD.dtype, device=x_BD.device)
    return diff_BdNN, diff_BdNN.square().sum(-3) + identity_NN


def sum_over_pairs(pair_energy_BNN: Tensor) -> Tensor:
    """Sum over unordered pairs i < j: half the sum over ordered ones, the diagonal left out. (B, N, N) -> (B,)."""
    n = pair_energy_BNN.shape[-1]
    identity_NN = torch.eye(n, dtype=pair_energy_BNN.dtype, device=pair_energy_BNN.device)
    return (pair_energy_BNN * (0.5 - 0.5 * identity_NN)).sum((-1, -2))


def central_force(weight_BNN: Tensor, diff_BdNN: Tensor) -> Tensor:
    """sum_j w_ij (x_i - x_j) as a flat (B, D) force, where w_ij = -phi'(d_ij) / d_ij for the pair energy phi."""
    return (weight_BNN.unsqueeze(-3) * diff_BdNN).sum(-1).transpose(-1, -2).flatten(-2)


def pair_flops(space: Space, radial_flops: int) -> int:
    """Operations of an energy over all N^2 ordered pairs: 3 d - 1 for a squared distance, then the radial part."""
    assert space.particles is not None
    return space.particles**2 * (3 * space.spatial_dim - 1 + radial_flops)
