"""Couplings: the laws, the golden pairings, and what symmetry promises."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Space
from models.couplings import (
    ELEMENTS_PER_BLOCK,
    Coupling,
    EquivariantOptimalTransport,
    Independent,
    OptimalTransport,
    aligned_costs,
    equivariant_costs,
    kabsch,
    optimal_permutation,
    squared_distances,
)
from tests.laws.coupling_laws import CouplingLaws, OptimalCouplingLaws

GOLDEN = Path(__file__).parents[1] / "golden" / "B_flow_matching.npz"
SYSTEMS = {"N4D2": Space(dim=8, particles=4), "N5D3": Space(dim=15, particles=5)}


class TestIndependent(CouplingLaws):
    space = Space(dim=6, particles=3)

    def make(self) -> Coupling:
        return Independent()


class TestOptimalTransport(OptimalCouplingLaws):
    space = Space(dim=3)

    def make(self) -> Coupling:
        return OptimalTransport()


class TestEquivariantOptimalTransport(OptimalCouplingLaws):
    space = Space(dim=12, particles=4)
    types: tuple[int, ...] | None = None
    reflections = False

    def make(self) -> Coupling:
        return EquivariantOptimalTransport(space=self.space, types=self.types, reflections=self.reflections)

    def same_configuration(self, a_BD: Tensor, b_BD: Tensor) -> bool:
        return torch.allclose(self._sorted_distances(a_BD), self._sorted_distances(b_BD), atol=1e-12)

    def _sorted_distances(self, x_BD: Tensor) -> Tensor:
        x_BNd = x_BD.unflatten(1, (-1, self.space.spatial_dim))
        return torch.cdist(x_BNd, x_BNd).flatten(1).sort(dim=1).values

    def test_pairs_stay_mean_free(self) -> None:
        self.space.check(self.make()(*self.draw(9)).x1_BD)


class TestTypedEquivariantOptimalTransport(TestEquivariantOptimalTransport):
    types = (0, 1, 0, 1)


class TestPlanarEquivariantOptimalTransport(TestEquivariantOptimalTransport):
    space = Space(dim=10, particles=5)
    reflections = True


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file}


@pytest.mark.parametrize("system", SYSTEMS)
def test_optimal_transport_matches_golden(golden: dict[str, Tensor], system: str) -> None:
    x0_BD, x1_BD = golden[f"{system}_x0"].flatten(1), golden[f"{system}_x1"].flatten(1)
    cost_BB = squared_distances(x0_BD, x1_BD)
    torch.testing.assert_close(cost_BB, golden[f"{system}_ot_cost_matrix"], rtol=0, atol=1e-10)
    pairs = OptimalTransport()(x0_BD, x1_BD)
    assert torch.equal(pairs.permutation_B, golden[f"{system}_ot_perm"])
    assert pairs.cost_B.mean().item() == pytest.approx(golden[f"{system}_ot_mean_cost"].item(), abs=1e-10)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("tag", "reflections"), [("eq_so", False), ("eq_o", True)])
def test_equivariant_coupling_matches_golden(
    golden: dict[str, Tensor], system: str, tag: str, reflections: bool
) -> None:
    x0_BNd, x1_BNd = golden[f"{system}_x0"], golden[f"{system}_x1"]
    cost_BB, particles_BBN = equivariant_costs(x0_BNd, x1_BNd, reflections=reflections)
    torch.testing.assert_close(cost_BB, golden[f"{system}_{tag}_cost_matrix"], rtol=0, atol=1e-10)
    assert torch.equal(particles_BBN, golden[f"{system}_{tag}_particle_perm"])
    coupling = EquivariantOptimalTransport(space=SYSTEMS[system], reflections=reflections)
    pairs = coupling(x0_BNd.flatten(1), x1_BNd.flatten(1))
    assert torch.equal(pairs.permutation_B, golden[f"{system}_{tag}_perm"])
    torch.testing.assert_close(pairs.x1_BD, golden[f"{system}_{tag}_x1_aligned"].flatten(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("system", SYSTEMS)
def test_particle_types_match_golden(golden: dict[str, Tensor], system: str) -> None:
    types = tuple(golden[f"{system}_types"].tolist())
    cost_BB, particles_BBN = equivariant_costs(golden[f"{system}_x0"], golden[f"{system}_x1"], types=types)
    torch.testing.assert_close(cost_BB, golden[f"{system}_eq_so_typed_cost_matrix"], rtol=0, atol=1e-10)
    assert torch.equal(particles_BBN, golden[f"{system}_eq_so_typed_particle_perm"])
    labels = torch.tensor(types)
    assert torch.equal(labels[particles_BBN], labels.expand_as(particles_BBN))


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_pass_lies_between_the_joint_minimum_and_no_alignment(golden: dict[str, Tensor], system: str) -> None:
    one_pass_BB, _ = equivariant_costs(golden[f"{system}_x0"], golden[f"{system}_x1"])
    assert (one_pass_BB >= golden[f"{system}_exact_so_cost_matrix"] - 1e-10).all()
    assert (one_pass_BB <= golden[f"{system}_ot_cost_matrix"] + 1e-10).all()


def test_kabsch_finds_a_known_rotation_and_only_reflections_undo_a_mirror(golden: dict[str, Tensor]) -> None:
    p, q, mirrored = (golden[f"kabsch_{name}"][None] for name in ("P", "Q", "Q_mirror"))
    assert aligned_costs(p, q).item() == pytest.approx(0.0, abs=1e-10)
    rotation = kabsch(p, q)
    torch.testing.assert_close(q @ rotation.mT, p, rtol=0, atol=1e-12)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0, abs=1e-12)
    assert aligned_costs(p, mirrored).item() == pytest.approx(golden["kabsch_mirror_cost_so"].item(), abs=1e-10)
    assert aligned_costs(p, mirrored, reflections=True).item() == pytest.approx(0.0, abs=1e-10)
    torch.testing.assert_close(kabsch(p, mirrored)[0], golden["kabsch_mirror_R_so"], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        kabsch(p, mirrored, reflections=True)[0], golden["kabsch_mirror_R_o"], rtol=0, atol=1e-10
    )


def test_cost_from_singular_values_is_the_distance_after_rotation() -> None:
    x_PNd, y_PNd = torch.randn((2, 50, 6, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for reflections in (False, True):
        moved_PNd = y_PNd @ kabsch(x_PNd, y_PNd, reflections=reflections).mT
        direct_P = (x_PNd - moved_PNd).square().sum(dim=(1, 2))
        torch.testing.assert_close(aligned_costs(x_PNd, y_PNd, reflections=reflections), direct_P)


def test_particles_are_matched_first_and_then_rotated_by_brute_force() -> None:
    x0_BD, x1_BD = TestEquivariantOptimalTransport().draw(1)
    space = TestEquivariantOptimalTransport.space
    x0_Nd, x1_Nd = (space.project(x).view(4, 3) for x in (x0_BD, x1_BD))
    best = min(permutations(range(4)), key=lambda order: (x0_Nd - x1_Nd[list(order)]).square().sum().item())
    cost_BB, particles_BBN = equivariant_costs(x0_Nd[None], x1_Nd[None])
    assert particles_BBN.flatten().tolist() == list(best)
    expected = aligned_costs(x0_Nd[None], x1_Nd[list(best)][None])
    assert cost_BB.item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_slightly_rotated_and_relabelled_copy_is_at_no_distance() -> None:
    space = Space(dim=15, particles=5)
    x_BNd = space.project(torch.randn((3, 15), generator=torch.Generator().manual_seed(2), dtype=torch.float64)).view(
        3, 5, 3
    )
    angle = torch.tensor(0.02, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    moved_BD = (x_BNd[:, [3, 1, 4, 0, 2]] @ turn.T).flatten(1)
    pairs = EquivariantOptimalTransport(space=space)(x_BNd.flatten(1), moved_BD)
    assert pairs.cost_B.max().item() < 1e-20


def test_rows_are_worked_through_in_blocks_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x0_BNd, x1_BNd = torch.randn((2, 7, 4, 2), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert ELEMENTS_PER_BLOCK > 7 * 7 * 16
    whole = equivariant_costs(x0_BNd, x1_BNd)
    monkeypatch.setattr("models.couplings.ELEMENTS_PER_BLOCK", 7 * 16 * 2)
    for whole_part, block_part in zip(whole, equivariant_costs(x0_BNd, x1_BNd), strict=True):
        torch.testing.assert_close(whole_part, block_part, rtol=0, atol=1e-13)


def test_a_large_batch_is_still_a_permutation() -> None:
    x0_BD, x1_BD = TestOptimalTransport().draw(600)
    assert len(OptimalTransport()(x0_BD, x1_BD).permutation_B.unique()) == 600


def test_costs_without_a_plan_are_an_error() -> None:
    with pytest.warns(UserWarning, match="unbounded"), pytest.raises(ArithmeticError, match="permutation"):
        optimal_permutation(torch.full((3, 3), torch.nan, dtype=torch.float64))


def test_equivariant_coupling_refuses_what_it_cannot_pair() -> None:
    with pytest.raises(ValueError, match="needs particles"):
        EquivariantOptimalTransport(space=Space(dim=4))
    with pytest.raises(ValueError, match="one label per particle"):
        EquivariantOptimalTransport(space=Space(dim=4, particles=2), types=(0,))
    with pytest.raises(ValueError, match="mean-free"):
        EquivariantOptimalTransport(space=Space(dim=4, particles=2))(torch.ones(2, 4), torch.ones(2, 4))
