"""Energies and scores in one call, over each pair once, against the two calls and their limits.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.contracts import Target
from models.score_estimator import KnowsBoth
from models.targets import DoubleWell, LennardJones, dw4, lj13, lj55
from tests.laws.target_laws import relative_error

ALL_CONSTANTS = {"rm": 1.2, "eps": 0.7, "tau": 1.9, "pair_factor": 1.0, "oscillator": 0.3}
TARGETS: list[LennardJones | DoubleWell] = [
    dw4(),
    lj13(),
    lj55(),
    LennardJones(name="even ring", particles=6, **ALL_CONSTANTS),
    LennardJones(name="odd ring in the plane", particles=5, spatial_dim=2, **ALL_CONSTANTS),
    LennardJones(name="two", particles=2),
    DoubleWell(name="odd ring", particles=5, spatial_dim=3, a=0.4, tau=1.7),
]


def points(target: Target, rows: int = 6) -> Tensor:
    """Spread out, and not centred, since neither energy knows where the centre is."""
    generator = torch.Generator().manual_seed(1)
    return 0.7 + 2.0 * torch.randn(rows, target.space.dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
class TestBothAtOnce:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
    def test_they_are_the_energy_and_the_score(self, target: Target, dtype: torch.dtype, tolerance: float) -> None:
        assert isinstance(target, KnowsBoth)
        x_BD = points(target)
        energy_B, score_BD = target.energy_and_score(x_BD.to(dtype))
        assert (energy_B.shape, score_BD.shape) == ((len(x_BD),), x_BD.shape)
        assert energy_B.dtype == score_BD.dtype == dtype
        for row, score_D in enumerate(score_BD):
            assert relative_error(energy_B[row].double(), target.energy(x_BD)[row]) < tolerance
            assert relative_error(score_D.double(), target.score(x_BD)[row]) < tolerance

    def test_memory_order_and_gradients_do_not_matter(self, target: LennardJones | DoubleWell) -> None:
        x_BD = points(target)
        before_BD = x_BD.clone()
        plain = target.energy_and_score(x_BD)
        turned = target.energy_and_score(x_BD.t().contiguous().t().requires_grad_())
        for a, b in zip(plain, turned, strict=True):
            assert relative_error(b, a) < 1e-12
            assert not b.requires_grad
        assert torch.equal(x_BD, before_BD)

    def test_none_and_wrong_widths(self, target: LennardJones | DoubleWell) -> None:
        energy_B, score_BD = target.energy_and_score(points(target)[:0])
        assert (energy_B.shape, score_BD.shape) == ((0,), (0, target.space.dim))
        with pytest.raises(ValueError, match=str(target.space.dim)):
            target.energy_and_score(torch.zeros(3, target.space.dim + 1))


def test_particles_that_coincide() -> None:
    x_BD = points(lj13(), 2)
    x_BD[0, 3:6] = x_BD[0, :3]
    energy_B, score_BD = lj13().energy_and_score(x_BD)
    assert not bool(torch.isfinite(energy_B[0]))
    assert not bool(torch.isfinite(score_BD[0]).all())
    assert bool(torch.isfinite(energy_B[1]) & torch.isfinite(score_BD[1]).all())
    y_BD = points(dw4(), 2)
    y_BD[0, 2:4] = y_BD[0, :2]
    energy_B, score_BD = dw4().energy_and_score(y_BD)
    torch.testing.assert_close(energy_B, dw4().energy(y_BD), rtol=1e-12, atol=0)
    torch.testing.assert_close(score_BD, dw4().score(y_BD), rtol=1e-11, atol=1e-11)


def test_the_axis_of_a_projection() -> None:
    space, x_BD = lj13().space, points(lj13())
    assert torch.equal(space.project(x_BD.t(), dim=0).t(), space.project(x_BD))
    stack_KBD = torch.stack([x_BD, 2.0 * x_BD])
    turned_DBK = space.project(stack_KBD.permute(2, 1, 0), dim=0)
    torch.testing.assert_close(turned_DBK.permute(2, 1, 0), space.project(stack_KBD), rtol=0, atol=1e-14)
