"""The base distribution of a flow: an isotropic Gaussian on a space, mean-free where the space is.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.contracts import Space


@dataclass(frozen=True, kw_only=True)
class GaussianPrior:
    """N(0, std^2) in each of the space's degrees of freedom.

    Args:
        space: where it lives; on a mean-free space the density is that on the subspace, of dimension (N - 1) d
            (as in Klein et al. 2023).
        std: standard deviation, in length units.
    """

    space: Space
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0.0:
            raise ValueError(f"the prior's std must be positive, got {self.std}; write for example std=1.0")

    @property
    def log_normaliser(self) -> float:
        """log of the integral of exp(-|x|^2 / 2 std^2) over the space."""
        return 0.5 * self.space.degrees_of_freedom * math.log(2.0 * math.pi * self.std**2)

    def from_noise(self, noise_BD: Tensor) -> Tensor:
        """Turn standard normal numbers (B, D) into draws (B, D)."""
        return self.std * self.space.project(noise_BD)

    def sample(self, n: int, generator: torch.Generator, *, like: Tensor | None = None) -> Tensor:
        """n independent draws (n, D), in the dtype and on the device of `like` where given."""
        noise_BD = torch.randn((n, self.space.dim), generator=generator, device=generator.device)
        return self.from_noise(noise_BD if like is None else noise_BD.to(dtype=like.dtype, device=like.device))

    def log_prob(self, x_BD: Tensor) -> Tensor:
        """Normalised log density (B,) of points (B, D) that lie on the space."""
        return -0.5 * x_BD.square().sum(dim=1) / self.std**2 - self.log_normaliser

    def score(self, x_BD: Tensor) -> Tensor:
        """Gradient of the log density, (B, D)."""
        return -x_BD / self.std**2
