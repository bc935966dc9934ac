"""Harmonic bonds, harmonic angles and periodic torsions, each with its force in closed form.

Every function returns the energy (B,) in kJ/mol and, where a force is given, adds its own to it in place, kJ/mol/nm.

Shapes: N atoms, B batch (contiguous: operations are few and long), K terms of one kind. Lengths in nm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.molecules.parameters import ForceFieldParameters
from models.molecules.vectors import cross, dot

SMALLEST_SINE_AREA = 1e-6
"""nm^2: a straight angle has no plane to bend in; below this area its force is held finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bonded:
    """Parameters of the bonded terms as tensors: atoms (2, K), (3, K), (4, K), and values (K, 1)."""

    bond_atoms: Tensor
    bond_length: Tensor
    bond_constant: Tensor
    angle_atoms: Tensor
    angle: Tensor
    angle_constant: Tensor
    torsion_atoms: Tensor
    torsion_periodicity: Tensor
    torsion_phase: Tensor
    torsion_constant: Tensor


def bonded_tensors(parameters: ForceFieldParameters, like: Tensor) -> Bonded:
    """In the dtype and on the device of `like`."""

    def column(values: object) -> Tensor:
        return torch.as_tensor(values).to(like).unsqueeze(-1)

    def atoms(values: object) -> Tensor:
        return torch.as_tensor(values).long().t().contiguous().to(like.device)

    return Bonded(
        bond_atoms=atoms(parameters.bond_atoms_K2),
        bond_length=column(parameters.bond_length_K),
        bond_constant=column(parameters.bond_constant_K),
        angle_atoms=atoms(parameters.angle_atoms_K3),
        angle=column(parameters.angle_K),
        angle_constant=column(parameters.angle_constant_K),
        torsion_atoms=atoms(parameters.torsion_atoms_K4),
        torsion_periodicity=column(parameters.torsion_periodicity_K),
        torsion_phase=column(parameters.torsion_phase_K),
        torsion_constant=column(parameters.torsion_constant_K),
    )


def bond_energy(x_N3B: Tensor, terms: Bonded, force_N3B: Tensor | None = None) -> Tensor:
    """Sum of constant / 2 (r - length)^2."""
    first_K3B, second_K3B = (x_N3B.index_select(0, atoms) for atoms in terms.bond_atoms)
    along_K3B = first_K3B - second_K3B
    r_KB = dot(along_K3B, along_K3B).sqrt()
    stretch_KB = r_KB - terms.bond_length
    pull_KB = terms.bond_constant * stretch_KB
    if force_N3B is not None:
        pull_K3B = (pull_KB / r_KB).unsqueeze(1) * along_K3B
        force_N3B.index_add_(0, terms.bond_atoms[0], pull_K3B, alpha=-1)
        force_N3B.index_add_(0, terms.bond_atoms[1], pull_K3B)
    return 0.5 * (pull_KB * stretch_KB).sum(0)


def angle_energy(x_N3B: Tensor, terms: Bonded, force_N3B: Tensor | None = None) -> Tensor:
    """Sum of constant / 2 (theta - angle)^2, theta at the middle atom of each three."""
    first_K3B, middle_K3B, last_K3B = (x_N3B.index_select(0, atoms) for atoms in terms.angle_atoms)
    a_K3B, b_K3B = first_K3B - middle_K3B, last_K3B - middle_K3B
    normal_K3B = cross(a_K3B, b_K3B)
    area_KB = dot(normal_K3B, normal_K3B).clamp_min(SMALLEST_SINE_AREA**2).sqrt()
    bend_KB = torch.atan2(area_KB, dot(a_K3B, b_K3B)) - terms.angle
    torque_KB = terms.angle_constant * bend_KB
    if force_N3B is not None:
        per_area_KB = torque_KB / area_KB
        at_first_K3B = (per_area_KB / dot(a_K3B, a_K3B)).unsqueeze(1) * cross(normal_K3B, a_K3B)
        at_last_K3B = (per_area_KB / dot(b_K3B, b_K3B)).unsqueeze(1) * cross(b_K3B, normal_K3B)
        force_N3B.index_add_(0, terms.angle_atoms[0], at_first_K3B)
        force_N3B.index_add_(0, terms.angle_atoms[1], at_first_K3B + at_last_K3B, alpha=-1)
        force_N3B.index_add_(0, terms.angle_atoms[2], at_last_K3B)
    return 0.5 * (torque_KB * bend_KB).sum(0)


def torsion_energy(x_N3B: Tensor, terms: Bonded, force_N3B: Tensor | None = None) -> Tensor:
    """Sum of constant (1 + cos(n phi - phase)), with phi in the sign of IUPAC (Blondel and Karplus 1996)."""
    x0_K3B, x1_K3B, x2_K3B, x3_K3B = (x_N3B.index_select(0, atoms) for atoms in terms.torsion_atoms)
    a_K3B, axis_K3B, c_K3B = x1_K3B - x0_K3B, x2_K3B - x1_K3B, x3_K3B - x2_K3B
    m_K3B, n_K3B = cross(a_K3B, axis_K3B), cross(axis_K3B, c_K3B)
    axis2_KB = dot(axis_K3B, axis_K3B)
    length_KB = axis2_KB.sqrt()
    phi_KB = torch.atan2(length_KB * dot(a_K3B, n_K3B), dot(m_K3B, n_K3B))
    phase_KB = terms.torsion_periodicity * phi_KB - terms.torsion_phase
    if force_N3B is not None:
        torque_KB = terms.torsion_constant * terms.torsion_periodicity * phase_KB.sin() * length_KB
        at0_K3B = (-torque_KB / dot(m_K3B, m_K3B)).unsqueeze(1) * m_K3B
        at3_K3B = (torque_KB / dot(n_K3B, n_K3B)).unsqueeze(1) * n_K3B
        s_K1B = (dot(a_K3B, axis_K3B) / axis2_KB).unsqueeze(1)
        t_K1B = (dot(c_K3B, axis_K3B) / axis2_KB).unsqueeze(1)
        between_K3B = s_K1B * at0_K3B - t_K1B * at3_K3B
        force_N3B.index_add_(0, terms.torsion_atoms[0], at0_K3B)
        force_N3B.index_add_(0, terms.torsion_atoms[1], at0_K3B + between_K3B, alpha=-1)
        force_N3B.index_add_(0, terms.torsion_atoms[2], between_K3B - at3_K3B)
        force_N3B.index_add_(0, terms.torsion_atoms[3], at3_K3B)
    return (terms.torsion_constant * (1.0 + phase_KB.cos())).sum(0)
