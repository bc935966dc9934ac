"""Angles, lengths and handedness against stored values, rotations of known angle, and molecules built on purpose.

The stored configurations are those of tests/golden/ad2_geometry.npz, whose angles another program (OpenMM's data,
measured by mdtraj) gave. Shapes: B batch, D coordinates, K angles.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.molecules.building import built
from models.molecules.geometry import (
    Handedness,
    bond_lengths,
    chirality,
    dihedrals,
    handedness,
    naturally_handed,
    particles_of,
)
from models.molecules.peptides import capped_alanine
from models.molecules.topology import MolecularTopology

AD2 = capped_alanine()
GOLDEN = Path(__file__).parents[2] / "golden" / "ad2_geometry.npz"


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def x_BD(stored: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(stored["x_nm"]).flatten(1)


def wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def test_dihedrals_are_those_of_another_program(x_BD: Tensor, stored: dict[str, np.ndarray]) -> None:
    omegas = [(1, 4, 6, 8), (8, 14, 16, 18)]
    angles_BK = dihedrals(x_BD, [*AD2.phi.values(), *AD2.psi.values(), *omegas])
    theirs_BK = torch.from_numpy(np.stack([stored[name] for name in ("phi", "psi", "omega1", "omega2")], axis=1))
    assert wrapped(angles_BK - theirs_BK).abs().max() < 1e-5


def test_chirality_has_the_sign_of_the_stored_volumes(x_BD: Tensor, stored: dict[str, np.ndarray]) -> None:
    ((centre, a, b, c),) = AD2.chirality_centres
    x_BN3 = particles_of(x_BD)
    a_B3, b_B3, c_B3 = (x_BN3[:, k] - x_BN3[:, centre] for k in (a, b, c))
    volume_B = (torch.linalg.cross(a_B3, b_B3) * c_B3).sum(1)
    np.testing.assert_allclose(volume_B.numpy(), stored["chirality"], atol=1e-8)
    lengths_B = a_B3.norm(dim=1) * b_B3.norm(dim=1) * c_B3.norm(dim=1)
    torch.testing.assert_close(chirality(x_BD, AD2.chirality_centres)[:, 0], volume_B / lengths_B)


@pytest.mark.parametrize("angle", [-3.0, -1.2, 0.0, 0.5, 2.9])
def test_a_dihedral_is_the_angle_that_was_turned(angle: float) -> None:
    """From the eclipsed position, clockwise seen along the axis."""
    outer = [math.cos(angle), math.sin(angle), 1.0]
    x_BD = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, *outer]], dtype=torch.float64)
    assert dihedrals(x_BD, [(0, 1, 2, 3)]).item() == pytest.approx(angle, abs=1e-14)
    assert dihedrals(x_BD, [(3, 2, 1, 0)]).item() == pytest.approx(angle, abs=1e-14)
    assert dihedrals(-x_BD, [(0, 1, 2, 3)]).item() == pytest.approx(-angle, abs=1e-14)


def test_everything_follows_gradients(x_BD: Tensor) -> None:
    rows_BD = x_BD[:2].clone().requires_grad_()
    for measure in (
        lambda x: dihedrals(x, [AD2.phi[2], AD2.psi[2]]),
        lambda x: bond_lengths(x, AD2.bonds),
        lambda x: chirality(x, AD2.chirality_centres),
    ):
        assert torch.autograd.gradcheck(measure, rows_BD, eps=1e-7, atol=1e-5)


def test_nothing_to_measure_is_no_column(x_BD: Tensor) -> None:
    assert dihedrals(x_BD, []).shape == chirality(x_BD, []).shape == bond_lengths(x_BD, []).shape == (10, 0)


def test_mirror_images_are_found_counted_and_mended(x_BD: Tensor) -> None:
    assert handedness(x_BD, AD2) == Handedness(natural=9, mirrored=1, mixed=0)
    flipped_BD = torch.cat([x_BD[:4], -x_BD[:6]])
    assert handedness(flipped_BD, AD2) == Handedness(natural=4, mirrored=6, mixed=0)
    mended_BD = naturally_handed(flipped_BD, AD2)
    assert torch.equal(mended_BD, torch.cat([x_BD[:4], x_BD[:6]]))
    assert handedness(mended_BD, AD2) == Handedness(natural=10, mirrored=0, mixed=0)


def test_a_mirror_cannot_mend_one_centre_of_three() -> None:
    chain = capped_alanine(3)
    x_1N3 = torch.from_numpy(built(chain))[None].clone()
    beta, alpha_hydrogen = chain.names.index("CB"), chain.names.index("HA")
    x_1N3[:, [beta, alpha_hydrogen]] = x_1N3[:, [alpha_hydrogen, beta]]
    x_1D = x_1N3.flatten(1)
    assert handedness(x_1D, chain) == Handedness(natural=0, mirrored=0, mixed=1)
    assert torch.equal(naturally_handed(x_1D, chain), x_1D)
    assert torch.equal(naturally_handed(-x_1D, chain), -x_1D)


@pytest.mark.parametrize("residues", [1, 3])
@pytest.mark.parametrize(("phi", "psi"), [(-1.4, 1.4), (1.0, 0.6), (-2.6, 2.7)])
def test_a_built_molecule_has_the_angles_lengths_and_handedness_that_it_was_asked_for(
    residues: int, phi: float, psi: float
) -> None:
    topology = capped_alanine(residues)
    x_1D = torch.from_numpy(built(topology, phi=phi, psi=psi)).flatten()[None]
    torch.testing.assert_close(dihedrals(x_1D, topology.phi.values()), torch.full((1, residues), phi).double())
    torch.testing.assert_close(dihedrals(x_1D, topology.psi.values()), torch.full((1, residues), psi).double())
    omegas = [(1, 4, 6, 8), *((c - 6, c, c + 2, c + 4) for c in range(14, topology.atoms, 10))]
    assert (dihedrals(x_1D, omegas).abs() - math.pi).abs().max() < 1e-12
    lengths_K = bond_lengths(x_1D, topology.bonds)
    assert 0.1 < lengths_K.min() < lengths_K.max() < 0.16
    assert handedness(x_1D, topology) == Handedness(natural=1, mirrored=0, mixed=0)
    assert (chirality(x_1D, topology.chirality_centres) - 4 / 27**0.5).abs().max() < 1e-12
    assert particles_of(x_1D).mean(1).abs().max() < 1e-12
    assert torch.cdist(particles_of(x_1D), particles_of(x_1D)).add(torch.eye(topology.atoms)).min() > 0.1


def test_built_angles_stand_wherever_the_walk_begins() -> None:
    """A molecule whose first atoms are its last, and a centre that is the start of the walk."""
    order = list(reversed(range(22)))
    backwards = MolecularTopology(
        names=AD2.names[::-1],
        elements=AD2.elements[::-1],
        residue_names=AD2.residue_names[::-1],
        residue_numbers=AD2.residue_numbers[::-1],
        bonds=tuple((order[i], order[j]) for i, j in AD2.bonds),
    )
    x_1D = torch.from_numpy(built(backwards, phi=-1.0, psi=2.0)).flatten()[None]
    angles_1K = dihedrals(x_1D, [backwards.phi[2], backwards.psi[2]])
    torch.testing.assert_close(angles_1K, torch.tensor([[-1.0, 2.0]], dtype=torch.float64))
    assert handedness(x_1D, backwards).natural == 1


@pytest.mark.parametrize("elements", [("C", "F", "Cl", "Br", "H"), ("H", "Br", "F", "Cl", "C")])
def test_a_lone_centre_is_handed_as_well(elements: tuple[str, ...]) -> None:
    middle = elements.index("C")
    topology = MolecularTopology(
        names=elements,
        elements=elements,
        residue_names=("X",) * 5,
        residue_numbers=(1,) * 5,
        bonds=tuple((middle, k) for k in range(5) if k != middle),
    )
    assert handedness(torch.from_numpy(built(topology)).flatten()[None], topology).natural == 1


def test_rings_are_not_built() -> None:
    ring = MolecularTopology(
        names=("C1", "C2", "C3"),
        elements=("C", "C", "C"),
        residue_names=("X",) * 3,
        residue_numbers=(1,) * 3,
        bonds=((0, 1), (1, 2), (0, 2)),
    )
    with pytest.raises(ValueError, match="along a tree of bonds"):
        built(ring)
