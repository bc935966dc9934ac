"""A molecule put together from its topology: usual lengths and angles, given dihedrals, and the natural handedness.

Good enough to start from; bonds and angles are not those of any force field. Shapes: N atoms.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from models.molecules.topology import MolecularTopology

LENGTH_NM = {"CC": 0.152, "CN": 0.140, "CO": 0.123, "CH": 0.109, "HN": 0.101, "HO": 0.096, "CS": 0.181, "HS": 0.134}
"""By the elements of a bond in the order of the alphabet."""
OTHER_LENGTH_NM = 0.15
ANGLE = {4: math.acos(-1 / 3), 3: 2 * math.pi / 3, 2: math.radians(109.5)}
"""Between bonds, by how many an atom has."""
TURN = {4: 2 * math.pi / 3, 3: math.pi, 2: math.pi}
"""From one atom to the next about the bond that leads to the middle one."""
AWAY = np.array([0.3, -1.0, 0.7])
"""Stands in for an atom where fewer than three have places."""


def built(topology: MolecularTopology, *, phi: float = -1.4, psi: float = 1.4) -> np.ndarray:
    """Positions (N, 3) in nm around the origin, with peptide bonds trans and every phi and psi as given, in radians.

    All chirality centres come out positive. Atoms that are far from each other along the bonds may overlap in long
    chains.

    Errors: ValueError for a molecule with a ring or with fewer than two atoms that are no hydrogens.
    """
    heavy = [atom for atom, element in enumerate(topology.elements) if element != "H"]
    if len(topology.bonds) != topology.atoms - 1 or len(heavy) < 2:
        raise ValueError(
            f"a molecule is built along a tree of bonds between heavy atoms, got {len(topology.bonds)} bonds of "
            f"{topology.atoms} atoms, {len(heavy)} of them heavy; give coordinates where there are rings"
        )
    torsions = _torsions(topology, phi, psi)
    root = min(heavy, key=lambda atom: sum(other in heavy for other in topology.neighbours[atom]))
    first = _in_order(topology, root)[0]
    x_N3, placed = np.zeros((topology.atoms, 3)), {root, first}
    x_N3[first, 0] = _length(topology, root, first)
    queue = deque([(root, first), (first, root)])
    while queue:
        atom, parent = queue.popleft()
        reference, angle, children = _next(topology, atom, parent, placed, torsions)
        frame_33 = _frame(AWAY if reference is None else x_N3[reference], x_N3[parent], x_N3[atom])
        for child in children:
            x_N3[child] = x_N3[atom] + _length(topology, atom, child) * _direction(topology, atom, angle) @ frame_33
            angle += TURN[len(topology.neighbours[atom])]
        placed.update(children)
        queue.extend((child, atom) for child in children)
    return x_N3 - x_N3.mean(axis=0)


def _torsions(topology: MolecularTopology, phi: float, psi: float) -> dict[tuple[int, int], tuple[int, int, float]]:
    """By a bond and its direction: the atom before it, the one after it, and the angle that they make about it."""
    found = {}
    for quadruples, angle in ((topology.phi, phi), (topology.psi, psi)):
        for i, j, k, end in quadruples.values():
            found[j, k], found[k, j] = (i, end, angle), (end, i, angle)
    return found


def _next(
    topology: MolecularTopology,
    atom: int,
    parent: int,
    placed: set[int],
    torsions: dict[tuple[int, int], tuple[int, int, float]],
) -> tuple[int | None, float, list[int]]:
    """The atom that angles about the bond parent-atom are measured from, the first angle, and the atoms to place."""
    children = _in_order(topology, atom, parent)
    if (parent, atom) in torsions:
        before, after, angle = torsions[parent, atom]
        start = children.index(after)
        return before, angle, children[start:] + children[:start]
    known = [k for k in _in_order(topology, parent, atom) if k in placed]
    return (known[0] if known else None), math.pi, children


def _in_order(topology: MolecularTopology, atom: int, parent: int | None = None) -> list[int]:
    """Neighbours but the parent: the backbone first, then heavy atoms; at a centre as its handedness wants them."""
    for middle, a, b, c in topology.chirality_centres:
        if middle == atom and parent is not None:
            (d,) = set(topology.neighbours[atom]) - {a, b, c}
            return {a: [c, b, d], b: [a, c, d], c: [b, a, d], d: [a, b, c]}[parent]
    backbone = set(topology.backbone)
    others = [k for k in topology.neighbours[atom] if k != parent]
    return sorted(others, key=lambda k: (k not in backbone, topology.elements[k] == "H", k))


def _length(topology: MolecularTopology, i: int, j: int) -> float:
    return LENGTH_NM.get("".join(sorted((topology.elements[i], topology.elements[j]))), OTHER_LENGTH_NM)


def _frame(before_3: np.ndarray, parent_3: np.ndarray, atom_3: np.ndarray) -> np.ndarray:
    """Rows: along the bond parent-atom, away from the atom before in its plane, and normal to that plane."""
    along_3 = (atom_3 - parent_3) / np.linalg.norm(atom_3 - parent_3)
    normal_3 = np.cross(parent_3 - before_3, along_3)
    normal_3 /= np.linalg.norm(normal_3)
    return np.stack([along_3, np.cross(normal_3, along_3), normal_3])


def _direction(topology: MolecularTopology, atom: int, torsion: float) -> np.ndarray:
    """Unit vector from the atom to a child, in the frame of the bond that leads to it."""
    angle = ANGLE[len(topology.neighbours[atom])]
    return np.array([-math.cos(angle), math.sin(angle) * math.cos(torsion), math.sin(angle) * math.sin(torsion)])
