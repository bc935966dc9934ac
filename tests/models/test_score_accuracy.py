"""Bias, variance and direction of S_K against what is known in closed form.

Shapes: P points, D coordinates.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.score_accuracy import score_errors
from models.score_estimator import Form
from models.targets import GaussianMixture, gmm4

ONE = GaussianMixture(name="one", means_KD=torch.zeros(1, 2), variance=0.5)
POINTS_PD = torch.tensor([[0.6, -0.4], [0.9, 0.2], [-0.3, 0.5]], dtype=torch.float64)


def test_a_single_noise_of_a_gaussian() -> None:
    """S_1 = -y / v for y = x + sqrt(h) eps: bias x / (v + h) - x / v, variance D h / v^2, whatever the seed."""
    found = score_errors(ONE, POINTS_PD, variance=0.25, samples=1, repeats=10_000, form="weighted", seed=1)
    bias_square_P = (POINTS_PD / 0.75 - POINTS_PD / 0.5).square().sum(1)
    torch.testing.assert_close(found.bias_square_P, bias_square_P, rtol=0.15, atol=0.02)
    torch.testing.assert_close(
        found.variance_P, torch.full((3,), 2 * 0.25 / 0.25, dtype=torch.float64), rtol=0.06, atol=0
    )
    torch.testing.assert_close(found.score_square_P, (POINTS_PD / 0.75).square().sum(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["weighted", "ratio"])
def test_the_bias_is_that_of_second_order(form: Form) -> None:
    """bias = -E[(p / P)^2 (v - S)] / K + O(1 / K^2), here by many noises; and E (p / P)^2 comes with it."""
    target, exact, samples = gmm4(), gmm4().noised(1.0), 128
    noise_MD = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for x_D in POINTS_PD[:2]:
        y_MD = x_D + noise_MD
        ratio_M = torch.exp(exact.energy(x_D[None]) - target.energy(y_MD))
        vector_MD = target.score(y_MD) if form == "weighted" else noise_MD
        score_D = exact.score(x_D[None])[0]
        expected = float((ratio_M.square()[:, None] * (vector_MD - score_D)).mean(0).norm()) / samples
        found = score_errors(target, x_D[None], variance=1.0, samples=samples, repeats=2000, form=form, seed=3)
        assert math.sqrt(float(found.bias_square_P)) == pytest.approx(expected, rel=0.2)
        assert float(found.weight_square_P) == pytest.approx(float(ratio_M.square().mean()), rel=0.02)


def test_more_noises_point_the_right_way() -> None:
    def errors(samples: int, form: Form = "weighted") -> tuple[Tensor, Tensor]:
        found = score_errors(gmm4(), POINTS_PD, variance=1.0, samples=samples, repeats=200, form=form, seed=3)
        return found.cosine_P, found.variance_P

    few, many = errors(2), errors(64)
    assert bool((many[0] > few[0]).all() & (many[0] <= 1.0).all() & (few[0] >= -1.0).all())
    assert bool((many[1] < 0.2 * few[1]).all())


def test_jensens_form_keeps_its_bias() -> None:
    """Its mean is the mean force, -x / v, for any number of noises."""
    found = score_errors(ONE, POINTS_PD, variance=0.25, samples=50, repeats=4000, form="jensen", seed=1)
    expected_P = (POINTS_PD / 0.75 - POINTS_PD / 0.5).square().sum(1)
    torch.testing.assert_close(found.bias_square_P, expected_P, rtol=0.15, atol=0.01)


def test_a_noised_mixture_is_the_convolution() -> None:
    """By Monte Carlo: the mean of exp(-E) over noised points."""
    noise_MD = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for x_D in POINTS_PD:
        density_M = torch.exp(-gmm4().energy(x_D + 0.8 * noise_MD))
        error = float(density_M.std()) / len(density_M) ** 0.5
        assert float(torch.exp(-gmm4().noised(0.64).energy(x_D[None]))) == pytest.approx(
            float(density_M.mean()), abs=4 * error
        )


def test_wrong_counts_are_told_with_what_to_write() -> None:
    for wrong, words in (({"repeats": 1}, "repeats=1; write"), ({"samples": 0}, "samples=0; write")):
        arguments = {"variance": 1.0, "samples": 2, "repeats": 2, "seed": 0} | wrong
        with pytest.raises(ValueError, match=words):
            score_errors(gmm4(), POINTS_PD, form="weighted", **arguments)  # type: ignore[arg-type]
