"""Every unordered pair of particles once, for many configurations side by side, without a graph.

Particles stand in a ring; step s pairs each of them with the one s places ahead, and N // 2 steps make all pairs (the
last step of an even ring makes each of its pairs twice). Configurations are the contiguous axis, so that operations on
pairs are few and long.

Shapes: M configurations, D = N * d flat coordinates, N particles, d spatial dimensions, S = N // 2 steps, R = N + S: a
ring and its first S once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Space


def ring_of(x_MD: Tensor, space: Space) -> Tensor:
    """Coordinates relative to the centre of mass, (d, R, M)."""
    assert space.particles is not None
    particles, steps = space.particles, space.particles // 2
    x_dNM = x_MD.t().unflatten(0, (particles, space.spatial_dim)).transpose(0, 1)
    ring_dRM = x_MD.new_empty(space.spatial_dim, particles + steps, len(x_MD))
    torch.sub(x_dNM, x_dNM.mean(dim=1, keepdim=True), out=ring_dRM[:, :particles])
    ring_dRM[:, particles:] = ring_dRM[:, :steps]
    return ring_dRM


def ring_differences(ring_dRM: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    """x_i - x_{i + s} for every step s, (d, S, N, M), and its square (S, N, M)."""
    d, length, columns = ring_dRM.shape
    along_d, along_R, along_M = ring_dRM.stride()
    shape, stride = (d, length - particles, particles, columns), (along_d, along_R, along_R, along_M)
    ahead_dSNM = ring_dRM.as_strided(shape, stride, ring_dRM.storage_offset() + along_R)
    difference_dSNM = ring_dRM.new_empty(shape)
    torch.sub(ring_dRM[:, None, :particles], ahead_dSNM, out=difference_dSNM)
    squared_SNM = difference_dSNM[0].square()
    for each_SNM in difference_dSNM[1:]:
        squared_SNM.addcmul_(each_SNM, each_SNM)
    return difference_dSNM, squared_SNM


def count_once(value_SNM: Tensor) -> Tensor:
    """Halve, in place, what the last step of an even ring makes twice."""
    steps, particles, _ = value_SNM.shape
    if particles == 2 * steps:
        value_SNM[-1].mul_(0.5)
    return value_SNM


def add_pair_sum(sum_M: Tensor, value_SNM: Tensor, factor: float) -> None:
    """Add, in place, the factor times the sum over pairs: a matrix product, faster than a sum over slow axes."""
    value_PM = value_SNM.flatten(0, 1)
    sum_M.addmv_(value_PM.t(), value_PM.new_full((len(value_PM),), factor))


def ring_force(weight_SNM: Tensor, difference_dSNM: Tensor) -> Tensor:
    """sum_j w_ij (x_i - x_j) of every particle, (d, N, M). Overwrites the differences."""
    steps, particles, columns = weight_SNM.shape
    pair_force_dSNM = difference_dSNM.mul_(weight_SNM)
    force_dRM = weight_SNM.new_zeros(len(pair_force_dSNM), particles + steps, columns)
    torch.sum(pair_force_dSNM, dim=1, out=force_dRM[:, :particles])
    for step, force_dNM in enumerate(pair_force_dSNM.unbind(1), start=1):
        force_dRM.narrow(1, step, particles).sub_(force_dNM)
    force_dRM[:, :steps].add_(force_dRM[:, particles:])
    return force_dRM[:, :particles]


def flat_rows(vector_dNM: Tensor, *, factor: float) -> Tensor:
    """The factor times a vector of every particle, (M, D), with coordinates as the slow axis of memory."""
    d, particles, columns = vector_dNM.shape
    scaled_NdM = vector_dNM.new_empty(particles, d, columns)
    torch.mul(vector_dNM.transpose(0, 1), factor, out=scaled_NdM)
    return scaled_NdM.flatten(0, 1).t()
