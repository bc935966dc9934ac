"""A molecule in a semi-empirical quantum method as a target: AD2-xTB.

Energies have first derivatives only: there is no way to differentiate a score.

Shape suffixes: B batch, D = 3 N flat coordinates, N atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contracts import Space
from models.molecules.frozen import DATA, read_molecule
from models.molecules.tblite_pool import TblitePool
from models.molecules.tblite_worker import Method
from models.molecules.topology import MolecularTopology
from models.targets.width import require_width

BOLTZMANN_CONSTANT = 3.166811563455608e-6
"""Hartree/K."""
BOHR = 0.0529177210903
"""nm."""
ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9, "P": 15, "S": 16, "Cl": 17}
ITERATIONS = 12
"""Of the charges of a peptide, about."""
ENERGY_ZERO = -34600.0
"""kT: published energies of alanine dipeptide at 300 K count from here; else single precision has no digits left."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SemiEmpiricalTarget:
    """exp(-U / kT) of a molecule by GFN2-xTB (Bannwarth et al. 2019), coordinates in nm, in the order of its topology.

    The implicit solvent is evaluated on a grid that does not turn with the molecule: energies of alanine dipeptide
    depend on its orientation by some 0.006 kT.

    Args:
        name: what reports call it. topology: the molecule. start_N3: positions near a minimum, (N, 3) in nm.
        temperature: in kelvin.
        solvent: by tblite's name, in the GBSA model; None for the gas phase.
        energy_zero: in kT, subtracted from all energies.
        accuracy: of the self-consistent charges; 0.01 makes forces good to some 0.001 kT/nm.
        processes: that share the work, one thread each.

    Errors: ValueError for an element without a number here, ModuleNotFoundError where tblite is missing.
    """

    name: str
    topology: MolecularTopology
    start_N3: np.ndarray
    temperature: float = 300.0
    solvent: str | None = "water"
    energy_zero: float = 0.0
    accuracy: float = 0.01
    processes: int = 1
    log_z: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.topology.elements) - ATOMIC_NUMBERS.keys())
        if unknown:
            raise ValueError(f"elements are {', '.join(ATOMIC_NUMBERS)}, got {', '.join(unknown)}; add their numbers")
        if not self.temperature > 0.0:
            raise ValueError(f"a temperature in kelvin is positive, got {self.temperature}; write for example 300.0")
        _ = self.pool  # tells at once where tblite is missing

    @property
    def space(self) -> Space:
        """Mean-free; only hydrogens on the same carbon may change places."""
        return Space(dim=3 * self.topology.atoms, particles=self.topology.atoms, types=self.topology.distinct_classes)

    @property
    def identity(self) -> str:
        """All that its energies depend on: computing them where a cache only asks for a name would take minutes."""
        bonds = sorted(tuple(sorted(bond)) for bond in self.topology.bonds)
        molecule = f"{''.join(self.topology.elements)} {bonds}"
        return f"{self.pool.method} {molecule} {self.temperature} K, zero {self.energy_zero}"

    @property
    def start_D(self) -> Tensor:
        """A configuration near a minimum, (D,) in float64, centre of mass at the origin."""
        return self.space.project(torch.as_tensor(self.start_N3, dtype=torch.float64).flatten())

    @property
    def energy_flops(self) -> int:
        """Of diagonalising as many orbitals as there are, 10 n^3, for every iteration of the charges."""
        orbitals = sum(1 if element == "H" else 4 for element in self.topology.elements)
        return ITERATIONS * 10 * orbitals**3

    @cached_property
    def pool(self) -> TblitePool:
        """Counts what it evaluated and what failed; `close` ends its processes."""
        numbers = tuple(ATOMIC_NUMBERS[element] for element in self.topology.elements)
        method = Method(atomic_numbers=numbers, solvent=self.solvent, accuracy=self.accuracy)
        return TblitePool(method, processes=self.processes)

    def energy(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B,), in kT, differentiable once. Infinite, and counted, where charges are not self-consistent."""
        return _Energy.apply(x_BD, *self._evaluated(x_BD))

    def score(self, x_BD: Tensor) -> Tensor:
        """Minus the gradient of the energy, (B, D) -> (B, D), mean-free; zero where the energy is infinite."""
        return _Score.apply(x_BD, self._evaluated(x_BD)[1])

    @torch.no_grad()
    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (B,) and score (B, D) at the price of one of them, without a graph."""
        return self._evaluated(x_BD)

    def _evaluated(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Computed in double precision on the CPU, given in the dtype and on the device of x."""
        require_width(x_BD, self.space, self.name)
        x_BN3 = x_BD.detach().double().cpu().unflatten(-1, (-1, 3)) / BOHR
        energy_B, gradient_BN3 = map(torch.from_numpy, self.pool.energies_and_gradients(x_BN3.numpy()))
        thermal_energy = BOLTZMANN_CONSTANT * self.temperature
        score_BD = self.space.project(gradient_BN3.flatten(1) / (-thermal_energy * BOHR))
        return (energy_B / thermal_energy - self.energy_zero).to(x_BD), score_BD.to(x_BD)


class _Energy(torch.autograd.Function):
    """An energy whose score is known."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, energy_B: Tensor, score_BD: Tensor) -> Tensor:
        ctx.save_for_backward(x_BD, score_BD)
        return energy_B.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x_BD, score_BD = ctx.saved_tensors
        return -gradients[0].unsqueeze(-1) * _Score.apply(x_BD, score_BD), None, None


class _Score(torch.autograd.Function):
    """A score that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, score_BD: Tensor) -> Tensor:
        return score_BD.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "semi-empirical energies have first derivatives only, got a derivative of the score; "
            "write score(x.detach()), and objectives that do not differentiate it"
        )


def alanine_dipeptide_xtb(*, processes: int = 1) -> SemiEmpiricalTarget:
    """Ace-Ala-Nme, 22 atoms, by GFN2-xTB in GBSA water at 300 K, as evaluated by Klein et al. 2023.

    It starts from a minimum of the classical energy.
    """
    kept = read_molecule(DATA / "alanine_dipeptide.npz")
    return SemiEmpiricalTarget(
        name="ad2-xtb",
        topology=kept.topology,
        start_N3=kept.start_N3,
        energy_zero=ENERGY_ZERO,
        processes=processes,
    )
