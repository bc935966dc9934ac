"""Path integral sampler: a controlled Brownian motion from the origin that should end in the target.

Zhang and Chen 2022. Time runs from 0 (the origin) to 1 (the data), as flow time does.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Target, Work, parameter_gradients
from models.fields.known_score import asked_of_target
from models.flows.prior import GaussianPrior

Control = Callable[[Tensor, Tensor], Tensor]
"""u(t, x): scalar time and states (B, D) -> (B, D); mean-free on a mean-free space."""

FIELD_EVALUATIONS_PER_STEP = 2
"""One forward and one backward pass of the control."""


@dataclass(frozen=True, kw_only=True)
class ControlledPath:
    """What controlled paths cost, term by term; every term in nats.

    Attributes:
        x_BD: the last states.
        running_B: KL divergence of the control's steps from the reference's, given the states passed.
        ito_B: the noise's share in the log ratio of the two path densities, zero on average.
        terminal_B: log density of the reference's last state plus the energy of the target.
    """

    x_BD: Tensor
    running_B: Tensor
    ito_B: Tensor
    terminal_B: Tensor

    @property
    def loss_B(self) -> Tensor:
        """Its mean is at least -log Z, and equal to it for the optimal control."""
        return self.running_B + self.terminal_B

    @property
    def log_weight_B(self) -> Tensor:
        """log of unbiased weights: the mean of their exponential is Z, for any control and any number of steps.

        `models.estimators.weight_estimates` turns them into log Z, its lower bound and effective sample sizes.
        """
        return -(self.running_B + self.ito_B + self.terminal_B)


def brownian_path(control: Control, noise_BSD: Tensor, *, target: Target, sigma: float) -> ControlledPath:
    """dX = sigma u dt + sigma dW on [0, 1] from the origin, by S Euler steps; differentiable in the control.

    running = int |u|^2 / 2 dt, ito = int u . dW, terminal = log N(X_1; 0, sigma^2) + E(X_1), with the normal density of
    the target's space.

    Args:
        noise_BSD: standard normal numbers, projected to the space here. sigma: length units.
    """
    space, steps = target.space, noise_BSD.shape[1]
    increment_BSD = math.sqrt(1.0 / steps) * space.project(noise_BSD)
    x_BD = torch.zeros_like(noise_BSD[:, 0])
    running_B = ito_B = torch.zeros_like(noise_BSD[:, 0, 0])
    for k in range(steps):
        u_BD = control(x_BD.new_tensor(k / steps), x_BD)
        running_B = running_B + 0.5 / steps * u_BD.square().sum(dim=1)
        ito_B = ito_B + (u_BD * increment_BSD[:, k]).sum(dim=1)
        x_BD = x_BD + sigma * (u_BD / steps + increment_BSD[:, k])
    return ControlledPath(x_BD=x_BD, running_B=running_B, ito_B=ito_B, terminal_B=terminal_cost(target, sigma, x_BD))


def terminal_cost(target: Target, sigma: float, x_BD: Tensor) -> Tensor:
    """log N(x; 0, sigma^2) + E(x), (B,)."""
    return GaussianPrior(space=target.space, std=sigma).log_prob(x_BD) + target.energy(x_BD)


@dataclass(frozen=True, kw_only=True)
class PathIntegral:
    """E[int |u|^2 / 2 dt + log N(X_1; 0, sigma^2) + E(X_1)] as an Objective; the control is the flow's field.

    Differentiated through all steps, so its memory grows with their number. Of a batch only the number and the dtype of
    the rows count; the prior is not asked, since paths start at the origin.

    Args:
        target: gives the energy. sigma: of the reference process, in length units. steps: Euler steps.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    target: Target
    sigma: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        require_width_and_steps(self.sigma, self.steps)

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """The noise of every step, (B, S, D)."""
        return Prepared(tensors={"noise": random.normal(self.steps, self.target.space.dim, like=batch.x_BD)})

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        """Gradient of the loss, summed over the prepared rows; `flow` has a `field(t, x)` and `parameters()`."""
        return control_gradient(self.paths(flow.field, prepared), flow, prepared, self.target, self.steps)

    def paths(self, control: Control, prepared: Prepared) -> ControlledPath:
        """One path for each prepared row."""
        return brownian_path(control, prepared["noise"], target=self.target, sigma=self.sigma)


def control_gradient(path: ControlledPath, flow: Any, prepared: Prepared, target: Target, steps: int) -> GradientSum:
    """The gradient of the paths' loss with what the paths called: a control a step, an energy and its gradient."""
    loss_sum, n = path.loss_B.sum(), len(prepared)
    return GradientSum(
        gradients=parameter_gradients(loss_sum, list(flow.parameters())),
        loss_sum=loss_sum.detach(),
        weight=float(n),
        work=prepared.work
        + asked_of_target(flow.field, steps * n)
        + Work(
            samples=n,
            field_evaluations=FIELD_EVALUATIONS_PER_STEP * steps * n,
            energy_evaluations=n,
            force_evaluations=n,
            declared_flops=2 * n * target.energy_flops,
        ),
    )


def require_width_and_steps(sigma: float, steps: int) -> None:
    """Raise ValueError unless a reference process has a positive width and at least one step."""
    if not 0.0 < sigma < math.inf:
        raise ValueError(f"the reference process needs a positive width, got sigma={sigma}; write for example 1.0")
    if steps < 1:
        raise ValueError(f"a path needs at least one step, got {steps}; write for example 100")
