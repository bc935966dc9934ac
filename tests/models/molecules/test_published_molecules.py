"""Published files of molecules: units are told by bonds, and mix-ups by ten, of atoms or of the mirror are refused.

Shapes: B rows, D coordinates, N atoms.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Target
from models.molecules.classical import alanine_dipeptide
from models.reference.published import read_published
from models.targets import dw4

AD2 = alanine_dipeptide()
GOLDEN = Path(__file__).parents[2] / "golden" / "ad2_geometry.npz"


@pytest.fixture(scope="module")
def x_BD() -> Tensor:
    """Nine configurations of the L form in nm."""
    with np.load(GOLDEN) as file:
        return AD2.space.project(torch.from_numpy(file["x_nm"][:9]).flatten(1))


def written(x_BD: Tensor, tmp_path: Path) -> Path:
    path = tmp_path / "published.npy"
    np.save(path, x_BD.numpy().astype(np.float32))
    return path


def read(path: Path, target: Target = AD2, **options: object) -> Tensor:
    """Without the remark that so few configurations of several temperatures are no samples."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not look like samples of")
        return read_published(path, target, dtype=torch.float64, **options)


@pytest.mark.parametrize(("unit", "per_nm"), [("nm", 1.0), ("angstrom", 10.0)])
@pytest.mark.parametrize("named", [True, False])
def test_either_unit_comes_out_in_nanometres(
    x_BD: Tensor, tmp_path: Path, unit: str, per_nm: float, named: bool
) -> None:
    path = written(per_nm * x_BD + 0.3, tmp_path)
    options = {"unit": unit} if named else {}
    torch.testing.assert_close(read(path, **options), x_BD, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("named", "per_nm", "true"), [("nm", 10.0, "angstrom"), ("angstrom", 1.0, "nm")])
def test_a_unit_that_the_bonds_deny_is_refused(
    x_BD: Tensor, tmp_path: Path, named: str, per_nm: float, true: str
) -> None:
    with pytest.raises(ValueError, match=rf"got unit='{named}' and bonds [\d.]+ times .* write unit='{true}'"):
        read(written(per_nm * x_BD, tmp_path), unit=named)


def test_another_unit_is_refused(x_BD: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in nm or Angstrom, got bonds that are 18\.\d times"):
        read(written(18.9 * x_BD, tmp_path))


def test_atoms_in_another_order_are_refused(x_BD: Tensor, tmp_path: Path) -> None:
    """The methyl carbon first, as some force fields have it."""
    order = [1, 0, *range(2, 22)]
    moved_BD = x_BD.unflatten(1, (22, 3))[:, order].flatten(1)
    with pytest.raises(ValueError, match=r"in the order of ad2-classical, got \d+ bonds .* HH31 CH3 HH32"):
        read(written(moved_BD, tmp_path))


def test_mirror_images_are_refused_where_they_are_most_and_told_where_they_are_some(
    x_BD: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"got 9 of 9 rows with mirror images; negate"):
        read(written(-x_BD, tmp_path))
    with pytest.warns(UserWarning, match="has 1 mirror images and 0 rows of mixed"):
        read(written(torch.cat([x_BD, -x_BD[:1]]), tmp_path))


def test_a_torn_molecule_is_told(x_BD: Tensor, tmp_path: Path) -> None:
    torn_BD = x_BD.clone()
    torn_BD[4, :3] *= 3.0
    with pytest.warns(UserWarning, match="1 of 9 rows with a bond over 1.5 times"):
        read(written(torn_BD, tmp_path))


def test_only_molecules_have_length_units(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a length unit is that of a molecule, got unit='nm' for dw4"):
        read(written(torch.randn(5, 8), tmp_path), dw4(), unit="nm")
