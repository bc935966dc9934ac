"""Products of three-dimensional vectors whose batch is the contiguous axis, from few operations along it.

`torch.linalg.cross`, and sums over an axis of length three, take many times as long in this layout.

Shapes: K vectors side by side, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dot(a_K3B: Tensor, b_K3B: Tensor) -> Tensor:
    """Inner products, (K, B)."""
    (ax, ay, az), (bx, by, bz) = a_K3B.unbind(1), b_K3B.unbind(1)
    return torch.addcmul(torch.addcmul(ax * bx, ay, by), az, bz)


def cross(a_K3B: Tensor, b_K3B: Tensor) -> Tensor:
    """Vector products, (K, 3, B)."""
    (ax, ay, az), (bx, by, bz) = a_K3B.unbind(1), b_K3B.unbind(1)
    components = ((ay, bz, az, by), (az, bx, ax, bz), (ax, by, ay, bx))
    return torch.stack([torch.addcmul(p * q, r, s, value=-1.0) for p, q, r, s in components], dim=1)
