"""Lennard-Jones and Coulomb energies of all pairs, without a cutoff, and the pair geometry that they share with others.

Shapes: N atoms, P = N (N - 1) / 2 pairs, B batch (contiguous). Units: nm, kJ/mol, elementary charges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.molecules.parameters import ForceFieldParameters
from models.molecules.vectors import dot

COULOMB_CONSTANT = 138.93545764438198
"""1 / (4 pi eps0) in kJ nm / mol, from CODATA 2018 as OpenMM has it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairGeometry:
    """Every unordered pair once: difference of positions (P, 3, B), its square and one over its length (P, B)."""

    along_P3B: Tensor
    r2_PB: Tensor
    inverse_PB: Tensor


def pair_geometry(x_N3B: Tensor, pair_atoms_2P: Tensor) -> PairGeometry:
    """Of the pairs (first, second)."""
    first_P3B, second_P3B = (x_N3B.index_select(0, atoms) for atoms in pair_atoms_2P)
    along_P3B = first_P3B - second_P3B
    r2_PB = dot(along_P3B, along_P3B)
    return PairGeometry(along_P3B=along_P3B, r2_PB=r2_PB, inverse_PB=r2_PB.reciprocal().sqrt())


def add_central_force(force_N3B: Tensor, weight_PB: Tensor, pairs: PairGeometry, pair_atoms_2P: Tensor) -> None:
    """Add, in place, the weight times the difference to the first atom of each pair, and its opposite to the second.

    The weight is -E'(r) / r.
    """
    force_P3B = weight_PB.unsqueeze(1) * pairs.along_P3B
    force_N3B.index_add_(0, pair_atoms_2P[0], force_P3B)
    force_N3B.index_add_(0, pair_atoms_2P[1], force_P3B, alpha=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nonbonded:
    """Coefficients of r^-12, r^-6 and r^-1, each (P, 1), signs as in the energy."""

    r12: Tensor
    r6: Tensor
    r1: Tensor


def nonbonded_tensors(parameters: ForceFieldParameters, like: Tensor) -> Nonbonded:
    """In the dtype and on the device of `like`."""
    sigma6 = parameters.sigma_P**6
    coefficients = {
        "r12": 4.0 * parameters.epsilon_P * sigma6**2,
        "r6": -4.0 * parameters.epsilon_P * sigma6,
        "r1": COULOMB_CONSTANT * parameters.charge_product_P,
    }
    return Nonbonded(**{name: torch.as_tensor(values).to(like).unsqueeze(-1) for name, values in coefficients.items()})


def nonbonded_energy(pairs: PairGeometry, terms: Nonbonded, *, with_weight: bool) -> tuple[Tensor, Tensor | None]:
    """Energy (B,), and the weight of the central force (P, B) where asked for."""
    inverse2_PB = pairs.inverse_PB.square()
    inverse6_PB = inverse2_PB * inverse2_PB.square()
    repulsion_PB = terms.r12 * inverse6_PB
    coulomb_PB = terms.r1 * pairs.inverse_PB
    energy_PB = torch.addcmul(coulomb_PB, inverse6_PB, repulsion_PB + terms.r6)
    if not with_weight:
        return energy_PB.sum(0), None
    slope_PB = torch.addcmul(coulomb_PB, inverse6_PB, 12.0 * repulsion_PB + 6.0 * terms.r6)
    return energy_PB.sum(0), slope_PB * inverse2_PB
