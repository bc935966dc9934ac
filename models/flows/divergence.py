"""The two ways to find div v along a trajectory: the exact trace, or Hutchinson's estimate with a fixed probe.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Divergence, Field


def exact_divergence(field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity (B, D) and its exact divergence (B,), by the field's own algorithm."""
    return field.with_divergence(t, x_BD)


def hutchinson(probe_BD: Tensor) -> Divergence:
    """Estimate div v as e . (J e), with one probe e per sample held fixed over the whole trajectory.

    Unbiased where the probe has E[e e^T] = identity (on the mean-free subspace a projected probe is enough). A fixed
    probe keeps the right-hand side smooth, and the same probe in both directions makes log-determinants agree
    (Grathwohl et al. 2019).

    Args:
        probe_BD: (B, D), for example Rademacher signs.
    """

    def estimate(field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x_BD = x_BD if differentiable and x_BD.requires_grad else x_BD.detach().requires_grad_()
            v_BD = field(t, x_BD)
            # J^T e rather than J e: one reverse sweep, and e . (J^T e) is the same number.
            (swept_BD,) = torch.autograd.grad(v_BD, x_BD, probe_BD, create_graph=differentiable)
        divergence_B = (swept_BD * probe_BD).sum(dim=1)
        return (v_BD if differentiable else v_BD.detach()), divergence_B

    return estimate
