"""Denoising diffusion sampler: golden path terms, the optimal control of a shifted Gaussian, the laws of objectives.

Shapes: B batch, D coordinates, S steps.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.contracts import Objective
from models.objectives.denoising_diffusion import (
    DenoisingDiffusion,
    cosine_squared,
    euler_steps,
    ornstein_uhlenbeck_path,
)
from models.objectives.path_integral import Control, ControlledPath
from models.targets import dw4, gmm4
from tests.laws.controlled_path_laws import (
    LOG_Z,
    ControlledPathLaws,
    ParticleControlLaws,
    PlaneControlLaws,
    ShiftedGaussian,
    golden_terms,
    normal,
)

ALPHAS = cosine_squared(20, largest=0.4)


def test_golden_terms() -> None:
    golden = golden_terms("dds_")
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
    alphas = ALPHAS

    def path(self, control: Control, rows: int, seed: int, target: ShiftedGaussian) -> ControlledPath:
        start_BD = normal(rows, target.space.dim, seed=100 + seed)
        noise_BSD = normal(rows, len(self.alphas), target.space.dim, seed=seed)
        return ornstein_uhlenbeck_path(
            control, start_BD, noise_BSD, target=target, sigma=self.width, alphas=self.alphas
        )

    def optimal(self, target: ShiftedGaussian) -> Control:
        """Of step k: shift the mean by alpha_k c_{k+1} mean, where c is what the later steps keep of a shift."""
        kept = [math.prod(math.sqrt(1 - alpha) for alpha in self.alphas[k + 1 :]) for k in range(len(self.alphas))]

        def control(t: Tensor, y_BD: Tensor) -> Tensor:
            k = round(float(t) * len(self.alphas))
            rate = 1.0 - math.sqrt(1.0 - self.alphas[k])
            return (self.alphas[k] * kept[k] / (2 * self.width**2 * rate) * target.mean_D).expand_as(y_BD)

        return control

    def objective(self, target: ShiftedGaussian) -> Objective:
        return DenoisingDiffusion(target=target, sigma=self.width, alphas=self.alphas)

    def test_the_optimal_control_leaves_only_what_the_start_still_weighs(self, target: ShiftedGaussian) -> None:
        """log w = log Z + c mean . y_0 / sigma^2 - |c mean|^2 / (2 sigma^2), c = what all steps keep of the start."""
        path = self.path(self.optimal(target), 50, 1, target)
        kept_D = math.prod(math.sqrt(1 - alpha) for alpha in self.alphas) * target.mean_D
        y0_BD = self.width * target.space.project(normal(50, target.space.dim, seed=101))
        expected_B = LOG_Z + ((y0_BD * kept_D).sum(1) - 0.5 * kept_D.square().sum()) / self.width**2
        torch.testing.assert_close(path.log_weight_B, expected_B, rtol=0, atol=1e-12)

    def test_the_reference_is_stationary(self, target: ShiftedGaussian) -> None:
        x_BD = self.path(lambda t, y_BD: torch.zeros_like(y_BD), 4000, 1, target).x_BD
        share = float(x_BD.square().sum(1).mean()) / (target.space.degrees_of_freedom * self.width**2)
        assert abs(share - 1) < 4 * (2 / (4000 * target.space.degrees_of_freedom)) ** 0.5


class TestShiftedGaussianByEuler(TestShiftedGaussian):
    alphas = euler_steps(20, smallest=0.5, largest=7.0)


class TestPlane(PlaneControlLaws):
    def make_objective(self) -> Objective:
        return DenoisingDiffusion(target=gmm4(), sigma=1.3, alphas=cosine_squared(self.steps, largest=0.3))


class TestParticles(ParticleControlLaws):
    def make_objective(self) -> Objective:
        return DenoisingDiffusion(target=dw4(), sigma=2.0, alphas=cosine_squared(3, largest=0.3))


def test_steps_shrink_towards_the_data_and_stay_positive() -> None:
    alphas = cosine_squared(30, largest=0.3)
    assert len(alphas) == 30
    assert all(0.3 >= first > second > 0.0 for first, second in pairwise(alphas))
    assert alphas[0] == pytest.approx(0.3, rel=1e-3)


def test_euler_steps_are_the_rate_over_their_number() -> None:
    alphas = euler_steps(100, smallest=0.5, largest=1.5)
    assert alphas[0] == pytest.approx(0.015)
    assert alphas[-1] == pytest.approx((0.5 + 0.01) / 100)
    assert all(first > second for first, second in pairwise(alphas))
    assert euler_steps(3, smallest=0.6, largest=0.6) == pytest.approx((0.2, 0.2, 0.2))


@pytest.mark.parametrize("steps", [50, 200])
def test_euler_steps_decay_as_the_process_does(steps: int) -> None:
    """What is kept of the start tends to exp(-int beta / 2), with an error of order 1 / S, as Euler's does."""
    kept = math.prod(math.sqrt(1 - alpha) for alpha in euler_steps(steps, smallest=0.5, largest=1.5))
    literal = math.prod(1 - alpha / 2 for alpha in euler_steps(steps, smallest=0.5, largest=1.5))
    assert steps * abs(kept - math.exp(-0.5)) < 0.5
    assert steps * abs(kept - literal) < 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0, "smallest": 0.5, "largest": 1.5}, "steps=0; write"),
        ({"steps": 10, "smallest": 0.0, "largest": 1.5}, "got 0.0 and 1.5 for 10 steps; write"),
        ({"steps": 10, "smallest": 2.0, "largest": 1.5}, "got 2.0 and 1.5"),
        ({"steps": 10, "smallest": 0.5, "largest": 10.0}, "got 0.5 and 10.0"),
    ],
)
def test_wrong_rates_are_told_with_what_to_write(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        euler_steps(**arguments)  # type: ignore[arg-type]


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
