"""What every target must do. A user's own target gets the same tests: subclass, and supply `target` and `points`.

Shape suffixes: B batch, D flat coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.contracts import SampledTarget, Target


def minus_gradient(target: Target, x_BD: Tensor) -> Tensor:
    x_BD = x_BD.detach().clone().requires_grad_()
    (gradient_BD,) = torch.autograd.grad(target.energy(x_BD).sum(), x_BD)
    return -gradient_BD


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


class TargetLaws:
    """Laws of `models.contracts.Target`."""

    def target(self) -> Target:
        raise AssertionError("a subclass supplies the target")

    def points(self) -> Tensor:
        """At least three float64 configurations (B, D) of ordinary energies, in the target's space."""
        raise AssertionError("a subclass supplies the points")

    def test_it_fulfils_the_protocol(self) -> None:
        target = self.target()
        assert isinstance(target, Target)
        assert target.name
        assert target.energy_flops > 0
        assert target.log_z is None or isinstance(target.log_z, float)
        target.space.check(self.points())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shapes_and_dtypes_are_kept(self, dtype: torch.dtype) -> None:
        x_BD = self.points().to(dtype)
        energy_B, score_BD = self.target().energy(x_BD), self.target().score(x_BD)
        assert (energy_B.shape, energy_B.dtype) == ((len(x_BD),), dtype)
        assert (score_BD.shape, score_BD.dtype) == (x_BD.shape, dtype)

    def test_float32_agrees_with_float64(self) -> None:
        x_BD = self.points()
        assert relative_error(self.target().energy(x_BD.float()).double(), self.target().energy(x_BD)) < 1e-4

    def test_energies_and_scores_are_finite(self) -> None:
        assert torch.isfinite(self.target().energy(self.points())).all()
        assert torch.isfinite(self.target().score(self.points())).all()

    def test_the_score_is_minus_the_gradient_of_the_energy(self) -> None:
        assert relative_error(self.target().score(self.points()), minus_gradient(self.target(), self.points())) < 1e-10

    def test_the_score_is_differentiable(self) -> None:
        """A vector-Jacobian product of the score against a central difference of the score."""
        target, x_BD = self.target(), self.points().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        u_BD = target.space.project(torch.randn(x_BD.shape, generator=generator, dtype=torch.float64))
        w_BD = target.space.project(torch.randn(x_BD.shape, generator=generator, dtype=torch.float64))
        (product_BD,) = torch.autograd.grad((target.score(x_BD) * u_BD).sum(), x_BD)
        step = 1e-5
        with torch.no_grad():
            slope_BD = (target.score(x_BD + step * w_BD) - target.score(x_BD - step * w_BD)) / (2.0 * step)
        assert relative_error((product_BD * w_BD).sum(-1), (slope_BD * u_BD).sum(-1)) < 1e-5

    def test_rows_do_not_see_each_other(self) -> None:
        target, x_BD = self.target(), self.points()
        alone_B = torch.cat([target.energy(row[None]) for row in x_BD])
        alone_BD = torch.cat([target.score(row[None]) for row in x_BD])
        assert relative_error(target.energy(x_BD), alone_B) < 1e-13
        assert relative_error(target.score(x_BD), alone_BD) < 1e-12

    def test_no_rows_give_no_energies(self) -> None:
        none_BD = self.points()[:0]
        assert self.target().energy(none_BD).shape == (0,)
        assert self.target().score(none_BD).shape == none_BD.shape

    @pytest.mark.parametrize("call", ["energy", "score"])
    def test_a_wrong_width_is_refused(self, call: str) -> None:
        wrong_BD = torch.zeros(3, self.target().space.dim + 1)
        with pytest.raises(ValueError, match=str(self.target().space.dim)):
            getattr(self.target(), call)(wrong_BD)


class FrameTargetLaws(TargetLaws):
    """Laws of targets of particles without an outer frame, identical or not."""

    def _configurations(self) -> Tensor:
        space = self.target().space
        return self.points().unflatten(-1, (space.particles, space.spatial_dim))

    def _same_energy_and_mapped_score(self, mapped_BNd: Tensor, score_BNd: Tensor) -> None:
        target = self.target()
        assert relative_error(target.energy(mapped_BNd.flatten(1)), target.energy(self.points())) < 1e-11
        assert relative_error(target.score(mapped_BNd.flatten(1)), score_BNd.flatten(1)) < 1e-10

    def _score(self) -> Tensor:
        return self.target().score(self.points()).unflatten(-1, self._configurations().shape[1:])

    def test_rotated_and_reflected_space(self) -> None:
        d = self.target().space.spatial_dim
        noise = torch.randn((d, d), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        turn = torch.linalg.qr(noise).Q
        self._same_energy_and_mapped_score(self._configurations() @ turn.T, self._score() @ turn.T)

    def test_translated_space(self) -> None:
        shift = torch.arange(1.0, 1.0 + self.target().space.spatial_dim, dtype=torch.float64)
        self._same_energy_and_mapped_score(self._configurations() + shift, self._score())

    def test_the_score_is_mean_free(self) -> None:
        score_BD = self.target().score(self.points())
        assert relative_error(self.target().space.project(score_BD), score_BD) < 1e-12


class ParticleTargetLaws(FrameTargetLaws):
    """Laws of targets of identical particles without an outer frame."""

    def test_permuted_particles(self) -> None:
        order = torch.randperm(self._configurations().shape[1], generator=torch.Generator().manual_seed(0))
        self._same_energy_and_mapped_score(self._configurations()[:, order], self._score()[:, order])


class SampledTargetLaws(TargetLaws):
    """Laws of targets with exact draws."""

    def test_draws_are_seeded_rows(self) -> None:
        target = self.target()
        assert isinstance(target, SampledTarget)
        first, again, other = (target.sample(7, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert first.shape == (7, target.space.dim)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_draws_fulfil_the_virial_identity(self) -> None:
        """E[-x . score] = D, by partial integration; within four standard errors of 20,000 draws."""
        x_BD = self.target().sample(20_000, torch.Generator().manual_seed(2)).double()
        virial_B = -(x_BD * self.target().score(x_BD)).sum(-1)
        error = float(virial_B.std()) / len(x_BD) ** 0.5
        assert abs(float(virial_B.mean()) - self.target().space.dim) < 4.0 * error

    def test_the_mean_score_of_draws_is_zero(self) -> None:
        score_BD = self.target().score(self.target().sample(20_000, torch.Generator().manual_seed(3)).double())
        assert (score_BD.mean(0).abs() < 4.0 * score_BD.std(0) / len(score_BD) ** 0.5).all()
