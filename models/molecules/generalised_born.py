"""Implicit water: generalised Born with the radii of Onufriev, Bashford and Case (2004), and a surface-area term.

The radii follow from how far each atom is screened by all others (Hawkins, Cramer and Truhlar 1996); the surface term
is that of Schaefer, Bartels and Karplus (1998). This is OpenMM's GBSAOBCForce.

Shapes: N atoms, P pairs, B batch (contiguous). A leading 2 is the two sides of a pair: the second atom screening the
first, and the first screening the second. Units: nm, kJ/mol, elementary charges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.molecules.nonbonded import COULOMB_CONSTANT, PairGeometry
from models.molecules.parameters import ForceFieldParameters

RADIUS_OFFSET = 0.009
PROBE_RADIUS = 0.14
ALPHA, BETA, GAMMA = 1.0, 0.8, 4.85
"""Of the OBC II rescaling tanh(alpha psi - beta psi^2 + gamma psi^3)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneralisedBorn:
    """Parameters as tensors.

    Attributes:
        offset_radius_N1, radius_N1: without and with the offset.
        screened_2P1: offset radius of the atom that is screened. screening_2P1: scaled radius of the one that screens.
        pair_P1, self_N1: prefactors of 1 / f and of 1 / Born radius, negative for charges of one sign.
        surface_N1: surface energy of an atom whose Born radius is its radius.
    """

    offset_radius_N1: Tensor
    radius_N1: Tensor
    screened_2P1: Tensor
    screening_2P1: Tensor
    pair_P1: Tensor
    self_N1: Tensor
    surface_N1: Tensor


def generalised_born_tensors(parameters: ForceFieldParameters, like: Tensor) -> GeneralisedBorn:
    """In the dtype and on the device of `like`."""
    first_P, second_P = parameters.pair_atoms_2P
    offset_N = torch.as_tensor(parameters.radius_N) - RADIUS_OFFSET
    scaled_N = torch.as_tensor(parameters.scale_N) * offset_N
    charge_N, radius_N = torch.as_tensor(parameters.charge_N), torch.as_tensor(parameters.radius_N)
    strength = -COULOMB_CONSTANT * (1.0 / parameters.solute_dielectric - 1.0 / parameters.solvent_dielectric)
    values = {
        "offset_radius_N1": offset_N,
        "radius_N1": radius_N,
        "screened_2P1": torch.stack([offset_N[first_P], offset_N[second_P]]),
        "screening_2P1": torch.stack([scaled_N[second_P], scaled_N[first_P]]),
        "pair_P1": strength * charge_N[first_P] * charge_N[second_P],
        "self_N1": 0.5 * strength * charge_N.square(),
        "surface_N1": 4.0 * math.pi * parameters.surface_energy * (radius_N + PROBE_RADIUS).square(),
    }
    return GeneralisedBorn(**{name: value.unsqueeze(-1).to(like) for name, value in values.items()})


def screening(pairs: PairGeometry, terms: GeneralisedBorn, *, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """How much each atom of a pair is screened by the other, in 1/nm, (2, P, B), and its derivative by r over r.

    The integral of (2 pi r^4)^-1 over the part of the other's sphere that is outside the screened atom's. It runs from
    `near` to `far`, both at least the screened radius: they are equal where the other's sphere is swallowed.
    """
    r_PB = pairs.r2_PB * pairs.inverse_PB
    gap_2PB = r_PB - terms.screening_2P1
    near_2PB = torch.maximum(gap_2PB.abs(), terms.screened_2P1)
    far_2PB = torch.maximum(r_PB + terms.screening_2P1, terms.screened_2P1)
    l_2PB, u_2PB = near_2PB.reciprocal(), far_2PB.reciprocal()
    width_2PB = l_2PB - u_2PB
    lens_2PB = width_2PB * (l_2PB + u_2PB)
    moment_2PB = torch.addcmul(r_PB, terms.screening_2P1.square(), pairs.inverse_PB, value=-1.0)
    log_2PB = (u_2PB * near_2PB).log() * pairs.inverse_PB
    shell_2PB = torch.addcmul(width_2PB, lens_2PB, moment_2PB, value=-0.25).add(log_2PB, alpha=0.5)
    from_inside_2PB = terms.screened_2P1.reciprocal() + torch.minimum(gap_2PB, -terms.screened_2P1).reciprocal()
    integral_2PB = shell_2PB.add(from_inside_2PB, alpha=2.0)
    if not with_slope:
        return integral_2PB, None
    fall_2PB = torch.addcmul(shell_2PB, lens_2PB, r_PB, value=0.5) - width_2PB
    return integral_2PB, fall_2PB * -pairs.inverse_PB.square()


@dataclass(frozen=True, kw_only=True, eq=False)
class BornRadii:
    """Born radii (N, B), and the derivative of their logarithms by the screening that each atom has in all."""

    radius_NB: Tensor
    log_slope_NB: Tensor


def born_radii(screening_NB: Tensor, terms: GeneralisedBorn) -> BornRadii:
    """1 / B = 1 / offset radius - tanh(...) / radius."""
    psi_NB = 0.5 * terms.offset_radius_N1 * screening_NB
    bend_NB = torch.tanh(psi_NB * (ALPHA + psi_NB * (GAMMA * psi_NB - BETA)))
    radius_NB = (1.0 / terms.offset_radius_N1 - bend_NB / terms.radius_N1).reciprocal()
    slope_NB = (1.0 - bend_NB.square()) * (ALPHA + psi_NB * (3.0 * GAMMA * psi_NB - 2.0 * BETA))
    log_slope_NB = radius_NB * slope_NB * (0.5 * terms.offset_radius_N1 / terms.radius_N1)
    return BornRadii(radius_NB=radius_NB, log_slope_NB=log_slope_NB)


def generalised_born_energy(
    pairs: PairGeometry, pair_atoms_2P: Tensor, terms: GeneralisedBorn, *, with_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Energy (B,), and the weight of the central force (P, B) where asked for.

    A pair has the energy charge product / f, with f^2 = r^2 + B B' exp(-r^2 / (4 B B')) (Still et al. 1990). Forces are
    of two kinds: f depends on r, and on Born radii B that depend on all distances.
    """
    integral_2PB, slope_2PB = screening(pairs, terms, with_slope=with_weight)
    zero_NB = integral_2PB.new_zeros(len(terms.radius_N1), integral_2PB.shape[-1])
    screening_NB = zero_NB.index_add(0, pair_atoms_2P.flatten(), integral_2PB.flatten(0, 1))
    born = born_radii(screening_NB, terms)
    first_PB, second_PB = (born.radius_NB.index_select(0, atoms_P) for atoms_P in pair_atoms_2P)
    product_PB = first_PB * second_PB
    overlap_PB = torch.exp(pairs.r2_PB / product_PB * -0.25)
    f2_PB = torch.addcmul(pairs.r2_PB, product_PB, overlap_PB)
    pair_PB = terms.pair_P1 * f2_PB.rsqrt()
    self_NB = terms.self_N1 / born.radius_NB
    surface_NB = terms.surface_N1 * (terms.radius_N1 / born.radius_NB).pow(6)
    energy_B = pair_PB.sum(0) + (self_NB + surface_NB).sum(0)
    if slope_2PB is None:
        return energy_B, None
    per_f2_PB = pair_PB / f2_PB
    by_log_PB = per_f2_PB * overlap_PB * torch.add(product_PB, pairs.r2_PB, alpha=0.25)
    by_log_radius_NB = -self_NB - 6.0 * surface_NB
    for atoms_P in pair_atoms_2P:
        by_log_radius_NB = by_log_radius_NB.index_add(0, atoms_P, by_log_PB, alpha=-0.5)
    by_screening_NB = by_log_radius_NB * born.log_slope_NB
    weight_PB = torch.addcmul(per_f2_PB, per_f2_PB, overlap_PB, value=-0.25)
    for atoms_P, slope_PB in zip(pair_atoms_2P, slope_2PB, strict=True):
        weight_PB = torch.addcmul(weight_PB, by_screening_NB.index_select(0, atoms_P), slope_PB, value=-1.0)
    return energy_B, weight_PB
