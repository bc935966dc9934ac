"""A control with a share of the target's score: what it is, where its gradients go, symmetry.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Objective, Target
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.fields.score_control import ScoreControl
from models.objectives.denoising_diffusion import DenoisingDiffusion, cosine_squared
from models.objectives.path_integral import PathIntegral
from models.score_estimator import Clip
from models.targets import dw4, gmm4, lj13
from tests.laws.controlled_path_laws import ControlledFlow, ParticleControlLaws, PlaneControlLaws, normal
from tests.laws.field_laws import perturbed

TIME = torch.tensor(0.3, dtype=torch.float64)


def control_of(target: Target, *, norm: float = 2.0, seed: int = 3, **settings: Any) -> ScoreControl:
    """With noise on every parameter, so that no part is zero."""
    space = target.space
    network: nn.Module = MLPField(space.dim, hidden=8, layers=1)
    if space.particles is not None:
        network = EGNN(space.particles, space.spatial_dim, hidden=4, layers=1)
    torch.manual_seed(seed)
    clip = Clip(norm=norm, of="particles")
    made = perturbed(ScoreControl(network=network, target=target, clip=clip, hidden=8, **settings), seed=seed)
    assert isinstance(made, ScoreControl)
    return made


def points(target: Target) -> Tensor:
    return target.space.project(2.0 * normal(4, target.space.dim))


@pytest.mark.parametrize("target", [gmm4(), dw4()], ids=lambda target: target.name)
class TestValue:
    def test_it_is_the_network_and_a_share_of_the_clipped_score(self, target: Target) -> None:
        x_BD = points(target)
        score_BNd = target.score(x_BD).unflatten(1, (-1, target.space.spatial_dim))
        norm = score_BNd.norm(dim=2, keepdim=True)
        largest = float(norm.mean())
        control = control_of(target, norm=largest)
        clipped_BD = target.space.project((score_BNd * (largest / (norm + 1e-6)).clamp(max=1.0)).flatten(1))
        share = control.share_layer(nn.functional.silu(control.hidden_layer(TIME.reshape(1, 1))))
        torch.testing.assert_close(control(TIME, x_BD), control.network(TIME, x_BD) + share * clipped_BD)
        assert float((control(TIME, x_BD) - control.network(TIME, x_BD)).detach().norm()) > 0.1

    def test_one_time_each_and_one_for_all(self, target: Target) -> None:
        control, x_BD = control_of(target), points(target)
        times_B = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
        found_BD = control(times_B, x_BD)
        for row, t in enumerate(times_B):
            torch.testing.assert_close(found_BD[row], control(t, x_BD)[row], rtol=0, atol=1e-12)
        single = control.float()(torch.tensor(0.3), x_BD.float())
        assert single.dtype == torch.float32

    def test_before_training_it_is_the_network(self, target: Target) -> None:
        network = control_of(target).network
        new = ScoreControl(network=network, target=target, clip=Clip(norm=2.0, of="row")).double()
        x_BD = points(target)
        assert torch.equal(new(TIME, x_BD), network(TIME, x_BD))
        begun = ScoreControl(network=network, target=target, clip=Clip(norm=2.0, of="row"), start=0.4).double()
        assert float(begun.share(torch.tensor(0.9), x_BD).detach()) == pytest.approx(0.4, rel=1e-6)
        weight = torch.autograd.grad(new(TIME, x_BD).square().sum(), new.share_layer.bias)[0]
        assert float(weight.abs()) > 1e-3


@pytest.mark.parametrize("target", [gmm4(), dw4()], ids=lambda target: target.name)
class TestGradients:
    """Against central differences of what is differentiated."""

    def slope(self, control: ScoreControl, x_BD: Tensor, value: Any) -> tuple[Tensor, Tensor]:
        direction_BD = control.known.target.space.project(normal(*x_BD.shape, seed=9))
        leaf_BD = x_BD.clone().requires_grad_()
        (gradient_BD,) = torch.autograd.grad((control(TIME, leaf_BD) * direction_BD).sum(), leaf_BD)
        step = 1e-6
        with torch.no_grad():
            up, down = (value(x_BD + sign * step * direction_BD) * direction_BD for sign in (1, -1))
        return (gradient_BD * direction_BD).sum(), (up - down).sum() / (2 * step)

    def test_through_the_score_where_asked(self, target: Target) -> None:
        control = control_of(target, differentiated=True)
        found, expected = self.slope(control, points(target), lambda x_BD: control(TIME, x_BD))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    def test_else_through_the_network_alone(self, target: Target) -> None:
        control = control_of(target)
        found, expected = self.slope(control, points(target), lambda x_BD: control.network(TIME, x_BD))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        whole = self.slope(control, points(target), lambda x_BD: control(TIME, x_BD))[1]
        assert float((whole - found).detach().abs()) > 1e-2

    @pytest.mark.parametrize("differentiated", [False, True])
    def test_every_parameter_has_its_gradient(self, target: Target, differentiated: bool) -> None:
        control, x_BD = control_of(target, differentiated=differentiated), points(target)
        parameters = [control.hidden_layer.weight, control.share_layer.weight, control.share_layer.bias]

        def loss() -> Tensor:
            return control(TIME, x_BD).square().sum()

        gradients = torch.autograd.grad(loss(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            entry = parameter.view(-1)
            with torch.no_grad():
                entry[0] += 1e-6
                up = loss()
                entry[0] -= 2e-6
                down = loss()
                entry[0] += 1e-6
            assert float(gradient.view(-1)[0]) == pytest.approx(float(up - down) / 2e-6, rel=1e-5, abs=1e-6)


class TestSymmetry:
    @pytest.mark.parametrize("motion", ["permuted", "turned"])
    def test_moved_particles_move_the_control(self, motion: str) -> None:
        control, x_BD = control_of(dw4()), points(dw4())
        turn = torch.linalg.qr(normal(2, 2, seed=2)).Q

        def moved(values_BD: Tensor) -> Tensor:
            values_BNd = values_BD.unflatten(1, (4, 2))
            return (values_BNd[:, [2, 0, 3, 1]] if motion == "permuted" else values_BNd @ turn.T).flatten(1)

        torch.testing.assert_close(control(TIME, moved(x_BD)), moved(control(TIME, x_BD)), rtol=0, atol=1e-11)
        assert float((control(TIME, moved(x_BD)) - control(TIME, x_BD)).detach().abs().max()) > 0.1

    @pytest.mark.parametrize("target", [dw4(), lj13()], ids=lambda target: target.name)
    def test_it_is_mean_free(self, target: Target) -> None:
        u_BD = control_of(target)(TIME, points(target))
        torch.testing.assert_close(target.space.project(u_BD), u_BD, rtol=0, atol=1e-13)


def test_particles_that_coincide_have_no_score() -> None:
    control = control_of(lj13())
    origin_BD = torch.zeros(2, 39, dtype=torch.float64)
    assert not bool(torch.isfinite(lj13().score(origin_BD)).all())
    assert torch.equal(control.guide(origin_BD), origin_BD)
    gradients = torch.autograd.grad(control(TIME, origin_BD).sum(), [control.share_layer.bias])
    assert bool(torch.isfinite(gradients[0]).all())


class TestPlanePaths(PlaneControlLaws):
    def make_objective(self) -> Objective:
        return PathIntegral(target=gmm4(), sigma=1.3, steps=self.steps)

    def make_flow(self) -> nn.Module:
        return ControlledFlow(control_of(gmm4()))


class TestParticlePaths(ParticleControlLaws):
    def make_objective(self) -> Objective:
        return DenoisingDiffusion(target=dw4(), sigma=2.0, alphas=cosine_squared(3, largest=0.3))

    def make_flow(self) -> nn.Module:
        return ControlledFlow(control_of(dw4()))
