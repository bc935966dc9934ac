"""Four atoms in a chain whose dihedral angle has a density that quadrature knows.

Bonds and angles are harmonic; the torsion adds a potential of the dihedral alone. In Cartesian coordinates the volume
element does not know the dihedral, so that its density is exp(-torsion) / Z whatever the bonds and angles are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.contracts import Space
from models.molecules.building import built
from models.molecules.geometry import bond_lengths, dihedrals, particles_of
from models.molecules.topology import MolecularTopology

TOPOLOGY = MolecularTopology(
    names=("C", "N", "CA", "C"),
    elements=("C", "N", "C", "C"),
    residue_names=("X", "Y", "Y", "Y"),
    residue_numbers=(1, 2, 2, 2),
    bonds=((0, 1), (1, 2), (2, 3)),
)
PHI = TOPOLOGY.phi[2]
LENGTH, ANGLE = 1.0, 1.9
STRETCH, BEND = 200.0, 60.0


def torsion(phi: Tensor, *, sine: float = 1.5) -> Tensor:
    """Two basins of unequal depth, nine kT from the top of the barrier, and no symmetry where there is a sine."""
    return 4.0 * torch.cos(2 * phi) + sine * torch.sin(phi) + 0.7 * torch.cos(phi)


def density_on_grid(points: int = 3600) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints of equal cells of (-pi, pi), and the probability of each."""
    phi = (np.arange(points) + 0.5) * 2 * math.pi / points - math.pi
    weight = np.exp(-torsion(torch.from_numpy(phi)).numpy())
    return phi, weight / weight.sum()


@dataclass(frozen=True, kw_only=True)
class FourAtoms:
    """A Molecule. With a sine it knows left from right, which no target of a study may."""

    name: str = "four atoms"
    log_z: None = field(default=None, init=False)
    energy_flops: int = 100
    topology: MolecularTopology = TOPOLOGY
    sine: float = 1.5

    @property
    def space(self) -> Space:
        return Space(dim=12, particles=4, types=(0, 1, 2, 3))

    @property
    def start_D(self) -> Tensor:
        return torch.from_numpy(built(TOPOLOGY)).flatten() / 0.14

    def energy(self, x_BD: Tensor) -> Tensor:
        stretch_BK = bond_lengths(x_BD, TOPOLOGY.bonds) - LENGTH
        x_BN3 = particles_of(x_BD)
        u_BN3 = torch.nn.functional.normalize(x_BN3[:, 1:] - x_BN3[:, :-1], dim=-1)
        bend_BK = torch.acos(-(u_BN3[:, 1:] * u_BN3[:, :-1]).sum(-1).clamp(-1, 1)) - ANGLE
        harmonic_B = 0.5 * STRETCH * stretch_BK.square().sum(1) + 0.5 * BEND * bend_BK.square().sum(1)
        return harmonic_B + torsion(dihedrals(x_BD, [PHI])[:, 0], sine=self.sine)

    def score(self, x_BD: Tensor) -> Tensor:
        with torch.enable_grad():
            x_BD = x_BD.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x_BD).sum(), x_BD)[0]


def even_four_atoms() -> FourAtoms:
    return FourAtoms(sine=0.0)
