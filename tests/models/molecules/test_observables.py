"""Observables of molecules on samples whose answer is known: four atoms by quadrature, and built molecules."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.estimators import free_energy_difference_estimate
from models.molecules.building import built
from models.molecules.observables import backbone_angles, molecular_estimates, molecular_picture
from models.molecules.peptides import capped_alanine
from models.problem import BoltzmannProblem
from models.problem_settings import evaluation_settings, system_settings
from models.reference.pivots import PivotSettings
from models.reference.samples import reference_samples
from tests.models.molecules.four_atoms import FourAtoms, density_on_grid, torsion

AD2 = capped_alanine()


def exact_phi(n: int, seed: int = 0) -> np.ndarray:
    phi, probability = density_on_grid()
    return np.random.default_rng(seed).choice(phi, size=n, p=probability)


def exact_difference() -> float:
    phi, probability = density_on_grid()
    inside = probability[(phi > 0) & (phi < 2)].sum()
    return -math.log(inside / (1 - inside))


def test_the_free_energy_of_exact_draws_is_that_of_quadrature() -> None:
    estimate = free_energy_difference_estimate(exact_phi(4000), seed=0)
    assert estimate.lo < exact_difference() < estimate.hi
    inside = 1 / (1 + math.exp(exact_difference()))
    assert estimate.hi - estimate.lo == pytest.approx(2 * 1.96 / math.sqrt(4000 * inside * (1 - inside)), rel=0.15)


def test_weights_bring_uniform_angles_to_the_same_free_energy() -> None:
    phi = np.random.default_rng(1).uniform(-math.pi, math.pi, 6_000)
    log_w = -torsion(torch.from_numpy(phi)).numpy()
    weighted = free_energy_difference_estimate(phi, log_w, seed=0)
    assert weighted.lo < exact_difference() < weighted.hi
    shifted = free_energy_difference_estimate(phi, log_w - 1e4, seed=0)
    assert shifted.value == pytest.approx(weighted.value, abs=1e-9)
    plain = free_energy_difference_estimate(phi, seed=0)
    assert plain.lo < -math.log(2 / (2 * math.pi - 2)) < plain.hi
    assert weighted.hi - weighted.lo > 0
    assert not plain.lo < exact_difference() < plain.hi


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    estimates = [free_energy_difference_estimate(exact_phi(400, seed), seed=seed) for seed in range(60)]
    covered = sum(estimate.lo < exact_difference() < estimate.hi for estimate in estimates)
    assert 50 <= covered <= 60


def test_too_little_in_the_state_has_no_interval_or_no_value() -> None:
    few = free_energy_difference_estimate(np.array([1.0] * 4 + [-1.0] * 50), seed=0)
    assert few.value == pytest.approx(math.log(50 / 4))
    assert math.isnan(few.lo)
    assert "too few" in few.reason
    none = free_energy_difference_estimate(np.full(20, -1.0), seed=0)
    assert math.isnan(none.value)
    assert "in the state" in none.reason
    assert math.isnan(free_energy_difference_estimate([math.nan, 1.0], seed=0).value)
    assert math.isnan(free_energy_difference_estimate([1.0, -1.0], [-math.inf, -math.inf], seed=0).value)


def rows_of(angles: list[tuple[float, float]], residues: int = 1) -> np.ndarray:
    topology = capped_alanine(residues)
    return np.stack([built(topology, phi=phi, psi=psi).ravel() for phi, psi in angles])


def test_mirror_images_are_reflected_before_their_angles_are_taken_and_counted() -> None:
    x = rows_of([(-1.2, 0.5), (1.0, 0.7), (-2.0, 2.5)])
    flipped = x * np.array([1.0, -1.0, -1.0])[:, None]
    np.testing.assert_allclose(backbone_angles(flipped, AD2)[:, 0], [(-1.2, 0.5), (1.0, 0.7), (-2.0, 2.5)], atol=1e-12)
    found = molecular_estimates(np.tile(flipped, (12, 1)), AD2, reference_mD=np.tile(x, (12, 1)), seed=0)
    assert found["share_mirrored"].value == pytest.approx(2 / 3)
    assert found["share_mixed"].value == 0.0
    assert found["delta_f"].value == pytest.approx(math.log(2))
    assert found["tv_backbone"].value == found["tv_bonds"].value == 0.0


def test_other_angles_and_other_bonds_are_far_away() -> None:
    x, other = np.tile(rows_of([(-1.2, 0.5)]), (20, 1)), np.tile(rows_of([(2.0, -2.5)]), (20, 1))
    found = molecular_estimates(other, AD2, reference_mD=x, seed=0)
    assert found["tv_backbone"].value == 1.0
    assert found["tv_bonds"].value == pytest.approx(0.0, abs=1e-12)
    stretched = molecular_estimates(1.1 * x, AD2, reference_mD=x, seed=0)
    assert stretched["tv_backbone"].value == 0.0
    assert stretched["tv_bonds"].value > 0.5


def test_every_residue_of_a_longer_chain_is_told_apart() -> None:
    x = np.tile(rows_of([(-1.2, 0.5), (1.0, 0.7)], residues=3), (15, 1))
    found = molecular_estimates(x, capped_alanine(3), reference_mD=x, log_weight_n=np.zeros(30), seed=0)
    names = {f"{name}_{k}" for name in ("delta_f", "delta_f_reweighted", "tv_backbone") for k in (2, 3, 4)}
    assert set(found) == names | {"tv_bonds", "share_mirrored", "share_mixed"}
    assert all(found[name].value == pytest.approx(0.0, abs=1e-12) for name in names)


def test_a_picture_shows_angles_where_there_are_both_and_lengths() -> None:
    picture = molecular_picture(-rows_of([(-1.2, 0.5), (1.0, 0.7)]), AD2)
    np.testing.assert_allclose(picture["angles"], [(-1.2, 0.5), (1.0, 0.7)], atol=1e-12)
    assert picture["distances"].shape == (2, 21)
    assert set(molecular_picture(FourAtoms().start_D[None].numpy(), FourAtoms().topology)) == {"distances"}


def test_samples_of_a_diverged_model_are_a_result() -> None:
    x = rows_of([(-1.2, 0.5)] * 12)
    found = molecular_estimates(np.full_like(x, np.nan), AD2, reference_mD=x, log_weight_n=np.full(12, np.nan), seed=0)
    assert math.isnan(found["delta_f"].value)
    assert math.isnan(found["tv_backbone"].value)


@pytest.mark.filterwarnings("ignore:chains of four atoms have not mixed")
def test_a_problem_tells_them_of_molecules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PivotSettings(chains=64, leapfrog_steps=4, step_size=0.05, burn_in=20, thinning=2)
    few = {"n_train": 128, "n_validation": 64, "n_test": 64, "progress": False, "settings": settings}
    monkeypatch.setattr("models.problem.reference_samples", lambda target, **_: reference_samples(target, **few))
    name = "tests.models.molecules.four_atoms:even_four_atoms"
    system = system_settings(name, train_samples=64)
    problem = BoltzmannProblem(system=system, evaluation=evaluation_settings(name, samples=32), cache=tmp_path)
    names = {"delta_f", "tv_bonds"}
    assert names <= set(problem.floor())
    flow = problem.flow(0)
    records = problem.evaluate(flow, rank=0, workers=1)
    found = problem.estimates(records, "test")
    assert names | {"delta_f_reweighted"} <= set(found)
    x_nD = problem.points("test").numpy()
    alone = molecular_estimates(records["model/x"], FourAtoms().topology, reference_mD=x_nD, seed=0)
    assert found["tv_bonds"] == alone["tv_bonds"]
    picture = problem.picture(records)
    assert picture["distances"].shape == (32, 3)
    np.testing.assert_allclose(picture["log_weight"], -records["model/energy"] - records["model/log_q"])
    assert "log_weight" not in problem.picture(None)
    monkeypatch.undo()
    plain = BoltzmannProblem(system=system_settings("gmm4"), evaluation=evaluation_settings("gmm4"), cache=tmp_path)
    assert not names & set(plain.floor())
