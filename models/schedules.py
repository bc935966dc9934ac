"""Noise schedules: how much Gaussian noise has been added at noise time tau, from tau = 0 (data) to tau = 1 (noise).

Noise time runs against flow time t, which starts at the base: tau = 1 - t. A schedule of dx = g(tau) dw has the
integrated variance h(tau) = int_0^tau g^2, so that x_tau = x_0 + sqrt(h(tau)) eps ("variance exploding").

Shapes: B batch, D coordinates. Schedules act on tensors of any shape and keep their dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""s(tau, x): noise time, scalar or (B,), and configurations (B, D) -> gradient of the log density of x_tau, (B, D)."""


class Range(NamedTuple):
    """Where a parameter is worth searching: ends of an interval, and whether its logarithm is the natural scale."""

    low: float
    high: float
    logarithmic: bool


VARIANCE_RANGE = Range(0.1, 100.0, logarithmic=True)


class Schedule(Protocol):
    """A variance-exploding schedule, as a frozen value."""

    @property
    def total_variance(self) -> float:
        """h(1), the variance of the noise distribution at tau = 1, length units squared."""

    def h(self, tau: Tensor) -> Tensor:
        """Integrated variance int_0^tau g^2: zero at tau = 0, increasing."""

    def g(self, tau: Tensor) -> Tensor:
        """Diffusion coefficient, sqrt(dh / dtau), not negative."""

    def time_of(self, variance: Tensor) -> Tensor:
        """Inverse of h: the noise time at which the variance, within [0, total_variance], is reached."""

    @classmethod
    def search_ranges(cls) -> Mapping[str, Range]:
        """An interval for each constructor argument; every combination of values inside is a valid schedule."""


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """g = sigma_min r^tau sqrt(2 ln r) with r = sigma_max / sigma_min, hence h = sigma_min^2 (r^(2 tau) - 1).

    The schedule of Akhound-Sadegh et al. 2024, with h as the integral of g^2: it starts at zero, where
    (sigma_min r^tau)^2 starts at sigma_min^2 and would never reach clean data.

    Args:
        sigma_min, sigma_max: length units; the standard deviation at tau = 1 is sqrt(sigma_max^2 - sigma_min^2).
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "a geometric schedule needs 0 < sigma_min < sigma_max, "
                f"got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; write for example 0.01 and 2.0"
            )

    @property
    def _growth(self) -> float:
        return 2.0 * math.log(self.sigma_max / self.sigma_min)

    @property
    def total_variance(self) -> float:
        return self.sigma_max**2 - self.sigma_min**2

    def h(self, tau: Tensor) -> Tensor:
        return self.sigma_min**2 * torch.expm1(self._growth * tau)

    def g(self, tau: Tensor) -> Tensor:
        return self.sigma_min * math.sqrt(self._growth) * torch.exp(0.5 * self._growth * tau)

    def time_of(self, variance: Tensor) -> Tensor:
        return torch.log1p(variance / self.sigma_min**2) / self._growth

    @classmethod
    def search_ranges(cls) -> dict[str, Range]:
        return {
            "sigma_min": Range(1e-5, 0.5, logarithmic=True),
            "sigma_max": Range(1.0, 10.0, logarithmic=True),
        }


@dataclass(frozen=True, kw_only=True)
class Linear:
    """h = total_variance tau: noise comes in at a constant rate."""

    total_variance: float

    def __post_init__(self) -> None:
        require_variance(self.total_variance)

    def h(self, tau: Tensor) -> Tensor:
        return self.total_variance * tau

    def g(self, tau: Tensor) -> Tensor:
        return torch.full_like(tau, math.sqrt(self.total_variance))

    def time_of(self, variance: Tensor) -> Tensor:
        return variance / self.total_variance

    @classmethod
    def search_ranges(cls) -> dict[str, Range]:
        return {"total_variance": VARIANCE_RANGE}


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """h = total_variance tau^2: the standard deviation of the noise grows linearly."""

    total_variance: float

    def __post_init__(self) -> None:
        require_variance(self.total_variance)

    def h(self, tau: Tensor) -> Tensor:
        return self.total_variance * tau.square()

    def g(self, tau: Tensor) -> Tensor:
        return (2.0 * self.total_variance * tau).sqrt()

    def time_of(self, variance: Tensor) -> Tensor:
        return (variance / self.total_variance).sqrt()

    @classmethod
    def search_ranges(cls) -> dict[str, Range]:
        return {"total_variance": VARIANCE_RANGE}


@dataclass(frozen=True, kw_only=True)
class Power:
    """h = total_variance tau^exponent. The exponent is at least one, so that g is bounded."""

    total_variance: float
    exponent: float

    def __post_init__(self) -> None:
        require_variance(self.total_variance)
        if not 1.0 <= self.exponent < math.inf:
            raise ValueError(
                f"the exponent of a power schedule is at least 1, else g is infinite at tau = 0, got {self.exponent}; "
                "write for example exponent=3.0"
            )

    def h(self, tau: Tensor) -> Tensor:
        return self.total_variance * tau**self.exponent

    def g(self, tau: Tensor) -> Tensor:
        return (self.total_variance * self.exponent * tau ** (self.exponent - 1.0)).sqrt()

    def time_of(self, variance: Tensor) -> Tensor:
        return (variance / self.total_variance) ** (1.0 / self.exponent)

    @classmethod
    def search_ranges(cls) -> dict[str, Range]:
        return {"total_variance": VARIANCE_RANGE, "exponent": Range(1.0, 6.0, logarithmic=False)}


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """h = scale^2 tan^2(a tau), with the angle a chosen so that h(1) = total_variance.

    The cosine schedule of Nichol and Dhariwal 2021, whose share of signal is cos^2(a tau), written as variance
    exploding: share of signal = 1 / (1 + h / scale^2). No offset is needed, since h(0) = 0.

    Args:
        total_variance: h(1), length units squared. scale: standard deviation of the data, in length units.
    """

    total_variance: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_variance(self.total_variance)
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"the scale of the data must be positive, got {self.scale}; write for example scale=1.0")

    @property
    def _angle(self) -> float:
        return math.atan(math.sqrt(self.total_variance) / self.scale)

    def h(self, tau: Tensor) -> Tensor:
        return self.scale**2 * torch.tan(self._angle * tau).square()

    def g(self, tau: Tensor) -> Tensor:
        tangent = torch.tan(self._angle * tau)
        return self.scale * (2.0 * self._angle * tangent * (1.0 + tangent.square())).sqrt()

    def time_of(self, variance: Tensor) -> Tensor:
        return torch.atan(variance.sqrt() / self.scale) / self._angle

    @classmethod
    def search_ranges(cls) -> dict[str, Range]:
        return {"total_variance": VARIANCE_RANGE, "scale": Range(0.1, 10.0, logarithmic=True)}


@dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """dx = -alpha(tau) x dtau + g(tau) dw with alpha = g^2 / 2, derived from a variance-exploding schedule.

    y = beta x with beta = exp(+int alpha) obeys dy = beta g dw, so y is a variance-exploding process with integrated
    variance h = beta^2 - 1, the given schedule. Densities and scores follow by this change of variables; the printed
    appendix of Akhound-Sadegh et al. 2024 has the opposite sign in beta and lacks the factor beta of the score.

    Args:
        exploding: the schedule of y.
    """

    exploding: Schedule

    def beta(self, tau: Tensor) -> Tensor:
        """Factor of y = beta x: sqrt(1 + h), so 1 / beta is the share of the clean configuration in x_tau."""
        return (1.0 + self.exploding.h(tau)).sqrt()

    def g(self, tau: Tensor) -> Tensor:
        """Diffusion coefficient of x."""
        return self.exploding.g(tau) / self.beta(tau)

    def alpha(self, tau: Tensor) -> Tensor:
        """Rate of the contraction, d log beta / dtau = g^2 / 2."""
        return 0.5 * self.g(tau).square()

    def noised(self, tau: Tensor, x_BD: Tensor, noise_BD: Tensor) -> Tensor:
        """x_tau = x_0 / beta + sqrt(1 - beta^-2) eps for clean rows x_0; tau scalar or (B,)."""
        variance_B1 = self.exploding.h(column(tau, x_BD))
        return (x_BD + variance_B1.sqrt() * noise_BD) / (1.0 + variance_B1).sqrt()

    def score(self, exploding_score: Score, tau: Tensor, x_BD: Tensor) -> Tensor:
        """Score of x_tau from that of y_tau: beta s(tau, beta x), (B, D); also where both are estimates S_K."""
        beta_B1 = self.beta(column(tau, x_BD))
        return beta_B1 * exploding_score(tau, beta_B1 * x_BD)


def column(tau: Tensor, x_BD: Tensor) -> Tensor:
    """Times, scalar or (B,), as a column (B, 1) in the dtype and on the device of x."""
    return tau.to(x_BD).reshape(-1, 1).expand(len(x_BD), 1)


def require_variance(total_variance: float) -> None:
    """Raise ValueError unless h(1) is positive and finite."""
    if not 0.0 < total_variance < math.inf:
        raise ValueError(
            f"the variance at tau = 1 must be positive and finite, got total_variance={total_variance}; "
            "write for example 9.0"
        )
