"""Per-sample records and the whole evaluation that follows from them."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest

from models.contracts import Space
from models.estimators import DataRecords, Estimate, ModelRecords, estimate_all

PARTICLES = Space(dim=8, particles=4)
ALWAYS = {
    *("nll", "nll_no_constant", "ess_p", "ess_p_max_weight", "pareto_k_data", "forward_kl_self_normalised"),
    *("path_length_data", "transport_distance_data", "ess_q", "ess_q_max_weight", "pareto_k", "log_z", "log_z_bound"),
    *("ess_q_of_16", "mean_energy", "path_length", "transport_distance"),
    *("energy_w2", "tv_energy", "tv_energy_union"),
}


def records(n: int, space: Space = PARTICLES, scale: float = 1.1) -> tuple[DataRecords, ModelRecords]:
    """A target N(0, 1) and a model N(0, scale^2) on the space, with made-up lengths."""
    rng = np.random.default_rng(7)
    dof = space.degrees_of_freedom
    constant = 0.5 * dof * np.log(2 * np.pi * scale**2)
    at_data, at_model = rng.chisquare(dof, size=n), scale**2 * rng.chisquare(dof, size=n)
    shared = {"sample_id": np.arange(n), "length": rng.random(n) + 1, "displacement": rng.random(n)}
    data = DataRecords(log_q=-0.5 * at_data / scale**2 - constant, energy=0.5 * at_data, **shared)
    x = rng.normal(scale=scale, size=(n, space.dim))
    model = ModelRecords(x=x, log_q=-0.5 * at_model / scale**2 - constant, energy=0.5 * at_model, **shared)
    return data, model


def evaluate(
    data: DataRecords, model: ModelRecords, space: Space = PARTICLES, **options: object
) -> dict[str, Estimate]:
    rng = np.random.default_rng(8)
    reference_x, reference_energy = rng.normal(size=(500, space.dim)), 0.5 * rng.chisquare(6, size=500)
    settings = {"prior_std": 1.0, "seed": 3, **options}
    return estimate_all(
        data, model, reference_x=reference_x, reference_energy=reference_energy, space=space, **settings
    )


def shards_of(data: DataRecords, parts: list[slice]) -> list[DataRecords]:
    return [DataRecords.from_npz({k: v[part] for k, v in data.to_npz_dict().items()}) for part in parts]


def test_every_estimate_is_there_with_its_interval_and_number() -> None:
    data, model = records(600)
    estimates = evaluate(replace(data, fm_loss=np.ones(600)), model, log_z=0.5 * 6 * np.log(2 * np.pi), expensive=True)
    assert set(estimates) == ALWAYS | {"forward_kl", "fm_loss", "tv_distances", "w2", "w2_equivariant"}
    for name, estimate in estimates.items():
        assert estimate.lo <= estimate.value <= estimate.hi, (name, estimate)
        assert estimate.n > 0


def test_what_cannot_be_said_is_left_out() -> None:
    data, model = records(300)
    assert set(evaluate(data, model)) == ALWAYS | {"tv_distances"}
    plane = Space(dim=2)
    assert set(evaluate(*records(300, plane), space=plane)) == ALWAYS | {"tv_2d"}


def test_values_agree_with_closed_forms() -> None:
    scale, dof, n = 1.1, 6, 20_000
    log_z = 0.5 * dof * np.log(2 * np.pi)
    data, model = records(n, scale=scale)
    estimates = evaluate(data, model, log_z=log_z)
    kl = dof * (np.log(scale) + 0.5 / scale**2 - 0.5)
    ess = (np.sqrt(2 - 1 / scale**2) / scale) ** dof
    expected = {
        "nll": log_z + 0.5 * dof + kl,
        "nll_no_constant": 0.5 * dof + kl,
        "forward_kl": kl,
        "log_z": log_z,
        "ess_q": ess,
        "ess_p": ess,
        "mean_energy": 0.5 * dof * scale**2,
    }
    for name, value in expected.items():
        estimate = estimates[name]
        widened = estimate.hi - estimate.lo
        assert estimate.lo - widened < value < estimate.hi + widened, (name, value, estimate)


def test_one_seed_one_result_whatever_the_order_of_shards() -> None:
    data, model = records(200)
    parts = shards_of(data, [slice(120, 200), slice(0, 50), slice(50, 120)])
    merged = DataRecords.merge(parts, expected=200)
    np.testing.assert_array_equal(merged.sample_id, np.arange(200))
    assert evaluate(merged, model) == evaluate(data, model)


def test_particles_of_different_type_do_not_change_places() -> None:
    data, model = records(100)
    alike = evaluate(data, model, expensive=True)["w2_equivariant"]
    typed = evaluate(data, model, expensive=True, space=replace(PARTICLES, types=(0, 1, 2, 3)))["w2_equivariant"]
    assert typed.value > alike.value


def test_large_systems_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = records(400)
    monkeypatch.setattr("models.estimators.summary.MAX_PAIR_DISTANCES", 6 * 150)
    assert evaluate(data, model)["tv_distances"].n == 134


def test_a_diverged_model_is_a_result_and_not_an_error() -> None:
    data, model = records(100)
    broken = replace(model, x=np.full_like(model.x, np.nan), log_q=np.full(100, np.nan), energy=np.full(100, np.inf))
    estimates = evaluate(data, broken, expensive=True)
    for name in ("ess_q", "log_z", "mean_energy", "energy_w2", "tv_energy", "tv_distances", "w2", "w2_equivariant"):
        assert np.isnan(estimates[name].value), name
        assert estimates[name].reason
    assert np.isfinite(estimates["nll"].value)


def test_records_survive_a_file() -> None:
    data, model = records(20)
    for record in (data, model, replace(data, fm_loss=np.ones(20))):
        buffer = BytesIO()
        np.savez(buffer, **record.to_npz_dict())
        buffer.seek(0)
        with np.load(buffer) as file:
            again = type(record).from_npz(file)
        for name, column in record.to_npz_dict().items():
            np.testing.assert_array_equal(getattr(again, name), column)
    assert DataRecords.from_npz(data.to_npz_dict()).fm_loss is None


def test_merging_refuses_repeated_missing_and_unlike_shards() -> None:
    data, _ = records(30)
    first, second = shards_of(data, [slice(0, 10), slice(10, 30)])
    overlap, gap = shards_of(data, [slice(5, 20), slice(12, 30)])
    with pytest.raises(ValueError, match="repeated"):
        DataRecords.merge([first, overlap])
    with pytest.raises(ValueError, match="gap at 10"):
        DataRecords.merge([first, gap])
    with pytest.raises(ValueError, match="must be 30 samples"):
        DataRecords.merge([first], expected=30)
    with pytest.raises(ValueError, match="same columns"):
        DataRecords.merge([first, replace(second, fm_loss=np.ones(20))])


def test_columns_of_unequal_length_are_refused() -> None:
    data, _ = records(10)
    with pytest.raises(ValueError, match="equal lengths"):
        replace(data, energy=np.zeros(9))
