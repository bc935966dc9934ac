"""Reader of published reference samples: a `.npy` file of configurations, checked against the target it claims.

Shape suffixes: B rows, D coordinates.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.contracts import Space, Target
from models.reference.diagnostics import virial
from models.reference.pivots import Molecule
from models.reference.published_molecules import Unit, in_nanometres

TOLERATED_STANDARD_ERRORS = 5.0


def _load_rows(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(
            f"published samples are read from a file, got no file at {path}; write the path of a .npy file"
        )
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} must be a plain .npy array of numbers, got something else ({error}); write it by numpy.save, "
            "without Python objects"
        ) from error
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"{path} must hold one array, got an archive of {rows.files}; save the one array as .npy")
    return rows


def _check_rows(rows: np.ndarray, path: Path, dim: int) -> None:
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold real numbers, got dtype {rows.dtype}; save a float32 array")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(
            f"{path} must have shape (rows, {dim}), got {rows.shape}; flatten one configuration into each row"
        )
    if len(rows) < 2:
        raise ValueError(f"{path} must hold at least two rows, got {len(rows)}; give more samples")
    bad = int((~np.isfinite(rows)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{path} must be finite, got {bad} of {len(rows)} rows with NaN or infinity; drop those rows")


def _warn_unless_target(x_BD: Tensor, path: Path, target: Target) -> None:
    """The virial of the rows must be the degrees of freedom; see `diagnostics.virial` for what its error ignores."""
    mean, error = virial(target, x_BD)
    expected = target.space.degrees_of_freedom
    if not abs(mean - expected) <= TOLERATED_STANDARD_ERRORS * error:
        warnings.warn(
            f"{path} does not look like samples of {target.name}: <x . grad U> is {mean:.3f} +- {error:.3f} "
            f"instead of {expected} (plain standard error, rows taken as independent); "
            "check the energy's constants and the length unit",
            stacklevel=3,
        )


def read_rows(path: str | Path, space: Space, *, at_most: int | None = None) -> Tensor:
    """Rows of a `.npy` file as configurations, centre of mass removed, (B, D) in float64.

    Args:
        at_most: of more rows, that many are taken evenly over the whole file, which may hold one chain after another.

    Errors: ValueError for a missing or unreadable file, Python objects, a wrong width, fewer than two rows, or rows
    that are not finite.
    """
    path = Path(path)
    rows = _load_rows(path)
    _check_rows(rows, path, space.dim)
    if at_most is not None and len(rows) > at_most:
        rows = rows[np.arange(at_most) * len(rows) // at_most]
    return space.project(torch.from_numpy(rows.astype(np.float64)))


def read_published(
    path: str | Path,
    target: Target,
    *,
    first: int | None = None,
    dtype: torch.dtype = torch.float32,
    unit: Unit | None = None,
) -> Tensor:
    """Rows of a `.npy` file as samples of `target`, centre of mass removed, (B, D) in `dtype`.

    Those of a molecule may be in nm or Angstrom and come out in nm; bonds, order of atoms and handedness are checked
    (see `in_nanometres`).

    Warns where the virial <x . grad U> is more than five plain standard errors off the degrees of freedom: the samples
    then follow another energy, another unit, or are biased.

    Args:
        first: only so many rows from the start of the file; it must hold them.
        unit: of a molecule's file; None for the one that its bonds tell.

    Errors: ValueError as `read_rows`, for fewer rows than `first`, and where a molecule is not the target's.
    """
    path = Path(path)
    x_BD = read_rows(path, target.space)
    if first is not None and len(x_BD) < first:
        raise ValueError(
            f"{path} must hold the {first} rows that are asked for, got {len(x_BD)}; give more rows, or ask for fewer"
        )
    x_BD = x_BD[:first]
    if isinstance(target, Molecule):
        x_BD = in_nanometres(x_BD, target, path, unit=unit)
    elif unit is not None:
        raise ValueError(f"a length unit is that of a molecule, got unit={unit!r} for {target.name}; leave it out")
    _warn_unless_target(x_BD, path, target)
    x_BD = x_BD.to(dtype)
    target.space.check(x_BD, name=str(path))
    return x_BD
