"""The space that a target lives on: R^D, or N particles whose centre of mass is fixed at the origin.

Shapes: B batch, D coordinates of a flat configuration (N particles x d), N particles, d spatial dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MEAN_FREE_TOLERANCE = 1e-3
"""Largest centre-of-mass coordinate, in length units, that still counts as mean-free in float32."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """R^dim, or N particles whose centre of mass is fixed at the origin (the mean-free subspace).

    Args:
        dim: number D of coordinates of a flat configuration, particle-major (x1, y1, x2, y2, ...).
        particles: number N of particles, or None for plain R^dim. N must divide dim.
        types: one label >= 0 for each particle, where only those of equal label may change places; None: all are alike.
    """

    dim: int
    particles: int | None = None
    types: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"a space needs at least one dimension, got dim={self.dim}; write dim >= 1")
        if self.particles is not None and (self.particles < 2 or self.dim % self.particles):
            raise ValueError(
                f"particles must be at least 2 and divide dim, got particles={self.particles} for dim={self.dim}; "
                "write dim = particles * spatial dimension"
            )
        if self.types is not None and (len(self.types) != self.particles or min(self.types) < 0):
            raise ValueError(
                f"types must hold one label per particle, none negative, got {self.types} for {self.particles} "
                "particles; write one integer each"
            )

    @property
    def mean_free(self) -> bool:
        return self.particles is not None

    @property
    def spatial_dim(self) -> int:
        """d, the dimension that one particle moves in (dim itself where there are no particles)."""
        return self.dim if self.particles is None else self.dim // self.particles

    @property
    def degrees_of_freedom(self) -> int:
        """dim, or (N - 1) d on the mean-free subspace."""
        return self.dim if self.particles is None else self.dim - self.spatial_dim

    def project(self, x_BD: Tensor, *, dim: int = -1) -> Tensor:
        """Remove the centre of mass (identity where there are no particles). Differentiable, any shape.

        Args:
            dim: the axis of the coordinates: the last, or 0 where they are the slowest in memory.
        """
        if self.particles is None:
            return x_BD
        x_BNd = x_BD.unflatten(dim, (self.particles, self.spatial_dim))
        axis = dim - 1 if dim < 0 else dim
        return (x_BNd - x_BNd.mean(dim=axis, keepdim=True)).flatten(axis, axis + 1)

    def project_(self, x_BD: Tensor, *, dim: int = -1) -> Tensor:
        """`project` in place, of a tensor that nothing else reads and that needs no gradient."""
        if self.particles is not None:
            x_BNd = x_BD.unflatten(dim, (self.particles, self.spatial_dim))
            x_BNd.sub_(x_BNd.mean(dim=dim - 1 if dim < 0 else dim, keepdim=True))
        return x_BD

    def check(self, x_BD: Tensor, *, name: str = "x") -> None:
        """Raise ValueError unless x is a finite floating (B, dim) tensor, mean-free where the space is."""
        if x_BD.ndim != 2 or x_BD.shape[1] != self.dim:
            raise ValueError(f"{name} must have shape (batch, {self.dim}), got {tuple(x_BD.shape)}")
        if not x_BD.dtype.is_floating_point:
            raise ValueError(f"{name} must be floating point, got {x_BD.dtype}; write {name}.float() or .double()")
        if not bool(torch.isfinite(x_BD).all()):
            bad = int((~torch.isfinite(x_BD)).any(dim=1).sum())
            raise ValueError(
                f"{name} must be finite, got {bad} of {len(x_BD)} rows with NaN or infinity; drop those rows"
            )
        if self.particles is not None:
            centre = float((x_BD - self.project(x_BD)).abs().max()) if len(x_BD) else 0.0
            if centre > MEAN_FREE_TOLERANCE:
                raise ValueError(
                    f"{name} must be mean-free (centre of mass at the origin), got one up to {centre:.3g} away; "
                    "write space.project(x) first"
                )
