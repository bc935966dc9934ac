"""Minima by descent: tabulated cluster energies, closed forms, second derivatives, and what is said when it fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from models.contracts import Space
from models.minimise import minimise
from models.targets import dw4, gmm4, lj13, lj55

GOLDEN_RATIO = (1 + 5**0.5) / 2
LJ13_MINIMUM, LJ55_MINIMUM = -83.089644, -491.641269
# The pair energies alone: the values of the Cambridge cluster database.
LJ13_PAIRS, LJ55_PAIRS = -44.326801, -279.248470


def vertices() -> Tensor:
    """The twelve corners of an icosahedron, at distance one from its centre."""
    corners = [(0.0, a, b * GOLDEN_RATIO) for a in (1, -1) for b in (1, -1)]
    rotated = [corner[k:] + corner[:k] for corner in corners for k in range(3)]
    points_Nd = torch.tensor(rotated, dtype=torch.float64)
    return points_Nd / points_Nd.norm(dim=1, keepdim=True)


def icosahedron() -> Tensor:
    """A centre and its twelve neighbours, nearly as far away as a pair's minimum, (39,)."""
    return torch.cat([torch.zeros(1, 3, dtype=torch.float64), 0.97 * vertices()]).flatten()


def mackay_icosahedron() -> Tensor:
    """Two shells: the second one has its corners twice as far away, and a particle on each of its thirty edges."""
    corners = vertices()
    distance = torch.cdist(corners, corners)
    edge = distance[distance > 0.1].min()
    middles = [corners[i] + corners[j] for i in range(12) for j in range(i) if distance[i, j] < 1.01 * edge]
    points = torch.cat([torch.zeros(1, 3, dtype=torch.float64), corners, 2 * corners, torch.stack(middles)])
    return 0.95 * points.flatten()


def perturbed(x_D: Tensor, *, rows: int, width: float, seed: int = 0) -> Tensor:
    noise = torch.randn(rows, len(x_D), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x_D + width * noise


@dataclass(frozen=True)
class Bowl:
    """1/2 (x - c) A (x - c) + offset: one minimum, known."""

    stiffness_DD: Tensor
    centre_D: Tensor
    name: str = "bowl"
    log_z: None = None
    energy_flops: int = field(default=1)

    @property
    def space(self) -> Space:
        return Space(dim=len(self.centre_D))

    def energy(self, x_BD: Tensor) -> Tensor:
        y_BD = x_BD - self.centre_D
        return 0.5 * (y_BD @ self.stiffness_DD * y_BD).sum(1) - 7.0

    def score(self, x_BD: Tensor) -> Tensor:
        return -(x_BD - self.centre_D) @ self.stiffness_DD


def bowl() -> Bowl:
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    stiffness = factor @ factor.T + torch.diag(torch.tensor([0.1, 1.0, 10.0, 100.0, 1000.0], dtype=torch.float64))
    return Bowl(stiffness_DD=stiffness, centre_D=torch.arange(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("target", "start", "known"),
    [
        (lj13(), icosahedron(), LJ13_MINIMUM),
        (lj13(pair_factor=1.0, oscillator=0.0), icosahedron(), LJ13_PAIRS),
        (lj55(), mackay_icosahedron(), LJ55_MINIMUM),
        (lj55(pair_factor=1.0, oscillator=0.0), mackay_icosahedron(), LJ55_PAIRS),
    ],
    ids=["lj13", "lj13 pairs", "lj55", "lj55 pairs"],
)
def test_perturbed_icosahedra_fall_into_the_known_minimum(target: Any, start: Tensor, known: float) -> None:
    start_BD = perturbed(start, rows=6, width=0.03)
    found = minimise(target, start_BD)
    assert bool((target.energy(start_BD) > known + 1.0).all())
    assert bool(found.converged_B.all())
    assert found.energy_B.tolist() == pytest.approx([known] * 6, abs=1e-6)
    assert float((found.x_BD - target.space.project(found.x_BD)).abs().max()) < 1e-12
    assert float(target.score(found.x_BD).abs().max()) <= 1e-6
    torch.testing.assert_close(found.energy_B, target.energy(found.x_BD), rtol=1e-12, atol=0.0)


def test_a_quadratic_energy_ends_at_its_centre() -> None:
    target = bowl()
    found = minimise(target, perturbed(target.centre_D, rows=20, width=3.0), force_tolerance=1e-9)
    assert bool(found.converged_B.all())
    torch.testing.assert_close(found.x_BD, target.centre_D.expand(20, 5), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(found.energy_B, torch.full((20,), -7.0, dtype=torch.float64), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("target", [dw4(), lj13()], ids=["dw4", "lj13"])
def test_ends_are_minima_no_saddles_and_no_deeper_than_their_start(target: Any) -> None:
    start_BD = perturbed(torch.zeros(target.space.dim, dtype=torch.float64), rows=12, width=1.5, seed=1)
    found = minimise(target, start_BD)
    assert bool(found.converged_B.all())
    assert bool((found.energy_B < target.energy(start_BD)).all())
    for x_D in found.x_BD:
        hessian = torch.autograd.functional.hessian(lambda y: target.energy(y[None]).sum(), x_D)
        assert float(torch.linalg.eigvalsh(hessian).min()) > -1e-4


@pytest.mark.parametrize("target", [dw4(), lj13(), gmm4()], ids=["dw4", "lj13", "gmm4"])
def test_mirrored_samples_find_mirrored_minima(target: Any) -> None:
    """The energies are even, and four Gaussians are a square around the origin."""
    start_BD = perturbed(torch.zeros(target.space.dim, dtype=torch.float64), rows=8, width=1.0, seed=2)
    here, there = minimise(target, start_BD), minimise(target, -start_BD)
    torch.testing.assert_close(target.energy(-start_BD), target.energy(start_BD))
    torch.testing.assert_close(there.energy_B, here.energy_B, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(there.x_BD, -here.x_BD, rtol=0.0, atol=1e-5)


def test_a_gaussian_of_a_mixture_has_its_minimum_near_its_mean() -> None:
    target = gmm4()
    means = target.means_KD
    found = minimise(target, means + 0.3)
    assert bool(found.converged_B.all())
    assert float((found.x_BD - means).norm(dim=1).max()) < 0.1


def test_the_minimum_does_not_depend_on_the_chunk_nor_on_the_precision_of_the_start() -> None:
    start_BD = perturbed(icosahedron(), rows=9, width=0.1)
    whole, split = minimise(lj13(), start_BD), minimise(lj13(), start_BD, chunk=4)
    assert torch.equal(whole.iterations_B, split.iterations_B)
    torch.testing.assert_close(split.x_BD, whole.x_BD, rtol=0.0, atol=1e-7)
    single = minimise(lj13(), start_BD.float())
    assert single.x_BD.dtype == torch.float64
    torch.testing.assert_close(single.energy_B, whole.energy_B, rtol=0.0, atol=1e-9)


def test_the_centre_of_mass_is_removed() -> None:
    found = minimise(lj13(), perturbed(icosahedron(), rows=2, width=0.02) + 50.0)
    assert found.energy_B.tolist() == pytest.approx([LJ13_MINIMUM] * 2, abs=1e-6)
    assert float(found.x_BD.unflatten(1, (13, 3)).mean(1).abs().max()) < 1e-12


def test_what_did_not_converge_is_told() -> None:
    start_BD = perturbed(icosahedron(), rows=4, width=0.1)
    start_BD[1, :6] = 0.0
    start_BD[2, 5] = torch.nan
    found = minimise(lj13(), start_BD)
    assert found.converged_B.tolist() == [True, False, False, True]
    assert not torch.isfinite(found.energy_B[1:3]).any()
    assert found.iterations_B[1:3].tolist() == [0, 0]
    short = minimise(lj13(), start_BD, max_iterations=3)
    assert short.converged_B.tolist() == [False] * 4
    assert short.iterations_B.tolist() == [3, 0, 0, 3]
    assert float(short.force_B[0]) > 1e-6
    assert float(short.energy_B[0]) < float(lj13().energy(start_BD[:1]))


class Slope(Bowl):
    """A plane that falls for ever."""

    def energy(self, x_BD: Tensor) -> Tensor:
        return x_BD[:, 0]

    def score(self, x_BD: Tensor) -> Tensor:
        return torch.tensor([-1.0, 0.0], dtype=x_BD.dtype).expand_as(x_BD)


def flat() -> dict[str, Tensor]:
    return {"stiffness_DD": torch.zeros(2, 2, dtype=torch.float64), "centre_D": torch.zeros(2, dtype=torch.float64)}


def test_a_slope_without_an_end_stops_at_the_limit() -> None:
    found = minimise(Slope(**flat()), torch.zeros(3, 2), max_iterations=50)
    assert found.converged_B.tolist() == [False] * 3
    assert found.iterations_B.tolist() == [50] * 3
    assert float(found.energy_B.max()) < -0.4
    assert minimise(Bowl(**flat()), torch.zeros(3, 2)).iterations_B.tolist() == [0] * 3


def test_a_wrong_energy_ends_the_descent_instead_of_looping() -> None:
    """A force that points uphill: every step is refused, down to the shortest."""

    class Lying(Bowl):
        def score(self, x_BD: Tensor) -> Tensor:
            return -super().score(x_BD)

    target = Lying(stiffness_DD=torch.eye(2, dtype=torch.float64), centre_D=torch.zeros(2, dtype=torch.float64))
    found = minimise(target, torch.ones(2, 2))
    assert found.converged_B.tolist() == [False, False]
    assert int(found.iterations_B.max()) < 100
    torch.testing.assert_close(found.x_BD, torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "beat"),
    [
        ({"force_tolerance": 0.0}, "force_tolerance"),
        ({"max_step": -1.0}, "max_step"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"chunk": 0}, "chunk"),
        ({"force_tolerance": float("nan")}, "force_tolerance"),
    ],
)
def test_settings_must_be_positive(change: dict[str, Any], beat: str) -> None:
    with pytest.raises(ValueError, match=rf"{beat} must be positive, got .*; leave it out"):
        minimise(bowl(), torch.zeros(1, 5), **change)


def test_a_wrong_width_is_told() -> None:
    with pytest.raises(ValueError, match=r"shape \(rows, 39\), got \(2, 38\); flatten"):
        minimise(lj13(), torch.zeros(2, 38))
