"""Which atom is which, where a model cannot tell atoms of one class apart: found from distances along the bonds.

An EGNN whose classes are elements and backbone atoms makes samples in which, say, the hydrogens have changed places.
Its density is the same for all of these labellings, so that a target may be, too: the energy of the labelling in which
atoms lie closest to those that they are bonded to (Klein et al. 2023 compare bond graphs for the same end).

Shapes: B batch, D = 3 N flat coordinates, N atoms, S places, M atoms that may take them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from models.contracts import Space
from models.couplings import assign_particles, permute_particles
from models.molecules.classical import MolecularTarget, alanine_dipeptide
from models.molecules.geometry import particles_of
from models.molecules.semi_empirical import SemiEmpiricalTarget
from models.molecules.topology import MolecularTopology


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places of one class that are filled together: beside atoms that have theirs already."""

    label: int
    atoms: tuple[int, ...]
    beside: tuple[int, ...]


def places_of(topology: MolecularTopology, classes: tuple[int, ...]) -> tuple[Places, ...]:
    """In the order in which they are filled: outwards from the atoms that are alone in their class, hydrogens last.

    Errors: ValueError where no atom is alone in its class.
    """
    known = {atom for atom, label in enumerate(classes) if classes.count(label) == 1}
    if not known:
        raise ValueError(
            f"atoms are found from those that are alone in their class, got classes {classes} without such; "
            "write for example topology.backbone_classes"
        )
    found = []
    while len(known) < topology.atoms:
        heavy_left = [k for k in range(topology.atoms) if k not in known and topology.elements[k] != "H"]
        beside = {
            k: next(j for j in topology.neighbours[k] if j in known)
            for k in (heavy_left or range(topology.atoms))
            if k not in known and known.intersection(topology.neighbours[k])
        }
        for label in sorted({classes[k] for k in beside}):
            atoms = tuple(k for k in beside if classes[k] == label)
            found.append(Places(label=label, atoms=atoms, beside=tuple(beside[k] for k in atoms)))
        known.update(beside)
    return tuple(found)


def labelling(x_BD: Tensor, places: tuple[Places, ...], classes: tuple[int, ...]) -> Tensor:
    """(B, N) on the CPU: atom k of the topology is row [b, k] of what came.

    Places of each kind are filled at the least sum of squared distances to the atoms beside them (Hungarian algorithm).
    Configurations that are not finite keep their order.
    """
    x_BN3 = particles_of(torch.nan_to_num(x_BD.detach().double().cpu(), nan=0.0, posinf=0.0, neginf=0.0))
    order_BN = torch.arange(x_BN3.shape[1]).repeat(len(x_BN3), 1)
    left = {
        place.label: torch.tensor([k for k, label in enumerate(classes) if label == place.label]).repeat(len(x_BN3), 1)
        for place in places
    }
    for place in places:
        free_BM, taken = left[place.label], len(place.atoms)
        free_BM3 = permute_particles(x_BN3, free_BM)
        beside_BS3 = permute_particles(x_BN3, order_BN[:, list(place.beside)])
        cost_BMM = free_BM3.new_zeros(*free_BM.shape, free_BM.shape[1])
        cost_BMM[:, :taken] = torch.cdist(beside_BS3, free_BM3).square()
        chosen_BM = free_BM.gather(1, assign_particles(cost_BMM.numpy()))
        order_BN[:, list(place.atoms)] = chosen_BM[:, :taken]
        left[place.label] = chosen_BM[:, taken:]
    return order_BN


@dataclass(frozen=True, kw_only=True, eq=False)
class AnyLabelling:
    """A molecule whose atoms of one class may change places: exp(-u / kT) of the labelling that bonds suggest.

    Its Z is larger than the molecule's by a constant factor, the number of labellings that energies tell apart.

    Args:
        molecule: with atoms in the order of its topology.
    """

    molecule: MolecularTarget | SemiEmpiricalTarget
    log_z: None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"{self.molecule.name}-any-labelling"

    @property
    def topology(self) -> MolecularTopology:
        return self.molecule.topology

    @property
    def identity(self) -> str | None:
        """The molecule's, where it has one."""
        return getattr(self.molecule, "identity", None)

    @property
    def space(self) -> Space:
        """With the classes of the published EGNN: elements, and every backbone atom one of its own."""
        return replace(self.molecule.space, types=self.topology.backbone_classes)

    @property
    def start_D(self) -> Tensor:
        return self.molecule.start_D

    @property
    def energy_flops(self) -> int:
        """The molecule's, and N^3 for matching atoms."""
        return self.molecule.energy_flops + self.topology.atoms**3

    def labelled(self, x_BD: Tensor) -> Tensor:
        """The same configurations with atoms in the order of the topology, differentiable."""
        return permute_particles(particles_of(x_BD), self._order(x_BD)).flatten(1)

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT."""
        return self.molecule.energy(self.labelled(x_BD))

    def score(self, x_BD: Tensor) -> Tensor:
        """Minus the gradient of the energy, (B, D) -> (B, D); the labelling is constant almost everywhere."""
        order_BN = self._order(x_BD)
        score_BN3 = particles_of(self.molecule.score(permute_particles(particles_of(x_BD), order_BN).flatten(1)))
        return permute_particles(score_BN3, order_BN.argsort(dim=1)).flatten(1)

    def _order(self, x_BD: Tensor) -> Tensor:
        return labelling(x_BD, self._places, self.topology.backbone_classes).to(x_BD.device)

    @cached_property
    def _places(self) -> tuple[Places, ...]:
        return places_of(self.topology, self.topology.backbone_classes)


def exchangeable_alanine_dipeptide() -> AnyLabelling:
    """The classical one at 300 K, for fields with the published nine classes of atoms."""
    return AnyLabelling(molecule=alanine_dipeptide())
