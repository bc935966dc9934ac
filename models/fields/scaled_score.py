"""A score network that sees noised rows in units of their own width, so that it is of order one at every noise time.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.contracts import Field
from models.schedules import Schedule, column


class ScaledScore(nn.Module):
    """s(tau, x) = net(tau, x / c) / c with c(tau)^2 = h(tau) + length^2.

    The width of noised data is about c, and its score about 1 / c: what a plain network must bring forth over decades
    of noise is here a factor (the scaling of Karras et al. 2022, for a score instead of a denoiser).

    Args:
        network: a field of order one. schedule: of the noise. length: width of the data.
    """

    network: Field

    def __init__(self, *, network: Field, schedule: Schedule, length: float) -> None:
        super().__init__()
        if not 0.0 < length < math.inf:
            raise ValueError(f"the width of the data must be positive and finite, got {length}; write for example 1.0")
        self.network = network
        self.schedule = schedule
        self.length = length

    def forward(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        """tau: noise time, scalar or (B,), x: (B, D) -> score (B, D)."""
        width_B1 = self._width(tau, x_BD)
        return self.network(tau, x_BD / width_B1) / width_B1

    def with_divergence(self, tau: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Score (B, D) and the exact trace of its Jacobian (B,), both differentiable."""
        width_B1 = self._width(tau, x_BD)
        value_BD, trace_B = self.network.with_divergence(tau, x_BD / width_B1)
        return value_BD / width_B1, trace_B / width_B1.squeeze(1).square()

    def _width(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        return torch.sqrt(self.schedule.h(column(tau, x_BD)) + self.length**2)
