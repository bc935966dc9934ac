"""Total variation between histograms of two sample sets, and the pair distances of particles.

Total variation between two finite draws of one distribution is not zero; it falls like sqrt(bins / n). Intervals show
the spread at that n. Configurations are resampled whole, since the values of one (its pair distances) are dependent.

Shapes: n configurations, V values per configuration, K bins, D coordinates.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.contracts import Space
from models.estimators.estimate import Array, Estimate, centred_interval, resampling_counts, undefined

BINS = 200
PLANE_HALF_WIDTH = 50.0
"""Half the side of the square on which planar densities are compared."""
HISTOGRAM_REPLICATES = 200


def pair_distances(x_nD: ArrayLike, space: Space) -> Array:
    """Distances of all particle pairs i < j, (n, N (N - 1) / 2)."""
    x_nNd = np.asarray(x_nD, dtype=np.float64).reshape(-1, space.dim // space.spatial_dim, space.spatial_dim)
    first, second = np.triu_indices(x_nNd.shape[1], k=1)
    return np.asarray(np.linalg.norm(x_nNd[:, first] - x_nNd[:, second], axis=2))


def total_variation(model: ArrayLike, reference: ArrayLike, *, bins: int = BINS, union_range: bool = False) -> float:
    """Half the summed difference of two normalised histograms.

    The bins span the reference's range, and values of the model outside are dropped before normalising
    (Akhound-Sadegh et al. 2024, optimistic); with `union_range` they span both sets and nothing is dropped.
    """
    edges = _edges(np.asarray(model, dtype=np.float64), np.asarray(reference, dtype=np.float64), bins, union_range)
    counts = [np.histogram(values, bins=edges)[0] for values in (model, reference)]
    return float(_half_difference(*counts))


def total_variation_2d(
    model_n2: ArrayLike, reference_n2: ArrayLike, *, bins: int = BINS, half_width: float = PLANE_HALF_WIDTH
) -> float:
    """Total variation on bins x bins cells of the square [-half_width, half_width]^2."""
    counts = [_plane_histogram(points, bins, half_width) for points in (model_n2, reference_n2)]
    return float(_half_difference(*counts))


def total_variation_estimate(
    model_nV: ArrayLike, reference_mV: ArrayLike, *, seed: int, bins: int = BINS, union_range: bool = False
) -> Estimate:
    """Total variation with a bootstrap interval over configurations of both sets; (n,) or (n, values)."""
    model, reference = (_as_rows(values) for values in (model_nV, reference_mV))
    if not np.isfinite(model).any() or not np.isfinite(reference).all():
        return undefined("values are not finite", n=len(model))
    edges = _edges(model, reference, bins, union_range)
    counts_model, counts_reference = _histogram_rows(model, edges), _histogram_rows(reference, edges)
    if not counts_model.any():
        return Estimate(value=1.0, lo=1.0, hi=1.0, n=len(model), reason="no model value lies in the reference's range")
    value = float(_half_difference(_total(counts_model), _total(counts_reference)))
    replicates_R = _half_difference(_resampled(counts_model, seed), _resampled(counts_reference, seed + 1))
    return _clipped(value, np.nan_to_num(replicates_R, nan=1.0), len(model))


def total_variation_2d_estimate(
    model_n2: ArrayLike,
    reference_m2: ArrayLike,
    *,
    seed: int,
    bins: int = BINS,
    half_width: float = PLANE_HALF_WIDTH,
) -> Estimate:
    """Planar total variation with a bootstrap interval."""
    model, reference = np.asarray(model_n2, dtype=np.float64), np.asarray(reference_m2, dtype=np.float64)
    if not np.isfinite(model).all():
        return undefined("some samples are not finite", n=len(model))
    rng, difference = np.random.default_rng(seed), partial(total_variation_2d, bins=bins, half_width=half_width)
    resampled = [difference(rng.choice(model, len(model)), rng.choice(reference, len(reference))) for _ in range(50)]
    return _clipped(difference(model, reference), np.nan_to_num(resampled, nan=1.0), len(model))


def _clipped(value: float, replicates_R: Array, n: int) -> Estimate:
    if not np.isfinite(value):
        return Estimate(value=1.0, lo=1.0, hi=1.0, n=n, reason="no model value lies in the compared range")
    lo, hi = centred_interval(value, replicates_R)
    return Estimate(value=value, lo=max(lo, 0.0), hi=min(hi, 1.0), n=n)


def _half_difference(first: NDArray, second: NDArray) -> NDArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        p = first / first.sum(axis=-1, keepdims=True)
        q = second / second.sum(axis=-1, keepdims=True)
    return 0.5 * np.abs(p - q).sum(axis=-1)


def _edges(model: Array, reference: Array, bins: int, union_range: bool) -> Array:
    model_inside = model[np.isfinite(model)]
    values = np.concatenate([model_inside.ravel(), reference.ravel()]) if union_range else reference.ravel()
    return np.histogram_bin_edges(values, bins=bins)


def _histogram_rows(values_nV: Array, edges: Array) -> NDArray[np.float32]:
    """One histogram per configuration, (n, K), with numpy's convention that the last bin is closed."""
    n, bins = len(values_nV), len(edges) - 1
    bin_nV = np.searchsorted(edges, values_nV, side="right") - 1
    bin_nV[values_nV == edges[-1]] = bins - 1
    kept = (bin_nV >= 0) & (bin_nV < bins) & np.isfinite(values_nV)
    cell = (bin_nV + bins * np.arange(n)[:, None])[kept]
    return np.bincount(cell, minlength=n * bins).reshape(n, bins).astype(np.float32)


def _total(counts_nK: NDArray[np.float32]) -> Array:
    return counts_nK.sum(axis=0, dtype=np.float64)


def _resampled(counts_nK: NDArray[np.float32], seed: int) -> Array:
    blocks = resampling_counts(len(counts_nK), seed, HISTOGRAM_REPLICATES)
    return np.concatenate([drawn_Rn.astype(np.float32) @ counts_nK for drawn_Rn in blocks]).astype(np.float64)


def _plane_histogram(points_n2: ArrayLike, bins: int, half_width: float) -> Array:
    points = np.asarray(points_n2, dtype=np.float64)
    span = [[-half_width, half_width]] * 2
    return np.histogram2d(points[:, 0], points[:, 1], bins=bins, range=span)[0].ravel()


def _as_rows(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array
