"""S_K that goes over to its ratio form in wide noise: exact for one Gaussian, right between the two forms, consistent.

Shapes: B rows, D coordinates, K noises.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.score_estimator import Clip, Form, estimate_score
from models.targets import dw4, gmm4
from models.targets.gaussian_mixture import GaussianMixture

WIDTH = 0.7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_gaussian() -> GaussianMixture:
    mean_KD = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    return GaussianMixture(name="one", means_KD=mean_KD, variance=WIDTH**2)


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("deviation", [0.0, 0.1, 1.0, 30.0])
def test_of_one_gaussian_every_term_is_the_exact_score(samples: int, deviation: float) -> None:
    target, x_BD = one_gaussian(), 3.0 * normal(5, 3)
    h_B = torch.full((5,), deviation**2, dtype=torch.float64)
    found = estimate_score(target, x_BD, h_B, normal(samples, 5, 3, seed=1), blend=WIDTH)
    expected_BD = target.noised(deviation**2).score(x_BD)
    torch.testing.assert_close(found.score_BD, expected_BD, rtol=1e-10, atol=1e-10)
    assert found.work.force_evaluations == 5 * samples


@pytest.mark.parametrize(("blend", "form"), [(1e6, "weighted"), (1e-6, "ratio")])
def test_its_ends_are_the_two_forms(blend: float, form: Form) -> None:
    target = dw4()
    x_BD, noise_KBD = target.space.project(1.5 * normal(4, 8)), normal(6, 4, 8, seed=2)
    h_B = torch.tensor([0.01, 0.1, 0.5, 2.0], dtype=torch.float64)
    found = estimate_score(target, x_BD, h_B, noise_KBD, blend=blend)
    expected = estimate_score(target, x_BD, h_B, noise_KBD, form=form)
    torch.testing.assert_close(found.score_BD, expected.score_BD, rtol=1e-6, atol=1e-6)


def test_between_them_it_is_their_mean_by_the_variances() -> None:
    target, blend = gmm4(), 0.8
    x_BD, noise_KBD = 2.0 * normal(4, 2), normal(6, 4, 2, seed=3)
    h_B = torch.tensor([0.0, 0.3, 1.0, 9.0], dtype=torch.float64)
    share_B1 = (h_B / (h_B + blend**2)).unsqueeze(1)
    both: list[Form] = ["weighted", "ratio"]
    plain_BD, ratio_BD = (estimate_score(target, x_BD[1:], h_B[1:], noise_KBD[:, 1:], form=f).score_BD for f in both)
    found_BD = estimate_score(target, x_BD, h_B, noise_KBD, blend=blend).score_BD
    torch.testing.assert_close(found_BD[1:], torch.lerp(plain_BD, ratio_BD, share_B1[1:]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_BD[0], target.score(x_BD)[0])


def test_a_clip_shortens_what_the_energy_says_and_not_what_noise_says() -> None:
    target, blend = dw4(), 0.5
    x_BD, noise_KBD = target.space.project(6.0 * normal(4, 8)), normal(5, 4, 8, seed=2)
    h_B = torch.full((4,), 4.0, dtype=torch.float64)
    clip = Clip(norm=0.1, of="row")
    both: list[Form] = ["weighted", "ratio"]
    plain_BD, ratio_BD = (estimate_score(target, x_BD, h_B, noise_KBD, form=f).score_BD for f in both)
    assert float(plain_BD.norm(dim=1).min()) > 10.0
    found = estimate_score(target, x_BD, h_B, noise_KBD, blend=blend, clip=lambda s_BD: clip(s_BD, target.space))
    expected_BD = torch.lerp(clip(plain_BD, target.space), ratio_BD, 4.0 / (4.0 + blend**2))
    torch.testing.assert_close(found.score_BD, expected_BD, rtol=1e-10, atol=1e-10)


def test_in_wide_noise_it_errs_many_times_less() -> None:
    target, h = gmm4(), 25.0
    x_BD = 3.0 * normal(200, 2)
    h_B, noise_KBD = torch.full((200,), h, dtype=torch.float64), normal(50, 200, 2, seed=4)
    exact_BD = target.noised(h).score(x_BD)
    error = {
        blend: float((estimate_score(target, x_BD, h_B, noise_KBD, blend=blend).score_BD - exact_BD).norm())
        for blend in (None, math.sqrt(0.5))
    }
    assert error[None] > 10.0 * error[math.sqrt(0.5)] > 0.0


@pytest.mark.parametrize(
    ("blend", "form"), [(0.0, "weighted"), (-1.0, "weighted"), (math.nan, "weighted"), (1.0, "ratio")]
)
def test_wrong_blends_are_told(blend: float, form: Form) -> None:
    with pytest.raises(ValueError, match=r"blended over a positive length, got .*; write blend=0\.5"):
        estimate_score(gmm4(), normal(2, 2), torch.ones(2), normal(3, 2, 2), form=form, blend=blend)
