"""A target from nothing but a function of the energy: its score comes by automatic differentiation.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.contracts import Space


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetOfEnergy:
    """exp(-energy) on a space.

    Args:
        name: part of the names of everything trained on it. energy_of: (B, D) -> (B,), in kT, by torch operations that
            keep the dtype. log_z: log of the integral of exp(-energy) over the space, None if unknown.
        energy_flops: floating-point operations of one energy, where budgets in operations are to count them; a score
            is charged the same again.
    """

    name: str
    space: Space
    energy_of: Callable[[Tensor], Tensor]
    log_z: float | None = None
    energy_flops: int = 1

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT."""
        if x_BD.shape[1:] != (self.space.dim,):
            raise ValueError(f"x must have shape (batch, {self.space.dim}), got {tuple(x_BD.shape)}; flatten each row")
        return self.energy_of(x_BD)

    def score(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D), minus the gradient of the energy; differentiable where x is."""
        graph = torch.is_grad_enabled() and x_BD.requires_grad
        with torch.enable_grad():
            at_BD = x_BD if graph else x_BD.detach().requires_grad_()
            (gradient_BD,) = torch.autograd.grad(self.energy(at_BD).sum(), at_BD, create_graph=graph)
        return -gradient_BD
