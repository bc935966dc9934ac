"""The structured divergence of an EGNN against sweeps, Jacobians and finite differences.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.fields import egnn_trace
from models.fields.egnn import EGNN, STRUCTURED_FROM
from models.fields.egnn_trace import in_structured_form, rows_at_once, velocity_and_trace
from models.fields.sweeps import by_sweeps
from tests.laws.field_laws import perturbed

SHAPES = {"plane": (4, 2, None), "space": (5, 3, None), "typed": (5, 3, (0, 1, 0, 2, 1)), "pair": (2, 3, None)}


def made(shape: str, layers: int, seed: int = 0) -> tuple[EGNN, Tensor, Tensor]:
    """A field that is far from flat, times and mean-free points."""
    particles, d, types = SHAPES[shape]
    torch.manual_seed(seed)
    field = perturbed(EGNN(particles=particles, spatial_dim=d, hidden=8, layers=layers, types=types), seed=seed)
    assert isinstance(field, EGNN)
    x_BNd = 1.3 * torch.randn(3, particles, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return field, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), (x_BNd - x_BNd.mean(1, keepdim=True)).flatten(1)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_trace_of_the_jacobian(shape: str, layers: int) -> None:
    field, t_B, x_BD = made(shape, layers)
    v_BD, trace_B = velocity_and_trace(field, t_B, x_BD)
    torch.testing.assert_close(v_BD, field(t_B, x_BD), rtol=0, atol=1e-12)
    for t, x_D, trace in zip(t_B, x_BD, trace_B, strict=True):
        jacobian_DD = torch.func.jacrev(lambda x_D, t=t: field(t, x_D[None])[0])(x_D)
        torch.testing.assert_close(trace, jacobian_DD.trace(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradients_are_those_of_the_sweeps(shape: str, layers: int) -> None:
    field, t_B, x_BD = made(shape, layers)
    x_BD = x_BD.requires_grad_()
    wanted = (x_BD, *field.parameters())
    mine = torch.autograd.grad(velocity_and_trace(field, t_B, x_BD)[1].sum(), wanted, allow_unused=True)
    theirs = torch.autograd.grad(by_sweeps(field, t_B, x_BD)[1].sum(), wanted, allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-11, atol=1e-10)
    assert all(gradient is not None for gradient in mine[:1])


def test_its_gradient_follows_finite_differences() -> None:
    field, t_B, x_BD = made("space", 3)
    direction_BD = torch.randn(x_BD.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (gradient_BD,) = torch.autograd.grad(velocity_and_trace(field, t_B, x_BD.requires_grad_())[1].sum(), x_BD)
    step = 1e-6
    with torch.no_grad():
        up, down = (velocity_and_trace(field, t_B, x_BD + s * direction_BD)[1].sum() for s in (step, -step))
    torch.testing.assert_close((gradient_BD * direction_BD).sum(), (up - down) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layers", [3, 5])
def test_float32_keeps_four_digits(layers: int) -> None:
    field, t_B, x_BD = made("space", layers)
    _, exact_B = velocity_and_trace(field, t_B, x_BD)
    _, single_B = velocity_and_trace(field.float(), t_B.float(), x_BD.float())
    torch.testing.assert_close(single_B.double(), exact_B, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_touching_particles_give_finite_numbers(layers: int) -> None:
    """At zero distance the softened distance has a steep but finite slope."""
    field, t_B, x_BD = made("space", layers)
    x_BD = x_BD.clone()
    x_BD[:, 3:6] = x_BD[:, :3]
    x_BD.requires_grad_()
    _, trace_B = velocity_and_trace(field, t_B, x_BD)
    (gradient_BD,) = torch.autograd.grad(trace_B.sum(), x_BD)
    assert bool(torch.isfinite(trace_B).all())
    assert bool(torch.isfinite(gradient_BD).all())


@pytest.mark.parametrize("scalar_time", [True, False])
def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch, scalar_time: bool) -> None:
    field, t_B, x_BD = made("space", 3)
    t = t_B[0] if scalar_time else t_B
    whole = in_structured_form(field, t, x_BD)
    monkeypatch.setitem(egnn_trace.BYTES_AT_ONCE, "cpu", 1)
    assert rows_at_once(field, x_BD) == 1
    for a, b in zip(in_structured_form(field, t, x_BD), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-12)


def test_pieces_shrink_with_the_system() -> None:
    small = EGNN(particles=13, spatial_dim=3, hidden=32, layers=3)
    large = EGNN(particles=55, spatial_dim=3, hidden=64, layers=5)
    like = torch.zeros(1)
    assert rows_at_once(small, like) > rows_at_once(small, like.double()) > rows_at_once(large, like) == 1


@pytest.mark.parametrize(("particles", "structured"), [(STRUCTURED_FROM - 1, False), (STRUCTURED_FROM, True)])
def test_the_cheaper_form_is_chosen(particles: int, structured: bool) -> None:
    torch.manual_seed(0)
    field = EGNN(particles=particles, spatial_dim=2, hidden=8, layers=3)
    x_BD = torch.randn(4, 2 * particles, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chosen_B = field.with_divergence(torch.tensor(0.3), x_BD)[1]
        form = in_structured_form if structured else by_sweeps
        assert torch.equal(chosen_B, form(field, torch.tensor(0.3), x_BD)[1])
