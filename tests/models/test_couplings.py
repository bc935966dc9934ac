"""Couplings: the laws, the golden pairings, and what symmetry promises."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
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
    assign_particles,
    assignment,
    equivariant_costs,
    kabsch,
    optimal_permutation,
    squared_distances,
)
from models.couplings.assignment import assign_all, assign_one_by_one
from models.couplings.particles import best_overlap
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
    reflections = False

    def make(self) -> Coupling:
        return EquivariantOptimalTransport(space=self.space, reflections=self.reflections)

    def same_configuration(self, a_BD: Tensor, b_BD: Tensor) -> bool:
        return torch.allclose(self._sorted_distances(a_BD), self._sorted_distances(b_BD), atol=1e-12)

    def _sorted_distances(self, x_BD: Tensor) -> Tensor:
        x_BNd = x_BD.unflatten(1, (-1, self.space.spatial_dim))
        return torch.cdist(x_BNd, x_BNd).flatten(1).sort(dim=1).values

    def test_pairs_stay_mean_free(self) -> None:
        self.space.check(self.make()(*self.draw(9)).x1_BD)


class TestTypedEquivariantOptimalTransport(TestEquivariantOptimalTransport):
    space = Space(dim=12, particles=4, types=(0, 1, 0, 1))


class TestPlanarEquivariantOptimalTransport(TestEquivariantOptimalTransport):
    space = Space(dim=10, particles=5)
    reflections = True


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file}


# assignment of particles


def needs_lapx(solve: Callable[[np.ndarray], Tensor]) -> None:
    if solve is assign_all and assignment.lapjvr_batch is None:
        pytest.skip("lapx is not installed")


def costs_of(particles_PN: Tensor, cost_PNN: np.ndarray) -> np.ndarray:
    """What matchings cost, which must be permutations."""
    assert torch.equal(particles_PN.sort(dim=1).values, torch.arange(cost_PNN.shape[1]).expand_as(particles_PN))
    return np.take_along_axis(cost_PNN, particles_PN[..., None].numpy(), axis=2).sum(axis=(1, 2))


COSTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.normal(size=(40, 5, 5)),
    "distances": lambda rng: rng.exponential(size=(40, 4, 4)),
    "tied": lambda rng: rng.integers(0, 3, size=(60, 5, 5)).astype(float),
    "all alike": lambda rng: np.ones((2, 5, 5)),
    "huge": lambda rng: 1e12 * rng.normal(size=(20, 5, 5)),
    "tiny": lambda rng: 1e-12 * rng.normal(size=(20, 5, 5)),
    "one particle": lambda rng: rng.normal(size=(3, 1, 1)),
    "forbidden": lambda rng: (
        np.where(np.eye(5)[:, [1, 0, 3, 4, 2]] + rng.integers(0, 2, (30, 5, 5)) > 0, 1.0, np.inf)
        * rng.uniform(1, 2, size=(30, 5, 5))
    ),
}


@pytest.mark.parametrize("solve", [assign_all, assign_one_by_one, assign_particles])
@pytest.mark.parametrize("kind", COSTS)
def test_no_matching_of_particles_is_cheaper(kind: str, solve: Callable[[np.ndarray], Tensor]) -> None:
    needs_lapx(solve)
    cost_PNN = COSTS[kind](np.random.default_rng(3))
    n = cost_PNN.shape[1]
    best_P = np.min([cost_PNN[:, np.arange(n), list(order)].sum(axis=1) for order in permutations(range(n))], axis=0)
    np.testing.assert_allclose(costs_of(solve(cost_PNN), cost_PNN), best_P, rtol=1e-12, atol=1e-24)


@pytest.mark.parametrize("n", [13, 55])
def test_both_solvers_find_matchings_of_one_cost(n: int) -> None:
    needs_lapx(assign_all)
    x, y = np.random.default_rng(n).normal(size=(2, 60, n, 3))
    cost_PNN = ((x[:, :, None] - y[:, None]) ** 2).sum(axis=-1)
    for threads in (1, 2):
        torch_threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            together_P = costs_of(assign_all(cost_PNN), cost_PNN)
        finally:
            torch.set_num_threads(torch_threads)
        np.testing.assert_allclose(together_P, costs_of(assign_one_by_one(cost_PNN), cost_PNN), rtol=1e-12)


def test_slices_of_a_larger_array_and_no_problem_at_all_are_solved() -> None:
    cost_PNN = np.random.default_rng(0).normal(size=(6, 8, 8))[::2, 1:5, 2:6]
    for solve in (assign_particles, assign_one_by_one):
        assert torch.equal(solve(cost_PNN), solve(cost_PNN.copy()))
        assert solve(np.empty((0, 4, 4))).shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_costs_that_are_no_numbers_are_refused(bad: float) -> None:
    cost_PNN = np.ones((2, 3, 3))
    cost_PNN[1, 0, 2] = bad
    with pytest.raises(ValueError, match=r"got NaN or -inf"):
        assign_particles(cost_PNN)


def test_without_lapx_scipy_is_chosen_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert assignment.__file__ is not None
    spec = importlib.util.spec_from_file_location("assignment_without_lapx", assignment.__file__)
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lap", None)
    spec.loader.exec_module(alone)
    assert alone.lapjvr_batch is None
    assert alone.assign_particles(np.array([[[3.0, 1.0], [1.0, 3.0]]])).tolist() == [[1, 0]]


def test_the_equivariant_coupling_is_the_same_with_either_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_lapx(assign_all)
    x0_BD, x1_BD = TestEquivariantOptimalTransport().draw(20)
    coupling = TestEquivariantOptimalTransport().make()
    with_lapx = coupling(x0_BD, x1_BD)
    monkeypatch.setattr(assignment, "lapjvr_batch", None)
    assert torch.equal(coupling(x0_BD, x1_BD).x1_BD, with_lapx.x1_BD)


# golden pairings


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


def overlap_by_svd(h_Pdd: Tensor, reflections: bool) -> Tensor:
    singular_Pd = torch.linalg.svdvals(h_Pdd)
    if not reflections:
        singular_Pd[:, -1] *= torch.where(torch.linalg.det(h_Pdd) < 0, -1.0, 1.0)
    return singular_Pd.sum(dim=1)


def turned(values_Pd: Tensor, seed: int) -> Tensor:
    """Matrices U diag(values) V^T with random orthogonal U and V."""
    d = values_Pd.shape[1]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((2, len(values_Pd), d, d), generator=generator, dtype=torch.float64)
    u_Pdd, v_Pdd = torch.linalg.qr(noise).Q
    return u_Pdd @ torch.diag_embed(values_Pd) @ v_Pdd.mT


@pytest.mark.parametrize("reflections", [False, True])
@pytest.mark.parametrize("d", [2, 3, 4])
def test_best_overlap_is_the_signed_sum_of_singular_values(d: int, reflections: bool) -> None:
    generator = torch.Generator().manual_seed(d)
    plain = torch.randn((5000, d, d), generator=generator, dtype=torch.float64)
    scales = 10.0 ** torch.linspace(-8, 8, 5000, dtype=torch.float64)
    for h_Pdd in (plain, plain * scales[:, None, None]):
        found_P, expected_P = best_overlap(h_Pdd, reflections=reflections), overlap_by_svd(h_Pdd, reflections)
        torch.testing.assert_close(found_P, expected_P, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reflections", [False, True])
def test_best_overlap_is_exact_where_singular_values_coincide_or_vanish(reflections: bool) -> None:
    gaps = 10.0 ** torch.arange(-16, 0.5, 0.5, dtype=torch.float64)
    one = torch.ones_like(gaps)
    kinds = ((one, one, one - gaps), (one, gaps, gaps), (one, gaps, 0 * one), (one, one, 0 * one), (2 * one, one, gaps))
    for seed, values in enumerate((*kinds, (one, 0 * one, 0 * one), (0 * one, 0 * one, 0 * one))):
        h_Pdd = turned(torch.stack(values, dim=1), seed)
        for signed_Pdd in (h_Pdd, -h_Pdd):
            found_P, expected_P = (f(signed_Pdd, reflections=reflections) for f in (best_overlap, overlap_by_svd))
            torch.testing.assert_close(found_P, expected_P, rtol=0, atol=1e-11)


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
    monkeypatch.setattr("models.couplings.particles.ELEMENTS_PER_BLOCK", 7 * 16 * 2)
    for whole_part, block_part in zip(whole, equivariant_costs(x0_BNd, x1_BNd), strict=True):
        torch.testing.assert_close(whole_part, block_part, rtol=0, atol=1e-13)


def test_a_large_batch_is_still_a_permutation() -> None:
    x0_BD, x1_BD = TestOptimalTransport().draw(600)
    assert len(OptimalTransport()(x0_BD, x1_BD).permutation_B.unique()) == 600


def test_costs_without_a_plan_are_an_error() -> None:
    with pytest.warns(UserWarning, match="unbounded"), pytest.raises(ArithmeticError, match="permutation"):
        optimal_permutation(torch.full((3, 3), torch.nan, dtype=torch.float64))


def typed_draw(seed: int) -> tuple[Space, Tensor, Tensor]:
    """Six particles of three types in no order, in two configurations a batch of five."""
    space = Space(dim=18, particles=6, types=(2, 0, 1, 0, 1, 0))
    x_kBD = torch.randn((2, 5, 18), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x0_BD, x1_BD = space.project(x_kBD)
    return space, x0_BD, x1_BD


@pytest.mark.parametrize("seed", range(5))
def test_a_particle_never_takes_the_place_of_another_type(seed: int) -> None:
    """Labels stay, and so do the distances from the centre within each type."""
    space, x0_BD, x1_BD = typed_draw(seed)
    assert space.types is not None
    labels_N = torch.tensor(space.types)
    _, particles_BBN = equivariant_costs(x0_BD.unflatten(1, (6, 3)), x1_BD.unflatten(1, (6, 3)), types=space.types)
    assert torch.equal(labels_N[particles_BBN], labels_N.expand_as(particles_BBN))
    pairs = EquivariantOptimalTransport(space=space)(x0_BD, x1_BD)
    radii_kBN = torch.stack([pairs.x1_BD, x1_BD[pairs.permutation_B]]).unflatten(2, (6, 3)).norm(dim=3)
    for label in labels_N.unique():
        ours_Bn, theirs_Bn = radii_kBN[:, :, labels_N == label].sort(dim=2).values
        torch.testing.assert_close(ours_Bn, theirs_Bn, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_within_types_no_matching_is_cheaper_by_brute_force(seed: int) -> None:
    space, x0_BD, x1_BD = typed_draw(seed)
    assert space.types is not None
    types = space.types
    allowed = [order for order in permutations(range(6)) if tuple(types[k] for k in order) == types]
    assert len(allowed) == 12
    x0_BNd, x1_BNd = x0_BD.unflatten(1, (6, 3)), x1_BD.unflatten(1, (6, 3))
    cost_BB, particles_BBN = equivariant_costs(x0_BNd, x1_BNd, types=space.types)
    for i, x0_Nd in enumerate(x0_BNd):
        for j, x1_Nd in enumerate(x1_BNd):
            best = min(allowed, key=lambda order: (x0_Nd - x1_Nd[list(order)]).square().sum().item())
            assert particles_BBN[i, j].tolist() == list(best)
            expected = aligned_costs(x0_Nd[None], x1_Nd[list(best)][None]).item()
            assert cost_BB[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_particles_that_are_all_different_stay_where_they_are() -> None:
    _, x0_BD, x1_BD = typed_draw(0)
    space = Space(dim=18, particles=6, types=(5, 3, 1, 0, 2, 4))
    pairs = EquivariantOptimalTransport(space=space)(x0_BD, x1_BD)
    moved_BNd, there_BNd = (x.unflatten(1, (6, 3)) for x in (pairs.x1_BD, x1_BD[pairs.permutation_B]))
    torch.testing.assert_close(torch.cdist(moved_BNd, moved_BNd), torch.cdist(there_BNd, there_BNd))


def test_equivariant_coupling_refuses_what_it_cannot_pair() -> None:
    with pytest.raises(ValueError, match="needs particles"):
        EquivariantOptimalTransport(space=Space(dim=4))
    with pytest.raises(ValueError, match="mean-free"):
        EquivariantOptimalTransport(space=Space(dim=4, particles=2))(torch.ones(2, 4), torch.ones(2, 4))
