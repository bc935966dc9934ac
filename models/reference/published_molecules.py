"""Reader of published configurations of a molecule: their length unit, order of atoms and handedness are checked.

Files of alanine dipeptide are found in Angstrom and in nm. Bonds tell which: heat changes them by a few hundredths.
Shapes: B rows, D = 3 N flat coordinates, K bonds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.molecules.geometry import bond_lengths, handedness
from models.reference.pivots import Molecule, start_of

Unit = Literal["nm", "angstrom"]
PER_NM: dict[Unit, float] = {"nm": 1.0, "angstrom": 10.0}
LARGEST_RATIO = 1.25
"""Of a bond's median to its length where the target starts, or the inverse."""
BROKEN_RATIO = 1.5
"""Of any bond of one row."""


def in_nanometres(x_BD: Tensor, target: Molecule, path: Path, *, unit: Unit | None = None) -> Tensor:
    """Configurations of the molecule in nm, whatever unit the file has.

    Warns of rows with broken bonds, and of some rows with another handedness than the target's start.

    Args:
        unit: that the file is said to have, or None for the one that bonds tell.

    Errors: ValueError where bonds fit no unit or another than the one said, where single bonds do not fit (atoms in
    another order), and where most rows are mirror images.
    """
    ratio_BK = _ratios(x_BD, target)
    found = _unit_of(float(ratio_BK.median()), path)
    if unit is not None and found != unit:
        raise ValueError(
            f"the bonds of {path} must fit {target.name} in the unit that is named, got unit={unit!r} and bonds "
            f"{float(ratio_BK.median()):.3g} times as long as in nm; write unit={found!r}"
        )
    _check_order(ratio_BK / PER_NM[found], target, path)
    broken = int((ratio_BK / PER_NM[found] > BROKEN_RATIO).any(1).sum())
    if broken:
        warnings.warn(
            f"{path} has {broken} of {len(x_BD)} rows with a bond over {BROKEN_RATIO} times its length; "
            "drop them unless they are meant",
            stacklevel=2,
        )
    _check_handedness(x_BD, target, path)
    return x_BD / PER_NM[found]


def _ratios(x_BD: Tensor, target: Molecule) -> Tensor:
    """Every bond over its length where the target starts, (B, K)."""
    bonds = target.topology.bonds
    return bond_lengths(x_BD, bonds) / bond_lengths(start_of(target)[None].to(x_BD), bonds)


def _unit_of(ratio: float, path: Path) -> Unit:
    for unit, per_nm in PER_NM.items():
        if 1 / LARGEST_RATIO < ratio / per_nm < LARGEST_RATIO:
            return unit
    raise ValueError(
        f"{path} must hold configurations in nm or Angstrom, got bonds that are {ratio:.3g} times as long as in nm; "
        "convert the coordinates, or name the molecule that they are of"
    )


def _check_order(ratio_BK: Tensor, target: Molecule, path: Path) -> None:
    """A molecule whose atoms are in another order has bonds that are none."""
    typical_K = ratio_BK.median(dim=0).values
    wrong = torch.nonzero((typical_K > LARGEST_RATIO) | (typical_K < 1 / LARGEST_RATIO)).flatten().tolist()
    if wrong:
        names = target.topology.names
        (i, j), ratio = target.topology.bonds[wrong[0]], float(typical_K[wrong[0]])
        raise ValueError(
            f"{path} must have its atoms in the order of {target.name}, got {len(wrong)} bonds that do not fit (first "
            f"that of atoms {i} {names[i]} and {j} {names[j]}, {ratio:.3g} times its length); "
            f"reorder the columns as {' '.join(names)}"
        )


def _check_handedness(x_BD: Tensor, target: Molecule, path: Path) -> None:
    sides = handedness(x_BD, target.topology)
    if 2 * sides.mirrored > len(x_BD):
        raise ValueError(
            f"{path} must hold L amino acids, got {sides.mirrored} of {len(x_BD)} rows with mirror images; "
            "negate the coordinates"
        )
    if sides.mirrored or sides.mixed:
        warnings.warn(
            f"{path} has {sides.mirrored} mirror images and {sides.mixed} rows of mixed handedness among {len(x_BD)}; "
            "drop them unless they are meant",
            stacklevel=3,
        )
