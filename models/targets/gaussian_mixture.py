"""Mixtures of isotropic Gaussians: exactly normalised, exactly sampled, with the score in closed form.

Shape suffixes: B batch, D coordinates, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.contracts import Space
from models.targets.width import require_width


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """sum_k w_k N(x; mu_k, variance I); energy = -log density, so log Z = 0.

    Args:
        name: what reports call it.
        means_KD: one row a component; kept in float64, cast to the input's dtype and device when called.
        variance: of every coordinate of every component, length units squared.
        weights_K: positive, summing to one; None for equal weights.
    """

    name: str
    means_KD: Tensor
    variance: float
    weights_K: Tensor | None = None
    log_z: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.means_KD.ndim != 2:
            raise ValueError(
                f"means must have shape (components, dim), got {tuple(self.means_KD.shape)}; write one row a mean"
            )
        if not self.variance > 0.0:
            raise ValueError(f"the variance must be positive, got {self.variance}; write variance > 0")
        weights = self.weights_K
        if weights is None:
            weights = torch.full((len(self.means_KD),), 1.0 / len(self.means_KD), dtype=torch.float64)
        if len(weights) != len(self.means_KD) or bool((weights <= 0.0).any()) or abs(float(weights.sum()) - 1.0) > 1e-6:
            raise ValueError(
                f"weights must be {len(self.means_KD)} positive numbers that sum to one, got {weights.tolist()}; "
                "divide them by their sum"
            )
        object.__setattr__(self, "means_KD", self.means_KD.double())
        object.__setattr__(self, "weights_K", weights.double())

    @property
    def space(self) -> Space:
        return Space(dim=self.means_KD.shape[1])

    @property
    def energy_flops(self) -> int:
        """Per component 3 D for the squared distance and 5 for scale, weight, and its share of the log-sum-exp."""
        components, dim = self.means_KD.shape
        return components * (3 * dim + 5)

    def _log_joint(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """log of w_k N(x; mu_k) (B, K), and mu_k - x (B, K, D)."""
        require_width(x_BD, self.space, self.name)
        offset_BKD = self.means_KD.to(x_BD) - x_BD.unsqueeze(-2)
        return self._log_norm_K(x_BD) - offset_BKD.square().sum(-1) / (2.0 * self.variance), offset_BKD

    def energy(self, x_BD: Tensor) -> Tensor:
        """-log density, (B, D) -> (B,), in kT."""
        return -torch.logsumexp(self._log_joint(x_BD)[0], dim=-1)

    def score(self, x_BD: Tensor) -> Tensor:
        """sum_k r_k (mu_k - x) / variance with responsibilities r = softmax of the joint; (B, D) -> (B, D)."""
        return self._pulled(*self._log_joint(x_BD))

    @torch.no_grad()
    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and score (B, D) without a graph, for a fraction of what the two calls take on many rows."""
        require_width(x_BD, self.space, self.name)
        means_KD = self.means_KD.to(x_BD)
        square_BK = x_BD.new_zeros(len(x_BD), len(means_KD))
        for mean_K, x_B in zip(means_KD.t(), x_BD.t(), strict=True):
            offset_BK = mean_K - x_B.unsqueeze(1)
            square_BK.addcmul_(offset_BK, offset_BK)
        log_joint_BK = torch.add(self._log_norm_K(x_BD), square_BK, alpha=-0.5 / self.variance)
        responsibility_BK = torch.softmax(log_joint_BK, dim=1)
        # The largest term is at least 1 / K of the sum, so its share gives the logarithm of the sum without another
        # exponential of each term, most of which are too small to be quick.
        energy_B = responsibility_BK.amax(dim=1).log_().sub_(log_joint_BK.amax(dim=1))
        return energy_B, torch.addmm(x_BD, responsibility_BK, means_KD, beta=-1.0).div_(self.variance)

    def _log_norm_K(self, like: Tensor) -> Tensor:
        """log of w_k / sqrt(2 pi variance)^D."""
        assert self.weights_K is not None
        log_norm = 0.5 * self.means_KD.shape[1] * math.log(2.0 * math.pi * self.variance)
        return self.weights_K.log().to(like) - log_norm

    def _pulled(self, log_joint_BK: Tensor, offset_BKD: Tensor) -> Tensor:
        responsibility_BK1 = torch.softmax(log_joint_BK, dim=-1).unsqueeze(-1)
        return (responsibility_BK1 * offset_BKD).sum(-2) / self.variance

    def noised(self, variance: float) -> GaussianMixture:
        """The mixture after Gaussian noise of this variance has been added: wider components, the same means."""
        return replace(self, name=f"{self.name}, noised", variance=self.variance + variance)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n exact, independent draws (n, D), float32, on the generator's device."""
        assert self.weights_K is not None
        device = generator.device
        component_B = torch.multinomial(self.weights_K.to(device), n, replacement=True, generator=generator)
        noise_BD = torch.randn((n, self.means_KD.shape[1]), generator=generator, device=device, dtype=torch.float64)
        return (self.means_KD.to(device)[component_B] + math.sqrt(self.variance) * noise_BD).float()


def gmm4(*, mean: float = 1.0, variance: float = 0.5) -> GaussianMixture:
    """Four equal Gaussians in the plane at (+-mean, +-mean).

    Vaitl and Klein 2025 use such a mixture; its printed constants are not public, so they are arguments here.
    """
    corners_KD = mean * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    return GaussianMixture(name="gmm4", means_KD=corners_KD, variance=variance)


def gmm40(*, covariance: Literal["code", "paper"] = "code") -> GaussianMixture:
    """Forty equal Gaussians with means uniform on [-40, 40]^2 (Akhound-Sadegh et al. 2024; Midgley et al. 2023).

    Args:
        covariance: "code": standard deviation softplus(1) = 1.3133, which made the published numbers;
            "paper": variance 40, as one paper prints.
    """
    if covariance not in ("code", "paper"):
        raise ValueError(f'covariance must be "code" or "paper", got {covariance!r}; write covariance="code"')
    uniform_KD = torch.rand((40, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    code_variance = float(functional.softplus(torch.tensor(1.0, dtype=torch.float64))) ** 2
    variance, name = (code_variance, "gmm40") if covariance == "code" else (40.0, "gmm40_paper")
    return GaussianMixture(name=name, means_KD=(uniform_KD - 0.5) * 80.0, variance=variance)
