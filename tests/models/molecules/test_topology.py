"""Topologies of capped peptides: what follows from names and bonds, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.molecules.peptides import capped_alanine
from models.molecules.topology import MolecularTopology

AD2 = capped_alanine()


def reordered(topology: MolecularTopology, order: list[int]) -> MolecularTopology:
    """The same molecule with its atoms in another order; atom k of the result is atom order[k]."""
    place = {atom: k for k, atom in enumerate(order)}
    return MolecularTopology(
        names=tuple(topology.names[k] for k in order),
        elements=tuple(topology.elements[k] for k in order),
        residue_names=tuple(topology.residue_names[k] for k in order),
        residue_numbers=tuple(topology.residue_numbers[k] for k in order),
        bonds=tuple((place[j], place[i]) for i, j in topology.bonds),
    )


def ethane_with(*others: str) -> MolecularTopology:
    """C-C whose first carbon carries three atoms of other elements, and whose second carries three hydrogens."""
    return MolecularTopology(
        names=("C1", "C2", "X1", "X2", "X3", "H1", "H2", "H3"),
        elements=("C", "C", *others, "H", "H", "H"),
        residue_names=("ETH",) * 8,
        residue_numbers=(1,) * 8,
        bonds=((0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)),
    )


def test_alanine_dipeptide_is_the_molecule_of_the_literature() -> None:
    assert AD2.atoms == 22
    assert "".join(AD2.elements) == "HCHHCONHCHCHHHCONHCHHH"
    assert len(AD2.bonds) == 21
    assert AD2.phi == {2: (4, 6, 8, 14)}
    assert AD2.psi == {2: (6, 8, 14, 16)}
    assert AD2.chirality_centres == ((8, 6, 14, 10),)
    assert AD2.backbone == (4, 6, 8, 14, 16)


def test_backbone_atoms_and_elements_are_nine_classes() -> None:
    assert AD2.backbone_classes == (0, 1, 0, 0, 4, 3, 5, 0, 6, 0, 1, 0, 0, 0, 7, 3, 8, 0, 1, 0, 0, 0)
    assert max(AD2.backbone_classes) + 1 == 9
    assert 2 not in AD2.backbone_classes


def test_only_hydrogens_on_one_carbon_are_alike() -> None:
    groups: dict[int, list[int]] = {}
    for atom, label in enumerate(AD2.distinct_classes):
        groups.setdefault(label, []).append(atom)
    assert [atoms for atoms in groups.values() if len(atoms) > 1] == [[0, 2, 3], [11, 12, 13], [19, 20, 21]]
    assert sorted(groups) == list(range(16))


def test_every_residue_of_a_longer_chain_has_its_dihedrals() -> None:
    chain = capped_alanine(3)
    assert chain.atoms == 42
    assert chain.phi == {2: (4, 6, 8, 14), 3: (14, 16, 18, 24), 4: (24, 26, 28, 34)}
    assert chain.psi == {2: (6, 8, 14, 16), 3: (16, 18, 24, 26), 4: (26, 28, 34, 36)}
    assert [centre for centre, *_ in chain.chirality_centres] == [8, 18, 28]
    assert len(chain.backbone) == 11


def test_nothing_depends_on_the_order_of_atoms() -> None:
    order = [(7 * k + 3) % 22 for k in range(22)]
    other = reordered(AD2, order)
    back = dict(enumerate(order))
    assert tuple(back[k] for k in other.phi[2]) == AD2.phi[2]
    assert tuple(back[k] for k in other.psi[2]) == AD2.psi[2]
    assert [tuple(back[k] for k in centre) for centre in other.chirality_centres] == list(AD2.chirality_centres)
    for name in ("backbone_classes", "distinct_classes"):
        ours, theirs = getattr(AD2, name), getattr(other, name)
        pairs = [(j, k) for j in range(22) for k in range(22)]
        assert all((theirs[j] == theirs[k]) == (ours[back[j]] == ours[back[k]]) for j, k in pairs)


def test_a_carbon_with_four_different_branches_is_a_centre_and_one_with_two_alike_is_not() -> None:
    assert ethane_with("F", "Cl", "H").chirality_centres == ((0, 1, 2, 3),)
    assert ethane_with("F", "Cl", "Br").chirality_centres == ((0, 1, 2, 3),)
    assert ethane_with("F", "Cl", "Cl").chirality_centres == ()


def test_elements_beyond_the_common_four_have_classes_before_the_backbone() -> None:
    classes = ethane_with("F", "Cl", "H").backbone_classes
    assert classes == (1, 1, 5, 4, 0, 0, 0, 0)


def test_what_turns_about_a_bond() -> None:
    assert AD2.beyond(6, 8) == tuple(range(8, 22))
    assert AD2.beyond(8, 6) == tuple(range(8))
    assert AD2.beyond(8, 14) == tuple(range(14, 22))
    assert AD2.beyond(8, 10) == (10, 11, 12, 13)
    for i, j in AD2.bonds:
        assert sorted((*AD2.beyond(i, j), *AD2.beyond(j, i))) == list(range(22))


def test_rings_and_strangers_do_not_turn() -> None:
    ring = MolecularTopology(
        names=("C1", "C2", "C3", "C4"),
        elements=("C",) * 4,
        residue_names=("RNG",) * 4,
        residue_numbers=(1,) * 4,
        bonds=((0, 1), (1, 2), (2, 0), (2, 3)),
    )
    with pytest.raises(ValueError, match="a bond in a ring does not turn, got 0-1"):
        ring.beyond(0, 1)
    assert ring.beyond(2, 3) == (3,)
    with pytest.raises(ValueError, match="turns about a bond, got atoms 0 and 3"):
        ring.beyond(0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": AD2.names[:-1]}, "one entry an atom"),
        ({"names": ("H1", *AD2.names[1:-1], "H2")}, "unique within a residue"),
        ({"bonds": (*AD2.bonds, (0, 22))}, "joins two of 22 atoms"),
        ({"bonds": (*AD2.bonds, (4, 4))}, "joins two of 22 atoms"),
        ({"bonds": (*AD2.bonds, AD2.bonds[0][::-1])}, "given once"),
        ({"bonds": (*AD2.bonds, (0, 2))}, "a hydrogen has one bond"),
        ({"bonds": tuple(bond for bond in AD2.bonds if bond != (8, 14))}, "in one piece, got 14 of 22"),
    ],
)
def test_what_is_no_molecule_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(AD2, **change)


def test_a_peptide_has_residues() -> None:
    with pytest.raises(ValueError, match="at least one residue, got 0"):
        capped_alanine(0)
