"""The target's own score, made fit to stand inside a network: clipped, finite everywhere, on the space.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Target, Work
from models.score_estimator import Clip


class KnownScore(nn.Module):
    """clip(score(x)), mean-free and equivariant where the target is.

    Vectors are clipped by their norm, as everywhere here: clipping components, as published code does, would tell
    directions in space apart. A score that is not finite (particles that coincide, as all do where a path starts at the
    origin) counts as none.

    Args:
        target: its score, in closed form. clip: of the score.
    """

    target: Target
    clip: Clip

    def __init__(self, *, target: Target, clip: Clip) -> None:
        super().__init__()
        self.target, self.clip = target, clip

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D), differentiable where the target's score is; rows without a finite score are zero."""
        score_BD = self.target.score(x_BD)
        finite_B1 = torch.isfinite(score_BD).all(dim=1, keepdim=True)
        # Clipped particle by particle, forces no longer cancel.
        return self.target.space.project(self.clip(torch.where(finite_B1, score_BD, 0.0), self.target.space))


def asked_of_target(field: object, calls: int) -> Work:
    """The forces that so many calls of a field, a row each, ask of the target: none where it knows no score."""
    if not isinstance(field, nn.Module):
        return Work()
    known = [module for module in field.modules() if isinstance(module, KnownScore)]
    flops = sum(module.target.energy_flops for module in known)
    return Work(force_evaluations=calls * len(known), declared_flops=calls * flops)
