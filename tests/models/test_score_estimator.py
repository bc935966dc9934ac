"""S_K against golden numbers, autograd, symmetry, its known bias, and particles that overlap.

Shapes: B batch, D coordinates, K noises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Space, Target, Work
from models.schedules import Geometric
from models.score_estimator import Clip, EstimatedScore, Form, ScoreEstimate, estimate_score, rows_at_once
from models.targets import GaussianMixture, Rescaled, dw4, gmm4, gmm40, lj13
from tests.laws.target_laws import relative_error


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / "E_dem.npz") as file:
        return {name: torch.tensor(file[name]) for name in file.files}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def configurations(target: Target, rows: int, seed: int = 4) -> Tensor:
    """Spread out far enough that estimates are ordinary numbers."""
    return target.space.project(2.0 * normal(rows, target.space.dim, seed=seed))


def estimate(target: Target, x_BD: Tensor, noise_KBD: Tensor, variance: float = 0.09) -> ScoreEstimate:
    return estimate_score(target, x_BD, x_BD.new_tensor(variance), noise_KBD)


class TestGolden:
    def test_mixture(self, golden: dict[str, Tensor]) -> None:
        target = GaussianMixture(name="golden", means_KD=golden["gmm_means"], variance=float(golden["gmm_var"]))
        found = estimate_score(target, golden["gmm_x"], golden["gmm_sigma2"], golden["gmm_noise"])
        close(found.score_BD, golden["gmm_SK"])
        close(found.score_BD, golden["gmm_SK_weighted"])
        close(found.log_mean_B, golden["gmm_logmean"])
        close(Clip(norm=0.5, of="row")(found.score_BD, target.space), golden["gmm_SK_clip0p5"])
        calls = golden["gmm_noise"][..., 0].numel()
        assert found.work == Work(
            energy_evaluations=calls, force_evaluations=calls, declared_flops=2 * calls * target.energy_flops
        )

    def test_mixture_of_forty_in_small_units(self, golden: dict[str, Tensor]) -> None:
        target = Rescaled(target=gmm40(), scale=50.0)
        variance_B = Geometric(sigma_min=1e-5, sigma_max=1.0).h(golden["gmm40n_t"])
        close(variance_B, golden["gmm40n_sigma2"])
        found = estimate_score(target, golden["gmm40n_x"], variance_B, golden["gmm40n_noise"])
        close(found.score_BD, golden["gmm40n_SK"])
        close(Clip(norm=70.0, of="row")(found.score_BD, target.space), golden["gmm40n_SK_clip70"])

    @pytest.mark.parametrize(("name", "sigmas"), [("dw4", (1e-5, 3.0)), ("lj13", (0.01, 2.0))])
    def test_particles(self, golden: dict[str, Tensor], name: str, sigmas: tuple[float, float]) -> None:
        target: Target = dw4() if name == "dw4" else lj13()
        variance_B = Geometric(sigma_min=sigmas[0], sigma_max=sigmas[1]).h(golden[f"{name}_t"])
        close(variance_B, golden[f"{name}_sigma2"])
        found = estimate_score(target, golden[f"{name}_x"], variance_B, golden[f"{name}_noise"])
        close(found.score_BD, golden[f"{name}_SK"])
        close(found.log_mean_B, golden[f"{name}_logmean"])
        by_particle, whole = Clip(norm=20.0, of="particles"), Clip(norm=20.0, of="row")
        close(by_particle(found.score_BD, target.space), golden[f"{name}_SK_clip20_per_particle"])
        close(whole(found.score_BD, target.space), golden[f"{name}_SK_clip20_whole"])


@pytest.mark.parametrize("target", [gmm4(), dw4(), lj13()], ids=lambda target: target.name)
def test_it_is_the_gradient_of_the_log_of_the_summed_densities(target: Target) -> None:
    noise_KBD, x_BD = target.space.project(normal(16, 5, target.space.dim)), configurations(target, 5)
    leaf_BD = x_BD.clone().requires_grad_()
    energy_KB = target.energy((leaf_BD + 0.3 * noise_KBD).flatten(0, 1)).unflatten(0, (16, 5))
    (expected_BD,) = torch.autograd.grad(torch.logsumexp(-energy_KB, dim=0).sum(), leaf_BD)
    found = estimate(target, x_BD, noise_KBD)
    assert relative_error(found.score_BD, expected_BD) < 1e-11
    assert not found.score_BD.requires_grad
    close(found.log_mean_B, torch.logsumexp(-energy_KB.detach(), dim=0) - math.log(16))


class TestSymmetry:
    @pytest.mark.parametrize("target", [dw4(), lj13()], ids=lambda target: target.name)
    @pytest.mark.parametrize("motion", ["permuted", "turned"])
    def test_equivariance(self, target: Target, motion: str) -> None:
        """Particles permuted, or space turned and mirrored, with the noise moved along."""
        space = target.space
        assert space.particles is not None
        order = torch.randperm(space.particles, generator=torch.Generator().manual_seed(0))
        turn = torch.linalg.qr(normal(space.spatial_dim, space.spatial_dim, seed=2)).Q

        def moved(x: Tensor) -> Tensor:
            x = x.unflatten(-1, (space.particles, space.spatial_dim))
            return (x[..., order, :] if motion == "permuted" else x @ turn.T).flatten(-2)

        noise_KBD, x_BD = normal(16, 4, space.dim), configurations(target, 4)
        found_BD = estimate(target, moved(x_BD), moved(noise_KBD)).score_BD
        assert relative_error(found_BD, moved(estimate(target, x_BD, noise_KBD).score_BD)) < 1e-10
        assert relative_error(found_BD, estimate(target, x_BD, noise_KBD).score_BD) > 1e-2

    @pytest.mark.parametrize("target", [dw4(), lj13()], ids=lambda target: target.name)
    def test_a_shift_changes_nothing_and_the_score_is_mean_free(self, target: Target) -> None:
        space = target.space
        assert space.particles is not None
        noise_KBD, x_BD = normal(16, 4, space.dim), configurations(target, 4)
        expected_BD = estimate(target, x_BD, noise_KBD).score_BD
        shift_D = torch.arange(1.0, 1.0 + space.spatial_dim, dtype=torch.float64).repeat(space.particles)
        assert relative_error(estimate(target, x_BD + shift_D, noise_KBD).score_BD, expected_BD) < 1e-10
        assert relative_error(estimate(target, x_BD, noise_KBD + shift_D).score_BD, expected_BD) < 1e-10
        assert relative_error(space.project(expected_BD), expected_BD) < 1e-12


class TestBias:
    def test_the_bias_falls_like_one_over_k(self) -> None:
        """Four modes at (1.5, 1) and variance 1, where the exact score is known in closed form.

        The first-order fluctuation, p(y) (s(y) - S) / E[p] averaged over K, has mean zero and is subtracted: what is
        left fluctuates as little as the bias itself.
        """
        target, variance, repeats = gmm4(), 1.0, 4000
        exact = gmm4(variance=0.5 + variance)
        x_D = torch.tensor([1.5, 1.0], dtype=torch.float64)
        score_D, log_density = exact.score(x_D[None])[0], -exact.energy(x_D[None])[0]
        counts, biases = [8, 16, 32, 64, 128], []
        for k in counts:
            noise_KBD = normal(k, repeats, 2, seed=k)
            found_BD = estimate(target, x_D.expand(repeats, 2), noise_KBD, variance).score_BD
            y_MD = (x_D + noise_KBD).flatten(0, 1)
            ratio_M = torch.exp(-target.energy(y_MD) - log_density)
            first_order_BD = (ratio_M[:, None] * (target.score(y_MD) - score_D)).unflatten(0, (k, repeats)).mean(0)
            left_BD = found_BD - score_D - first_order_BD
            biases.append(float(left_BD.mean(0).norm()))
            error = float((left_BD.var(0).sum() / repeats).sqrt())
            assert error < 0.1 * biases[-1]
        slope = float(np.polyfit(np.log(counts), np.log(biases), 1)[0])
        assert -1.2 < slope < -0.8
        assert counts[-1] * biases[-1] == pytest.approx(0.34, rel=0.1)

    def test_both_other_forms_estimate_what_they_say(self) -> None:
        """The ratio form is consistent for the score; Jensen's is unbiased for the mean force, and nothing else.

        For a Gaussian of variance v the mean force at x is -x / v, the noised score -x / (v + h).
        """
        target = GaussianMixture(name="one", means_KD=torch.zeros(1, 2), variance=0.5)
        x_BD = torch.tensor([[0.6, -0.4], [0.1, 0.2]], dtype=torch.float64)
        noise_KBD = normal(60_000, 2, 2)
        variance = torch.tensor([0.25, 0.25], dtype=torch.float64)
        expected = {"weighted": -x_BD / 0.75, "ratio": -x_BD / 0.75, "jensen": -x_BD / 0.5}
        assert set(expected) == set(get_args(Form))
        for form, expected_BD in expected.items():
            found = estimate_score(target, x_BD, variance, noise_KBD, form=form)  # type: ignore[arg-type]
            torch.testing.assert_close(found.score_BD, expected_BD, rtol=0, atol=0.06)
            calls = noise_KBD[..., 0].numel()
            assert found.work.force_evaluations == (calls if form == "weighted" else 0)
            assert found.work.energy_evaluations == calls

    def test_forms_of_few_noises_against_plain_sums(self) -> None:
        target, x_BD, noise_KBD = gmm4(), normal(3, 2), normal(5, 3, 2, seed=3)
        energy_KB = torch.stack([target.energy(x_BD + 0.5 * noise_BD) for noise_BD in noise_KBD])
        kernel_KBD = noise_KBD / 0.5
        weight_KB = torch.softmax(-energy_KB, dim=0)
        variance = torch.tensor(0.25, dtype=torch.float64)
        ratio = estimate_score(target, x_BD, variance, noise_KBD, form="ratio")
        jensen = estimate_score(target, x_BD, variance, noise_KBD, form="jensen")
        close(ratio.score_BD, (weight_KB.unsqueeze(-1) * kernel_KBD).sum(0), 1e-13)
        close(jensen.score_BD, -(energy_KB.unsqueeze(-1) * kernel_KBD).mean(0), 1e-13)
        close(jensen.log_mean_B, ratio.log_mean_B, 1e-13)


@dataclass
class Watched:
    """A double well that remembers how many rows it was asked for at a time, and knows both in one call."""

    name: str = "watched"
    log_z: None = None
    asked: list[int] = field(default_factory=list)

    @property
    def space(self) -> Space:
        return dw4().space

    @property
    def energy_flops(self) -> int:
        return dw4().energy_flops

    def energy(self, x_BD: Tensor) -> Tensor:
        raise AssertionError("both come from one call")

    score = energy

    def energy_and_score(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(len(x_BD))
        torch.testing.assert_close(self.space.project(x_BD), x_BD, rtol=0, atol=1e-12)
        return dw4().energy(x_BD), dw4().score(x_BD)


class TestPieces:
    @pytest.mark.parametrize("form", get_args(Form))
    @pytest.mark.parametrize("target", [gmm4(), dw4()], ids=lambda target: target.name)
    def test_the_noise_that_was_given_stays_as_it_was(self, target: Target, form: Form) -> None:
        # Laid out as the estimate wants it, so that nothing forces a copy.
        noise_KBD = normal(target.space.dim, 5, 7).permute(2, 1, 0)
        before_KBD = noise_KBD.clone()
        estimate_score(target, configurations(target, 5), torch.tensor(0.09, dtype=torch.float64), noise_KBD, form=form)
        assert torch.equal(noise_KBD, before_KBD)

    @pytest.mark.parametrize("form", get_args(Form))
    @pytest.mark.parametrize("target", [gmm4(), dw4(), lj13()], ids=lambda target: target.name)
    def test_pieces_change_nothing(self, target: Target, form: Form) -> None:
        noise_KBD, x_BD = normal(13, 5, target.space.dim), configurations(target, 5)
        variance = torch.tensor(0.09, dtype=torch.float64)
        row = rows_at_once(target, x_BD, 1) * target.energy_flops * 8
        whole, *parts = (
            estimate_score(target, x_BD, variance, noise_KBD, form=form, bytes_at_once=size)
            for size in (2**30, 1, 3 * row, 11 * row)
        )
        for part in parts:
            assert relative_error(part.score_BD, whole.score_BD) < 1e-13
            close(part.log_mean_B, whole.log_mean_B, 1e-13)
            assert torch.equal(part.usable_B, whole.usable_B)
            assert part.work == whole.work

    def test_a_stream_of_noise_is_a_tensor_of_noise(self) -> None:
        noise_KBD, x_BD = normal(13, 5, 8), configurations(dw4(), 5)
        variance = torch.tensor(0.09, dtype=torch.float64)
        streamed = estimate_score(dw4(), x_BD, variance, iter(noise_KBD))
        assert torch.equal(streamed.score_BD, estimate_score(dw4(), x_BD, variance, noise_KBD).score_BD)

    def test_the_bound_holds_and_one_call_gives_both(self) -> None:
        noise_KBD, x_BD = normal(13, 5, 8), configurations(dw4(), 5)
        variance, bound = torch.tensor(0.09, dtype=torch.float64), 12 * dw4().energy_flops * 8
        watched = Watched()
        found = estimate_score(watched, x_BD, variance, noise_KBD, bytes_at_once=bound)
        assert watched.asked == [10] * 6 + [5]
        close(found.score_BD, estimate_score(dw4(), x_BD, variance, noise_KBD).score_BD, 1e-13)
        narrow = Watched()
        estimate_score(narrow, x_BD, variance, noise_KBD, bytes_at_once=2 * dw4().energy_flops * 8)
        assert narrow.asked == [2, 2, 1] * 13


class TestOverlaps:
    """Lennard-Jones in single precision: energies and forces of close particles are infinite."""

    def clash(self) -> Tensor:
        x_BD = configurations(lj13(), 3).float()
        x_BD[0, 3:6] = x_BD[0, :3] + 1e-5
        x_BD[1, 3:6] = x_BD[1, :3]
        return x_BD

    def test_points_without_a_finite_energy_have_no_weight(self) -> None:
        x_BD = self.clash()
        assert not bool(torch.isfinite(lj13().energy(x_BD[:2])).any())
        noise_KBD = normal(6, 3, 39).float()
        noise_KBD[0] = 0.0
        found = estimate(lj13(), x_BD, noise_KBD)
        assert bool(torch.isfinite(found.score_BD).all())
        assert found.usable_B.tolist() == [5, 5, 6]
        rest = estimate(lj13(), x_BD, noise_KBD[1:])
        torch.testing.assert_close(found.score_BD[:2], rest.score_BD[:2], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found.log_mean_B[:2], rest.log_mean_B[:2] - math.log(6 / 5), rtol=1e-5, atol=1e-5)

    def test_an_infinite_force_beside_a_finite_energy_has_no_weight(self) -> None:
        x_BD = configurations(lj13(), 1).float()
        x_BD[0, 3:6] = x_BD[0, :3] + torch.tensor([7.5e-4, 0.0, 0.0])
        assert bool(torch.isfinite(lj13().energy(x_BD)).all())
        assert not bool(torch.isfinite(lj13().score(x_BD)).all())
        found = estimate(lj13(), x_BD, torch.zeros(2, 1, 39))
        assert found.usable_B.tolist() == [0]
        assert bool((found.score_BD == 0.0).all())

    def test_rows_without_any_usable_point_give_zero_and_say_so(self) -> None:
        found = estimate(lj13(), self.clash(), torch.zeros(4, 3, 39))
        assert found.usable_B.tolist() == [0, 0, 4]
        assert bool((found.score_BD[:2] == 0.0).all())
        assert bool(torch.isneginf(found.log_mean_B[:2]).all())
        assert bool(torch.isfinite(found.score_BD[2]).all())

    def test_large_finite_scores_are_clipped_to_the_norm(self) -> None:
        space = lj13().space
        score_BD = 1e30 * normal(3, 39).float()
        for of in ("particles", "row"):
            clipped_BD = Clip(norm=20.0, of=of)(score_BD, space)
            width = 3 if of == "particles" else 39
            norms = clipped_BD.unflatten(1, (-1, width)).norm(dim=2)
            torch.testing.assert_close(norms, torch.full_like(norms, 20.0))


class TestClip:
    def test_short_vectors_stay_and_direction_is_kept(self) -> None:
        space = Space(dim=6, particles=3)
        score_BD = torch.tensor([[3.0, 4.0, 0.3, 0.4, 0.0, 0.0]], dtype=torch.float64)
        by_particle = Clip(norm=1.0, of="particles")(score_BD, space)
        close(by_particle, torch.tensor([[0.6, 0.8, 0.3, 0.4, 0.0, 0.0]], dtype=torch.float64), 1e-6)
        assert torch.equal(by_particle[:, 2:], score_BD[:, 2:])
        whole = Clip(norm=1.0, of="row")(score_BD, space)
        close(whole, score_BD / (score_BD.norm() + 1e-6), 1e-14)

    def test_without_particles_both_are_one(self) -> None:
        score_BD = normal(4, 3)
        both = [Clip(norm=0.7, of=of)(score_BD, Space(dim=3)) for of in ("particles", "row")]
        assert torch.equal(*both)


def test_wrong_input_is_told_with_what_to_write() -> None:
    x_BD, one = normal(2, 2), torch.ones((), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got none; write"):
        estimate_score(gmm4(), x_BD, one, [])
    with pytest.raises(ValueError, match=r"got 'mean'; write"):
        estimate_score(gmm4(), x_BD, one, x_BD[None], form="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"norm=0.0; write"):
        Clip(norm=0.0, of="row")
    with pytest.raises(ValueError, match=r"got 'atoms'; write"):
        Clip(norm=1.0, of="atoms")  # type: ignore[arg-type]
    schedule = Geometric(sigma_min=0.1, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"samples=0; write"):
        EstimatedScore(target=gmm4(), schedule=schedule, samples=0, generator=torch.Generator())
