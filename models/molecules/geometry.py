"""What configurations of a molecule look like: dihedral angles, lengths of bonds, and the side of the mirror.

Everything is differentiable where it is smooth, and works in any length unit.
Shapes: B batch, N atoms, D = 3 N, K angles, bonds or centres.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.molecules.topology import MolecularTopology, Quadruple


def particles_of(x_BD: Tensor) -> Tensor:
    """(B, D) -> (B, N, 3)."""
    return x_BD.unflatten(-1, (-1, 3))


def dihedrals(x_BD: Tensor, atoms: Iterable[Quadruple]) -> Tensor:
    """Angles (B, K) in (-pi, pi], zero where the outer atoms eclipse, positive clockwise along the axis (IUPAC 1970).

    Not differentiable where three atoms in a row lie on one line.
    """
    i_BK3, j_BK3, k_BK3, l_BK3 = _columns(x_BD, atoms, 4)
    before_BK3, axis_BK3, after_BK3 = j_BK3 - i_BK3, k_BK3 - j_BK3, l_BK3 - k_BK3
    normal_BK3, other_BK3 = torch.linalg.cross(before_BK3, axis_BK3), torch.linalg.cross(axis_BK3, after_BK3)
    sine_BK = (before_BK3 * other_BK3).sum(-1) * axis_BK3.norm(dim=-1)
    return torch.atan2(sine_BK, (normal_BK3 * other_BK3).sum(-1))


def bond_lengths(x_BD: Tensor, bonds: Iterable[tuple[int, int]]) -> Tensor:
    """(B, K)."""
    i_BK3, j_BK3 = _columns(x_BD, bonds, 2)
    return (i_BK3 - j_BK3).norm(dim=-1)


def chirality(x_BD: Tensor, centres: Iterable[Quadruple]) -> Tensor:
    """Handedness (B, K) of centres (centre, a, b, c): the volume that unit vectors to a, b, c span, in [-1, 1].

    About 0.77 in magnitude at a tetrahedral centre and positive for an L amino acid.
    """
    centre_BK3, *around = _columns(x_BD, centres, 4)
    a_BK3, b_BK3, c_BK3 = (torch.nn.functional.normalize(atom_BK3 - centre_BK3, dim=-1) for atom_BK3 in around)
    return (torch.linalg.cross(a_BK3, b_BK3) * c_BK3).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Handedness:
    """How many configurations have every centre on the L side, none, or only some (which no mirror can mend)."""

    natural: int
    mirrored: int
    mixed: int


def handedness(x_BD: Tensor, topology: MolecularTopology) -> Handedness:
    """Counts over a batch. A molecule without centres has no mirror image of its own: all are natural."""
    positive_BK = chirality(x_BD, topology.chirality_centres) > 0
    natural, mirrored = int(positive_BK.all(1).sum()), int(_is_mirrored(x_BD, topology).sum())
    return Handedness(natural=natural, mirrored=mirrored, mixed=len(x_BD) - natural - mirrored)


def naturally_handed(x_BD: Tensor, topology: MolecularTopology) -> Tensor:
    """The same rows, with those of which every centre is on the D side reflected at the origin.

    A flow whose field follows reflections makes both images equally likely and with the same density, which may be
    doubled for a target that allows one of them (Klein et al. 2023).
    """
    return torch.where(_is_mirrored(x_BD, topology)[:, None], -x_BD, x_BD)


def _is_mirrored(x_BD: Tensor, topology: MolecularTopology) -> Tensor:
    if not topology.chirality_centres:
        return torch.zeros(len(x_BD), dtype=torch.bool, device=x_BD.device)
    return (chirality(x_BD, topology.chirality_centres) < 0).all(1)


def _columns(x_BD: Tensor, atoms: Iterable[tuple[int, ...]], width: int) -> list[Tensor]:
    """Positions (B, K, 3) of the first, second, ... atom of every tuple, of which there may be none."""
    index_Kn = torch.tensor(list(atoms), dtype=torch.long, device=x_BD.device).reshape(-1, width)
    return list(particles_of(x_BD)[:, index_Kn].unbind(2))
