"""The score of noised samples against automatic differentiation, and copies against what symmetry keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import kernel_score as module
from models.contracts import Space
from models.kernel_score import kernel_score, symmetric_copies

PARTICLES = Space(dim=8, particles=4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("variance", [0.01, 1.0, 50.0])
def test_it_is_the_gradient_of_the_log_density_of_noised_samples(
    variance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples_MD, y_BD = normal(30, 3), (2.0 * normal(7, 3, seed=1)).requires_grad_()
    exponent_BM = -(y_BD[:, None] - samples_MD).square().sum(dim=2) / (2.0 * variance)
    expected_BD = torch.autograd.grad(torch.logsumexp(exponent_BM, dim=1).sum(), y_BD)[0]
    weight_BM = torch.softmax(exponent_BM.detach(), dim=1)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 60)  # two rows at a time
    found = kernel_score(y_BD.detach(), samples_MD, variance=variance)
    torch.testing.assert_close(found.score_BD, expected_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.effective_B, 1.0 / weight_BM.square().sum(dim=1), rtol=1e-9, atol=0)


def test_many_samples_of_a_gaussian_give_the_score_of_the_noised_one() -> None:
    y_BD = normal(50, 2, seed=2)
    found = kernel_score(y_BD, normal(400_000, 2), variance=1.0)
    torch.testing.assert_close(found.score_BD, -y_BD / 2.0, rtol=0, atol=0.03)


def test_copies_are_moved_and_otherwise_the_same() -> None:
    x_MD = PARTICLES.project(normal(9, 8))
    copies_MD = symmetric_copies(x_MD, PARTICLES, copies=5, generator=torch.Generator().manual_seed(3))
    assert copies_MD.shape == (45, 8)
    assert torch.equal(copies_MD[:9], x_MD)
    torch.testing.assert_close(PARTICLES.project(copies_MD), copies_MD, rtol=0, atol=1e-12)

    def distances(rows_MD: Tensor) -> Tensor:
        x_MNd = rows_MD.unflatten(1, (4, 2))
        return torch.cdist(x_MNd, x_MNd).flatten(1).sort(dim=1).values

    for copy_MD in copies_MD.split(9):
        torch.testing.assert_close(distances(copy_MD), distances(x_MD), rtol=0, atol=1e-10)


def test_copies_know_no_direction_and_no_label() -> None:
    x_MD = PARTICLES.project(normal(1, 8))
    copies_MNd = symmetric_copies(x_MD, PARTICLES, copies=20_000, generator=torch.Generator().manual_seed(3))[1:]
    mean_Nd = copies_MNd.unflatten(1, (4, 2)).mean(dim=0)
    scale = float(x_MD.norm())
    assert float(mean_Nd.abs().max()) < 4.0 * scale / 20_000**0.5


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match=r"positive variance, got 0\.0"):
        kernel_score(normal(2, 2), normal(3, 2), variance=0.0)
    with pytest.raises(ValueError, match="particles that are all alike"):
        symmetric_copies(normal(2, 2), Space(dim=2), copies=2, generator=torch.Generator())
