"""The exact divergence of any mean-free, translation-invariant field: one vector-Jacobian product a coordinate.

Shapes: B batch, N particles, d spatial dimensions, D = N d coordinates.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class ParticleField(Protocol):
    """v(t, x) of N particles in d dimensions."""

    particles: int
    spatial_dim: int

    def __call__(self, t: Tensor, x_BD: Tensor) -> Tensor: ...


def by_sweeps(field: ParticleField, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity (B, D) and exact trace of dv/dx (B,); differentiable, or graph-free where gradients are off.

    One sweep for each coordinate of all particles but the last: the velocity is mean-free and blind to translations, so
    the rows and columns of the Jacobian sum to zero over particles and the last particle's share of the trace follows
    from the others' rows.
    """
    differentiable = torch.is_grad_enabled()
    free = (field.particles - 1) * field.spatial_dim
    with torch.enable_grad():
        x_BD = x_BD if differentiable and x_BD.requires_grad else x_BD.detach().requires_grad_()
        v_BD = field(t, x_BD)
        trace_B = torch.zeros_like(v_BD[:, 0])
        for k in range(free):
            (row_BD,) = torch.autograd.grad(v_BD[:, k].sum(), x_BD, create_graph=differentiable, retain_graph=True)
            trace_B = trace_B + row_BD[:, k] - row_BD[:, free + k % field.spatial_dim]
    return (v_BD, trace_B) if differentiable else (v_BD.detach(), trace_B.detach())
