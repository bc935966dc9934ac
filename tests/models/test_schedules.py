"""Noise schedules against the laws, the golden numbers, and the change of variables to variance preserving."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.schedules import Cosine, Geometric, Linear, Power, Quadratic, Schedule, VariancePreserving
from models.score_estimator import estimate_score
from models.targets import GaussianMixture, gmm4
from tests.laws.schedule_laws import ScheduleLaws

GEOMETRIC = {"gmm": (1e-5, 1.0), "dw4": (1e-5, 3.0), "lj13": (0.01, 2.0), "lj55": (0.5, 4.0)}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / "E_dem.npz") as file:
        return {name: torch.tensor(file[name]) for name in file.files}


class TestGeometric(ScheduleLaws):
    def make(self) -> Geometric:
        return Geometric(sigma_min=0.01, sigma_max=2.0)


class TestLinear(ScheduleLaws):
    def make(self) -> Linear:
        return Linear(total_variance=4.0)


class TestQuadratic(ScheduleLaws):
    def make(self) -> Quadratic:
        return Quadratic(total_variance=4.0)


class TestPower(ScheduleLaws):
    def make(self) -> Power:
        return Power(total_variance=4.0, exponent=3.5)


class TestCosine(ScheduleLaws):
    def make(self) -> Cosine:
        return Cosine(total_variance=9.0, scale=0.8)


@pytest.mark.parametrize("system", GEOMETRIC)
def test_geometric_golden(golden: dict[str, Tensor], system: str) -> None:
    sigma_min, sigma_max = GEOMETRIC[system]
    schedule, tau = Geometric(sigma_min=sigma_min, sigma_max=sigma_max), golden[f"sched_{system}_t"]
    torch.testing.assert_close(schedule.h(tau), golden[f"sched_{system}_h"], rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.g(tau), golden[f"sched_{system}_g"], rtol=1e-11, atol=0)


def test_powers_one_and_two_are_linear_and_quadratic() -> None:
    tau = torch.linspace(0, 1, 7, dtype=torch.float64)
    for exponent, known in ((1.0, Linear(total_variance=3.0)), (2.0, Quadratic(total_variance=3.0))):
        power = Power(total_variance=3.0, exponent=exponent)
        torch.testing.assert_close(power.h(tau), known.h(tau), rtol=1e-14, atol=0)
        torch.testing.assert_close(power.g(tau), known.g(tau), rtol=1e-14, atol=0)


def test_the_share_of_signal_of_the_cosine_schedule_is_a_squared_cosine() -> None:
    tau = torch.linspace(0, 1, 7, dtype=torch.float64)
    share = VariancePreserving(exploding=Cosine(total_variance=9.0)).beta(tau) ** -2
    torch.testing.assert_close(share, torch.cos(math.atan(3.0) * tau).square(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Geometric(sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0"),
        (lambda: Geometric(sigma_min=0.0, sigma_max=1.0), "sigma_min=0.0"),
        (lambda: Linear(total_variance=0.0), "total_variance=0.0"),
        (lambda: Quadratic(total_variance=float("nan")), "total_variance=nan"),
        (lambda: Power(total_variance=1.0, exponent=0.5), "0.5"),
        (lambda: Power(total_variance=-1.0, exponent=2.0), "total_variance=-1.0"),
        (lambda: Cosine(total_variance=float("inf")), "total_variance=inf"),
        (lambda: Cosine(total_variance=1.0, scale=0.0), "scale"),
    ],
)
def test_wrong_parameters_are_told_with_what_to_write(make: Callable[[], Schedule], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "; write" in str(caught.value)


class TestVariancePreserving:
    def test_golden_estimate(self, golden: dict[str, Tensor]) -> None:
        """The factor 1 / beta of the golden file, reached at tau = 1 by a linear schedule of y."""
        target = GaussianMixture(name="golden", means_KD=golden["gmm_means"], variance=float(golden["gmm_var"]))
        preserving = VariancePreserving(exploding=Linear(total_variance=float(golden["vp_abar"]) ** -2 - 1.0))
        exploding, tau = preserving.exploding, torch.ones(2, dtype=torch.float64)

        def estimated(tau: Tensor, y_BD: Tensor) -> Tensor:
            return estimate_score(target, y_BD, exploding.h(tau), golden["vp_noise"]).score_BD

        found_BD = preserving.score(estimated, tau, golden["vp_x"])
        torch.testing.assert_close(found_BD, golden["vp_SK"], rtol=1e-11, atol=1e-11)

    def test_exact_scores_of_a_mixture(self, golden: dict[str, Tensor]) -> None:
        """x_tau of a mixture is the mixture of means mu / beta and variance v / beta^2 + 1 - beta^-2."""
        preserving = VariancePreserving(exploding=Geometric(sigma_min=0.05, sigma_max=2.0))
        clean, x_BD, tau = gmm4(), golden["vp_x"], torch.tensor(0.7, dtype=torch.float64)
        beta = float(preserving.beta(tau))

        def exploding_score(tau: Tensor, y_BD: Tensor) -> Tensor:
            return gmm4(variance=0.5 + float(preserving.exploding.h(tau))).score(y_BD)

        noised = GaussianMixture(
            name="noised", means_KD=clean.means_KD / beta, variance=clean.variance / beta**2 + 1.0 - beta**-2
        )
        found_BD = preserving.score(exploding_score, tau, x_BD)
        torch.testing.assert_close(found_BD, noised.score(x_BD), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(found_BD / beta, noised.score(x_BD), rtol=1e-2)

    def test_golden_exact_score(self, golden: dict[str, Tensor]) -> None:
        variance = float(golden["vp_abar"]) ** -2 - 1.0
        preserving = VariancePreserving(exploding=Linear(total_variance=variance))
        exact = gmm4(variance=0.5 + variance)
        tau = torch.ones((), dtype=torch.float64)
        found_BD = preserving.score(lambda _, y_BD: exact.score(y_BD), tau, golden["vp_x"])
        torch.testing.assert_close(found_BD, golden["vp_true_score"], rtol=1e-11, atol=1e-11)

    def test_the_contraction_is_the_slope_of_log_beta_and_keeps_unit_variance(self) -> None:
        preserving = VariancePreserving(exploding=Cosine(total_variance=9.0))
        tau = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(preserving.beta(tau).log().sum(), tau)
        torch.testing.assert_close(preserving.alpha(tau).detach(), slope, rtol=1e-12, atol=0)
        # Independent unit parts keep unit variance: the squared coefficients sum to one.
        one_BD, zero_BD = torch.ones(9, 1, dtype=torch.float64), torch.zeros(9, 1, dtype=torch.float64)
        signal_BD = preserving.noised(tau, one_BD, zero_BD)
        noise_BD = preserving.noised(tau, zero_BD, one_BD)
        torch.testing.assert_close(signal_BD.square() + noise_BD.square(), one_BD, rtol=1e-13, atol=0)
        torch.testing.assert_close(signal_BD[:, 0], 1.0 / preserving.beta(tau), rtol=1e-13, atol=0)
