"""Paths that a flow takes from the base to the data, for pictures.

Shapes: B paths, T times, P points that move along each path (particles, or the configuration itself), D coordinates,
d spatial dimensions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from models.flows.continuous import ContinuousFlow
from models.flows.solvers import Dopri5, Solver

PICTURE_SOLVER = Dopri5(rtol=1e-5, atol=1e-5)


def base_points(flow: ContinuousFlow, n: int, *, seed: int) -> Tensor:
    """n draws (n, D) of a flow's base in float64 that depend on the base and the seed alone."""
    noise_BD = torch.randn((n, flow.space.dim), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return flow.prior.from_noise(noise_BD)


def planar_paths(flow: ContinuousFlow, x0_BD: Tensor, *, times_T: Tensor, solver: Solver = PICTURE_SOLVER) -> Tensor:
    """Paths (B, T, P, 2) from base points, in float64: the first two spatial coordinates of every particle.

    Without particles the configuration is the one point that moves; in one dimension time takes the first coordinate.

    Args:
        times_T: rising in [0, 1].
    """
    judged = copy.deepcopy(flow).double()
    states_TBD = judged.trajectory(x0_BD.double(), times=times_T, solver=solver)
    paths_BTPd = states_TBD.transpose(0, 1).unflatten(2, (-1, flow.space.spatial_dim))
    if flow.space.spatial_dim > 1:
        return paths_BTPd[..., :2]
    clock_BTP1 = times_T.to(paths_BTPd)[None, :, None, None].expand_as(paths_BTPd)
    return torch.cat([clock_BTP1, paths_BTPd], dim=3)
