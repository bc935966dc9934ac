"""A Gaussian flow and a Gaussian target whose alpha = 2 divergence is known in closed form.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.contracts import FlowSamples, Space
from models.flows.prior import GaussianPrior

PLANE = Space(dim=2)
PARTICLES = Space(dim=6, particles=3)


class GaussianFlow(nn.Module):
    """N(mean, (std exp(log_scale))^2) on the space, as a map of the prior; on particles the mean is projected."""

    def __init__(self, *, space: Space, mean: tuple[float, ...], std: float) -> None:
        super().__init__()
        self.prior = GaussianPrior(space=space, std=std)
        self.mean_D = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def centre_D(self) -> Tensor:
        return self.prior.space.project(self.mean_D)

    @torch.no_grad()
    def push(self, x0_BD: Tensor) -> FlowSamples:
        x1_BD = self.centre_D + self.log_scale.exp() * x0_BD
        logdet_B = (self.prior.space.degrees_of_freedom * self.log_scale).expand(len(x0_BD))
        return FlowSamples(
            x0_BD=x0_BD,
            x1_BD=x1_BD,
            log_q_B=self.log_prob(x1_BD),
            logdet_B=logdet_B,
            length_B=(x1_BD - x0_BD).norm(dim=1),
        )

    def log_prob(self, x1_BD: Tensor) -> Tensor:
        x0_BD = (x1_BD - self.centre_D) * (-self.log_scale).exp()
        return self.prior.log_prob(x0_BD) - self.prior.space.degrees_of_freedom * self.log_scale


@dataclass(frozen=True, kw_only=True)
class GaussianTarget:
    """exp(-E) = Z N(x; mean, std^2) on the space; rows beyond `wall` in the first coordinate have an energy of NaN."""

    space: Space
    mean: tuple[float, ...]
    std: float
    log_z: float = 0.7
    wall: float = math.inf
    name: str = "gaussian"
    energy_flops: int = field(default=7, init=False)

    @property
    def centre_D(self) -> Tensor:
        return self.space.project(torch.tensor(self.mean, dtype=torch.float64))

    def energy(self, x_BD: Tensor) -> Tensor:
        prior = GaussianPrior(space=self.space, std=self.std)
        energy_B = -prior.log_prob(x_BD - self.centre_D.to(x_BD)) - self.log_z
        return torch.where(x_BD[:, 0] < self.wall, energy_B, math.nan)

    def score(self, x_BD: Tensor) -> Tensor:
        score_BD = (self.centre_D.to(x_BD) - x_BD) / self.std**2
        return torch.where(x_BD[:, :1] < self.wall, score_BD, math.nan)


def log_normaliser(flow: GaussianFlow, target: GaussianTarget) -> Tensor:
    """log int p^2 / q over the space with p = exp(-E), differentiable in the flow; log D_2 up to a constant.

    Completing the square in -(x - a)^2 / s_p^2 + (x - m)^2 / (2 s^2) leaves |a - m|^2 / (2 s^2 - s_p^2) and a Gaussian
    of precision 2 / s_p^2 - 1 / s^2, which must be positive.
    """
    k = target.space.degrees_of_freedom
    variance, own = (flow.prior.std * flow.log_scale.exp()).square(), target.std**2
    distance = (target.centre_D - flow.centre_D).square().sum()
    precision = 2.0 / own - 1.0 / variance
    assert float(precision.detach()) > 0.0
    width = 0.5 * math.log(2.0 * math.pi) + 0.5 * variance.log() - math.log(2.0 * math.pi * own) - 0.5 * precision.log()
    return 2.0 * target.log_z + k * (width + 0.5 * math.log(2.0 * math.pi)) + distance / (2.0 * variance - own)


def exact_rows(flow: GaussianFlow, target: GaussianTarget, b: float, n: int, *, seed: int) -> Tensor:
    """n draws of pi_b, proportional to q^(1 - 2b) p^(2b), which is a Gaussian."""
    variance, own = float((flow.prior.std * flow.log_scale.detach().exp()).square()), target.std**2
    precision = (1.0 - 2.0 * b) / variance + 2.0 * b / own
    mean_D = ((1.0 - 2.0 * b) * flow.centre_D.detach() / variance + 2.0 * b * target.centre_D / own) / precision
    noise_BD = torch.randn(n, flow.prior.space.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean_D + flow.prior.space.project(noise_BD) / math.sqrt(precision)
