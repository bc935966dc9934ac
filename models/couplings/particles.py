"""Configurations of particles compared modulo their symmetry: particles matched, then rotated.

Shapes: B base rows, C data rows, N particles, d spatial dimensions, P pairs of configurations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.couplings.assignment import assign_particles

ELEMENTS_PER_BLOCK = 2**21
"""Particle costs held at once (16 MB); bounds the memory of large systems (LJ55 at batch 256 has 2e8)."""

SVD_FLOPS = 20
"""Declared operations of a d x d singular value decomposition, in units of d^3."""

NEWTON_STEPS = 12
"""From an upper bound to the largest root of a quartic; nearly every pair is there after nine."""

LEAST_SLOPE = 1e-3
"""Of the quartic at its largest root, in units of the root cubed; below, roots lie too close together for Newton."""


def equivariant_costs(
    x0_BNd: Tensor, x1_BNd: Tensor, *, types: tuple[int, ...] | None = None, reflections: bool = False
) -> tuple[Tensor, Tensor]:
    """Squared distance of every pair after matching particles and rotating, and the matching itself.

    Args:
        x0_BNd, x1_BNd: mean-free configurations, (B, N, d) and (C, N, d), float64 on the CPU.
        types: one label per particle, or None. reflections: allow mirror images.

    Returns:
        costs (B, C), and particles (B, C, N): particle k of x0[i] goes with particle [i, j, k] of x1[j].
    """
    b, c, n = len(x0_BNd), len(x1_BNd), x0_BNd.shape[1]
    forbidden_NN = _different_types(types)
    rows = min(c, max(1, ELEMENTS_PER_BLOCK // (b * n**2)))
    room_CRN = x0_BNd.new_empty(rows, b * n, n)  # one for all blocks: fresh pages cost more than what is put there
    cost_CB, particles_CBN = x0_BNd.new_empty(c, b), torch.empty(c, b, n, dtype=torch.long)
    for start in range(0, c, rows):
        block = slice(start, start + rows)
        cost_CB[block], particles_CBN[block] = _block(x0_BNd, x1_BNd[block], forbidden_NN, reflections, room_CRN)
    return cost_CB.T.contiguous(), particles_CBN.transpose(0, 1).contiguous()


def permute_particles(x_PNd: Tensor, particles_PN: Tensor) -> Tensor:
    """Row k of the result is particle `particles[:, k]`."""
    return x_PNd.gather(1, particles_PN[..., None].expand(-1, -1, x_PNd.shape[2]))


def kabsch(x_PNd: Tensor, y_PNd: Tensor, *, reflections: bool = False) -> Tensor:
    """Rotations R (P, d, d) that minimise |x - y R^T|^2 for mean-free particles (Kabsch 1976).

    With `reflections` the minimum is over O(d), else over proper rotations SO(d).
    """
    u_Pdd, _, vh_Pdd = torch.linalg.svd(x_PNd.mT @ y_PNd)
    if not reflections:
        handedness_P = torch.linalg.det(u_Pdd) * torch.linalg.det(vh_Pdd)
        u_Pdd = torch.cat([u_Pdd[..., :-1], u_Pdd[..., -1:] * handedness_P[:, None, None]], dim=-1)
    return u_Pdd @ vh_Pdd


def aligned_costs(x_PNd: Tensor, y_PNd: Tensor, *, reflections: bool = False) -> Tensor:
    """min_R |x - y R^T|^2 per pair, without forming a rotation."""
    squares_P = x_PNd.square().sum(dim=(1, 2)) + y_PNd.square().sum(dim=(1, 2))
    return (squares_P - 2 * best_overlap(x_PNd.mT @ y_PNd, reflections=reflections)).clamp(min=0)


def best_overlap(h_Pdd: Tensor, *, reflections: bool = False) -> Tensor:
    """max_R tr(R^T H) of each H, over SO(d) or, with `reflections`, over O(d): (P, d, d) -> (P,).

    The sum of the singular values, where over SO(d) the least of them counts with the sign of det H.
    """
    if h_Pdd.shape[1:] == (2, 2):
        return _planar_overlap(h_Pdd, reflections)
    if h_Pdd.shape[1:] == (3, 3):
        return _spatial_overlap(h_Pdd, reflections)
    return _overlap_by_svd(h_Pdd, reflections)


def _overlap_by_svd(h_Pdd: Tensor, reflections: bool) -> Tensor:
    singular_Pd = torch.linalg.svdvals(h_Pdd)
    overlap_P = singular_Pd.sum(dim=1)
    return overlap_P if reflections else overlap_P - 2 * singular_Pd[:, -1] * (torch.linalg.det(h_Pdd) < 0)


def _planar_overlap(h_P22: Tensor, reflections: bool) -> Tensor:
    a_P, b_P, c_P, d_P = h_P22.flatten(1).unbind(dim=1)
    turned_P = torch.hypot(a_P + d_P, b_P - c_P)
    return torch.maximum(turned_P, torch.hypot(a_P - d_P, b_P + c_P)) if reflections else turned_P


def _spatial_overlap(h_P33: Tensor, reflections: bool) -> Tensor:
    """The largest root s of (s^2 - |H|^2)^2 - 4 |cof H|^2 - 8 det(H) s, by Newton's method from above (Theobald 2005).

    Its roots are s1 + s2 + s3, s1 - s2 - s3, ... with singular values s1, s2 and s3 signed as det H is. Pairs that
    have not converged, or whose roots lie close together, go to the singular value decomposition.
    """
    a_3P, b_3P, c_3P = h_P33.permute(1, 2, 0).contiguous()
    cofactors = (torch.linalg.cross(p, q, dim=0) for p, q in ((a_3P, b_3P), (b_3P, c_3P), (c_3P, a_3P)))
    ab_3P, bc_3P, ca_3P = cofactors
    norm_P = (a_3P.square() + b_3P.square() + c_3P.square()).sum(dim=0)
    cofactor_norm_P = (ab_3P.square() + bc_3P.square() + ca_3P.square()).sum(dim=0)
    det_P = (a_3P * bc_3P).sum(dim=0)
    if reflections:
        det_P = det_P.abs()
    s_P = (3 * norm_P).sqrt()
    for _ in range(NEWTON_STEPS):
        excess_P = s_P.square() - norm_P
        slope_P = 4 * s_P * excess_P - 8 * det_P
        step_P = (excess_P.square() - 4 * cofactor_norm_P - 8 * det_P * s_P) / slope_P
        s_P = s_P - step_P
    sure_P = (step_P.abs() < 1e-13 * s_P) & (slope_P > LEAST_SLOPE * s_P**3)
    if not bool(sure_P.all()):
        s_P[~sure_P] = _overlap_by_svd(h_P33[~sure_P], reflections)
    return s_P


def _block(
    x0_BNd: Tensor, x1_CNd: Tensor, forbidden_NN: Tensor | None, reflections: bool, room_CRN: Tensor
) -> tuple[Tensor, Tensor]:
    """Costs (C, B) and matchings (C, B, N) of all base rows with some data rows."""
    (b, n, d), c = x0_BNd.shape, len(x1_CNd)
    cost_PNN = _half_squared_distances(x0_BNd.reshape(b * n, d), x1_CNd, room_CRN[:c]).view(c * b, n, n)
    if forbidden_NN is not None:
        cost_PNN.masked_fill_(forbidden_NN, torch.inf)
    particles_CBN = assign_particles(cost_PNN.numpy()).view(c, b, n)
    rows_CBN = particles_CBN + n * torch.arange(c)[:, None, None]
    y_PNd = x1_CNd.reshape(c * n, d).index_select(0, rows_CBN.view(-1)).view(c * b, n, d)
    h_Pdd = (x0_BNd.mT @ y_PNd.view(c, b, n, d)).view(c * b, d, d)
    overlap_CB = best_overlap(h_Pdd, reflections=reflections).view(c, b)
    squares_CB = x1_CNd.square().sum(dim=(1, 2))[:, None] + x0_BNd.square().sum(dim=(1, 2))
    return (squares_CB - 2 * overlap_CB).clamp(min=0), particles_CBN


def _half_squared_distances(x0_Rd: Tensor, x1_CNd: Tensor, out_CRN: Tensor) -> Tensor:
    """|x - y|^2 / 2 of all R base particles with the N of each data row, (C, R, N): one matrix product."""
    lifted_Re = torch.cat([x0_Rd, 0.5 * x0_Rd.square().sum(-1, keepdim=True), torch.ones_like(x0_Rd[:, :1])], dim=-1)
    half_CN1 = 0.5 * x1_CNd.square().sum(-1, keepdim=True)
    lifted_CNe = torch.cat([-x1_CNd, torch.ones_like(half_CN1), half_CN1], dim=-1)
    return torch.matmul(lifted_Re, lifted_CNe.mT, out=out_CRN)


def _different_types(types: tuple[int, ...] | None) -> Tensor | None:
    if types is None:
        return None
    types_N = torch.tensor(types)
    return types_N[:, None] != types_N[None, :]
