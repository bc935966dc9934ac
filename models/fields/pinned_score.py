"""A score network that is pinned, without noise, to the score of the target, which is known there.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.contracts import Field, Target
from models.fields.known_score import KnownScore
from models.fields.sweeps import value_and_trace
from models.schedules import Schedule, column
from models.score_estimator import Clip


class PinnedScore(nn.Module):
    """s(tau, x) = (1 - w) net(tau, x) + w clip(score(x)) with w(tau) = length^2 / (h(tau) + length^2).

    Schedules begin with h(0) = 0, so nothing is left to learn at the data; noise much wider than the length leaves the
    network alone. Every call of the field calls the target's score as well.

    Args:
        network: the score where there is noise. target: its score, in closed form and differentiable. clip: of it.
        schedule: of the noise. length: width of the noise that gives both halves the same weight, at most that of the
            narrowest mode: noise of that width has changed the score.
    """

    network: Field

    def __init__(self, *, network: Field, target: Target, clip: Clip, schedule: Schedule, length: float) -> None:
        super().__init__()
        if not 0.0 < length < math.inf:
            raise ValueError(
                f"the width at which a pin lets go must be positive and finite, got {length}; write for example 0.1"
            )
        self.network, self.schedule, self.length = network, schedule, length
        self.known = KnownScore(target=target, clip=clip)

    def forward(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        """tau: noise time, scalar or (B,), x: (B, D) -> score (B, D)."""
        return torch.lerp(self.network(tau, x_BD), self.known(x_BD), self._weight(tau, x_BD))

    def with_divergence(self, tau: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Score (B, D) and the exact trace of its Jacobian (B,), by D sweeps through the target's score."""
        value_BD, trace_B = self.network.with_divergence(tau, x_BD)
        known_BD, known_trace_B = value_and_trace(self.known, x_BD)
        weight_B1 = self._weight(tau, x_BD)
        return torch.lerp(value_BD, known_BD, weight_B1), torch.lerp(trace_B, known_trace_B, weight_B1.squeeze(1))

    def _weight(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        square = self.length**2
        return (square / (self.schedule.h(column(tau, x_BD)) + square)).expand(len(x_BD), 1)
