"""Capped peptides of alanine: acetyl, residues, N-methylamide, atoms in the order and by the names of Amber."""

from __future__ import annotations

from models.molecules.topology import MolecularTopology

ACETYL = ("HH31", "CH3", "HH32", "HH33", "C", "O")
ALANINE = ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O")
METHYLAMIDE = ("N", "H", "C", "H1", "H2", "H3")
BONDS = {
    "ACE": ("HH31-CH3", "CH3-HH32", "CH3-HH33", "CH3-C", "C-O"),
    "ALA": ("N-H", "N-CA", "CA-HA", "CA-CB", "CB-HB1", "CB-HB2", "CB-HB3", "CA-C", "C-O"),
    "NME": ("N-H", "N-C", "C-H1", "C-H2", "C-H3"),
}
"""Within a residue; the C of each is bonded to the N of the next."""


def capped_alanine(residues: int = 1) -> MolecularTopology:
    """ACE-(ALA)n-NME, 12 + 10 n atoms: alanine dipeptide for one residue (22 atoms), its tetrapeptide for three (42).

    Errors: ValueError for fewer than one residue.
    """
    if residues < 1:
        raise ValueError(f"a capped peptide needs at least one residue, got {residues}; write capped_alanine(1)")
    chain = [("ACE", ACETYL), *[("ALA", ALANINE)] * residues, ("NME", METHYLAMIDE)]
    atoms = [(number, residue, name) for number, (residue, names) in enumerate(chain, 1) for name in names]
    index = {(number, name): k for k, (number, _, name) in enumerate(atoms)}
    bonds = []
    for number, (residue, _) in enumerate(chain, 1):
        if number > 1:
            bonds.append((index[number - 1, "C"], index[number, "N"]))
        ends = (bond.split("-") for bond in BONDS[residue])
        bonds += [(index[number, first], index[number, second]) for first, second in ends]
    return MolecularTopology(
        names=tuple(name for _, _, name in atoms),
        elements=tuple(name[0] for _, _, name in atoms),
        residue_names=tuple(residue for _, residue, _ in atoms),
        residue_numbers=tuple(number for number, _, _ in atoms),
        bonds=tuple(sorted((min(bond), max(bond)) for bond in bonds)),
    )
