"""A target in other units of length: a wide one brought to the size that a network likes.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from models.contracts import Space, Target


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """A target in other units of length: E(x) = target.energy(scale x), so that coordinates are 1 / scale as large.

    Args:
        target: in the original units. scale: original length of one unit; 50 brings [-50, 50] to [-1, 1].
    """

    target: Target
    scale: float

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"the scale must be positive and finite, got {self.scale}; write for example scale=50.0")

    @property
    def name(self) -> str:
        return f"{self.target.name} in units of {self.scale:g}"

    @property
    def space(self) -> Space:
        return self.target.space

    @property
    def log_z(self) -> float | None:
        known = self.target.log_z
        return None if known is None else known - self.space.degrees_of_freedom * math.log(self.scale)

    @property
    def energy_flops(self) -> int:
        return self.target.energy_flops + self.space.dim

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT."""
        return self.target.energy(self.scale * x_BD)

    def score(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D), with the factor `scale` of the chain rule."""
        return self.scale * self.target.score(self.scale * x_BD)
