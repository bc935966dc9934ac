"""Estimators of one quantity each: golden numbers, closed forms, coverage of intervals, merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.contracts import Space
from models.estimators import (
    BootstrapMeans,
    LogWeights,
    base_constant,
    block_ess_estimate,
    forward_kl,
    forward_kl_self_normalised,
    free_energy_difference,
    free_energy_difference_binned,
    largest_share_estimate,
    mean_estimate,
    negative_log_likelihood,
    negative_log_likelihood_no_constant,
    pair_distances,
    paired_t_interval,
    pareto_k,
    self_normalised_mean,
    t_interval,
    total_variation,
    total_variation_2d,
    total_variation_2d_estimate,
    total_variation_estimate,
    von_mises_bias,
    wasserstein_1,
    wasserstein_1_equivariant_dem,
    wasserstein_2,
    wasserstein_2_energy,
    wasserstein_2_energy_estimate,
    wasserstein_2_equivariant,
    wasserstein_2_equivariant_estimate,
    wasserstein_2_estimate,
    weight_estimates,
)
from models.estimators.likelihood import divergence_terms

GOLDEN = Path(__file__).parents[1] / "golden" / "F_metrics.npz"
FOUR_PARTICLES = Space(dim=8, particles=4)
LOG_Z_NORMAL = 0.5 * np.log(2 * np.pi)

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    with np.load(GOLDEN) as file:
        return {name: np.array(file[name]) for name in file}


def normal_pair(n: int, *, mean: float = 0.0, scale: float, from_model: bool, seed: int) -> tuple[Array, Array]:
    """(log q, energy) of n draws where the model is N(mean, scale^2) and the target N(0, 1)."""
    x = np.random.default_rng(seed).normal(size=n)
    x = mean + scale * x if from_model else x
    return -0.5 * ((x - mean) / scale) ** 2 - LOG_Z_NORMAL - np.log(scale), 0.5 * x**2


class TestIntervals:
    def test_bootstrap_of_a_mean_covers_as_promised(self) -> None:
        rng = np.random.default_rng(11)
        estimates = [mean_estimate(rng.normal(size=100), seed=seed) for seed in range(200)]
        covered = np.mean([e.lo <= 0.0 <= e.hi for e in estimates])
        assert 0.90 <= covered <= 0.98

    def test_bootstrap_of_an_effective_sample_size_covers(self) -> None:
        truth = 0.9521742500557007
        hits = []
        for seed in range(150):
            log_q, energy = normal_pair(400, scale=1.2, from_model=True, seed=seed)
            estimate = weight_estimates(-energy - log_q, seed=seed)["ess_q"]
            hits.append(estimate.lo <= truth <= estimate.hi)
        assert 0.87 <= np.mean(hits) <= 0.99

    def test_bootstrap_of_a_mean_is_as_wide_as_theory_says(self) -> None:
        values = np.random.default_rng(0).normal(size=2000)
        estimate = mean_estimate(values, seed=0)
        assert estimate.value == pytest.approx(values.mean(), rel=1e-14)
        assert estimate.hi - estimate.lo == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)
        assert estimate.n == 2000

    def test_the_same_seed_gives_the_same_interval(self) -> None:
        values = np.random.default_rng(1).exponential(size=300)
        assert mean_estimate(values, seed=4) == mean_estimate(values, seed=4)
        assert mean_estimate(values, seed=4) != mean_estimate(values, seed=5)

    def test_columns_are_resampled_together(self) -> None:
        values = np.random.default_rng(1).normal(size=200)
        table = BootstrapMeans.of({"a": values, "b": values + 1.0}, seed=0)
        difference = table.estimate(lambda m: m["b"] - m["a"])
        assert difference.lo == pytest.approx(1.0, abs=1e-12)
        assert difference.hi == pytest.approx(1.0, abs=1e-12)

    def test_many_samples_are_resampled_in_blocks(self) -> None:
        estimate = mean_estimate(np.random.default_rng(2).normal(size=50_000), seed=0)
        assert estimate.hi - estimate.lo == pytest.approx(2 * 1.96 / np.sqrt(50_000), rel=0.1)

    def test_a_skewed_mean_has_its_longer_side_on_the_tail(self) -> None:
        estimate = mean_estimate(np.random.default_rng(3).lognormal(sigma=1.5, size=200), seed=0)
        assert estimate.hi - estimate.value > estimate.value - estimate.lo

    def test_samples_that_are_not_finite_make_the_estimate_undefined(self) -> None:
        for bad in (np.nan, np.inf):
            estimate = mean_estimate([1.0, bad, 2.0], seed=0)
            assert np.isnan([estimate.value, estimate.lo, estimate.hi]).all()
            assert estimate.reason

    def test_constant_samples_have_an_interval_of_no_width(self) -> None:
        estimate = mean_estimate(np.full(50, 3.0), seed=0)
        assert (estimate.lo, estimate.value, estimate.hi) == pytest.approx((3.0, 3.0, 3.0))

    def test_one_sample_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least two samples"):
            mean_estimate([1.0], seed=0)

    def test_t_interval_matches_a_textbook_table(self) -> None:
        estimate = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
        half = 2.7764451051977987 * np.sqrt(2.5 / 5)
        assert (estimate.lo, estimate.value, estimate.hi) == pytest.approx((3 - half, 3.0, 3 + half), rel=1e-12)

    def test_pairing_removes_what_seeds_share(self) -> None:
        shared = np.random.default_rng(0).normal(scale=10.0, size=5)
        paired = paired_t_interval(shared + np.array([1.0, 1.1, 0.9, 1.05, 0.95]), shared)
        assert paired.lo > 0.8
        assert paired.hi < 1.2

    def test_t_interval_is_honest_about_what_it_lacks(self) -> None:
        single = t_interval([2.0])
        assert single.value == 2.0
        assert np.isnan(single.lo)
        assert np.isnan(t_interval([1.0, np.inf]).value)
        with pytest.raises(ValueError, match="at least one seed"):
            t_interval([])
        with pytest.raises(ValueError, match="one to one"):
            paired_t_interval([1.0, 2.0], [1.0])


class TestLogWeights:
    def test_golden(self, golden: dict[str, Array]) -> None:
        weights = LogWeights.from_samples(golden["ess_logw"])
        assert weights.ess_q == pytest.approx(golden["ess_q"], rel=1e-12)
        assert weights.ess_p == pytest.approx(golden["ess_p"], rel=1e-12)
        assert weights.log_z == pytest.approx(golden["logZ_is"], rel=1e-12)
        assert weights.log_z_bound == pytest.approx(golden["logZ_bound"], rel=1e-12)
        estimates = weight_estimates(golden["ess_logw"], seed=0)
        for name in ("ess_q", "ess_p", "log_z", "log_z_bound"):
            assert estimates[name].value == pytest.approx(getattr(weights, name), rel=1e-11)

    @pytest.mark.parametrize("from_model", [True, False])
    def test_effective_sample_size_of_two_gaussians(self, golden: dict[str, Array], from_model: bool) -> None:
        log_q, energy = normal_pair(200_000, scale=1.2, from_model=from_model, seed=1)
        weights = LogWeights.from_samples(-energy - log_q)
        measured = weights.ess_q if from_model else weights.ess_p
        assert measured == pytest.approx(float(golden["ess_analytic"]), abs=2e-3)

    @pytest.mark.parametrize("order", [range(8), (5, 0, 7, 2, 1, 6, 3, 4)])
    def test_shards_merge_to_the_whole(self, order: tuple[int, ...]) -> None:
        log_w = np.random.default_rng(4).normal(scale=3.0, size=1003) + 500.0
        shards = np.array_split(log_w, [3, 4, 200, 500, 501, 900, 1000])
        merged = sum((LogWeights.from_samples(shards[i]) for i in order), LogWeights())
        whole = LogWeights.from_samples(log_w)
        assert (merged.n, merged.log_max) == (whole.n, whole.log_max)
        for name in ("ess_q", "ess_p", "log_z", "log_z_bound", "largest_share"):
            assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)

    def test_merging_commutes_and_the_empty_sum_is_neutral(self) -> None:
        a, b = LogWeights.from_samples([0.0, 2.0]), LogWeights.from_samples([-700.0, 3.0, 1.0])
        assert a + b == b + a
        assert a + LogWeights() == a
        assert LogWeights.from_samples([]) == LogWeights()

    def test_equal_weights_are_fully_effective_and_shifts_do_not_matter(self) -> None:
        flat = LogWeights.from_samples(np.full(64, -1e4))
        assert (flat.ess_q, flat.ess_p, flat.log_z) == pytest.approx((1.0, 1.0, -1e4))
        assert flat.largest_share == pytest.approx(1 / 64)

    def test_one_weight_that_has_everything(self) -> None:
        weights = LogWeights.from_samples([2000.0, 0.0, 0.0, 0.0])
        assert weights.ess_q == pytest.approx(0.25)
        assert weights.largest_share == pytest.approx(1.0)

    def test_weights_of_zero_count_and_nan_is_refused(self) -> None:
        weights = LogWeights.from_samples([0.0, -np.inf])
        assert (weights.ess_q, weights.log_z) == pytest.approx((0.5, np.log(0.5)))
        with pytest.raises(ValueError, match="NaN"):
            LogWeights.from_samples([0.0, np.nan])

    def test_importance_sampling_of_z_is_unbiased_and_the_bound_lies_below(self) -> None:
        draws = [normal_pair(50, mean=0.4, scale=1.1, from_model=True, seed=seed) for seed in range(2000)]
        weights = [LogWeights.from_samples(-energy - log_q) for log_q, energy in draws]
        z = np.exp([w.log_z for w in weights])
        assert abs(z.mean() - np.exp(LOG_Z_NORMAL)) < 4 * z.std() / np.sqrt(len(z))
        assert all(w.log_z_bound <= w.log_z for w in weights)

    def test_largest_share_estimate(self) -> None:
        log_w = np.random.default_rng(0).normal(size=500)
        estimate = largest_share_estimate(log_w, seed=0)
        assert estimate.value == pytest.approx(LogWeights.from_samples(log_w).largest_share, rel=1e-12)
        assert 0 <= estimate.lo <= estimate.value <= estimate.hi <= 1
        assert np.isnan(largest_share_estimate([0.0, np.nan], seed=0).value)


class TestEssOfBlocks:
    def test_it_is_the_mean_over_whole_blocks(self) -> None:
        log_w = np.random.default_rng(1).normal(scale=2.0, size=70)
        found = block_ess_estimate(log_w, block=16, seed=0)
        by_hand = [LogWeights.from_samples(log_w[start : start + 16]).ess_q for start in (0, 16, 32, 48)]
        assert (found.value, found.n) == (pytest.approx(np.mean(by_hand), rel=1e-12), 4)

    def test_few_draws_flatter(self) -> None:
        log_w = np.random.default_rng(1).normal(scale=2.0, size=16_000)
        few = block_ess_estimate(log_w, block=16, seed=0)
        assert few.lo > 3 * LogWeights.from_samples(log_w).ess_q

    def test_one_block_has_no_interval(self) -> None:
        assert block_ess_estimate(np.zeros(31), block=16, seed=0).reason


class TestParetoK:
    @pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
    def test_shape_of_a_known_tail(self, k: float) -> None:
        uniform = np.random.default_rng(6).random(100_000)
        estimate = pareto_k(-k * np.log(uniform))
        assert estimate.value == pytest.approx(k, abs=0.12)
        assert estimate.lo < k < estimate.hi

    def test_bounded_weights_have_a_light_tail(self) -> None:
        assert pareto_k(np.log(np.random.default_rng(0).random(5000))).value < 0.0

    def test_a_common_factor_does_not_matter(self) -> None:
        log_w = np.random.default_rng(0).normal(size=2000)
        assert pareto_k(log_w + 800.0).value == pytest.approx(pareto_k(log_w).value, abs=1e-9)

    @pytest.mark.parametrize("log_w", [np.zeros(1000), np.zeros(4), np.full(1000, np.nan), np.full(1000, -np.inf)])
    def test_no_tail_no_estimate(self, log_w: Array) -> None:
        estimate = pareto_k(log_w)
        assert np.isnan(estimate.value)
        assert estimate.reason


class TestLikelihood:
    @pytest.mark.parametrize(("system", "dof"), [("DW4", 6), ("LJ13", 36), ("LJ55", 162), ("AD2", 63)])
    def test_golden_constants(self, golden: dict[str, Array], system: str, dof: int) -> None:
        assert base_constant(dof, 1.0) == pytest.approx(golden[f"nll_const_{system}"], rel=1e-12)

    @pytest.mark.parametrize(("std", "name"), [(1.0, "nll_normalised"), (2.0, "nll_normalised_prior_std2")])
    def test_both_conventions_match_golden(self, golden: dict[str, Array], std: float, name: str) -> None:
        dof = FOUR_PARTICLES.degrees_of_freedom
        klein = 0.5 * (golden["nll_x0"] ** 2).sum(axis=1) / std**2 + golden["nll_logdet01"]
        log_q = -(klein + base_constant(dof, std))
        np.testing.assert_allclose(-log_q, golden[name], rtol=1e-12)
        assert negative_log_likelihood(log_q, seed=0).value == pytest.approx(golden[name].mean(), rel=1e-12)
        bare = negative_log_likelihood_no_constant(log_q, degrees_of_freedom=dof, prior_std=std, seed=0)
        assert bare.value == pytest.approx(klein.mean(), rel=1e-12)

    def test_forward_kl_of_two_gaussians(self) -> None:
        log_q, energy = normal_pair(100_000, mean=0.3, scale=1.2, from_model=False, seed=3)
        exact = np.log(1.2) + (1 + 0.3**2) / (2 * 1.2**2) - 0.5
        known = forward_kl(log_q, energy, log_z=LOG_Z_NORMAL, seed=0)
        unknown = forward_kl_self_normalised(log_q, energy + 17.0, seed=0)
        assert known.value == pytest.approx(exact, rel=0.02)
        assert known.lo < exact < known.hi
        assert unknown.value == pytest.approx(exact, rel=0.02)

    def test_forward_kl_terms_are_never_negative_and_vanish_at_the_optimum(self) -> None:
        log_r = np.concatenate([np.linspace(-40, 40, 2001), np.logspace(-18, -3, 500), -np.logspace(-18, -3, 500)])
        assert (divergence_terms(log_r) >= 0).all()
        np.testing.assert_allclose(
            divergence_terms(np.array([1e-4, -1e-4, 1e-6])), [5.00016667e-9, 4.99983334e-9, 5e-13], rtol=1e-6
        )
        log_q, energy = normal_pair(100, scale=1.0, from_model=False, seed=0)
        assert forward_kl(log_q, energy, log_z=LOG_Z_NORMAL, seed=0).value == pytest.approx(0.0, abs=1e-28)

    def test_self_normalised_form_is_refused_on_a_thin_sample(self) -> None:
        log_q, energy = normal_pair(80, scale=1.2, from_model=False, seed=0)
        estimate = forward_kl_self_normalised(log_q, energy, seed=0)
        assert np.isnan(estimate.value)
        assert "below 100" in estimate.reason
        assert "not finite" in forward_kl_self_normalised([0.0, np.nan], [0.0, 0.0], seed=0).reason


class TestTransport:
    def test_golden(self, golden: dict[str, Array]) -> None:
        a, b = golden["w2_a"], golden["w2_b"]
        assert wasserstein_2(a, b) == pytest.approx(golden["w2"], rel=1e-12)
        assert wasserstein_1(a, b) == pytest.approx(golden["w1"], rel=1e-12)
        assert wasserstein_2_equivariant(a, b, space=FOUR_PARTICLES) == pytest.approx(golden["eqw2_so"], rel=1e-12)
        mirrored = wasserstein_2_equivariant(a, b, space=FOUR_PARTICLES, reflections=True)
        assert mirrored == pytest.approx(golden["eqw2_o"], rel=1e-12)
        dem = wasserstein_1_equivariant_dem(a, b, space=FOUR_PARTICLES)
        assert dem == pytest.approx(golden["dem_eot"], rel=1e-12)

    def test_energy_distance_matches_golden_for_equal_and_unequal_sizes(self, golden: dict[str, Array]) -> None:
        a, b = golden["energy_a"], golden["energy_b"]
        assert wasserstein_2_energy(a, b) ** 2 == pytest.approx(golden["energy_w2_squared"], rel=1e-12)
        assert wasserstein_2_energy(np.repeat(a, 2), b) ** 2 == pytest.approx(golden["energy_w2_squared"], rel=1e-9)

    def test_a_shifted_copy_is_one_shift_away(self) -> None:
        x = np.random.default_rng(0).normal(size=(40, 3))
        assert wasserstein_2(x, x[::-1] + np.array([3.0, 0.0, 4.0])) == pytest.approx(5.0, rel=1e-12)
        assert wasserstein_1(x, x) == pytest.approx(0.0, abs=1e-12)

    def test_alignment_never_makes_a_distance_longer(self) -> None:
        x, y = np.random.default_rng(1).normal(size=(2, 30, 8))
        x, y = (p - np.tile(p.reshape(30, 4, 2).mean(axis=1), 4) for p in (x, y))
        assert wasserstein_2_equivariant(x, y, space=FOUR_PARTICLES) <= wasserstein_2(x, y)

    def test_estimates_state_how_many_samples_they_used(self) -> None:
        x, y = np.random.default_rng(2).normal(size=(2, 300, 8))
        plain = wasserstein_2_estimate(x, y, seed=0, max_samples=120)
        aligned = wasserstein_2_equivariant_estimate(x, y, space=FOUR_PARTICLES, seed=0, max_samples=40)
        energy = wasserstein_2_energy_estimate(x[:, 0], y[:100, 0] + 5.0, seed=0)
        assert (plain.n, aligned.n, energy.n) == (120, 40, 300)
        for estimate in (plain, aligned, energy):
            assert 0 <= estimate.lo < estimate.value < estimate.hi
        assert energy.lo < 5.0 < energy.hi

    def test_diverged_samples_make_distances_undefined(self) -> None:
        x = np.full((10, 8), np.nan)
        assert np.isnan(wasserstein_2_estimate(x, np.zeros((10, 8)), seed=0).value)
        assert np.isnan(wasserstein_2_energy_estimate(x[:, 0], np.zeros(10), seed=0).value)


class TestTotalVariation:
    def test_golden(self, golden: dict[str, Array]) -> None:
        model, reference = golden["tv_gen"], golden["tv_data"]
        for bins, union_range, name in (
            (200, False, "tv_idem_200"),
            (200, True, "tv_union_200"),
            (20, False, "tv_idem_20"),
        ):
            plain = total_variation(model, reference, bins=bins, union_range=union_range)
            estimate = total_variation_estimate(model, reference, bins=bins, union_range=union_range, seed=0)
            assert plain == pytest.approx(golden[name], rel=1e-12)
            assert estimate.value == pytest.approx(golden[name], rel=1e-12)
            assert estimate.lo < estimate.value < estimate.hi
        planar = total_variation_2d(golden["tv2_gen"], golden["tv2_data"], bins=20)
        assert planar == pytest.approx(golden["tv2_20"], rel=1e-12)

    def test_pair_distances_match_golden(self, golden: dict[str, Array]) -> None:
        pairs = pair_distances(golden["dist_x"], FOUR_PARTICLES)
        np.testing.assert_allclose(pairs, golden["dist_pairs"], rtol=1e-12)

    def test_a_set_does_not_differ_from_itself_and_wholly_from_a_distant_one(self) -> None:
        values = np.random.default_rng(0).normal(size=1000)
        assert total_variation(values, values) == 0.0
        assert total_variation(values + 100, values, union_range=True) == 1.0
        estimate = total_variation_estimate(values + 100, values, seed=0)
        assert estimate.value == 1.0
        assert estimate.reason

    def test_infinite_energies_of_the_model_are_dropped_and_all_of_them_undefined(self) -> None:
        values = np.random.default_rng(0).normal(size=500)
        broken = values.copy()
        broken[:5] = np.inf
        assert total_variation_estimate(broken, values, seed=0).value < 0.1
        assert np.isnan(total_variation_estimate(np.full(5, np.nan), values, seed=0).value)

    def test_planar_estimate(self) -> None:
        x, y = np.random.default_rng(1).normal(scale=0.1, size=(2, 400, 2))
        estimate = total_variation_2d_estimate(x, y, seed=0)
        assert 0 <= estimate.lo <= estimate.value <= estimate.hi <= 1


class TestObservables:
    def test_golden(self, golden: dict[str, Array]) -> None:
        phi, log_w = golden["fe_phi"], golden["fe_logw"]
        assert free_energy_difference(phi, log_w) == pytest.approx(golden["fe_direct"], rel=1e-12)
        assert free_energy_difference_binned(phi, log_w) == pytest.approx(golden["fe_hist100"], rel=1e-12)
        np.testing.assert_allclose(von_mises_bias(golden["vonmises_phi"]), golden["vonmises_weight"], rtol=1e-12)
        mean = self_normalised_mean(golden["snis_obs"], golden["ess_logw"])
        assert mean == pytest.approx(golden["snis_mean"], rel=1e-12)

    def test_even_odds_have_no_free_energy_difference(self) -> None:
        angle = np.array([-1.0, 1.0, -1.0, 1.0])
        assert free_energy_difference(angle, np.zeros(4)) == pytest.approx(0.0, abs=1e-15)
        assert free_energy_difference(angle, np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx(-1.0)
