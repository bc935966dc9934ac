"""HMC against closed forms, its diagnostics, the cache of samples, and the reader of published files."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Space, Target
from models.reference import hmc, samples
from models.reference.diagnostics import autocorrelation_time, effective_n, split_r_hat, virial
from models.reference.drawing import share_chains, split_rows
from models.reference.fingerprint import fingerprint
from models.reference.hmc import HmcSettings
from models.reference.published import read_published
from models.reference.samples import ReferenceSamples, reference_samples
from models.targets import dw4, gmm4, lj13, lj55

QUICK = HmcSettings(chains=48, burn_in=30, pilot=40, max_pilot=160, max_thinning=60, descent_steps=50)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """N(mean, diag variance) without exact draws, so that it is sampled by HMC."""

    mean_D: tuple[float, ...] = (1.0, -2.0, 0.5)
    variance_D: tuple[float, ...] = (0.25, 1.0, 4.0)
    particles: int | None = None
    name: str = "gaussian"
    log_z: None = field(default=None, init=False)
    energy_flops: int = 12

    @property
    def space(self) -> Space:
        return Space(dim=len(self.mean_D), particles=self.particles)

    def energy(self, x_BD: Tensor) -> Tensor:
        offset_BD = x_BD - torch.tensor(self.mean_D).to(x_BD)
        return 0.5 * (offset_BD.square() / torch.tensor(self.variance_D).to(x_BD)).sum(-1)

    def score(self, x_BD: Tensor) -> Tensor:
        return self.space.project((torch.tensor(self.mean_D).to(x_BD) - x_BD) / torch.tensor(self.variance_D).to(x_BD))


def draw_all(target: Target, n: int, tmp: Path | None = None, settings: HmcSettings = QUICK) -> ReferenceSamples:
    return reference_samples(
        target, n_train=n, n_validation=n // 2, n_test=n // 2, cache_dir=tmp, progress=False, settings=settings
    )


@pytest.fixture(scope="module")
def dw4_samples() -> ReferenceSamples:
    return draw_all(dw4(), 2000, settings=replace(QUICK, chains=500, max_pilot=160, max_thinning=140))


def run_hmc(target: Target, draws: int) -> hmc.Trace:
    generator = torch.Generator().manual_seed(1)
    chains = hmc.start_chains(target, QUICK, 200, generator)
    chains = hmc.burn_in(target, chains, QUICK, generator)
    return hmc.draw(target, chains, QUICK, draws=draws, thinning=2, generator=generator)[1]


def test_hmc_finds_the_moments_of_a_gaussian() -> None:
    """Mean and variance of each coordinate within four standard errors that count independent draws only."""
    target = Gaussian()
    trace = run_hmc(target, 100)
    for k in range(3):
        x_SC = trace.x_SCD[..., k].double()
        squares_SC = (x_SC - target.mean_D[k]).square()
        assert abs(float(x_SC.mean()) - target.mean_D[k]) < 4.0 * (target.variance_D[k] / effective_n(x_SC)) ** 0.5
        error = target.variance_D[k] * (2.0 / effective_n(squares_SC)) ** 0.5
        assert abs(float(squares_SC.mean()) - target.variance_D[k]) < 4.0 * error
    assert 0.7 < trace.acceptance < 0.9


def test_hmc_stays_on_the_mean_free_subspace_and_fills_it() -> None:
    """Three particles in the plane, a unit trap: the mean energy is half of the (N - 1) d = 4 degrees of freedom."""
    trace = run_hmc(Gaussian(mean_D=(0.0,) * 6, variance_D=(1.0,) * 6, particles=3), 60)
    assert float((trace.x_SCD.unflatten(-1, (3, 2)).mean(-2)).abs().max()) < 1e-5
    error = (2.0 / effective_n(trace.energy_SC)) ** 0.5
    assert abs(float(trace.energy_SC.mean()) - 2.0) < 4.0 * error


def test_the_leapfrog_is_of_second_order_and_reversible() -> None:
    target, generator = Gaussian(), torch.Generator().manual_seed(2)
    x_CD, p_CD = (torch.randn((5, 3), generator=generator, dtype=torch.float64) for _ in range(2))

    def energy_error(steps: int) -> float:
        y_CD, q_CD, _ = hmc.leapfrog(
            target, x_CD, p_CD, target.score(x_CD), step_size=1.0 / steps, steps=steps, temperature=1.0
        )
        kinetic_C = 0.5 * (q_CD.square() - p_CD.square()).sum(-1)
        return float((target.energy(y_CD) - target.energy(x_CD) + kinetic_C).abs().max())

    assert energy_error(20) / energy_error(40) == pytest.approx(4.0, rel=0.05)
    y_CD, q_CD, score_CD = hmc.leapfrog(target, x_CD, p_CD, target.score(x_CD), step_size=0.1, steps=9, temperature=1.0)
    back_CD, _, _ = hmc.leapfrog(target, y_CD, -q_CD, score_CD, step_size=0.1, steps=9, temperature=1.0)
    torch.testing.assert_close(back_CD, x_CD, rtol=0.0, atol=1e-12)


def test_a_temperature_scales_the_energy() -> None:
    """At temperature 3 a unit Gaussian has variance 3."""
    target, generator = Gaussian(mean_D=(0.0, 0.0), variance_D=(1.0, 1.0)), torch.Generator().manual_seed(3)
    chains = replace(hmc.start_chains(target, QUICK, 4000, generator), step_size=0.3)
    for _ in range(20):
        chains, _ = hmc.transition(target, chains, leapfrog_steps=8, temperature=3.0, generator=generator)
    assert float(chains.x_CD.square().mean()) == pytest.approx(3.0, abs=4.0 * 3.0 * (2.0 / 8000) ** 0.5)


def test_work_counts_what_was_called() -> None:
    """Each chain evaluates one energy a transition, one force a leapfrog step, and what its start takes."""
    target, generator = Gaussian(), torch.Generator().manual_seed(4)
    started = hmc.start_chains(target, QUICK, 10, generator)
    assert (started.work.energy_evaluations, started.work.force_evaluations) == (10, 510)
    moved, _ = hmc.transition(target, started, leapfrog_steps=1, temperature=1.0, generator=generator)
    assert (moved.work.energy_evaluations, moved.work.force_evaluations) == (20, 520)


def test_chains_that_cannot_start_are_refused() -> None:
    class Nowhere(Gaussian):
        def energy(self, x_BD: Tensor) -> Tensor:
            return torch.full((len(x_BD),), math.inf)

    with pytest.raises(ValueError, match="start_scale"):
        hmc.start_chains(Nowhere(), QUICK, 3, torch.Generator())


@pytest.mark.parametrize("coupling", [0.0, 0.6, 0.9])
def test_the_autocorrelation_time_of_an_autoregression(coupling: float) -> None:
    """x_{t+1} = a x_t + noise has tau = (1 + a) / (1 - a)."""
    generator = torch.Generator().manual_seed(6)
    noise_SC = torch.randn((1500, 400), generator=generator, dtype=torch.float64)
    rows = [noise_SC[0] / (1.0 - coupling**2) ** 0.5]
    for noise_C in noise_SC[1:]:
        rows.append(coupling * rows[-1] + noise_C)
    expected = (1.0 + coupling) / (1.0 - coupling)
    assert autocorrelation_time(torch.stack(rows)) == pytest.approx(expected, rel=0.1)


def test_split_r_hat_sees_chains_that_disagree_or_drift() -> None:
    noise_SC = torch.randn((100, 20), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert split_r_hat(noise_SC) < 1.02
    assert split_r_hat(noise_SC + 2.0 * torch.arange(20.0)) > 1.5
    assert split_r_hat(noise_SC + 0.1 * torch.arange(100.0)[:, None]) > 1.5
    with pytest.raises(ValueError, match="at least 4 draws"):
        split_r_hat(noise_SC[:3])


def test_dw4_samples_fulfil_the_virial_identity(dw4_samples: ReferenceSamples) -> None:
    rows_BD = torch.cat([dw4_samples.train_BD, dw4_samples.validation_BD, dw4_samples.test_BD])
    mean, error = virial(dw4(), rows_BD)
    assert abs(mean - 6.0) < 4.5 * error


def test_dw4_samples_have_the_known_mean_energy(dw4_samples: ReferenceSamples) -> None:
    """-22.536 +- 0.004 from a long independent run."""
    error = math.hypot(dw4_samples.diagnostics["mean_energy_error"], 0.004)
    assert abs(dw4_samples.diagnostics["mean_energy"] + 22.536) < 4.0 * error


def test_dw4_chains_have_mixed(dw4_samples: ReferenceSamples) -> None:
    assert dw4_samples.diagnostics["split_r_hat"] < 1.05
    assert dw4_samples.diagnostics["acceptance"] > 0.7
    assert dw4_samples.force_evaluations > dw4_samples.energy_evaluations > 0
    assert dw4_samples.device_seconds > 0.0


def test_chains_that_do_not_mix_are_warned_about() -> None:
    """A barrier of 32 kT that neither temperature crosses, with chains on both sides of it."""

    class TwoWells(Gaussian):
        def energy(self, x_BD: Tensor) -> Tensor:
            return 2.0 * (x_BD.square() - 4.0).square().sum(-1)

        def score(self, x_BD: Tensor) -> Tensor:
            return -8.0 * x_BD * (x_BD.square() - 4.0)

    with pytest.warns(UserWarning, match="have not mixed"):
        draw_all(TwoWells(mean_D=(0.0,)), 400)


def test_no_row_stands_in_two_sets(dw4_samples: ReferenceSamples) -> None:
    sets = [
        {tuple(row) for row in rows.tolist()}
        for rows in (dw4_samples.train_BD, dw4_samples.validation_BD, dw4_samples.test_BD)
    ]
    assert [len(rows) for rows in sets] == [2000, 1000, 1000]
    assert len(set.union(*sets)) == sum(len(rows) for rows in sets)


def test_each_set_owns_its_chains() -> None:
    """Rows carry their chain's number; no number appears in two sets."""
    sizes = (100, 30, 50)
    draws, shares = share_chains(sizes, chains=18)
    number_SC1 = torch.arange(float(sum(shares))).expand(draws, -1)[..., None]
    sets = split_rows(number_SC1, shares, sizes, torch.Generator().manual_seed(0))
    assert tuple(len(rows) for rows in sets) == sizes
    owners = [set(rows.flatten().tolist()) for rows in sets]
    assert len(set.union(*owners)) == sum(len(rows) for rows in owners)


def test_a_cache_hit_gives_the_same_arrays_without_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = draw_all(dw4(), 40, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1

    def refuse(*_: object) -> None:
        raise AssertionError("a cache hit must not sample")

    monkeypatch.setattr(samples, "_make", refuse)
    found = draw_all(dw4(), 40, tmp_path)
    for name in ("train_BD", "validation_BD", "test_BD"):
        assert torch.equal(getattr(found, name), getattr(made, name))
    for name in samples.RECORD_FIELDS:
        assert getattr(found, name) == getattr(made, name)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _overwrite(path: Path) -> None:
    path.write_bytes(b"not an archive")


def _tamper(path: Path) -> None:
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    stored["train"] = stored["train"] + 1.0
    np.savez(path, **stored)


@pytest.mark.parametrize("damage", [_cut, _overwrite, _tamper])
def test_a_damaged_cache_file_is_made_again(tmp_path: Path, damage: object) -> None:
    made = draw_all(gmm4(), 40, tmp_path)
    damage(next(tmp_path.iterdir()))  # type: ignore[operator]
    with pytest.warns(UserWarning, match="damaged"):
        again = draw_all(gmm4(), 40, tmp_path)
    assert torch.equal(made.train_BD, again.train_BD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all(gmm4(), 40, tmp_path)


def test_other_targets_sizes_and_settings_have_other_files(tmp_path: Path) -> None:
    draw_all(gmm4(), 40, tmp_path)
    draw_all(gmm4(variance=0.6), 40, tmp_path)
    draw_all(gmm4(), 42, tmp_path)
    draw_all(Gaussian(), 40, tmp_path)
    draw_all(Gaussian(), 40, tmp_path, replace(QUICK, leapfrog_steps=8))
    assert len(list(tmp_path.iterdir())) == 5


def test_exact_draws_do_not_depend_on_hmc_settings_and_cost_no_energies(tmp_path: Path) -> None:
    first, second = draw_all(gmm4(), 40), draw_all(gmm4(), 40, settings=replace(QUICK, chains=3))
    assert torch.equal(first.test_BD, second.test_BD)
    assert (first.energy_evaluations, first.force_evaluations) == (0, 0)
    assert first.train_BD.dtype == torch.float32


def test_the_same_seed_gives_the_same_chains() -> None:
    assert torch.equal(draw_all(Gaussian(), 40).train_BD, draw_all(Gaussian(), 40).train_BD)


def test_fingerprints_tell_targets_apart() -> None:
    targets = [gmm4(), gmm4(mean=1.1), dw4(), dw4(tau=1.1), lj13(), lj13(pair_factor=1.0), lj13(oscillator=0.5), lj55()]
    assert len({fingerprint(target) for target in targets}) == len(targets)
    assert fingerprint(lj13()) == fingerprint(lj13())


def test_progress_goes_to_stderr_alone(capfd: pytest.CaptureFixture[str]) -> None:
    reference_samples(Gaussian(), n_train=8, n_validation=8, n_test=8, settings=QUICK, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert all(f"gaussian {stage}" in err for stage in ("burn-in", "pilot", "drawing"))


def test_a_name_with_slashes_makes_one_file(tmp_path: Path) -> None:
    draw_all(replace(Gaussian(), name="my/../own target"), 8, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_sizes_and_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        reference_samples(gmm4(), n_train=10, n_validation=0, n_test=10)
    with pytest.raises(ValueError, match=r"end at 1\.0"):
        HmcSettings(temperatures=(4.0, 2.0))
    with pytest.raises(ValueError, match="at least 1"):
        HmcSettings(chains=0)
    with pytest.raises(ValueError, match="target_acceptance"):
        HmcSettings(target_acceptance=1.0)


def test_published_rows_are_read_and_centred(tmp_path: Path, dw4_samples: ReferenceSamples) -> None:
    shift = np.tile([3.0, -1.0], 4)
    np.save(tmp_path / "dw4.npy", dw4_samples.train_BD.numpy() + shift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x_BD = read_published(tmp_path / "dw4.npy", dw4(), dtype=torch.float64)
    assert x_BD.dtype == torch.float64
    torch.testing.assert_close(x_BD.float(), dw4_samples.train_BD, rtol=0.0, atol=1e-5)


def test_published_rows_of_another_energy_are_warned_about(tmp_path: Path, dw4_samples: ReferenceSamples) -> None:
    np.save(tmp_path / "scaled.npy", 1.1 * dw4_samples.train_BD.numpy())
    with pytest.warns(UserWarning, match="does not look like samples of dw4"):
        read_published(tmp_path / "scaled.npy", dw4())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((5, 7), dtype=np.float32), r"shape \(rows, 8\), got \(5, 7\)"),
        (np.zeros(8, dtype=np.float32), r"shape \(rows, 8\)"),
        (np.zeros((0, 8), dtype=np.float32), "at least two rows, got 0"),
        (np.array([[1.0] * 8, [math.nan] * 8, [math.inf] * 8]), "got 2 of 3 rows"),
        (np.array([["a"] * 8, ["b"] * 8]), "real numbers"),
        (np.zeros((5, 8), dtype=bool), "real numbers"),
        (np.zeros((5, 8), dtype=complex), "real numbers"),
        (np.array([[None] * 8] * 3, dtype=object), "without Python objects"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "bad.npy", dw4())


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        read_published(tmp_path / "missing.npy", dw4())
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save(tmp_path / "whole.npy", np.zeros((9, 8)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:200])
    for name in ("empty.npy", "text.npy", "cut.npy"):
        with pytest.raises(ValueError, match="must be a plain"):
            read_published(tmp_path / name, dw4())
    np.savez(tmp_path / "many.npz", a=np.zeros((9, 8)))
    with pytest.raises(ValueError, match="one array"):
        read_published(tmp_path / "many.npz", dw4())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "energy", "tolerance", "rows", "chains"),
    [(lj13(), -43.0, 0.35, 1500, 256), (lj55(), -325.6, 1.6, 300, 64)],
    ids=["lj13", "lj55"],
)
def test_lennard_jones_mean_energies(target: Target, energy: float, tolerance: float, rows: int, chains: int) -> None:
    """Independent runs gave -42.92 +- 0.11 (published data: -43.0 to -43.1) and -325.6 +- 0.14."""
    drawn = draw_all(target, rows, settings=HmcSettings(chains=chains))
    error = drawn.diagnostics["mean_energy_error"]
    assert abs(drawn.diagnostics["mean_energy"] - energy) < tolerance + 3.0 * error
    assert drawn.diagnostics["split_r_hat"] < 1.05
    virial_error = drawn.diagnostics["virial_error"]
    assert abs(drawn.diagnostics["virial"] - target.space.degrees_of_freedom) < 5.0 * virial_error
