"""Atoms that have changed places are found again, and the energy that does not care who is who has the right force.

Shapes: B rows, D coordinates, N atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Target
from models.couplings import permute_particles
from models.molecules.building import built
from models.molecules.classical import alanine_dipeptide
from models.molecules.geometry import bond_lengths, particles_of
from models.molecules.labelling import AnyLabelling, labelling, places_of
from models.molecules.peptides import capped_alanine
from models.problem import BoltzmannProblem
from models.problem_settings import evaluation_settings, system_settings
from models.reference.pivots import Molecule
from models.reference.samples import ReferenceSamples

AD2 = AnyLabelling(molecule=alanine_dipeptide())
GOLDEN = Path(__file__).parents[2] / "golden" / "ad2_geometry.npz"


@pytest.fixture(scope="module")
def x_BD() -> Tensor:
    """Warm configurations, some of them of 600 K and one a mirror image."""
    with np.load(GOLDEN) as file:
        return AD2.space.project(torch.from_numpy(file["x_nm"]).flatten(1))


def exchanged(x_BD: Tensor, classes: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows whose atoms changed places within their classes, each row in its own way; and how."""
    rng = np.random.default_rng(seed)
    order_BN = np.tile(np.arange(len(classes)), (len(x_BD), 1))
    for label in set(classes):
        members = [k for k, other in enumerate(classes) if other == label]
        for row in order_BN:
            row[members] = rng.permutation(members)
    order = torch.from_numpy(order_BN)
    return permute_particles(particles_of(x_BD), order).flatten(1), order


def test_places_are_filled_outwards_from_the_backbone_and_hydrogens_last() -> None:
    carbons, oxygens, hydrogens = places_of(AD2.topology, AD2.topology.backbone_classes)
    assert (carbons.atoms, carbons.beside) == ((1, 10, 18), (4, 8, 16))
    assert (oxygens.atoms, oxygens.beside) == ((5, 15), (4, 14))
    assert hydrogens.atoms == (0, 2, 3, 7, 9, 11, 12, 13, 17, 19, 20, 21)
    assert hydrogens.beside == (1, 1, 1, 6, 8, 10, 10, 10, 16, 18, 18, 18)


def test_exchanged_atoms_are_found_again(x_BD: Tensor) -> None:
    """Up to hydrogens on one carbon, which nothing tells apart."""
    moved_BD, _ = exchanged(x_BD, AD2.topology.backbone_classes)
    assert bond_lengths(moved_BD, AD2.topology.bonds).max() > 0.3
    found_BD = AD2.labelled(moved_BD)
    assert bond_lengths(found_BD, AD2.topology.bonds).max() < 0.18
    heavy = [k for k, element in enumerate(AD2.topology.elements) if element != "H"]
    assert torch.equal(particles_of(found_BD)[:, heavy], particles_of(x_BD)[:, heavy])


def test_energy_and_force_do_not_know_who_is_who(x_BD: Tensor) -> None:
    assert isinstance(AD2, Molecule)
    assert isinstance(AD2, Target)
    moved_BD, order_BN = exchanged(x_BD, AD2.topology.backbone_classes)
    energy_B, score_BD = AD2.molecule.energy(x_BD), AD2.molecule.score(x_BD)
    torch.testing.assert_close(AD2.energy(x_BD), energy_B, rtol=0, atol=1e-9)
    torch.testing.assert_close(AD2.energy(moved_BD), energy_B, rtol=0, atol=1e-9)
    assert (AD2.molecule.energy(moved_BD) > energy_B + 1e3).all()
    expected_BD = permute_particles(particles_of(score_BD), order_BN).flatten(1)
    torch.testing.assert_close(AD2.score(moved_BD), expected_BD, rtol=0, atol=1e-7)


def test_the_score_is_the_slope_of_the_energy(x_BD: Tensor) -> None:
    moved_BD = exchanged(x_BD[:3], AD2.topology.backbone_classes)[0].requires_grad_()
    (gradient_BD,) = torch.autograd.grad(AD2.energy(moved_BD).sum(), moved_BD)
    torch.testing.assert_close(AD2.score(moved_BD.detach()), -gradient_BD, rtol=1e-9, atol=1e-7)


def test_longer_chains_are_put_in_order_as_well() -> None:
    topology = capped_alanine(3)
    classes = topology.backbone_classes
    x_BD = torch.from_numpy(built(topology)).flatten().expand(4, -1)
    moved_BD, _ = exchanged(x_BD, classes, seed=1)
    order_BN = labelling(moved_BD, places_of(topology, classes), classes)
    found_BD = permute_particles(particles_of(moved_BD), order_BN).flatten(1)
    torch.testing.assert_close(bond_lengths(found_BD, topology.bonds), bond_lengths(x_BD, topology.bonds))
    labels = torch.tensor(classes)
    assert torch.equal(labels[order_BN], labels.expand_as(order_BN))
    assert torch.equal(order_BN.sort(dim=1).values, torch.arange(42).expand(4, -1))


def test_configurations_that_are_not_finite_have_no_energy_and_are_no_error(x_BD: Tensor) -> None:
    broken_BD = x_BD[:2].clone()
    broken_BD[0, 3] = torch.nan
    energy_B = AD2.energy(broken_BD)
    assert not torch.isfinite(energy_B[0])
    torch.testing.assert_close(energy_B[1], AD2.molecule.energy(x_BD[1:2])[0])


def test_without_an_atom_alone_in_its_class_nothing_can_be_found() -> None:
    with pytest.raises(ValueError, match="alone in their class"):
        places_of(AD2.topology, (0,) * 22)


def test_a_problem_puts_samples_in_order_before_it_looks_at_them(
    x_BD: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference samples are those of the labelled molecule."""
    rows_BD = x_BD[:9].repeat(8, 1).float()
    asked: list[str] = []

    def stored(target: Target, **_: object) -> ReferenceSamples:
        asked.append(target.name)
        some = {"source": "", "energy_evaluations": 0, "force_evaluations": 0, "device_seconds": 0.0}
        return ReferenceSamples(train_BD=rows_BD, validation_BD=rows_BD, test_BD=rows_BD, diagnostics={}, **some)

    monkeypatch.setattr("models.problem.reference_samples", stored)
    name = "models.molecules.labelling:exchangeable_alanine_dipeptide"
    settings = system_settings(name, train_samples=64)
    assert settings["types"] == list(AD2.topology.backbone_classes)
    problem = BoltzmannProblem(system=settings, evaluation=evaluation_settings(name, samples=64), cache=tmp_path)
    moved_BD, _ = exchanged(problem.points("test"), AD2.topology.backbone_classes)
    found = problem.sample_estimates(moved_BD)
    assert asked == ["ad2-classical"]
    assert found["tv_bonds"].value == pytest.approx(0.0, abs=1e-9)
    assert found["energy_w2"].value == pytest.approx(0.0, abs=1e-4)
    assert found["share_mirrored"].value == found["share_mixed"].value == 0.0
    picture = problem.picture({"model/x": moved_BD.numpy(), "model/energy": np.zeros(64)})
    assert picture["distances"].max() < 0.18
