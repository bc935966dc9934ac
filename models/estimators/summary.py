"""estimate_all: every number of one evaluation with its interval, from records alone.

Shapes: n samples, D coordinates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from models.contracts import Space
from models.estimators.distances import (
    wasserstein_2_energy_estimate,
    wasserstein_2_equivariant_estimate,
    wasserstein_2_estimate,
)
from models.estimators.estimate import Array, Estimate, mean_estimate
from models.estimators.histograms import pair_distances, total_variation_2d_estimate, total_variation_estimate
from models.estimators.likelihood import (
    forward_kl,
    forward_kl_self_normalised,
    negative_log_likelihood,
    negative_log_likelihood_no_constant,
)
from models.estimators.pareto import pareto_k
from models.estimators.records import DataRecords, ModelRecords, SampleRecords, WeightedRecords
from models.estimators.weights import block_ess_estimate, largest_share_estimate, weight_estimates

MAX_PAIR_DISTANCES = 2**22
"""Pair distances compared per set; beyond it every k-th configuration is used, which bounds time and memory."""


def estimate_all(
    data: DataRecords,
    model: ModelRecords,
    *,
    reference_x: ArrayLike,
    reference_energy: ArrayLike,
    space: Space,
    prior_std: float,
    log_z: float | None = None,
    seed: int,
    expensive: bool = False,
) -> dict[str, Estimate]:
    """All estimates by name.

    Args:
        data: the flow at test points, drawn from the target. model: samples of the flow.
        reference_x: target samples (m, D) to compare with. reference_energy: their energies, (m,), in kT.
        prior_std: standard deviation of the Gaussian base.
        log_z: known log normaliser of the target; without it there is no `forward_kl`.
        seed: of all resampling; cells of a study that share it share their resamples.
        expensive: also transport distances between configurations, seconds each.
    """
    estimates = data_estimates(data, space=space, prior_std=prior_std, log_z=log_z, seed=seed)
    estimates |= model_estimates(model, seed=seed)
    estimates |= shape_estimates(model, reference_x, reference_energy, space=space, seed=seed)
    if expensive:
        estimates |= transport_estimates(model, reference_x, space=space, seed=seed)
    return estimates


def estimate_weighted(
    model: WeightedRecords,
    *,
    reference_x: ArrayLike,
    reference_energy: ArrayLike,
    space: Space,
    seed: int,
    expensive: bool = False,
) -> dict[str, Estimate]:
    """What weighted samples of a model without density tell. Arguments as for `estimate_all`.

    Likelihoods, ESS_p and path lengths are left out: they need a density, or trajectories of a flow.
    """
    estimates = importance_estimates(model.log_weight, seed=seed)
    samples = SampleRecords(sample_id=model.sample_id, x=model.x, energy=model.energy)
    return estimates | estimate_samples(
        samples,
        reference_x=reference_x,
        reference_energy=reference_energy,
        space=space,
        seed=seed,
        expensive=expensive,
    )


def estimate_samples(
    samples: SampleRecords,
    *,
    reference_x: ArrayLike,
    reference_energy: ArrayLike,
    space: Space,
    seed: int,
    expensive: bool = False,
) -> dict[str, Estimate]:
    """What samples alone tell, without density or weights. Arguments as for `estimate_all`.

    Of two reference sets they are the floor: what a perfect sampler of as many samples would show.
    """
    estimates = {"mean_energy": mean_estimate(samples.energy, seed=seed)}
    estimates |= shape_estimates(samples, reference_x, reference_energy, space=space, seed=seed)
    if expensive:
        estimates |= transport_estimates(samples, reference_x, space=space, seed=seed)
    return estimates


def data_estimates(
    data: DataRecords, *, space: Space, prior_std: float, log_z: float | None, seed: int
) -> dict[str, Estimate]:
    """What test points tell: likelihood, forward KL, ESS_p and the length of trajectories."""
    log_q, energy, dof = data.log_q, data.energy, space.degrees_of_freedom
    log_r = log_q + energy
    estimates = {
        "nll": negative_log_likelihood(log_q, seed=seed),
        "nll_no_constant": negative_log_likelihood_no_constant(
            log_q, degrees_of_freedom=dof, prior_std=prior_std, seed=seed
        ),
        "ess_p": weight_estimates(-log_r, seed=seed)["ess_p"],
        "ess_p_max_weight": largest_share_estimate(log_r, seed=seed),
        "pareto_k_data": pareto_k(log_r),
        "forward_kl_self_normalised": forward_kl_self_normalised(log_q, energy, seed=seed),
        "path_length_data": mean_estimate(data.length, seed=seed),
        "transport_distance_data": mean_estimate(data.displacement, seed=seed),
    }
    if log_z is not None:
        estimates["forward_kl"] = forward_kl(log_q, energy, log_z=log_z, seed=seed)
    if data.fm_loss is not None:
        estimates["fm_loss"] = mean_estimate(data.fm_loss, seed=seed)
    return estimates


def model_estimates(model: ModelRecords, *, seed: int) -> dict[str, Estimate]:
    """What samples of the flow tell: ESS_q with its diagnostics, log Z, energies and the length of trajectories."""
    return {
        **importance_estimates(-model.energy - model.log_q, seed=seed),
        "mean_energy": mean_estimate(model.energy, seed=seed),
        "path_length": mean_estimate(model.length, seed=seed),
        "transport_distance": mean_estimate(model.displacement, seed=seed),
    }


def importance_estimates(log_w_n: Array, *, seed: int) -> dict[str, Estimate]:
    """What log weights of the model's samples tell: ESS_q with its diagnostics, log Z and its lower bound.

    ESS_q is also that of sixteen draws, which Akhound-Sadegh et al. 2024 publish.
    """
    weights = weight_estimates(log_w_n, seed=seed)
    return {
        "ess_q": weights["ess_q"],
        "ess_q_of_16": block_ess_estimate(log_w_n, block=16, seed=seed),
        "ess_q_max_weight": largest_share_estimate(log_w_n, seed=seed),
        "pareto_k": pareto_k(log_w_n),
        "log_z": weights["log_z"],
        "log_z_bound": weights["log_z_bound"],
    }


def shape_estimates(
    model: ModelRecords | SampleRecords,
    reference_x: ArrayLike,
    reference_energy: ArrayLike,
    *,
    space: Space,
    seed: int,
) -> dict[str, Estimate]:
    """How the distributions of energies, distances (particles) or points (the plane) differ from the reference."""
    estimates = {
        "energy_w2": wasserstein_2_energy_estimate(model.energy, reference_energy, seed=seed),
        "tv_energy": total_variation_estimate(model.energy, reference_energy, seed=seed),
        "tv_energy_union": total_variation_estimate(model.energy, reference_energy, seed=seed, union_range=True),
    }
    if space.particles is not None:
        model_nV, reference_mV = (pair_distances(_thinned(x, space), space) for x in (model.x, reference_x))
        estimates["tv_distances"] = total_variation_estimate(model_nV, reference_mV, seed=seed)
    elif space.dim == 2:
        estimates["tv_2d"] = total_variation_2d_estimate(model.x, reference_x, seed=seed)
    return estimates


def transport_estimates(
    model: ModelRecords | SampleRecords,
    reference_x: ArrayLike,
    *,
    space: Space,
    seed: int,
) -> dict[str, Estimate]:
    """W2 between configurations, plain and (for particles) modulo symmetry."""
    estimates = {"w2": wasserstein_2_estimate(model.x, reference_x, seed=seed)}
    if space.particles is not None:
        estimates["w2_equivariant"] = wasserstein_2_equivariant_estimate(model.x, reference_x, space=space, seed=seed)
    return estimates


def _thinned(x_nD: ArrayLike, space: Space) -> Array:
    x = np.asarray(x_nD)
    particles = space.dim // space.spatial_dim
    kept = MAX_PAIR_DISTANCES // (particles * (particles - 1) // 2)
    return x[:: -(-len(x) // kept)] if len(x) > kept else x
