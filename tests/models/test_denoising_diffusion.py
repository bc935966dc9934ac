"""Denoising diffusion sampler: golden path terms, the optimal control of a shifted Gaussian, the laws of objectives.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Work, whole_batch
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.objectives.denoising_diffusion import DenoisingDiffusion, cosine_squared, ornstein_uhlenbeck_path
from models.objectives.path_integral import Control, ControlledPath
from models.targets import dw4, gmm4
from tests.laws.controlled_path_laws import LOG_Z, ControlledFlow, ControlledPathLaws, ShiftedGaussian, normal
from tests.laws.field_laws import perturbed
from tests.laws.objective_laws import ObjectiveLaws, gradient_of

ALPHAS = cosine_squared(20, largest=0.4)


def test_golden_terms() -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "E_dem.npz") as file:
        golden = {name[4:]: torch.tensor(file[name]) for name in file.files if name.startswith("dds")}
    sigma = float(golden["sigma"])

    def control(t: Tensor, y_BD: Tensor) -> Tensor:
        return 0.3 * torch.tanh(y_BD) - 0.05 * y_BD

    path = ornstein_uhlenbeck_path(
        control,
        golden["y0"] / sigma,
        golden["noise"].transpose(0, 1),
        target=gmm4(),
        sigma=sigma,
        alphas=tuple(golden["alpha"].tolist()),
    )
    for found, name in (
        (path.x_BD, "yK"),
        (path.running_B, "reg"),
        (path.ito_B, "ito"),
        (path.terminal_B, "terminal"),
    ):
        torch.testing.assert_close(found, golden[name], rtol=1e-11, atol=1e-11)


class TestShiftedGaussian(ControlledPathLaws):
    def path(self, control: Control, rows: int, seed: int, target: ShiftedGaussian) -> ControlledPath:
        start_BD = normal(rows, target.space.dim, seed=100 + seed)
        noise_BSD = normal(rows, len(ALPHAS), target.space.dim, seed=seed)
        return ornstein_uhlenbeck_path(control, start_BD, noise_BSD, target=target, sigma=self.width, alphas=ALPHAS)

    def optimal(self, target: ShiftedGaussian) -> Control:
        """Of step k: shift the mean by alpha_k c_{k+1} mean, where c is what the later steps keep of a shift."""
        kept = [math.prod(math.sqrt(1 - alpha) for alpha in ALPHAS[k + 1 :]) for k in range(len(ALPHAS))]

        def control(t: Tensor, y_BD: Tensor) -> Tensor:
            k = round(float(t) * len(ALPHAS))
            rate = 1.0 - math.sqrt(1.0 - ALPHAS[k])
            return (ALPHAS[k] * kept[k] / (2 * self.width**2 * rate) * target.mean_D).expand_as(y_BD)

        return control

    def objective(self, target: ShiftedGaussian) -> Objective:
        return DenoisingDiffusion(target=target, sigma=self.width, alphas=ALPHAS)

    def test_the_optimal_control_leaves_only_what_the_start_still_weighs(self, target: ShiftedGaussian) -> None:
        """log w = log Z + c mean . y_0 / sigma^2 - |c mean|^2 / (2 sigma^2), c = what all steps keep of the start."""
        path = self.path(self.optimal(target), 50, 1, target)
        kept_D = math.prod(math.sqrt(1 - alpha) for alpha in ALPHAS) * target.mean_D
        y0_BD = self.width * target.space.project(normal(50, target.space.dim, seed=101))
        expected_B = LOG_Z + ((y0_BD * kept_D).sum(1) - 0.5 * kept_D.square().sum()) / self.width**2
        torch.testing.assert_close(path.log_weight_B, expected_B, rtol=0, atol=1e-12)

    def test_the_reference_is_stationary(self, target: ShiftedGaussian) -> None:
        x_BD = self.path(lambda t, y_BD: torch.zeros_like(y_BD), 4000, 1, target).x_BD
        share = float(x_BD.square().sum(1).mean()) / (target.space.degrees_of_freedom * self.width**2)
        assert abs(share - 1) < 4 * (2 / (4000 * target.space.degrees_of_freedom)) ** 0.5


class TestPlane(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return DenoisingDiffusion(target=gmm4(), sigma=1.3, alphas=cosine_squared(5, largest=0.3))

    def make_flow(self) -> nn.Module:
        return ControlledFlow(MLPField(2, hidden=8, layers=2))

    def make_batch(self) -> Batch:
        return Batch(x_BD=normal(6, 2))


class TestParticles(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return DenoisingDiffusion(target=dw4(), sigma=2.0, alphas=cosine_squared(3, largest=0.3))

    def make_flow(self) -> nn.Module:
        return ControlledFlow(perturbed(EGNN(particles=4, spatial_dim=2, hidden=8, layers=2)))

    def make_batch(self) -> Batch:
        return Batch(x_BD=dw4().space.project(normal(6, 8)))


def test_work_counts_every_step_and_one_energy_with_its_gradient() -> None:
    flow = ControlledFlow(MLPField(2, hidden=4, layers=1).double())
    found = gradient_of(TestPlane().make_objective(), flow, Batch(x_BD=normal(6, 2)), whole_batch(6, 1))
    assert found.work == Work(
        samples=6,
        field_evaluations=2 * 5 * 6,
        energy_evaluations=6,
        force_evaluations=6,
        declared_flops=2 * 6 * gmm4().energy_flops,
    )


def test_steps_shrink_towards_the_data_and_stay_positive() -> None:
    alphas = cosine_squared(30, largest=0.3)
    assert len(alphas) == 30
    assert all(0.3 >= first > second > 0.0 for first, second in pairwise(alphas))
    assert alphas[0] == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize(
    ("alphas", "words"), [((), "got 0; write"), ((0.5, 1.0), "got 0.5 to 1.0; write"), ((0.0, 0.3), "got 0.0")]
)
def test_wrong_steps_are_told_with_what_to_write(alphas: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DenoisingDiffusion(target=gmm4(), sigma=1.0, alphas=alphas)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps=0; write"):
        cosine_squared(0, largest=0.3)
    with pytest.raises(ValueError, match=r"sigma=-1.0; write"):
        DenoisingDiffusion(target=gmm4(), sigma=-1.0, alphas=ALPHAS)
