"""What samples of a molecule tell against reference ones: free energies along phi, backbone angles, bonds, handedness.

Rows that are mirror images are reflected first: a field that follows reflections makes both alike, and a target whose
energy does not know the difference is sampled on one side only.
Shapes: n samples, m reference samples, D = 3 N flat coordinates, K residues or bonds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from models.estimators.estimate import Array, Estimate, mean_estimate
from models.estimators.histograms import total_variation_2d_estimate, total_variation_estimate
from models.estimators.observables import free_energy_difference_estimate
from models.molecules.geometry import bond_lengths, chirality, dihedrals, naturally_handed
from models.molecules.topology import MolecularTopology

CELLS = 36
"""Of each backbone angle: ten degrees."""


def backbone_angles(x_nD: ArrayLike, topology: MolecularTopology) -> Array:
    """phi and psi of every residue that has both, (n, K, 2) in radians, mirror images reflected."""
    x_BD = naturally_handed(_tensor(x_nD), topology)
    both = residues_with_both(topology)
    angles = [dihedrals(x_BD, [atoms[number] for number in both]) for atoms in (topology.phi, topology.psi)]
    return torch.stack(angles, dim=2).numpy()


def molecular_estimates(
    x_nD: ArrayLike,
    topology: MolecularTopology,
    *,
    reference_mD: ArrayLike,
    log_weight_n: ArrayLike | None = None,
    seed: int,
) -> dict[str, Estimate]:
    """Estimates by name; those of one residue end in its number where there are several.

    `delta_f`: -log P(0 < phi < 2) / P(rest) in kT of samples as they are, `delta_f_reweighted` where there are weights.
    `tv_backbone`: total variation of (phi, psi) in cells of ten degrees. `tv_bonds`: of all bond lengths together.
    `share_mirrored`: of samples whose stereocentres are all on the other side; `share_mixed`: of which only some are.
    """
    x_BD, reference_BD = _tensor(x_nD), _tensor(reference_mD)
    lengths_nK, reference_mK = (bond_lengths(x, topology.bonds).numpy() for x in (x_BD, reference_BD))
    found = {"tv_bonds": total_variation_estimate(lengths_nK, reference_mK, seed=seed)}
    found |= _handedness_estimates(x_BD, topology, seed)
    phi_nK = dihedrals(naturally_handed(x_BD, topology), topology.phi.values()).numpy()
    for number, phi_n in zip(topology.phi, phi_nK.T, strict=True):
        end = f"_{number}" if len(topology.phi) > 1 else ""
        found[f"delta_f{end}"] = free_energy_difference_estimate(phi_n, seed=seed)
        if log_weight_n is not None:
            found[f"delta_f_reweighted{end}"] = free_energy_difference_estimate(phi_n, log_weight_n, seed=seed)
    angles_nK2, reference_mK2 = (backbone_angles(x, topology) for x in (x_nD, reference_mD))
    numbers = residues_with_both(topology)
    for k, number in enumerate(numbers):
        end = f"_{number}" if len(numbers) > 1 else ""
        found[f"tv_backbone{end}"] = total_variation_2d_estimate(
            angles_nK2[:, k], reference_mK2[:, k], seed=seed, bins=CELLS, half_width=math.pi
        )
    return found


def molecular_picture(x_nD: ArrayLike, topology: MolecularTopology) -> dict[str, Array]:
    """What to draw of samples: phi and psi of the first residue that has both (n, 2), and lengths of bonds (n, K)."""
    lengths = {"distances": bond_lengths(_tensor(x_nD), topology.bonds).numpy()}
    if not residues_with_both(topology):
        return lengths
    return {"angles": backbone_angles(x_nD, topology)[:, 0], **lengths}


def residues_with_both(topology: MolecularTopology) -> list[int]:
    """Numbers of the residues that have phi and psi."""
    return [number for number in topology.phi if number in topology.psi]


def _handedness_estimates(x_BD: Tensor, topology: MolecularTopology, seed: int) -> dict[str, Estimate]:
    if not topology.chirality_centres:
        return {}
    natural_BK = chirality(x_BD, topology.chirality_centres) > 0
    mirrored_B = ~natural_BK.any(1)
    mixed_B = natural_BK.any(1) & ~natural_BK.all(1)
    shares = {"share_mirrored": mirrored_B, "share_mixed": mixed_B}
    return {name: mean_estimate(rows_B.double().numpy(), seed=seed) for name, rows_B in shares.items()}


def _tensor(x_nD: ArrayLike) -> Tensor:
    return torch.from_numpy(np.asarray(x_nD, dtype=np.float64))
