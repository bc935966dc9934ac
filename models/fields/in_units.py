"""A vector field whose network sees coordinates in a unit of its own, so that they are of order one.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.contracts import Field


class FieldInUnits(nn.Module):
    """v(t, x) = length * field(t, x / length): what the field would be if the target's lengths were in that unit.

    An EGNN takes squared distances into perceptrons and its own idea of a large distance is 1. Coordinates of molecules
    in nm are a tenth of that.

    Args:
        field: with or without symmetries, which it keeps. length: the unit, in length units of the target.
    """

    field: Field

    def __init__(self, *, field: Field, length: float) -> None:
        super().__init__()
        if not 0.0 < length < math.inf:
            raise ValueError(f"a unit of length must be positive and finite, got {length}; write for example 0.1")
        self.field = field
        self.length = length

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """t: scalar or (B,), x: (B, D) -> velocity (B, D)."""
        return self.length * self.field(t, x_BD / self.length)

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, D) and its exact divergence (B,), which no unit of length changes."""
        v_BD, divergence_B = self.field.with_divergence(t, x_BD / self.length)
        return self.length * v_BD, divergence_B
