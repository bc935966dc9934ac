"""The exact trace of a Jacobian by one vector-Jacobian product a coordinate: for any map, and for fields of particles.

Shapes: B batch, N particles, d spatial dimensions, D = N d coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class ParticleField(Protocol):
    """v(t, x) of N particles in d dimensions."""

    particles: int
    spatial_dim: int

    def __call__(self, t: Tensor, x_BD: Tensor) -> Tensor: ...


def value_and_trace(function: Callable[[Tensor], Tensor], x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B, D) of any map and the exact trace of its Jacobian (B,); differentiable, or graph-free as below."""
    return _swept(function, x_BD, x_BD.shape[1], lambda row_BD, k: row_BD[:, k])


def by_sweeps(field: ParticleField, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity (B, D) and exact trace of dv/dx (B,); differentiable, or graph-free where gradients are off.

    One sweep for each coordinate of all particles but the last: the velocity is mean-free and blind to translations, so
    the rows and columns of the Jacobian sum to zero over particles and the last particle's share of the trace follows
    from the others' rows.
    """
    free, d = (field.particles - 1) * field.spatial_dim, field.spatial_dim
    return _swept(lambda x_BD: field(t, x_BD), x_BD, free, lambda row_BD, k: row_BD[:, k] - row_BD[:, free + k % d])


def _swept(
    function: Callable[[Tensor], Tensor], x_BD: Tensor, rows: int, share: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Values, and the sum of what each of the first rows of the Jacobian has to say of its trace."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x_BD = x_BD if differentiable and x_BD.requires_grad else x_BD.detach().requires_grad_()
        value_BD = function(x_BD)
        trace_B = torch.zeros_like(value_BD[:, 0])
        for k in range(rows):
            component = value_BD[:, k].sum()
            (row_BD,) = torch.autograd.grad(component, x_BD, create_graph=differentiable, retain_graph=True)
            trace_B = trace_B + share(row_BD, k)
    return (value_BD, trace_B) if differentiable else (value_BD.detach(), trace_B.detach())
