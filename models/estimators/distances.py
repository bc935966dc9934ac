"""Optimal-transport distances between sample sets: W1, W2, W2 modulo symmetry, and W2 of energies.

A distance between two finite draws of one distribution is not zero: it falls like n^(-1/D), so a value only compares
with values at the same n. Intervals show the spread of the estimate at its n, not that bias.

Shapes: n, m samples, D coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from models.contracts import Space
from models.couplings import (
    EMD_MAX_ITERATIONS,
    assign_particles,
    equivariant_costs,
    permute_particles,
    squared_distances,
)
from models.estimators.estimate import Array, Estimate, centred_interval, undefined

MAX_SAMPLES = 1000
"""Samples of each set that W2 uses: an exact plan costs about n^3."""
MAX_SAMPLES_EQUIVARIANT = 200
"""The same modulo symmetry, where each of the n^2 costs needs an assignment of particles."""
SUBSAMPLES = 20
SUBSAMPLE_SHARE = 0.25


def transport_cost(cost_nm: ArrayLike) -> float:
    """The cheapest transport between uniform weights for a given cost matrix (POT, exact)."""
    import ot  # late: it takes as long to import as torch, and few processes need it

    return float(ot.emd2([], [], np.ascontiguousarray(cost_nm, dtype=np.float64), numItermax=EMD_MAX_ITERATIONS))


def wasserstein_2(x_nD: ArrayLike, y_mD: ArrayLike) -> float:
    """W2 on flat coordinates, without alignment, in length units."""
    return float(np.sqrt(transport_cost(_squared_costs(x_nD, y_mD))))


def wasserstein_1(x_nD: ArrayLike, y_mD: ArrayLike) -> float:
    """W1 on flat coordinates, without alignment, in length units."""
    return transport_cost(np.sqrt(_squared_costs(x_nD, y_mD)))


def wasserstein_2_equivariant(x_nD: ArrayLike, y_mD: ArrayLike, *, space: Space, reflections: bool = False) -> float:
    """W2 modulo permutations within particle types and rotations (Klein et al. 2023), for mean-free configurations."""
    return float(np.sqrt(transport_cost(_equivariant_costs(x_nD, y_mD, space, reflections))))


def wasserstein_1_equivariant_dem(x_nD: ArrayLike, y_mD: ArrayLike, *, space: Space) -> float:
    """The variant that Akhound-Sadegh et al. 2024 report.

    Particles are matched on plain distances, mirror images are allowed, and the mean distance is transported.
    """
    x_nNd, y_mNd = _particles(x_nD, space), _particles(y_mD, space)
    n, m = len(x_nNd), len(y_mNd)
    distance_PNN = torch.cdist(x_nNd[:, None], y_mNd[None, :]).flatten(0, 1)
    x_PNd = x_nNd.repeat_interleave(m, dim=0)
    y_PNd = permute_particles(y_mNd.repeat(n, 1, 1), assign_particles(distance_PNN.numpy()))
    u_Pdd, _, vh_Pdd = torch.linalg.svd(x_PNd.mT @ y_PNd)
    aligned_PNd = y_PNd @ (u_Pdd @ vh_Pdd).mT
    return transport_cost((x_PNd - aligned_PNd).flatten(1).norm(dim=1).view(n, m).numpy())


def wasserstein_2_energy(energy_n: ArrayLike, energy_m: ArrayLike) -> float:
    """W2 between energies, in kT: the square root of what POT's one-dimensional solver returns."""
    a, b = np.asarray(energy_n, dtype=np.float64), np.asarray(energy_m, dtype=np.float64)
    if a.size == b.size:
        return float(np.sqrt(np.mean((np.sort(a) - np.sort(b)) ** 2)))
    import ot

    return float(np.sqrt(ot.emd2_1d(a, b)))


def wasserstein_2_estimate(
    x_nD: ArrayLike, reference_mD: ArrayLike, *, seed: int, max_samples: int = MAX_SAMPLES
) -> Estimate:
    """W2 with an interval, on at most `max_samples` of each set (`n` tells how many)."""
    x, reference = _equal_draws(x_nD, reference_mD, max_samples, seed)
    if not np.isfinite(x).all():
        return undefined("some samples are not finite", n=len(x))
    return _root_transport_estimate(_squared_costs(x, reference), seed)


def wasserstein_2_equivariant_estimate(
    x_nD: ArrayLike,
    reference_mD: ArrayLike,
    *,
    space: Space,
    seed: int,
    max_samples: int = MAX_SAMPLES_EQUIVARIANT,
) -> Estimate:
    """W2 modulo symmetry with an interval, on at most `max_samples` of each set."""
    x, reference = _equal_draws(x_nD, reference_mD, max_samples, seed)
    if not np.isfinite(x).all():
        return undefined("some samples are not finite", n=len(x))
    return _root_transport_estimate(_equivariant_costs(x, reference, space, False), seed)


def wasserstein_2_energy_estimate(
    energy_n: ArrayLike, reference_m: ArrayLike, *, seed: int, replicates: int = 100
) -> Estimate:
    """W2 between energies with a bootstrap interval over both sets."""
    a, b = np.asarray(energy_n, dtype=np.float64), np.asarray(reference_m, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return undefined("some energies are not finite", n=a.size)
    rng = np.random.default_rng(seed)
    value = wasserstein_2_energy(a, b)
    resampled = [wasserstein_2_energy(rng.choice(a, a.size), rng.choice(b, b.size)) for _ in range(replicates)]
    lo, hi = centred_interval(value, np.array(resampled))
    return Estimate(value=value, lo=max(lo, 0.0), hi=hi, n=a.size)


def _root_transport_estimate(cost_nn: Array, seed: int) -> Estimate:
    """Square root of the transport cost; spread from subsamples drawn without replacement (Politis and Romano 1994).

    Subsamples reuse the cost matrix. Their variance is that of m samples times 1 - m/n, which the scale undoes.
    """
    n = len(cost_nn)
    value = float(np.sqrt(transport_cost(cost_nn)))
    m = max(2, int(n * SUBSAMPLE_SHARE))
    if n < 2 * m:
        return Estimate(value=value, lo=np.nan, hi=np.nan, n=n, reason=f"{n} samples are too few to subsample")
    rng = np.random.default_rng(seed)
    draws = [(rng.permutation(n)[:m], rng.permutation(n)[:m]) for _ in range(SUBSAMPLES)]
    parts = np.array([np.sqrt(transport_cost(cost_nn[np.ix_(rows, columns)])) for rows, columns in draws])
    half = 1.96 * float(parts.std(ddof=1) * np.sqrt((m / n) / (1 - m / n)))
    return Estimate(value=value, lo=max(value - half, 0.0), hi=value + half, n=n)


def _equal_draws(x_nD: ArrayLike, y_mD: ArrayLike, max_samples: int, seed: int) -> tuple[Array, Array]:
    x, y = np.asarray(x_nD, dtype=np.float64), np.asarray(y_mD, dtype=np.float64)
    n = min(len(x), len(y), max_samples)
    rng = np.random.default_rng(seed)
    return x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]


def _squared_costs(x_nD: ArrayLike, y_mD: ArrayLike) -> Array:
    x, y = (torch.from_numpy(np.asarray(points, dtype=np.float64)) for points in (x_nD, y_mD))
    return np.asarray(squared_distances(x, y))


def _equivariant_costs(x_nD: ArrayLike, y_mD: ArrayLike, space: Space, reflections: bool) -> Array:
    cost_nm, _ = equivariant_costs(
        _particles(x_nD, space), _particles(y_mD, space), types=space.types, reflections=reflections
    )
    return np.asarray(cost_nm)


def _particles(x_nD: ArrayLike, space: Space) -> torch.Tensor:
    x = space.project(torch.from_numpy(np.asarray(x_nD, dtype=np.float64)))
    return x.unflatten(1, (-1, space.spatial_dim))
