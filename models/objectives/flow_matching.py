"""Flow matching: regress the velocity of straight paths between coupled base and data points.

Lipman et al. 2023; with optimal transport Tong et al. 2023; with its equivariant form Klein et al. 2023.
Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Work, parameter_gradients
from models.couplings import Coupling, Independent

CouplingScope = Literal["local", "global"]

FIELD_EVALUATIONS_PER_SAMPLE = 2
"""One forward and one backward pass of the network."""


@dataclass(frozen=True, kw_only=True)
class PathPoints:
    """Where a batch stands on its conditional paths.

    Attributes:
        t_B: times in [0, 1). x_BD: noisy points of the straight lines. velocity_BD: x1 - x0, the regression target.
    """

    t_B: Tensor
    x_BD: Tensor
    velocity_BD: Tensor


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """E |v(t, x_t) - (x1 - x0)|^2 with x_t = (1 - t) x0 + t x1 + sigma eta, (x0, x1) coupled, eta from the prior.

    The loss of a sample is the mean over its D components. Drawing eta from the prior keeps x_t mean-free.

    Args:
        coupling: how base and data points are paired.
        sigma: width of the conditional path in units of the prior's standard deviation.
        scope: "local": every worker pairs its own rows, so the optimum depends on how many workers share a batch.
            "global": every worker pairs the whole batch and keeps its rows; their number changes nothing.
    """

    recordable: ClassVar[Literal[True]] = True

    coupling: Coupling = field(default_factory=Independent)
    sigma: float = 0.01
    scope: CouplingScope = "local"

    def __post_init__(self) -> None:
        if self.scope not in ("local", "global"):
            raise ValueError(f"the scope of a coupling is 'local' or 'global', got {self.scope!r}; write scope='local'")
        if not 0 <= self.sigma < math.inf:
            raise ValueError(
                f"sigma must be finite and not negative, got {self.sigma}; write 0.01, or 0 for straight lines"
            )

    @property
    def needs_force(self) -> bool:
        return False

    @property
    def prepares_ahead(self) -> bool:
        return not isinstance(self.coupling, Independent)

    @property
    def prepares_globally(self) -> bool:
        return self.scope == "global" and not isinstance(self.coupling, Independent)

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """Times t, noisy points x and velocities of the paths between coupled points."""
        points = self.draw(prior, batch.x_BD, random)
        return Prepared(
            tensors={"t": points.t_B, "x": points.x_BD, "velocity": points.velocity_BD},
            work=Work(declared_flops=self.coupling.declared_flops(*batch.x_BD.shape)),
        )

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        """Gradient of the loss, summed over the prepared rows; `flow` has a `field(t, x)` and `parameters()`."""
        points = PathPoints(t_B=prepared["t"], x_BD=prepared["x"], velocity_BD=prepared["velocity"])
        loss_sum = regression_loss(flow.field, points).sum()
        n = len(prepared)
        return GradientSum(
            gradients=parameter_gradients(loss_sum, list(flow.parameters())),
            loss_sum=loss_sum.detach(),
            weight=float(n),
            work=prepared.work + Work(samples=n, field_evaluations=FIELD_EVALUATIONS_PER_SAMPLE * n),
        )

    def draw(self, prior: Prior, x1_BD: Tensor, random: Random) -> PathPoints:
        """Base points, pairing, times and noise, always drawn in this order."""
        pairs = self.coupling(_prior_noise(prior, x1_BD, random), x1_BD)
        t_B = random.uniform(like=x1_BD)
        eta_BD = _prior_noise(prior, x1_BD, random) if self.sigma else torch.zeros_like(x1_BD)
        return path_points(pairs.x0_BD, pairs.x1_BD, t_B, eta_BD, sigma=self.sigma)


def path_points(x0_BD: Tensor, x1_BD: Tensor, t_B: Tensor, eta_BD: Tensor, *, sigma: float) -> PathPoints:
    """Points and velocities of the straight conditional paths (Klein et al. 2023, equation 7)."""
    t_B1 = t_B[:, None]
    x_BD = (1 - t_B1) * x0_BD + t_B1 * x1_BD + sigma * eta_BD
    return PathPoints(t_B=t_B, x_BD=x_BD, velocity_BD=x1_BD - x0_BD)


def regression_loss(field: Any, points: PathPoints) -> Tensor:
    """Squared error of `field(t, x)`, averaged over components: (B,)."""
    return (field(points.t_B, points.x_BD) - points.velocity_BD).square().mean(dim=1)


@torch.no_grad()
def flow_matching_loss(
    flow: Any, x1_BD: Tensor, random: Random, *, coupling: Coupling | None = None, sigma: float = 0.01
) -> Tensor:
    """Flow-matching loss of each row, (B,), for evaluation; with one `random` two flows see the same noise."""
    objective = FlowMatching(coupling=coupling or Independent(), sigma=sigma)
    return regression_loss(flow.field, objective.draw(flow.prior, x1_BD, random))


def _prior_noise(prior: Prior, like_BD: Tensor, random: Random) -> Tensor:
    return prior.from_noise(random.normal(like_BD.shape[1], like=like_BD))
