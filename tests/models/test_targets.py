"""Targets against the laws, the golden numbers, and integrals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Target
from models.targets import GaussianMixture, LennardJones, dw4, gmm4, gmm40, lj13, lj55
from tests.laws.target_laws import ParticleTargetLaws, SampledTargetLaws

CONVENTIONS = {"dataset": (2.0, 1.0), "bgflow": (1.0, 1.0), "paper002": (1.0, 0.5), "pair": (1.0, 0.0)}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / "G_targets.npz") as file:
        return {name: torch.tensor(file[name]) for name in file.files}


def normal(rows: int, dim: int, scale: float) -> Tensor:
    return scale * torch.randn((rows, dim), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class TestGmm4(SampledTargetLaws):
    def target(self) -> GaussianMixture:
        return gmm4()

    def points(self) -> Tensor:
        return normal(5, 2, 1.5)


class TestGmm40(SampledTargetLaws):
    def target(self) -> GaussianMixture:
        return gmm40()

    def points(self) -> Tensor:
        return normal(5, 2, 20.0)


class TestUnequalMixture(SampledTargetLaws):
    def target(self) -> GaussianMixture:
        weights = torch.tensor([0.7, 0.1, 0.2])
        return GaussianMixture(name="unequal", means_KD=normal(3, 3, 2.0), variance=0.3, weights_K=weights)

    def points(self) -> Tensor:
        return normal(4, 3, 1.0)


class TestDw4(ParticleTargetLaws):
    def target(self) -> Target:
        return dw4()

    def points(self) -> Tensor:
        return self.target().space.project(normal(5, 8, 2.5))


def lattice(target: Target, side: int) -> Tensor:
    """Five clusters on a cubic lattice of spacing 1.15, shaken: no two particles overlap."""
    axis = torch.arange(side, dtype=torch.float64)
    sites = 1.15 * torch.cartesian_prod(axis, axis, axis)[: target.space.particles].flatten()
    return target.space.project(sites + normal(5, target.space.dim, 0.05))


class TestLj13(ParticleTargetLaws):
    def target(self) -> Target:
        return lj13()

    def points(self) -> Tensor:
        return lattice(self.target(), side=3)


class TestLj55(ParticleTargetLaws):
    def target(self) -> Target:
        return lj55()

    def points(self) -> Tensor:
        return lattice(self.target(), side=4)


class TestLennardJonesOfOtherConstants(ParticleTargetLaws):
    def target(self) -> Target:
        return LennardJones(
            name="lj5", particles=5, spatial_dim=2, pair_factor=1.0, oscillator=0.5, rm=1.3, eps=0.7, tau=1.6
        )

    def points(self) -> Tensor:
        return self.target().space.project(normal(4, 10, 2.0))


def test_dw4_golden(golden: dict[str, Tensor]) -> None:
    close(dw4().energy(golden["dw4_x"]), golden["dw4_energy"])
    close(dw4().score(golden["dw4_x"]), golden["dw4_force"])


def test_dw4_pair_energy_as_the_sum_over_a_square() -> None:
    """A square of side 4 has four pairs at u = 0 and two diagonals at u = 4 sqrt 2 - 4."""
    square_BD = torch.tensor([[-2.0, -2.0, -2.0, 2.0, 2.0, 2.0, 2.0, -2.0]], dtype=torch.float64)
    u = 4.0 * 2.0**0.5 - 4.0
    assert float(dw4().energy(square_BD)) == pytest.approx(2.0 * (0.9 * u**4 - 4.0 * u**2), rel=1e-13)


def test_dw4_has_no_force_between_particles_that_coincide() -> None:
    x_BD = torch.tensor([[-2.0, 0.0, -2.0, 0.0, 2.0, 1.0, 2.0, -1.0]], dtype=torch.float64)
    assert torch.isfinite(dw4().score(x_BD)).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("name", "make"), [("lj13", lj13), ("lj55", lj55)])
def test_lennard_jones_golden(
    golden: dict[str, Tensor], name: str, make: Callable[..., LennardJones], convention: str
) -> None:
    pair_factor, oscillator = CONVENTIONS[convention]
    target = make(pair_factor=pair_factor, oscillator=oscillator)
    close(target.energy(golden[f"{name}_x"]), golden[f"{name}_energy_{convention}"])
    close(target.score(golden[f"{name}_x"]), golden[f"{name}_force_{convention}"])


@pytest.mark.parametrize(
    ("name", "make", "pair_minimum", "full_minimum"),
    [("lj13", lj13, -44.326801, -83.089644), ("lj55", lj55, -279.248470, -491.641269)],
)
def test_cluster_minima(
    golden: dict[str, Tensor], name: str, make: Callable[..., LennardJones], pair_minimum: float, full_minimum: float
) -> None:
    pair_only, full = make(pair_factor=1.0, oscillator=0.0), make()
    assert float(pair_only.energy(golden[f"{name}_min_x"])) == pytest.approx(pair_minimum, abs=1e-6)
    assert float(full.energy(golden[f"{name}_full_min_x"])) == pytest.approx(full_minimum, abs=1e-6)
    assert float(pair_only.score(golden[f"{name}_min_x"]).abs().max()) < 1e-4
    assert float(full.score(golden[f"{name}_full_min_x"]).abs().max()) < 1e-4


def test_lennard_jones_is_infinite_where_particles_coincide() -> None:
    assert lj13().energy(torch.zeros(1, 39)).tolist() == [float("inf")]


@pytest.mark.parametrize(("name", "make"), [("gmm4", gmm4), ("gmm40", gmm40)])
def test_mixture_golden(golden: dict[str, Tensor], name: str, make: Callable[..., GaussianMixture]) -> None:
    close(-make().energy(golden[f"{name}_x"]), golden[f"{name}_logp"])
    close(make().score(golden[f"{name}_x"]), golden[f"{name}_score"])


def test_gmm40_constants(golden: dict[str, Tensor]) -> None:
    assert torch.equal(gmm40().means_KD.float(), golden["gmm40_means_f32"])
    assert gmm40().variance == pytest.approx(float(golden["gmm40_var"]), rel=1e-12)
    assert gmm40(covariance="paper").variance == 40.0


@pytest.mark.parametrize(("variant", "key"), [("code", "var1.7247"), ("paper", "var40.0000")])
def test_gmm40_entropy(golden: dict[str, Tensor], variant: str, key: str) -> None:
    """The mean energy of exact draws is the entropy; golden values are Monte Carlo to 0.002."""
    target = gmm40(covariance=variant)
    energy_B = target.energy(target.sample(40_000, torch.Generator().manual_seed(0)))
    expected = float(golden[f"gmm40_entropy_{key}"].flatten()[0])
    assert abs(float(energy_B.mean()) - expected) < 4.0 * float(energy_B.std()) / 200.0 + 0.008


@pytest.mark.parametrize(
    ("target", "half_width", "nodes"),
    [(gmm4(), 8.0, 161), (gmm40(), 52.0, 261), (gmm40(covariance="paper"), 90.0, 181)],
    ids=["gmm4", "gmm40", "gmm40_paper"],
)
def test_densities_integrate_to_one(target: GaussianMixture, half_width: float, nodes: int) -> None:
    axis = torch.linspace(-half_width, half_width, nodes, dtype=torch.float64)
    cell = (2.0 * half_width / (nodes - 1)) ** 2
    total = float((-target.energy(torch.cartesian_prod(axis, axis))).exp().sum()) * cell
    assert total == pytest.approx(1.0, abs=1e-6)


def test_gmm4_draws_have_the_moments_of_the_mixture() -> None:
    """Coordinates: mean 0, variance mean^2 + variance = 1.5, no correlation; within five standard errors."""
    x_BD = gmm4().sample(40_000, torch.Generator().manual_seed(7)).double()
    assert (x_BD.mean(0).abs() < 5.0 * (1.5 / 40_000) ** 0.5).all()
    close(x_BD.square().mean(0), torch.full((2,), 1.5, dtype=torch.float64), tolerance=0.03)
    assert abs(float((x_BD[:, 0] * x_BD[:, 1]).mean())) < 5.0 * 1.5 / 200.0


def test_unequal_weights_are_sampled_in_proportion() -> None:
    means_KD, weights = torch.tensor([[-9.0], [9.0]]), torch.tensor([0.2, 0.8])
    target = GaussianMixture(name="two", means_KD=means_KD, variance=1.0, weights_K=weights)
    right = float((target.sample(20_000, torch.Generator().manual_seed(1)) > 0.0).double().mean())
    assert abs(right - 0.8) < 4.0 * (0.16 / 20_000) ** 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"means_KD": torch.zeros(2), "variance": 1.0},
        {"means_KD": torch.zeros(2, 2), "variance": 0.0},
        {"means_KD": torch.zeros(2, 2), "variance": 1.0, "weights_K": torch.tensor([0.5, 0.6])},
        {"means_KD": torch.zeros(2, 2), "variance": 1.0, "weights_K": torch.tensor([1.0])},
        {"means_KD": torch.zeros(2, 2), "variance": 1.0, "weights_K": torch.tensor([1.5, -0.5])},
    ],
)
def test_impossible_mixtures_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"got .*;"):
        GaussianMixture(name="bad", **arguments)


def test_impossible_constants_are_refused() -> None:
    with pytest.raises(ValueError, match="covariance"):
        gmm40(covariance="diagonal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tau"):
        dw4(tau=0.0)
    with pytest.raises(ValueError, match="positive"):
        lj13(pair_factor=-1.0)


@pytest.mark.parametrize("spread", [3.0, 30.0, 300.0])
def test_energy_and_score_of_a_mixture_are_the_two_at_once(spread: float) -> None:
    target = gmm40()
    x_BD = spread * torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    energy_B, score_BD = target.energy_and_score(x_BD)
    torch.testing.assert_close(energy_B, target.energy(x_BD), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(score_BD, target.score(x_BD), rtol=1e-12, atol=1e-12)
    energy_B, score_BD = target.energy_and_score(x_BD.float())
    torch.testing.assert_close(energy_B.double(), target.energy(x_BD), rtol=1e-6, atol=1e-4)
    # Rounding of positions: a fraction of 1e-7 of the distance, over the variance.
    torch.testing.assert_close(score_BD.double(), target.score(x_BD), rtol=2e-6, atol=2e-5)


def test_it_does_so_for_other_weights_and_dimensions() -> None:
    means_KD = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]], dtype=torch.float64)
    weights_K = torch.tensor([0.9, 0.1], dtype=torch.float64)
    target = GaussianMixture(name="two", means_KD=means_KD, variance=0.3, weights_K=weights_K)
    x_BD = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    energy_B, score_BD = target.energy_and_score(x_BD)
    torch.testing.assert_close(energy_B, target.energy(x_BD), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(score_BD, target.score(x_BD), rtol=1e-12, atol=1e-12)
