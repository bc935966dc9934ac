"""A perceptron that sees time and every coordinate through sinusoids: for scores with detail on many length scales.

Shapes: B batch, D coordinates, E width of an embedding, H hidden width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.fields.sweeps import value_and_trace

SLOWEST = 1e-4
"""The lowest angular frequency of an embedding in units of its highest (Vaswani et al. 2017)."""


class SinusoidalField(nn.Module):
    """v(t, x) = output_scale net(t, x / length): embeddings, then residual blocks h + gelu(W h + b).

    The layout that Akhound-Sadegh et al. 2024 train on mixtures: 128 sinusoids for time and for every coordinate,
    coordinates times 25, three blocks of width 128. Smooth, so that path gradients apply.

    Args:
        dim: number D of coordinates. hidden, layers: width H and number of blocks. embedding: width E, even.
        length: that coordinates are measured in. output_scale: of the velocity; a score has 1 / length.
        coordinate_frequency: highest angular frequency in a coordinate measured in `length`.
    """

    frequency_E: Tensor

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        layers: int = 3,
        *,
        embedding: int = 128,
        length: float = 1.0,
        output_scale: float = 1.0,
        coordinate_frequency: float = 25.0,
    ) -> None:
        super().__init__()
        if min(dim, hidden, layers) < 1 or embedding < 4 or embedding % 2:
            raise ValueError(
                f"sizes must be positive and the embedding even, got {dim=}, {hidden=}, {layers=}, {embedding=}; "
                "write at least 1 for each, and 4 or more for the embedding"
            )
        if not min(length, output_scale, coordinate_frequency) > 0.0:
            raise ValueError(
                f"scales must be positive, got {length=}, {output_scale=}, {coordinate_frequency=}; write 1.0 or so"
            )
        self.dim, self.length, self.output_scale = dim, length, output_scale
        self.coordinate_frequency = coordinate_frequency
        half = embedding // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequency_E", torch.exp(math.log(SLOWEST) * exponents), persistent=False)
        self.first = nn.Linear((dim + 1) * embedding, hidden)
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.last = nn.Linear(hidden, dim)

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """t: scalar or (B,), x: (B, D) -> velocity (B, D)."""
        column_B1 = t.to(x_BD).reshape(-1, 1).expand(len(x_BD), 1)
        h_BH = functional.gelu(self.first(torch.cat([self._waves(column_B1), self._coordinates(x_BD)], dim=1)))
        for block in self.blocks:
            h_BH = h_BH + functional.gelu(block(h_BH))
        return self.output_scale * self.last(h_BH)

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, D) and exact trace of dv/dx (B,), by one sweep a coordinate; differentiable."""
        return value_and_trace(lambda x_BD: self(t, x_BD), x_BD)

    def _coordinates(self, x_BD: Tensor) -> Tensor:
        return self._waves(self.coordinate_frequency / self.length * x_BD)

    def _waves(self, values_BC: Tensor) -> Tensor:
        """Sines and cosines of every column, (B, C E)."""
        angle_BCE = values_BC.unsqueeze(-1) * self.frequency_E.to(values_BC)
        return torch.cat([angle_BCE.sin(), angle_BCE.cos()], dim=-1).flatten(1)
