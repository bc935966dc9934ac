"""A molecule in a classical force field as a target: AD2-classical.

Shape suffixes: B batch, D = 3 N flat coordinates, N atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from models.contracts import Space
from models.molecules.force_field import ForceField
from models.molecules.frozen import DATA, FrozenMolecule, read_molecule
from models.molecules.lengths import require_nanometres
from models.molecules.topology import MolecularTopology
from models.targets.width import require_width

BOLTZMANN_CONSTANT = 0.00831446261815324
"""kJ/mol/K."""
PAIR_FLOPS, BORN_PAIR_FLOPS, BORN_ATOM_FLOPS = 26, 80, 40
BOND_FLOPS, ANGLE_FLOPS, TORSION_FLOPS = 15, 45, 95


@dataclass(frozen=True, kw_only=True, eq=False)
class MolecularTarget:
    """exp(-U / kT) of a molecule, coordinates in nm, atom by atom in the order of its topology.

    A charge without Lennard-Jones radius (some polar hydrogens of other force fields) makes an energy without lower
    bound where atoms coincide; there, and wherever the energy has no finite value, it is +inf.

    Args:
        name: what reports call it. molecule: topology, parameters, start. temperature: in kelvin.
    """

    name: str
    molecule: FrozenMolecule
    temperature: float = 300.0
    log_z: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"a temperature in kelvin is positive, got {self.temperature}; write for example 300.0")

    @property
    def space(self) -> Space:
        """Mean-free; only hydrogens on the same carbon may change places, which is all that the energy allows."""
        return Space(dim=3 * self.topology.atoms, particles=self.topology.atoms, types=self.topology.distinct_classes)

    @property
    def topology(self) -> MolecularTopology:
        return self.molecule.topology

    @property
    def thermal_energy(self) -> float:
        """kT in kJ/mol."""
        return BOLTZMANN_CONSTANT * self.temperature

    @property
    def start_D(self) -> Tensor:
        """A configuration near a minimum, (D,) in float64, centre of mass at the origin."""
        return self.space.project(torch.as_tensor(self.molecule.start_N3, dtype=torch.float64).flatten())

    @property
    def energy_flops(self) -> int:
        """Operations of all pairs and terms, roots and exponentials counted as one each."""
        parameters = self.molecule.parameters
        born = parameters.has_solvent
        return (
            len(parameters.charge_product_P) * (PAIR_FLOPS + born * BORN_PAIR_FLOPS)
            + born * parameters.atoms * BORN_ATOM_FLOPS
            + len(parameters.bond_constant_K) * BOND_FLOPS
            + len(parameters.angle_constant_K) * ANGLE_FLOPS
            + len(parameters.torsion_constant_K) * TORSION_FLOPS
        )

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT. Infinite where it has no finite value, as where two atoms coincide."""
        require_width(x_BD, self.space, self.name)
        return self._force_field.energy(x_BD) / self.thermal_energy

    def score(self, x_BD: Tensor) -> Tensor:
        """Minus the gradient of the energy, (B, D) -> (B, D), mean-free. Not finite where two atoms coincide."""
        require_width(x_BD, self.space, self.name)
        return self._force_field.energy_and_force(x_BD)[1] / self.thermal_energy

    @torch.no_grad()
    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and score (B, D) without a graph, at the price of the score alone."""
        require_width(x_BD, self.space, self.name)
        energy_B, force_BD = self._force_field.energy_and_force(x_BD)
        return energy_B / self.thermal_energy, force_BD / self.thermal_energy

    def require_nanometres(self, x_BD: Tensor) -> None:
        """Raise ValueError where bonds tell that coordinates are in another unit."""
        require_width(x_BD, self.space, self.name)
        require_nanometres(x_BD, self.molecule.parameters)

    @cached_property
    def _force_field(self) -> ForceField:
        return ForceField(parameters=self.molecule.parameters)


def alanine_dipeptide(*, temperature: float = 300.0) -> MolecularTarget:
    """Ace-Ala-Nme, 22 atoms, Amber ff99SB-ILDN in OBC generalised Born water, no cutoff and no constraints.

    The "classical" alanine dipeptide of Klein et al. 2023 at 300 K.
    """
    molecule = read_molecule(DATA / "alanine_dipeptide.npz")
    return MolecularTarget(name="ad2-classical", molecule=molecule, temperature=temperature)
