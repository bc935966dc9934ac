"""Ways from noise to data along a score: the reverse stochastic process, and the probability flow as a vector field.

Noise time tau is 0 at the data and 1 at the noise; flow time t = 1 - tau is 0 at the base and 1 at the data.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.contracts import Field, Space, Target
from models.flows.prior import GaussianPrior
from models.schedules import Schedule, Score, column
from models.score_estimator import Clip


def noise_prior(space: Space, schedule: Schedule) -> GaussianPrior:
    """N(0, h(1)), what noising turns any narrow distribution into: the base of every flow here."""
    return GaussianPrior(space=space, std=math.sqrt(schedule.total_variance))


@dataclass(frozen=True, kw_only=True)
class FinalClimb:
    """A few steps up the clipped gradient of the log density, x <- x + step_size clip(score): removes overlaps.

    What comes out is no longer distributed as the process was; Akhound-Sadegh et al. 2024 use it for LJ55.

    Args:
        target: gives the score. clip: of the score. steps: how many. step_size: length units squared.
    """

    target: Target
    clip: Clip
    steps: int = 10
    step_size: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step_size > 0.0:
            raise ValueError(
                "a final climb has at least one step of positive size, "
                f"got steps={self.steps}, step_size={self.step_size}; write 10 and 1e-4, or leave the climb out"
            )

    @torch.no_grad()
    def __call__(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        space = self.target.space
        for _ in range(self.steps):
            x_BD = space.project(x_BD + self.step_size * self.clip(self.target.score(x_BD), space))
        return x_BD


@dataclass(frozen=True, kw_only=True)
class ReverseSDE:
    """The noising run backwards, from tau = 1 to tau = 0, by the method of Euler and Maruyama.

    Step k of n starts at tau = 1 - k / n and is x <- x + g^2 s(tau, x) / n + noise_scale g xi / sqrt(n), projected to
    the space (Akhound-Sadegh et al. 2024). Only noise_scale = 1 reverses the noising; less concentrates on the modes.

    Args:
        space: where it runs. schedule: of the noise. steps: n. noise_scale: factor of the noise.
        final: steps up the gradient after the last step, or None.
    """

    space: Space
    schedule: Schedule
    steps: int = 1000
    noise_scale: float = 1.0
    final: FinalClimb | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a reverse process needs at least one step, got steps={self.steps}; write steps=1000")
        if not 0.0 <= self.noise_scale < math.inf:
            raise ValueError(f"the noise scale must not be negative, got {self.noise_scale}; write noise_scale=1.0")

    def states(self, score: Score, x_BD: Tensor, noise: Iterable[Tensor]) -> Iterator[Tensor]:
        """The state after each step, then after the final climb where there is one; without a graph.

        Args:
            score: of the noised distribution, at noise times. x_BD: draws of the noise distribution.
            noise: one standard normal array (B, D) a step.

        Raises:
            ValueError: where the noise ends before the steps do.
        """
        stream = iter(noise)
        for k in range(self.steps):
            noise_BD = next(stream, None)
            if noise_BD is None:
                raise ValueError(f"every step needs its noise, got {k} for {self.steps} steps; write one (B, D) a step")
            with torch.no_grad():
                tau = torch.as_tensor(1.0 - k / self.steps, dtype=x_BD.dtype, device=x_BD.device)
                g = self.schedule.g(tau)
                drift_BD = g.square() / self.steps * score(tau, x_BD)
                shake_BD = self.noise_scale * g * math.sqrt(1.0 / self.steps) * noise_BD
                x_BD = self.space.project(x_BD + drift_BD + shake_BD)
            yield x_BD
        if self.final is not None:
            yield self.final(x_BD)

    def carry(self, score: Score, x_BD: Tensor, noise: Iterable[Tensor]) -> Tensor:
        """The last state, (B, D)."""
        return deque(self.states(score, x_BD, noise), maxlen=1).pop()

    def sample(self, score: Score, n: int, *, generator: torch.Generator, like: Tensor | None = None) -> Tensor:
        """n draws (n, D), in the dtype and on the device of `like` where given."""
        x_BD = noise_prior(self.space, self.schedule).sample(n, generator, like=like)
        device = generator.device
        noise = (torch.randn(x_BD.shape, generator=generator, device=device).to(x_BD) for _ in range(self.steps))
        return self.carry(score, x_BD, noise)


class ProbabilityFlow(nn.Module):
    """The field v(t, x) = g(tau)^2 s(tau, x) / 2 with tau = 1 - t, whose flow has the marginals of the reverse process.

    In noise time dx / dtau = -g^2 s / 2 (Song et al. 2021); reversed, it runs from the base at t = 0 to the data at
    t = 1, so a `ContinuousFlow` over `noise_prior` samples it, knows its density, and takes path gradients.

    Args:
        score: a score network of (noise time, x) with its own divergence. schedule: of the noise.
    """

    score: Field

    def __init__(self, *, score: Field, schedule: Schedule) -> None:
        super().__init__()
        self.score = score
        self.schedule = schedule

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """t: flow time, scalar or (B,), x: (B, D) -> velocity (B, D)."""
        return self._rate(t, x_BD) * self.score(1.0 - t, x_BD)

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, D) and exact divergence (B,), both differentiable in x and the parameters."""
        rate_B1 = self._rate(t, x_BD)
        score_BD, divergence_B = self.score.with_divergence(1.0 - t, x_BD)
        return rate_B1 * score_BD, rate_B1.squeeze(1) * divergence_B

    def _rate(self, t: Tensor, x_BD: Tensor) -> Tensor:
        return 0.5 * self.schedule.g(column(1.0 - t, x_BD)).square()
