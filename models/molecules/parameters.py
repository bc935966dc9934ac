"""The frozen parameters of a classical force field: plain arrays in one small file, in OpenMM's units.

Units: nm, kJ/mol, radians, dalton, elementary charges. Shapes: N atoms, K terms of one kind, P = N (N - 1) / 2 pairs in
the order of `numpy.triu_indices(N, 1)`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

TERM_ATOMS = {"bond": 2, "angle": 3, "torsion": 4}
"""Kinds of bonded terms, and how many atoms each joins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForceFieldParameters:
    """One molecule in one force field, exceptions of the non-bonded pairs already in the values of each pair.

    Attributes:
        origin: what the numbers were made from.
        mass_N: dalton.
        bond_atoms_K2, bond_length_K, bond_constant_K: constant / 2 (r - length)^2.
        angle_atoms_K3, angle_K, angle_constant_K: constant / 2 (theta - angle)^2.
        torsion_atoms_K4, torsion_periodicity_K, torsion_phase_K, torsion_constant_K: constant (1 + cos(n phi - phase)).
        charge_product_P, sigma_P, epsilon_P: of every pair; the first and the last are zero where two are excluded.
        charge_N, radius_N, scale_N: of generalised Born, or no entries in vacuum.
        solute_dielectric, solvent_dielectric: relative. surface_energy: kJ/mol/nm^2.

    Errors: ValueError for arrays of wrong shapes, atoms that do not exist, and numbers that are not finite.
    """

    origin: str
    mass_N: np.ndarray
    bond_atoms_K2: np.ndarray
    bond_length_K: np.ndarray
    bond_constant_K: np.ndarray
    angle_atoms_K3: np.ndarray
    angle_K: np.ndarray
    angle_constant_K: np.ndarray
    torsion_atoms_K4: np.ndarray
    torsion_periodicity_K: np.ndarray
    torsion_phase_K: np.ndarray
    torsion_constant_K: np.ndarray
    charge_product_P: np.ndarray
    sigma_P: np.ndarray
    epsilon_P: np.ndarray
    charge_N: np.ndarray
    radius_N: np.ndarray
    scale_N: np.ndarray
    solute_dielectric: float
    solvent_dielectric: float
    surface_energy: float

    def __post_init__(self) -> None:
        for name, expected in self._expected_shapes().items():
            array = getattr(self, name)
            if array.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {array.shape}; {_AGAIN}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite, got NaN or infinity; {_AGAIN}")
        for name in ("bond_atoms_K2", "angle_atoms_K3", "torsion_atoms_K4"):
            atoms = getattr(self, name)
            if atoms.size and not (atoms.min() >= 0 and atoms.max() < self.atoms):
                raise ValueError(
                    f"{name} must name atoms 0 to {self.atoms - 1}, got {atoms.min()} to {atoms.max()}; {_AGAIN}"
                )

    @property
    def atoms(self) -> int:
        """How many there are."""
        return len(self.mass_N)

    @property
    def has_solvent(self) -> bool:
        """Whether the molecule is in implicit water."""
        return len(self.charge_N) > 0

    @cached_property
    def pair_atoms_2P(self) -> np.ndarray:
        """First and second atoms of all pairs."""
        return np.stack(np.triu_indices(self.atoms, 1))

    def _expected_shapes(self) -> dict[str, tuple[int, ...]]:
        pairs = self.atoms * (self.atoms - 1) // 2
        shapes: dict[str, tuple[int, ...]] = {
            f"{kind}_atoms_K{n}": (len(getattr(self, f"{kind}_constant_K")), n) for kind, n in TERM_ATOMS.items()
        }
        shapes |= {name: (len(self.bond_constant_K),) for name in ("bond_length_K", "bond_constant_K")}
        shapes |= {name: (len(self.angle_constant_K),) for name in ("angle_K", "angle_constant_K")}
        torsions = ("torsion_periodicity_K", "torsion_phase_K", "torsion_constant_K")
        shapes |= {name: (len(self.torsion_constant_K),) for name in torsions}
        shapes |= dict.fromkeys(("charge_product_P", "sigma_P", "epsilon_P"), (pairs,))
        born = self.atoms if self.has_solvent else 0
        return {"mass_N": (self.atoms,), **shapes, **dict.fromkeys(("charge_N", "radius_N", "scale_N"), (born,))}


_AGAIN = "freeze the System again (python -m models.molecules.freeze)"
_FIELDS = tuple(field.name for field in fields(ForceFieldParameters))


def as_arrays(parameters: ForceFieldParameters) -> dict[str, np.ndarray]:
    """By name, as `numpy.savez` takes them."""
    return {name: np.asarray(getattr(parameters, name)) for name in _FIELDS}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> ForceFieldParameters:
    """The inverse of `as_arrays`; other names are left out.

    Errors: ValueError for missing names, and for what `ForceFieldParameters` refuses.
    """
    missing = [name for name in _FIELDS if name not in arrays]
    if missing:
        raise ValueError(f"parameters have the arrays {', '.join(_FIELDS)}, got none of {', '.join(missing)}; {_AGAIN}")
    values: dict[str, Any] = {name: arrays[name] if arrays[name].ndim else arrays[name].item() for name in _FIELDS}
    return ForceFieldParameters(**values)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file that `python -m models.molecules.freeze` wrote.

    Errors: ValueError for a file that is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"parameters are read from a file, got none at {path}; {_AGAIN}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must hold arrays by name, got something damaged ({error}); {_AGAIN}") from error
