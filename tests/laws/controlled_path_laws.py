"""Laws of losses over controlled paths: unbiased weights, a bound on log Z, and equality for the optimal control.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Space, Work, whole_batch
from models.estimators import weight_estimates
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.fields.score_control import ScoreControl
from models.objectives.path_integral import Control, ControlledPath
from models.score_estimator import Clip
from models.targets import dw4, gmm4
from tests.laws.field_laws import perturbed
from tests.laws.objective_laws import ObjectiveLaws, gradient_of

LOG_Z = 0.7


def golden_terms(prefix: str) -> dict[str, Tensor]:
    """Stored terms of one kind of path, without the prefix of their names."""
    with np.load(Path(__file__).parents[1] / "golden" / "E_dem.npz") as file:
        return {name[len(prefix) :]: torch.tensor(file[name]) for name in file.files if name.startswith(prefix)}


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


class PlaneControlLaws(ObjectiveLaws):
    """Of objectives on `gmm4` in a few `steps`, with a perceptron as the control. Subclass with `make_objective`."""

    steps = 5

    def make_flow(self) -> nn.Module:
        return ControlledFlow(MLPField(2, hidden=8, layers=2))

    def make_batch(self) -> Batch:
        return Batch(x_BD=normal(6, 2))

    def test_work_counts_every_step_and_one_energy_with_its_gradient(self) -> None:
        flow = self.make_flow().double()
        found = gradient_of(self.make_objective(), flow, self.make_batch(), whole_batch(6, 1))
        guided = 1 if isinstance(flow.field, ScoreControl) else 0
        assert found.work == Work(
            samples=6,
            field_evaluations=2 * self.steps * 6,
            energy_evaluations=6,
            force_evaluations=6 + guided * self.steps * 6,
            declared_flops=(2 + guided * self.steps) * 6 * gmm4().energy_flops,
        )


class ParticleControlLaws(ObjectiveLaws):
    """Of objectives on `dw4`, with an EGNN as the control. Subclass with `make_objective`."""

    def make_flow(self) -> nn.Module:
        return ControlledFlow(perturbed(EGNN(particles=4, spatial_dim=2, hidden=8, layers=2)))

    def make_batch(self) -> Batch:
        return Batch(x_BD=dw4().space.project(normal(6, 8)))


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

    def test_a_control_with_the_score_recovers_log_z(self, target: ShiftedGaussian) -> None:
        """Network and share of the score, trained together on 16 paths a step."""
        torch.manual_seed(3)
        space = target.space
        network = MLPField(2, hidden=8, layers=1) if space.particles is None else EGNN(3, 2, hidden=4, layers=1)
        clip = Clip(norm=1e2, of="particles")
        control = ScoreControl(network=network, target=target, clip=clip, hidden=8)
        flow = ControlledFlow(control).double()
        objective, optimiser = self.objective(target), torch.optim.Adam(flow.parameters(), lr=0.03)
        with torch.no_grad():
            untrained = self.path(flow.field, 1000, 5, target)
        for step in range(20):
            found = gradient_of(objective, flow, Batch(x_BD=normal(16, space.dim)), whole_batch(16, step))
            for parameter, gradient in zip(flow.parameters(), found.gradients, strict=True):
                parameter.grad = gradient / found.weight
            optimiser.step()
        with torch.no_grad():
            trained = self.path(flow.field, 1000, 5, target)
        assert float(trained.loss_B.mean()) < float(untrained.loss_B.mean()) - 0.02
        assert float(control.share_layer.bias.detach().abs()) > 0.02
        scaled_B = (trained.log_weight_B - LOG_Z).exp()
        error = float(scaled_B.std()) / len(scaled_B) ** 0.5
        assert 0.0 < error < 0.1
        estimate = weight_estimates(trained.log_weight_B.numpy(), seed=1)["log_z"].value
        assert estimate == pytest.approx(LOG_Z, abs=3 * error)
