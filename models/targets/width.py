"""The one cheap check that every energy makes: does the last dimension belong to the target's space?

Shape suffixes: B batch, D coordinates of a flat configuration.
"""

from __future__ import annotations

from torch import Tensor

from models.contracts import Space


def require_width(x_BD: Tensor, space: Space, target_name: str) -> None:
    """Raise ValueError unless the last dimension of x is the space's; values are not looked at (hot path)."""
    if x_BD.ndim == 0 or x_BD.shape[-1] != space.dim:
        raise ValueError(
            f"{target_name} needs configurations with {space.dim} coordinates in the last dimension, "
            f"got shape {tuple(x_BD.shape)}; write x of shape (batch, {space.dim})"
        )
