"""Denoising diffusion sampler: a controlled Ornstein-Uhlenbeck process that should end in the target.

Vargas et al. 2023. Step k = 0 starts at the reference N(0, sigma^2), the last step ends at the data; the control is
told t = k / S, which runs as flow time does.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Target
from models.objectives.path_integral import (
    Control,
    ControlledPath,
    control_gradient,
    require_width_and_steps,
    terminal_cost,
)


def cosine_squared(steps: int, *, largest: float, offset: float = 0.008) -> tuple[float, ...]:
    """alpha_k = largest cos^2(pi / 2 (k / S + offset) / (1 + offset)): steps that shrink towards the data.

    Args:
        steps: S. largest: alpha of the first step, up to the offset, between 0 and 1. offset: keeps the start smooth.
    """
    if steps < 1:
        raise ValueError(f"a path needs at least one step, got steps={steps}; write for example 100")
    angles = (0.5 * math.pi * (k / steps + offset) / (1.0 + offset) for k in range(steps))
    return tuple(largest * math.cos(angle) ** 2 for angle in angles)


def euler_steps(steps: int, *, smallest: float, largest: float) -> tuple[float, ...]:
    """alpha_k = beta(t_k) / S with a rate that falls linearly from `largest` at the noise to `smallest` at the data.

    An Euler step of dy = -beta y / 2 dt + sigma sqrt(beta) dw over 1 / S adds the variance sigma^2 beta / S, and keeps
    1 - beta / (2 S) of the state. That fresh variance is taken, and sqrt(1 - alpha), the same to first order, is kept:
    a literal Euler step widens N(0, sigma^2) by a factor 1 + alpha^2 / 4 each time, so weights against a stationary
    reference would be biased; with this one they are not, at any number of steps.

    Args:
        steps: S. smallest, largest: beta, per unit of time; Akhound-Sadegh et al. 2024 take 0.5 and 1.5 or 0.01 and 0.5
            for particles.
    """
    if steps < 1:
        raise ValueError(f"a path needs at least one step, got steps={steps}; write for example 100")
    if not 0.0 < smallest <= largest < steps:
        raise ValueError(
            f"rates are positive, in order and below the number of steps, got {smallest} and {largest} for {steps} "
            "steps; write for example euler_steps(100, smallest=0.5, largest=1.5)"
        )
    return tuple((largest + (smallest - largest) * k / steps) / steps for k in range(steps))


def ornstein_uhlenbeck_path(
    control: Control, start_BD: Tensor, noise_BSD: Tensor, *, target: Target, sigma: float, alphas: tuple[float, ...]
) -> ControlledPath:
    """y <- sqrt(1 - alpha) y + 2 sigma^2 lambda f(t, y) + sigma sqrt(alpha) eps with lambda = 1 - sqrt(1 - alpha).

    Without a control N(0, sigma^2) is stationary. running = sum 2 sigma^2 lambda^2 / alpha |f|^2 are the KL divergences
    of the shifted steps, ito = sum 2 sigma lambda / sqrt(alpha) f . eps; terminal = log N(y; 0, sigma^2) + E(y).

    Args:
        start_BD: standard normal numbers, y_0 in units of sigma. noise_BSD: the same for each step; both are projected
            to the space here. alphas: one a step, between 0 and 1.
    """
    space = target.space
    y_BD, noise_BSD = sigma * space.project(start_BD), space.project(noise_BSD)
    running_B = ito_B = torch.zeros_like(y_BD[:, 0])
    for k, alpha in enumerate(alphas):
        rate = 1.0 - math.sqrt(1.0 - alpha)
        f_BD, noise_BD = control(y_BD.new_tensor(k / len(alphas)), y_BD), noise_BSD[:, k]
        running_B = running_B + 2.0 * sigma**2 * rate**2 / alpha * f_BD.square().sum(dim=1)
        ito_B = ito_B + 2.0 * sigma * rate / math.sqrt(alpha) * (f_BD * noise_BD).sum(dim=1)
        y_BD = (1.0 - rate) * y_BD + 2.0 * sigma**2 * rate * f_BD + sigma * math.sqrt(alpha) * noise_BD
    return ControlledPath(x_BD=y_BD, running_B=running_B, ito_B=ito_B, terminal_B=terminal_cost(target, sigma, y_BD))


@dataclass(frozen=True, kw_only=True)
class DenoisingDiffusion:
    """E[sum 2 sigma^2 lambda^2 / alpha |f|^2 + log N(y_S; 0, sigma^2) + E(y_S)] as an Objective.

    The control f is the flow's field. Differentiated through all steps, so its memory grows with their number. Of a
    batch only the number and the dtype of the rows count; the prior is not asked, since y_0 has the reference's width.

    Args:
        target: gives the energy. sigma: of the reference process, in length units.
        alphas: share of fresh variance in each step, from the noise to the data; see `cosine_squared`
            and `euler_steps`.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    target: Target
    sigma: float
    alphas: tuple[float, ...]

    def __post_init__(self) -> None:
        require_width_and_steps(self.sigma, len(self.alphas))
        if not all(0.0 < alpha < 1.0 for alpha in self.alphas):
            raise ValueError(
                f"every alpha lies between 0 and 1, got {min(self.alphas)} to {max(self.alphas)}; "
                "write for example cosine_squared(100, largest=0.3)"
            )

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """The noise of the start (B, D) and of every step (B, S, D)."""
        dim = self.target.space.dim
        start_BD = random.normal(dim, like=batch.x_BD)
        return Prepared(tensors={"start": start_BD, "noise": random.normal(len(self.alphas), dim, like=batch.x_BD)})

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        """Gradient of the loss, summed over the prepared rows; `flow` has a `field(t, y)` and `parameters()`."""
        return control_gradient(self.paths(flow.field, prepared), flow, prepared, self.target, self.steps)

    @property
    def steps(self) -> int:
        return len(self.alphas)

    def paths(self, control: Control, prepared: Prepared) -> ControlledPath:
        """One path for each prepared row."""
        return ornstein_uhlenbeck_path(
            control, prepared["start"], prepared["noise"], target=self.target, sigma=self.sigma, alphas=self.alphas
        )
