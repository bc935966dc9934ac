"""The score of noised samples: what noising a finite set of points gives, in closed form.

Where a target is known by reference samples alone this stands for the score of the noised target, if the noise is wider
than the gaps between samples. Symmetric copies of the samples narrow the gaps.

Shapes: B rows, M samples, D = N * d coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contracts import Space

VALUES_AT_ONCE = 2**24
"""Distances that are held together."""


@dataclass(frozen=True, kw_only=True)
class KernelScore:
    """Score and sharpness at every row.

    Attributes:
        score_BD: gradient of log sum_m N(y; x_m, h).
        effective_B: samples that count as one, 1 / sum w^2: near one the kernel sees a single sample, not the target.
    """

    score_BD: Tensor
    effective_B: Tensor


@torch.no_grad()
def kernel_score(y_BD: Tensor, samples_MD: Tensor, *, variance: float) -> KernelScore:
    """The score of samples noised by N(0, variance) at y: sum_m w_m (x_m - y) / h, w the softmax of the log kernels.

    Args:
        variance: h, length units squared.
    """
    if not variance > 0.0:
        raise ValueError(f"a kernel has a positive variance, got {variance}; write the variance of the noise")
    scores, effective = [], []
    for piece_BD in y_BD.split(max(1, VALUES_AT_ONCE // len(samples_MD))):
        weight_BM = torch.softmax(torch.cdist(piece_BD, samples_MD).square() / (-2.0 * variance), dim=1)
        scores.append((weight_BM @ samples_MD - piece_BD) / variance)
        effective.append(1.0 / weight_BM.square().sum(dim=1))
    return KernelScore(score_BD=torch.cat(scores), effective_B=torch.cat(effective))


def symmetric_copies(samples_MD: Tensor, space: Space, *, copies: int, generator: torch.Generator) -> Tensor:
    """The samples, then copies of each that are permuted, rotated and reflected at random, (copies * M, D).

    Args:
        space: of particles that are all alike.

    Raises:
        ValueError: for another space, which has no such symmetries.
    """
    if space.particles is None or space.types is not None:
        raise ValueError("copies are of particles that are all alike, got another space; leave them out")
    x_MNd = samples_MD.unflatten(-1, (space.particles, space.spatial_dim))
    found = [samples_MD]
    for _ in range(copies - 1):
        order_MN = torch.rand(x_MNd.shape[:2], generator=generator).argsort(dim=1)
        # The orthogonal factor of a Gaussian matrix, signs chosen by the other factor, is uniform (Stewart 1980).
        square_Mdd = torch.randn((len(x_MNd), space.spatial_dim, space.spatial_dim), generator=generator)
        q_Mdd, r_Mdd = torch.linalg.qr(square_Mdd.to(x_MNd))
        turn_Mdd = q_Mdd * r_Mdd.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
        chosen_MNd = x_MNd.gather(1, order_MN.unsqueeze(-1).expand_as(x_MNd))
        found.append((chosen_MNd @ turn_Mdd).flatten(1))
    return torch.cat(found)
