"""Path integral sampler: golden path terms, the optimal control of a shifted Gaussian, the laws of objectives.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.contracts import Batch, Objective, whole_batch
from models.objectives.path_integral import Control, ControlledPath, PathIntegral, brownian_path
from models.targets import dw4, gmm4
from tests.laws.controlled_path_laws import (
    LOG_Z,
    Constant,
    ControlledFlow,
    ControlledPathLaws,
    ParticleControlLaws,
    PlaneControlLaws,
    ShiftedGaussian,
    golden_terms,
    normal,
)
from tests.laws.objective_laws import gradient_of

STEPS = 20


def test_golden_terms() -> None:
    golden = golden_terms("pis_")

    def control(t: Tensor, x_BD: Tensor) -> Tensor:
        return 0.4 * torch.tanh(x_BD) + 0.2 * t

    noise_BSD = golden["noise"].transpose(0, 1)
    assert noise_BSD.shape[1] == int(golden["nsteps"])
    path = brownian_path(control, noise_BSD, target=gmm4(), sigma=float(golden["sigma"]))
    for found, name in (
        (path.x_BD, "xT"),
        (path.running_B, "reg"),
        (path.ito_B, "ito"),
        (path.loss_B, "loss_terms"),
    ):
        torch.testing.assert_close(found, golden[name], rtol=1e-11, atol=1e-11)


class TestShiftedGaussian(ControlledPathLaws):
    def path(self, control: Control, rows: int, seed: int, target: ShiftedGaussian) -> ControlledPath:
        noise_BSD = normal(rows, STEPS, target.space.dim, seed=seed)
        return brownian_path(control, noise_BSD, target=target, sigma=self.width)

    def optimal(self, target: ShiftedGaussian) -> Control:
        """The target is the reference tilted by mean . x / sigma^2, whose drift is constant."""
        return Constant(target.mean_D / self.width)

    def objective(self, target: ShiftedGaussian) -> Objective:
        return PathIntegral(target=target, sigma=self.width, steps=STEPS)

    def test_the_optimal_control_gives_log_z_on_every_path(self, target: ShiftedGaussian) -> None:
        path = self.path(self.optimal(target), 50, 1, target)
        torch.testing.assert_close(path.log_weight_B, torch.full_like(path.ito_B, LOG_Z), rtol=0, atol=1e-12)

    def test_the_gradient_of_a_constant_control_is_its_distance_from_the_optimum(self, target: ShiftedGaussian) -> None:
        value_D = target.space.project(normal(1, target.space.dim))[0]
        flow, batch = ControlledFlow(Constant(value_D)), Batch(x_BD=normal(5, target.space.dim))
        found = gradient_of(self.objective(target), flow, batch, whole_batch(5, 2))
        expected_D = value_D - target.mean_D / self.width
        torch.testing.assert_close(found.gradients[0] / found.weight, expected_D, rtol=0, atol=1e-12)


class TestPlane(PlaneControlLaws):
    def make_objective(self) -> Objective:
        return PathIntegral(target=gmm4(), sigma=1.3, steps=self.steps)


class TestParticles(ParticleControlLaws):
    def make_objective(self) -> Objective:
        return PathIntegral(target=dw4(), sigma=2.0, steps=3)


@pytest.mark.parametrize(("wrong", "words"), [({"sigma": 0.0}, "sigma=0.0; write"), ({"steps": 0}, "got 0; write")])
def test_wrong_settings_are_told_with_what_to_write(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PathIntegral(target=gmm4(), **wrong)  # type: ignore[arg-type]
