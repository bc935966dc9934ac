"""Laws that every vector field obeys, and those of fields on particles.

Shapes: B batch, D coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Space


def perturbed(field: nn.Module, seed: int = 3, scale: float = 0.3) -> nn.Module:
    """The same field in float64 with noise on its parameters, so that no law holds only because the start is flat."""
    field = copy.deepcopy(field).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in field.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(scale * noise)
    return field


class FieldLaws(ABC):
    """Subclass, say what space the field lives on and how to make one."""

    @property
    @abstractmethod
    def space(self) -> Space: ...

    @abstractmethod
    def make(self) -> nn.Module: ...

    @pytest.fixture
    def field(self) -> nn.Module:
        torch.manual_seed(11)
        return perturbed(self.make())

    @pytest.fixture
    def x_BD(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return self.space.project(1.5 * torch.randn(3, self.space.dim, generator=generator, dtype=torch.float64))

    @pytest.fixture
    def t_B(self) -> Tensor:
        return torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)

    def test_shapes_and_dtypes(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        for dtype in (torch.float32, torch.float64):
            v_BD, divergence_B = field.to(dtype).with_divergence(t_B.to(dtype), x_BD.to(dtype))
            assert v_BD.shape == x_BD.shape
            assert divergence_B.shape == t_B.shape
            assert v_BD.dtype == divergence_B.dtype == dtype

    def test_a_scalar_time_is_the_same_time_for_all(self, field: nn.Module, x_BD: Tensor) -> None:
        for t in (torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.3)):
            each_B = t.expand(len(x_BD))
            torch.testing.assert_close(field(t, x_BD), field(each_B, x_BD), rtol=0, atol=1e-13)

    def test_time_matters(self, field: nn.Module, x_BD: Tensor) -> None:
        assert (field(torch.tensor(0.1), x_BD) - field(torch.tensor(0.9), x_BD)).abs().max() > 1e-6

    def test_divergence_is_the_trace_of_the_jacobian(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        v_BD, divergence_B = field.with_divergence(t_B, x_BD)
        torch.testing.assert_close(v_BD, field(t_B, x_BD), rtol=1e-13, atol=1e-13)
        for t, x_D, divergence in zip(t_B, x_BD, divergence_B, strict=True):
            jacobian_DD = torch.autograd.functional.jacobian(lambda x, t=t: field(t, x[None])[0], x_D)
            torch.testing.assert_close(jacobian_DD.trace(), divergence, rtol=0, atol=1e-11)

    def test_divergence_is_differentiable(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        x_BD = x_BD.clone().requires_grad_()
        parameter = next(field.parameters())
        gradient_BD, by_parameter = torch.autograd.grad(field.with_divergence(t_B, x_BD)[1].sum(), (x_BD, parameter))
        step, direction_BD = 1e-5, torch.sin(torch.arange(x_BD.numel(), dtype=torch.float64)).view_as(x_BD)
        with torch.no_grad():
            up = field.with_divergence(t_B, x_BD + step * direction_BD)[1].sum()
            down = field.with_divergence(t_B, x_BD - step * direction_BD)[1].sum()
        torch.testing.assert_close((gradient_BD * direction_BD).sum(), (up - down) / (2 * step), rtol=1e-6, atol=1e-7)
        assert bool(torch.isfinite(by_parameter).all())

    def test_no_graph_is_kept_without_gradients(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        with torch.no_grad():
            v_BD, divergence_B = field.with_divergence(t_B, x_BD)
        assert not v_BD.requires_grad
        assert not divergence_B.requires_grad

    def test_samples_do_not_see_each_other(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        v_BD, divergence_B = field.with_divergence(t_B, x_BD)
        alone_1D, alone_1 = field.with_divergence(t_B[1:2], x_BD[1:2])
        torch.testing.assert_close(v_BD[1:2], alone_1D, rtol=0, atol=1e-12)
        torch.testing.assert_close(divergence_B[1:2], alone_1, rtol=0, atol=1e-11)

    def test_float32_is_close_to_float64(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        v_BD, divergence_B = field.with_divergence(t_B, x_BD)
        v32_BD, divergence32_B = field.float().with_divergence(t_B.float(), x_BD.float())
        torch.testing.assert_close(v32_BD.double(), v_BD, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(divergence32_B.double(), divergence_B, rtol=1e-4, atol=1e-3)

    def test_state_dict_round_trip(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        other = self.make().double()
        other.load_state_dict(field.state_dict())
        assert torch.equal(other(t_B, x_BD), field(t_B, x_BD))


class ParticleFieldLaws(FieldLaws):
    """A field on N exchangeable particles whose centre of mass stays put."""

    def _particles(self, x_BD: Tensor) -> Tensor:
        assert self.space.particles is not None
        return x_BD.unflatten(1, (self.space.particles, self.space.spatial_dim))

    def _orthogonal(self, *, mirror: bool) -> Tensor:
        d = self.space.spatial_dim
        generator = torch.Generator().manual_seed(5)
        q_dd = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        if (torch.linalg.det(q_dd) < 0) != mirror:
            q_dd[:, 0] = -q_dd[:, 0]
        return q_dd

    @pytest.mark.parametrize("mirror", [False, True], ids=["rotation", "reflection"])
    def test_turning_the_input_turns_the_velocity(
        self, field: nn.Module, x_BD: Tensor, t_B: Tensor, mirror: bool
    ) -> None:
        q_dd = self._orthogonal(mirror=mirror)
        turned_BD = (self._particles(x_BD) @ q_dd.t()).flatten(1)
        expected_BD = (self._particles(field(t_B, x_BD)) @ q_dd.t()).flatten(1)
        torch.testing.assert_close(field(t_B, turned_BD), expected_BD, rtol=0, atol=1e-12)

    def test_relabelling_relabels_the_velocity(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        order = self.exchange()
        expected_BD = self._particles(field(t_B, x_BD))[:, order].flatten(1)
        actual_BD = field(t_B, self._particles(x_BD)[:, order].flatten(1))
        torch.testing.assert_close(actual_BD, expected_BD, rtol=0, atol=1e-12)

    def test_neither_changes_the_divergence(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        moved_BNd = (self._particles(x_BD) @ self._orthogonal(mirror=True).t())[:, self.exchange()]
        moved_B, divergence_B = (field.with_divergence(t_B, x)[1] for x in (moved_BNd.flatten(1), x_BD))
        torch.testing.assert_close(moved_B, divergence_B, rtol=1e-12, atol=1e-11)

    def test_shifting_changes_nothing(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        shift_d = torch.linspace(-0.7, 1.1, self.space.spatial_dim, dtype=torch.float64)
        shifted_BD = (self._particles(x_BD) + shift_d).flatten(1)
        torch.testing.assert_close(field(t_B, shifted_BD), field(t_B, x_BD), rtol=0, atol=1e-12)

    def test_velocity_is_mean_free(self, field: nn.Module, x_BD: Tensor, t_B: Tensor) -> None:
        assert self._particles(field(t_B, x_BD)).mean(dim=1).abs().max() < 1e-14

    def exchange(self) -> list[int]:
        """A relabelling that the field must follow (typed fields: within types)."""
        assert self.space.particles is not None
        return [*range(1, self.space.particles), 0]
