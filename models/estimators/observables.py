"""Reweighted observables: self-normalised means, free-energy differences along an angle, and a training bias.

Weights are given as log w, unnormalised. Angles in radians. Shapes: n samples, D coordinates, N particles,
d spatial dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import i0e, softmax

from models.contracts import Space
from models.estimators.estimate import Array, BootstrapMeans, Estimate, undefined
from models.estimators.histograms import pair_distances

ROWS_AT_ONCE = 4096
"""Configurations whose pair distances are held in memory at once."""
MOST_COORDINATES = 3
"""Of spaces without particles that are no larger, the mean of each coordinate is told."""
POSITIVE_STATE = (0.0, 2.0)
"""Open interval of the angle that counts as the positive state of alanine dipeptide."""
FEWEST_IN_STATE = 10
"""Samples on either side, with which an interval means anything."""


def self_normalised_mean(observable_n: ArrayLike, log_w_n: ArrayLike) -> float:
    """sum w f / sum w."""
    return float(softmax(np.asarray(log_w_n, dtype=np.float64)) @ np.asarray(observable_n, dtype=np.float64))


def self_normalised_mean_estimate(observable_n: ArrayLike, log_w_n: ArrayLike, *, seed: int) -> Estimate:
    """sum w f / sum w with its bootstrap interval. What has no weight does not count, even if not finite."""
    lw, f = np.asarray(log_w_n, dtype=np.float64), np.asarray(observable_n, dtype=np.float64)
    if not np.isfinite(lw).any():
        return undefined("no sample has a weight", n=lw.size)
    weight_n = lw.size * softmax(lw)
    weighted_n = weight_n * np.where(weight_n > 0, f, 0.0)
    table = BootstrapMeans.of({"w": weight_n, "wf": weighted_n}, seed=seed)
    return table.estimate(lambda m: m["wf"] / m["w"])


def configuration_observables(x_nD: ArrayLike, space: Space) -> dict[str, Array]:
    """What a configuration is described by, one number a sample: distances of particles, or else coordinates.

    Of particles the mean distance of pairs, the smallest one, and the radius of gyration (root mean square distance
    from the centre of mass).
    """
    x = np.asarray(x_nD, dtype=np.float64)
    if space.particles is None:
        coordinates = {f"x{k + 1}": x[:, k] for k in range(space.dim)} if space.dim <= MOST_COORDINATES else {}
        return {**coordinates, "squared norm": (x**2).sum(axis=1)}
    parts = [x[start : start + ROWS_AT_ONCE] for start in range(0, len(x), ROWS_AT_ONCE)]
    reduced = [(d.mean(axis=1), d.min(axis=1), (d**2).mean(axis=1)) for d in (pair_distances(p, space) for p in parts)]
    mean_n, least_n, square_n = (np.concatenate(column) for column in zip(*reduced, strict=True))
    # The squared radius of gyration is the sum of squared distances over pairs i < j, divided by N^2.
    radius_n = np.sqrt(square_n * (space.particles - 1) / (2 * space.particles))
    return {"pair distance": mean_n, "smallest distance": least_n, "radius of gyration": radius_n}


def free_energy_difference(
    angle_n: ArrayLike, log_w_n: ArrayLike, *, state: tuple[float, float] = POSITIVE_STATE
) -> float:
    """-log(P(state) / P(rest)), in kT, by summing weights directly."""
    angle = np.asarray(angle_n, dtype=np.float64)
    weight_n = softmax(np.asarray(log_w_n, dtype=np.float64))
    inside = (angle > state[0]) & (angle < state[1])
    return _minus_log_ratio(weight_n, inside)


def free_energy_difference_binned(
    angle_n: ArrayLike, log_w_n: ArrayLike, *, bins: int = 100, state: tuple[float, float] = POSITIVE_STATE
) -> float:
    """The same from a weighted histogram over the angle's range (Klein et al. 2023).

    A bin belongs to the state that its centre lies in.
    """
    weight_n = softmax(np.asarray(log_w_n, dtype=np.float64))
    mass_K, edges = np.histogram(np.asarray(angle_n, dtype=np.float64), bins=bins, weights=weight_n)
    centre_K = 0.5 * (edges[1:] + edges[:-1])
    return _minus_log_ratio(mass_K, (centre_K > state[0]) & (centre_K < state[1]))


def free_energy_difference_estimate(
    angle_n: ArrayLike, log_w_n: ArrayLike | None = None, *, state: tuple[float, float] = POSITIVE_STATE, seed: int
) -> Estimate:
    """The same with a bootstrap interval over samples, which carries weights along; None for samples as they are.

    Refused where nothing is in the state, or everything; without interval where fewer than ten samples are.
    """
    angle = np.asarray(angle_n, dtype=np.float64)
    n, log_w = len(angle), np.zeros(len(angle)) if log_w_n is None else np.asarray(log_w_n, dtype=np.float64)
    if not np.isfinite(angle).all() or np.isnan(log_w).any() or log_w.max() == np.inf:
        return undefined("an angle or a weight is not a number", n=n)
    w_n = np.exp(log_w - max(log_w.max(), np.finfo(np.float64).min))
    inside = (angle > state[0]) & (angle < state[1])
    if not w_n[inside].any() or not w_n[~inside].any():
        return undefined("no weight, or all of it, is in the state", n=n)
    if min(inside.sum(), (~inside).sum()) < FEWEST_IN_STATE:
        value = free_energy_difference(angle, log_w, state=state)
        return Estimate(value=value, lo=np.nan, hi=np.nan, n=n, reason="too few samples in the state to resample")
    table = BootstrapMeans.of({"inside": w_n * inside, "outside": w_n * ~inside}, seed=seed)
    return table.estimate(lambda m: np.log(m["outside"]) - np.log(m["inside"]))


def von_mises_bias(
    angle_n: ArrayLike, *, height: float = 150.0, centre: float = 1.0, concentration: float = 10.0
) -> Array:
    """1 + height times a von Mises density: the weight that fills a rare state of training data.

    From Klein et al. 2023. Data drawn with it have the force of the target plus the gradient of its logarithm.
    """
    # exp(k cos - k) / i0e(k) is exp(k cos) / i0(k) without overflow.
    exponent_n = concentration * (np.cos(np.asarray(angle_n, dtype=np.float64) - centre) - 1)
    return np.asarray(height * np.exp(exponent_n) / (2 * np.pi * i0e(concentration)) + 1)


def _minus_log_ratio(mass: Array, inside: NDArray[np.bool_]) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(mass[~inside].sum()) - np.log(mass[inside].sum()))
