"""Which atoms a molecule has and which are bonded, and all that follows from it: dihedrals, stereocentres, classes.

Atoms are counted from zero. Nothing here knows where they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

Quadruple = tuple[int, int, int, int]

COMMON_ELEMENTS = ("H", "C", "N", "O")
"""Encoded first, in this order, whether a molecule has them or not; others follow by the alphabet."""
ALPHA_CARBON_NEIGHBOURS = ("N", "C", "CB")
"""In the order in which an L amino acid has positive chirality."""


@dataclass(frozen=True, kw_only=True)
class MolecularTopology:
    """A connected molecule, one entry an atom.

    Attributes:
        names: unique within a residue ("CA"). elements: symbols ("C").
        residue_names, residue_numbers: of the residue that each atom belongs to; equal numbers are one residue.
        bonds: pairs of atoms, each pair once.

    Errors: ValueError for columns of different lengths, names that are not unique, bonds that are repeated or lead
    nowhere, hydrogens without exactly one bond, and molecules in several pieces.
    """

    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_numbers: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        self._check_columns()
        self._check_bonds()

    @property
    def atoms(self) -> int:
        """How many there are."""
        return len(self.names)

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Of each atom the bonded ones, ascending."""
        found: list[set[int]] = [set() for _ in self.names]
        for i, j in self.bonds:
            found[i].add(j)
            found[j].add(i)
        return tuple(tuple(sorted(atoms)) for atoms in found)

    @cached_property
    def phi(self) -> dict[int, Quadruple]:
        """C of the residue before, N, CA, C: by the number of each residue that has all four."""
        return {number: (before, n, ca, c) for number, before, (n, ca, c), _ in self._backbones if before is not None}

    @cached_property
    def psi(self) -> dict[int, Quadruple]:
        """N, CA, C, N of the residue after: by the number of each residue that has all four."""
        return {number: (n, ca, c, after) for number, _, (n, ca, c), after in self._backbones if after is not None}

    @cached_property
    def chirality_centres(self) -> tuple[Quadruple, ...]:
        """(centre, a, b, c): atoms with four neighbours that the rest of the molecule tells apart.

        At an alpha carbon a, b, c are N, C, CB, so that ((a - centre) x (b - centre)) . (c - centre) is positive for an
        L amino acid. At any other centre they are its neighbours in ascending order without the hydrogen, or the last.
        """
        colours = self._colours
        return tuple(
            (centre, *self._oriented(around))
            for centre, around in enumerate(self.neighbours)
            if len(around) == 4 and len({colours[atom] for atom in around}) == 4
        )

    @cached_property
    def backbone(self) -> tuple[int, ...]:
        """The atoms that the dihedrals phi and psi pass through, ascending."""
        return tuple(sorted({atom for angles in (self.phi, self.psi) for angle in angles.values() for atom in angle}))

    @cached_property
    def backbone_classes(self) -> tuple[int, ...]:
        """One label an atom: its element, and one of its own for each backbone atom (Klein et al. 2023).

        Elements come first (H, C, N, O, then what else there is), whether an atom off the backbone has them or not.
        """
        elements = (*COMMON_ELEMENTS, *sorted(set(self.elements) - set(COMMON_ELEMENTS)))
        labels = [elements.index(element) for element in self.elements]
        for count, atom in enumerate(self.backbone):
            labels[atom] = len(elements) + count
        return tuple(labels)

    @cached_property
    def distinct_classes(self) -> tuple[int, ...]:
        """One label an atom, all different but those of hydrogens on the same carbon (Klein and Noé 2024)."""
        first_on: dict[int, int] = {}
        alike = []
        for atom in range(self.atoms):
            carbon = self._carbon_of(atom)
            alike.append(atom if carbon is None else first_on.setdefault(carbon, atom))
        labels = {atom: label for label, atom in enumerate(dict.fromkeys(alike))}
        return tuple(labels[atom] for atom in alike)

    def beyond(self, i: int, j: int) -> tuple[int, ...]:
        """The atoms that are reached from bond i-j through j, j among them, ascending: what turns about the bond.

        Errors: ValueError where i and j are not bonded, or are in one ring.
        """
        if j not in self.neighbours[i]:
            raise ValueError(f"a molecule turns about a bond, got atoms {i} and {j} without one; give a pair in bonds")
        if self.in_ring(i, j):
            raise ValueError(f"a bond in a ring does not turn, got {i}-{j}; give one outside rings")
        return tuple(sorted(self._reached(j, without=i)))

    def in_ring(self, i: int, j: int) -> bool:
        """Whether bonded atoms i and j are joined by another way as well."""
        found = self._reached(j, without=i)
        return any(atom in found for atom in self.neighbours[i] if atom != j)

    @cached_property
    def _backbones(self) -> list[tuple[int, int | None, tuple[int, int, int], int | None]]:
        """(number, C before, (N, CA, C), N after) of every residue that has N, CA and C."""
        keys = zip(self.residue_numbers, self.names, strict=True)
        index = {key: atom for atom, key in enumerate(keys)}
        found = []
        for number in dict.fromkeys(self.residue_numbers):
            n, ca, c = (index.get((number, name)) for name in ("N", "CA", "C"))
            if n is not None and ca is not None and c is not None:
                found.append((number, self._linked(n, "C"), (n, ca, c), self._linked(c, "N")))
        return found

    def _linked(self, atom: int, name: str) -> int | None:
        """The neighbour of that name in another residue."""
        own = self.residue_numbers[atom]
        found = (k for k in self.neighbours[atom] if self.names[k] == name and self.residue_numbers[k] != own)
        return next(found, None)

    @cached_property
    def _colours(self) -> tuple[int, ...]:
        """Equal for atoms that elements and bonds do not tell apart, refined until nothing changes."""
        signs: list[object] = list(self.elements)
        while True:
            labels = {sign: label for label, sign in enumerate(dict.fromkeys(signs))}
            colours = tuple(labels[sign] for sign in signs)
            signs = [(colours[k], tuple(sorted(colours[j] for j in self.neighbours[k]))) for k in range(self.atoms)]
            if len(set(signs)) == len(labels):
                return colours

    def _oriented(self, around: tuple[int, ...]) -> tuple[int, int, int]:
        by_name = {self.names[atom]: atom for atom in around}
        if all(name in by_name for name in ALPHA_CARBON_NEIGHBOURS):
            a, b, c = (by_name[name] for name in ALPHA_CARBON_NEIGHBOURS)
        else:
            hydrogens = [atom for atom in around if self.elements[atom] == "H"]
            a, b, c = (atom for atom in around if atom != (hydrogens or around)[-1])
        return a, b, c

    def _carbon_of(self, atom: int) -> int | None:
        """The carbon that a hydrogen is bonded to."""
        if self.elements[atom] != "H":
            return None
        holder = self.neighbours[atom][0]
        return holder if self.elements[holder] == "C" else None

    def _reached(self, start: int, *, without: int | None = None) -> set[int]:
        """The atoms that bonds lead to where one is taken away."""
        found, front = {start}, [start]
        while front:
            atom = front.pop()
            fresh = [k for k in self.neighbours[atom] if k not in found and k != without]
            found.update(fresh)
            front.extend(fresh)
        return found

    def _check_columns(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("names", "elements", "residue_names", "residue_numbers")}
        if len(set(lengths.values())) != 1 or not self.names:
            raise ValueError(f"a topology needs one entry an atom in every column, got {lengths}; fill the short ones")
        twice = [key for key, n in Counter(zip(self.residue_numbers, self.names, strict=True)).items() if n > 1]
        if twice:
            raise ValueError(
                f"names are unique within a residue, got {twice} more than once; number them (H1, H2, ...)"
            )

    def _check_bonds(self) -> None:
        astray = [bond for bond in self.bonds if bond[0] == bond[1] or not set(bond) <= set(range(self.atoms))]
        if astray:
            raise ValueError(f"a bond joins two of {self.atoms} atoms, got {astray}; count atoms from zero")
        twice = [bond for bond, n in Counter(tuple(sorted(bond)) for bond in self.bonds).items() if n > 1]
        if twice:
            raise ValueError(f"each bond is given once, got {twice} more often; drop the copies")
        loose = [k for k, e in enumerate(self.elements) if e == "H" and len(self.neighbours[k]) != 1]
        if loose:
            raise ValueError(f"a hydrogen has one bond, got {loose} with none or several; correct the bonds")
        reached = len(self._reached(0))
        if reached != self.atoms:
            raise ValueError(
                f"a molecule is in one piece, got {reached} of {self.atoms} atoms that bonds lead to from the first; "
                "add the bonds that are missing"
            )
