"""How good a set of parallel chains is: autocorrelation time, effective sample size, split R-hat, the virial.

Shape suffixes: S draws of one chain in order, C chains, B rows, D coordinates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.contracts import Target

WINDOW = 5.0
"""Sokal's window: the sum over lags stops at the first lag beyond this many autocorrelation times."""

ROWS_AT_ONCE = 1024
"""Of a virial: arrays over all pairs of many large clusters would fill the memory."""


def autocorrelation_time(trace_SC: Tensor) -> float:
    """Integrated autocorrelation time 1 + 2 sum_k rho_k, in draws; at least one.

    Autocovariances are averaged over chains around the common mean, so that chains which disagree look correlated
    (Sokal 1997, section 3, for the window).
    """
    x_SC = trace_SC.double() - trace_SC.double().mean()
    draws = x_SC.shape[0]
    variance = float(x_SC.square().mean())
    if variance == 0.0 or draws < 2:
        return 1.0
    total = 1.0
    for lag in range(1, draws):
        total += 2.0 * float((x_SC[lag:] * x_SC[:-lag]).mean()) / variance
        if lag >= WINDOW * total:
            break
    return max(total, 1.0)


def effective_n(trace_SC: Tensor) -> float:
    """Number of independent draws that carry as much information: all draws over the autocorrelation time."""
    return trace_SC.numel() / autocorrelation_time(trace_SC)


def split_r_hat(trace_SC: Tensor) -> float:
    """Split R-hat: each chain cut into halves, then sqrt of pooled over within-chain variance (Gelman et al. 2013,
    equation 11.4). Plain values, not rank-normalised: energies and radii here have finite variances.

    Errors: ValueError with fewer than four draws a chain, where halves have no variance.
    """
    half = trace_SC.shape[0] // 2
    if half < 2:
        raise ValueError(
            f"split R-hat needs at least 4 draws a chain, got {trace_SC.shape[0]}; draw more, or use fewer chains"
        )
    halves = torch.cat([trace_SC[:half], trace_SC[half : 2 * half]], dim=1).double()
    within = float(halves.var(dim=0).mean())
    between = half * float(halves.mean(dim=0).var())
    if within == 0.0:
        return 1.0 if between == 0.0 else math.inf
    return math.sqrt(((half - 1) / half * within + between / half) / within)


def virial(target: Target, x_BD: Tensor) -> tuple[float, float]:
    """Mean of x . grad U over the rows, and its plain standard error std / sqrt(B), which takes rows as independent.

    For exact samples the mean is the space's degrees of freedom (integration by parts of x against exp(-U)); it tells
    energies apart that differ by a factor. Correlated rows have a larger true error.
    """
    if len(x_BD) < 2:
        raise ValueError(f"a standard error needs at least two rows, got {len(x_BD)}; give more rows")
    blocks = x_BD.double().split(ROWS_AT_ONCE)
    virial_B = torch.cat([-(block_BD * target.score(block_BD).detach()).sum(-1) for block_BD in blocks])
    return float(virial_B.mean()), float(virial_B.std()) / math.sqrt(len(virial_B))
