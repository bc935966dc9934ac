"""Laws of losses over controlled paths: unbiased weights, a bound on log Z, and equality for the optimal control.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Space, whole_batch
from models.estimators import weight_estimates
from models.objectives.path_integral import Control, ControlledPath
from tests.laws.objective_laws import gradient_of

LOG_Z = 0.7


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class ShiftedGaussian:
    """exp(-E) = Z N(x; mean, width^2) on R^D or, with a mean-free mean, on the mean-free subspace."""

    space: Space
    mean_D: Tensor
    width: float
    log_z: float = LOG_Z
    name: str = "shifted"
    energy_flops: int = field(default=1, init=False)

    def energy(self, x_BD: Tensor) -> Tensor:
        normaliser = 0.5 * self.space.degrees_of_freedom * math.log(2 * math.pi * self.width**2)
        return (x_BD - self.mean_D).square().sum(1) / (2 * self.width**2) + normaliser - self.log_z

    def score(self, x_BD: Tensor) -> Tensor:
        return (self.mean_D - x_BD) / self.width**2


class Constant(nn.Module):
    """The same control at every time and place."""

    def __init__(self, value_D: Tensor) -> None:
        super().__init__()
        self.value_D = nn.Parameter(value_D.clone())

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        return self.value_D.expand_as(x_BD)


class ControlledFlow(nn.Module):
    """A control as the objectives ask for it; they leave its prior alone."""

    def __init__(self, control: nn.Module) -> None:
        super().__init__()
        self.field = control
        self.prior = None


class ControlledPathLaws(ABC):
    """Subclass with the same reference width as `width`, for which the optimal control is known in closed form."""

    width = 1.3

    @abstractmethod
    def path(self, control: Control, rows: int, seed: int, target: ShiftedGaussian) -> ControlledPath:
        """Paths of `rows` fresh noises."""

    @abstractmethod
    def optimal(self, target: ShiftedGaussian) -> Control: ...

    @abstractmethod
    def objective(self, target: ShiftedGaussian) -> Objective: ...

    @pytest.fixture(params=["plane", "particles"])
    def target(self, request: pytest.FixtureRequest) -> ShiftedGaussian:
        space = Space(dim=2) if request.param == "plane" else Space(dim=6, particles=3)
        mean_D = space.project(torch.tensor([0.9, -0.6, 0.2, 0.5, -0.4, 0.1], dtype=torch.float64)[: space.dim])
        return ShiftedGaussian(space=space, mean_D=mean_D, width=self.width)

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.3])
    def test_weights_of_any_control_average_to_z(self, target: ShiftedGaussian, share: float) -> None:
        optimal = self.optimal(target)
        with torch.no_grad():
            path = self.path(lambda t, x_BD: share * optimal(t, x_BD), 4000, 1, target)
        scaled_B = (path.log_weight_B - LOG_Z).exp()
        error = float(scaled_B.std()) / len(scaled_B) ** 0.5
        assert 0.0 < error < 0.05
        assert abs(float(scaled_B.mean()) - 1.0) < 3 * error
        estimates = weight_estimates(path.log_weight_B.numpy(), seed=1)
        assert estimates["log_z"].value == pytest.approx(LOG_Z, abs=3 * error)
        assert float(path.loss_B.mean()) > -LOG_Z - 3 * float(path.loss_B.std()) / len(scaled_B) ** 0.5

    def test_weights_of_a_nonlinear_control_and_another_width_average_to_z(self, target: ShiftedGaussian) -> None:
        other = ShiftedGaussian(space=target.space, mean_D=target.mean_D, width=0.9)

        def control(t: Tensor, x_BD: Tensor) -> Tensor:
            return target.space.project(0.3 * torch.tanh(target.mean_D - x_BD) + 0.1 * t * x_BD.sin())

        with torch.no_grad():
            scaled_B = (self.path(control, 6000, 2, other).log_weight_B - LOG_Z).exp()
        error = float(scaled_B.std()) / len(scaled_B) ** 0.5
        assert 0.0 < error < 0.05
        assert abs(float(scaled_B.mean()) - 1.0) < 3 * error

    def test_paths_stay_on_the_space(self, target: ShiftedGaussian) -> None:
        x_BD = self.path(self.optimal(target), 3, 3, target).x_BD
        torch.testing.assert_close(target.space.project(x_BD), x_BD, rtol=0, atol=1e-13)

    def test_a_short_training_recovers_log_z(self, target: ShiftedGaussian) -> None:
        """A constant control, trained on 32 paths a step: the loss falls towards -log Z and never below."""
        objective, flow = self.objective(target), ControlledFlow(Constant(torch.zeros_like(target.mean_D)))
        optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
        losses = []
        for step in range(40):
            found = gradient_of(objective, flow, Batch(x_BD=normal(32, target.space.dim)), whole_batch(32, step))
            for parameter, gradient in zip(flow.parameters(), found.gradients, strict=True):
                # The control must stay on the space, as an equivariant network's does.
                parameter.grad = target.space.project(gradient) / found.weight
            losses.append(float(found.loss_sum) / found.weight)
            optimiser.step()
        with torch.no_grad():
            trained = self.path(flow.field, 4000, 5, target)
            untrained = self.path(lambda t, x_BD: torch.zeros_like(x_BD), 4000, 5, target)
        estimates = weight_estimates(trained.log_weight_B.numpy(), seed=1)
        scaled_B = (trained.log_weight_B - LOG_Z).exp()
        assert estimates["log_z"].value == pytest.approx(LOG_Z, abs=3 * float(scaled_B.std()) / 4000**0.5 + 1e-9)
        gap_before = float(untrained.loss_B.mean()) + LOG_Z
        gap_after = float(trained.loss_B.mean()) + LOG_Z
        assert gap_before > 0.1
        assert gap_after < 0.6 * gap_before
        assert losses[-1] < losses[0]
