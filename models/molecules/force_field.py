"""The energy and force of a molecule in a classical force field: bonds, angles, torsions, pairs, implicit water.

Shapes: B batch, D = 3 N flat coordinates, N atoms, P pairs. Units: nm, kJ/mol. Inside, configurations are the
contiguous axis (N, 3, B), so that operations are few and long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.molecules.bonded import Bonded, angle_energy, bond_energy, bonded_tensors, torsion_energy
from models.molecules.generalised_born import GeneralisedBorn, generalised_born_energy, generalised_born_tensors
from models.molecules.nonbonded import (
    Nonbonded,
    add_central_force,
    nonbonded_energy,
    nonbonded_tensors,
    pair_geometry,
)
from models.molecules.parameters import ForceFieldParameters

BYTES_OF_PAIRS = 1 << 20
"""One number for each pair of the configurations that a CPU works on at once: arrays of them stay in the caches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """All parameters as tensors of one dtype on one device."""

    pair_atoms_2P: Tensor
    bonded: Bonded
    nonbonded: Nonbonded
    generalised_born: GeneralisedBorn | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ForceField:
    """A molecule's classical energy, in the dtype and on the device of the coordinates that it is given."""

    parameters: ForceFieldParameters
    _placed: dict[tuple[torch.dtype, torch.device], Terms] = field(default_factory=dict, init=False, repr=False)

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) in nm -> (B,) in kJ/mol, differentiable. Infinite where it has no finite value."""
        return self._in_pieces(x_BD, with_force=False)[0]

    def energy_and_force(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) in kJ/mol and (B, D) in kJ/mol/nm; the force is written out by hand and is differentiable once more.

        Coordinates of the force are the slow axis of its memory. It is not finite where atoms coincide.
        """
        energy_B, force_BD = self._in_pieces(x_BD, with_force=True)
        assert force_BD is not None
        return energy_B, force_BD

    def _in_pieces(self, x_BD: Tensor, *, with_force: bool) -> tuple[Tensor, Tensor | None]:
        terms = self._terms(x_BD)
        row_bytes = terms.pair_atoms_2P.shape[1] * x_BD.element_size()
        rows = max(1, BYTES_OF_PAIRS // row_bytes if x_BD.device.type == "cpu" else len(x_BD))
        x_N3B = x_BD.t().unflatten(0, (-1, 3))
        done = [_energy_and_force(piece.contiguous(), terms, with_force) for piece in x_N3B.split(rows, dim=-1)]
        energy_B = torch.cat([energy for energy, _ in done])
        energy_B = torch.where(torch.isfinite(energy_B), energy_B, torch.inf)
        if not with_force:
            return energy_B, None
        force_DB = torch.cat([force.flatten(0, 1) for _, force in done if force is not None], dim=-1)
        return energy_B, force_DB.t()

    def _terms(self, like: Tensor) -> Terms:
        key = (like.dtype, like.device)
        if key not in self._placed:
            self._placed[key] = place(self.parameters, like)
        return self._placed[key]


def place(parameters: ForceFieldParameters, like: Tensor) -> Terms:
    """The parameters as tensors in the dtype and on the device of `like`."""
    return Terms(
        pair_atoms_2P=torch.as_tensor(parameters.pair_atoms_2P).to(like.device),
        bonded=bonded_tensors(parameters, like),
        nonbonded=nonbonded_tensors(parameters, like),
        generalised_born=generalised_born_tensors(parameters, like) if parameters.has_solvent else None,
    )


def _energy_and_force(x_N3B: Tensor, terms: Terms, with_force: bool) -> tuple[Tensor, Tensor | None]:
    force_N3B = torch.zeros_like(x_N3B) if with_force else None
    energy_B = bond_energy(x_N3B, terms.bonded, force_N3B)
    energy_B = energy_B + angle_energy(x_N3B, terms.bonded, force_N3B)
    energy_B = energy_B + torsion_energy(x_N3B, terms.bonded, force_N3B)
    pairs = pair_geometry(x_N3B, terms.pair_atoms_2P)
    pair_energy_B, weight_PB = nonbonded_energy(pairs, terms.nonbonded, with_weight=with_force)
    energy_B = energy_B + pair_energy_B
    if terms.generalised_born is not None:
        born_energy_B, born_weight_PB = generalised_born_energy(
            pairs, terms.pair_atoms_2P, terms.generalised_born, with_weight=with_force
        )
        energy_B = energy_B + born_energy_B
        weight_PB = None if weight_PB is None or born_weight_PB is None else weight_PB + born_weight_PB
    if force_N3B is not None and weight_PB is not None:
        add_central_force(force_N3B, weight_PB, pairs, terms.pair_atoms_2P)
    return energy_B, force_N3B
