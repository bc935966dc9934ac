"""Estimates with intervals from per-sample records."""

from models.estimators.distances import (
    wasserstein_1,
    wasserstein_1_equivariant_dem,
    wasserstein_2,
    wasserstein_2_energy,
    wasserstein_2_energy_estimate,
    wasserstein_2_equivariant,
    wasserstein_2_equivariant_estimate,
    wasserstein_2_estimate,
)
from models.estimators.estimate import (
    BootstrapMeans,
    Estimate,
    mean_estimate,
    paired_t_interval,
    t_interval,
    undefined,
)
from models.estimators.histograms import (
    pair_distances,
    total_variation,
    total_variation_2d,
    total_variation_2d_estimate,
    total_variation_estimate,
)
from models.estimators.likelihood import (
    base_constant,
    forward_kl,
    forward_kl_self_normalised,
    negative_log_likelihood,
    negative_log_likelihood_no_constant,
)
from models.estimators.modes import modes_covered_estimate
from models.estimators.observables import (
    configuration_observables,
    free_energy_difference,
    free_energy_difference_binned,
    free_energy_difference_estimate,
    self_normalised_mean,
    self_normalised_mean_estimate,
    von_mises_bias,
)
from models.estimators.pareto import pareto_k
from models.estimators.proportion import proportion_estimate
from models.estimators.records import DataRecords, ModelRecords, SampleRecords, WeightedRecords
from models.estimators.summary import estimate_all, estimate_samples, estimate_weighted, importance_estimates
from models.estimators.weights import LogWeights, block_ess_estimate, largest_share_estimate, weight_estimates

__all__ = [
    "BootstrapMeans",
    "DataRecords",
    "Estimate",
    "LogWeights",
    "ModelRecords",
    "SampleRecords",
    "WeightedRecords",
    "base_constant",
    "block_ess_estimate",
    "configuration_observables",
    "estimate_all",
    "estimate_samples",
    "estimate_weighted",
    "forward_kl",
    "forward_kl_self_normalised",
    "free_energy_difference",
    "free_energy_difference_binned",
    "free_energy_difference_estimate",
    "importance_estimates",
    "largest_share_estimate",
    "mean_estimate",
    "modes_covered_estimate",
    "negative_log_likelihood",
    "negative_log_likelihood_no_constant",
    "pair_distances",
    "paired_t_interval",
    "pareto_k",
    "proportion_estimate",
    "self_normalised_mean",
    "self_normalised_mean_estimate",
    "t_interval",
    "total_variation",
    "total_variation_2d",
    "total_variation_2d_estimate",
    "total_variation_estimate",
    "undefined",
    "von_mises_bias",
    "wasserstein_1",
    "wasserstein_1_equivariant_dem",
    "wasserstein_2",
    "wasserstein_2_energy",
    "wasserstein_2_energy_estimate",
    "wasserstein_2_equivariant",
    "wasserstein_2_equivariant_estimate",
    "wasserstein_2_estimate",
    "weight_estimates",
]
