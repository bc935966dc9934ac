"""Are coordinates in nanometres? Bonds tell.

Shapes: B batch, D = 3 N flat coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.molecules.geometry import bond_lengths
from models.molecules.parameters import ForceFieldParameters

LARGEST_RATIO = 2.0
"""Of a typical bond to the force field's, or the inverse: heat changes bonds by a few hundredths, units by ten."""


def require_nanometres(x_BD: Tensor, parameters: ForceFieldParameters) -> None:
    """Raise ValueError unless the median bond of all rows is about as long as the force field's."""
    if not len(x_BD) or not len(parameters.bond_length_K):
        return
    length_BK = bond_lengths(x_BD, parameters.bond_atoms_K2.tolist())
    ratio = float((length_BK / torch.as_tensor(parameters.bond_length_K).to(length_BK)).median())
    if not 1.0 / LARGEST_RATIO < ratio < LARGEST_RATIO:
        raise ValueError(
            f"coordinates of molecules are in nanometres, got bonds {ratio:.3g} times as long as those of the force "
            "field; write x / 10 for coordinates in Angstrom, and x times their unit in nm for others"
        )
