"""A molecule as it is kept in a file: its topology, its force field, and one configuration to start from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from models.molecules.lengths import require_nanometres
from models.molecules.parameters import ForceFieldParameters, as_arrays, from_arrays, read_arrays
from models.molecules.topology import MolecularTopology

DATA = Path(__file__).parent / "data"
_COLUMNS = tuple(field.name for field in fields(MolecularTopology))


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenMolecule:
    """Topology, parameters, and positions near a minimum, (N, 3) in nm.

    Errors: ValueError where they are not of the same molecule, or the positions not in nanometres.
    """

    topology: MolecularTopology
    parameters: ForceFieldParameters
    start_N3: np.ndarray

    def __post_init__(self) -> None:
        atoms = self.topology.atoms
        if self.parameters.atoms != atoms or self.start_N3.shape != (atoms, 3):
            raise ValueError(
                f"topology, parameters and positions are of one molecule, got {atoms} atoms, {self.parameters.atoms} "
                f"and an array of shape {self.start_N3.shape}; give all three in the same order of atoms"
            )
        force_field_bonds = {tuple(sorted(map(int, pair))) for pair in self.parameters.bond_atoms_K2}
        strangers = sorted(force_field_bonds - {tuple(sorted(pair)) for pair in self.topology.bonds})
        if strangers:
            raise ValueError(
                f"the force field's bonds are bonds of the topology, got {strangers[:5]} which are none; "
                "give both in the same order of atoms"
            )
        require_nanometres(torch.as_tensor(self.start_N3).reshape(1, -1), self.parameters)

    def save(self, path: Path) -> None:
        """Write one compressed file; equal molecules give equal bytes."""
        columns = {name: np.asarray(getattr(self.topology, name)) for name in _COLUMNS}
        np.savez_compressed(path, allow_pickle=False, **as_arrays(self.parameters), **columns, start_N3=self.start_N3)


def read_molecule(path: Path) -> FrozenMolecule:
    """The inverse of `FrozenMolecule.save`.

    Errors: ValueError for a file that is missing or damaged.
    """
    arrays = read_arrays(path)
    missing = [name for name in (*_COLUMNS, "start_N3") if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} must hold a molecule, got none of {', '.join(missing)}; "
            "write it again by python -m models.molecules.freeze"
        )
    topology = MolecularTopology(
        names=tuple(arrays["names"].tolist()),
        elements=tuple(arrays["elements"].tolist()),
        residue_names=tuple(arrays["residue_names"].tolist()),
        residue_numbers=tuple(arrays["residue_numbers"].tolist()),
        bonds=tuple((int(i), int(j)) for i, j in arrays["bonds"]),
    )
    return FrozenMolecule(topology=topology, parameters=from_arrays(arrays), start_N3=arrays["start_N3"])
