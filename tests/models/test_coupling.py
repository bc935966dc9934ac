"""Coupling flows: the laws of a bijection with a known density, on the plane and on the mean-free subspace.

Shapes: B batch, D coordinates, K degrees of freedom.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.contracts import Space
from models.flows.coupling import CouplingFlow, Kind, subspace_basis
from models.flows.prior import GaussianPrior

PLANE = Space(dim=2)
PARTICLES = Space(dim=6, particles=3)


def perturbed(flow: CouplingFlow, scale: float = 0.12) -> CouplingFlow:
    """Away from the identity that it starts as, so that no term is zero."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def made(space: Space, kind: Kind, *, std: float = 1.7) -> CouplingFlow:
    torch.manual_seed(3)
    prior = GaussianPrior(space=space, std=std)
    return perturbed(CouplingFlow(prior=prior, layers=4, hidden=(8,), kind=kind, bins=4).double())


@pytest.fixture(
    params=[(PLANE, "spline"), (PLANE, "affine"), (PARTICLES, "spline"), (PARTICLES, "affine")],
    ids=["plane-spline", "plane-affine", "particles-spline", "particles-affine"],
)
def flow(request: pytest.FixtureRequest) -> CouplingFlow:
    return made(*request.param)


def points(flow: CouplingFlow, n: int = 6) -> Tensor:
    return flow.prior.sample(n, torch.Generator().manual_seed(1), like=torch.empty(0, dtype=torch.float64))


class TestLaws:
    def test_pull_undoes_push(self, flow: CouplingFlow) -> None:
        pushed = flow.push(points(flow))
        pulled = flow.pull(pushed.x1_BD)
        for name in ("x0_BD", "x1_BD", "log_q_B", "logdet_B", "length_B"):
            torch.testing.assert_close(getattr(pulled, name), getattr(pushed, name), rtol=0, atol=1e-9, msg=name)
        assert float((pushed.x1_BD - pushed.x0_BD).norm()) > 0.1

    def test_log_prob_is_what_pull_says_and_differentiable(self, flow: CouplingFlow) -> None:
        x_BD = flow.push(points(flow)).x1_BD.requires_grad_()
        log_q_B = flow.log_prob(x_BD)
        torch.testing.assert_close(log_q_B, flow.pull(x_BD.detach()).log_q_B, rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(log_q_B.sum(), [x_BD, *flow.parameters()])
        assert all(bool(torch.isfinite(g).all()) and float(g.abs().max()) > 0.0 for g in gradients)
        # Moving the centre of mass changes nothing.
        torch.testing.assert_close(flow.space.project(gradients[0]), gradients[0], rtol=0, atol=1e-12)

    def test_log_determinant_is_that_of_the_map(self, flow: CouplingFlow) -> None:
        basis = subspace_basis(flow.space)
        basis_DK = torch.eye(flow.space.dim, dtype=torch.float64) if basis is None else basis
        pulled = flow.pull(points(flow, 2))

        def to_base(x_K: Tensor) -> Tensor:
            # The way back is differentiated, since it is the one that training differentiates.
            z_BK, _ = flow.couplings().call_and_ladj((x_K / flow.prior.std)[None])
            return flow.prior.std * z_BK[0]

        for x_D, logdet in zip(pulled.x1_BD, pulled.logdet_B, strict=True):
            jacobian_KK = torch.autograd.functional.jacobian(to_base, basis_DK.t() @ x_D)
            actual = -torch.linalg.slogdet(jacobian_KK)[1]
            torch.testing.assert_close(actual, logdet, rtol=0, atol=1e-10)

    def test_samples_stay_on_the_space(self, flow: CouplingFlow) -> None:
        x_BD = flow.sample(50, generator=torch.Generator().manual_seed(2)).x1_BD
        torch.testing.assert_close(flow.space.project(x_BD), x_BD, rtol=0, atol=1e-12)

    def test_the_density_integrates_to_one(self, flow: CouplingFlow) -> None:
        """Importance sampling from a wider Gaussian on the space; the standard error is below a twentieth."""
        wide = GaussianPrior(space=flow.space, std=1.8 * flow.prior.std)
        x_BD = wide.sample(20_000, torch.Generator().manual_seed(4), like=torch.empty(0, dtype=torch.float64))
        with torch.no_grad():
            ratio_B = (flow.log_prob(x_BD) - wide.log_prob(x_BD)).exp()
        error = float(ratio_B.std()) / math.sqrt(len(ratio_B))
        assert 0.0 < error < 0.05
        assert abs(float(ratio_B.mean()) - 1.0) < 3 * error

    def test_the_same_generator_gives_the_same_samples(self, flow: CouplingFlow) -> None:
        one, two, other = (flow.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (9, 9, 10))
        assert torch.equal(one.x1_BD, two.x1_BD)
        assert not torch.equal(one.x1_BD, other.x1_BD)

    def test_weights_survive_a_state_and_a_copy(self, flow: CouplingFlow) -> None:
        other = CouplingFlow(
            prior=flow.prior,
            layers=4,
            hidden=(8,),
            kind="spline" if "RQS" in repr(flow) else "affine",
            bins=4,
        ).double()
        other.load_state_dict(flow.state_dict())
        x_BD = points(flow)
        assert torch.equal(other.log_prob(x_BD), flow.log_prob(x_BD))
        assert torch.equal(copy.deepcopy(flow).log_prob(x_BD), flow.log_prob(x_BD))

    def test_float32_is_close_to_float64(self, flow: CouplingFlow) -> None:
        pulled = flow.pull(points(flow))
        single = flow.float().pull(pulled.x1_BD.float())
        assert single.log_q_B.dtype == torch.float32
        torch.testing.assert_close(single.log_q_B.double(), pulled.log_q_B, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("space", [PLANE, PARTICLES, Space(dim=8, particles=4)])
def test_the_untrained_flow_is_the_prior(space: Space, kind: Kind) -> None:
    flow = CouplingFlow(prior=GaussianPrior(space=space, std=23.0), layers=3, hidden=(4,), kind=kind).double()
    pushed = flow.push(points(flow))
    torch.testing.assert_close(pushed.x1_BD, pushed.x0_BD, rtol=0, atol=1e-11)
    torch.testing.assert_close(pushed.log_q_B, flow.prior.log_prob(pushed.x0_BD), rtol=0, atol=1e-12)
    torch.testing.assert_close(pushed.length_B, torch.zeros_like(pushed.length_B), rtol=0, atol=1e-11)


def test_the_width_of_the_prior_is_a_unit_of_length() -> None:
    """The same weights over a prior three times as wide give the same map of points three times as far out."""
    narrow, wide = made(PLANE, "spline", std=1.0), made(PLANE, "spline", std=3.0)
    x0_BD = points(narrow)
    one, three = narrow.push(x0_BD), wide.push(3.0 * x0_BD)
    torch.testing.assert_close(three.x1_BD, 3.0 * one.x1_BD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(three.log_q_B, one.log_q_B - 2 * math.log(3.0), rtol=0, atol=1e-12)


def test_the_basis_is_orthonormal_and_spans_the_subspace() -> None:
    space = Space(dim=12, particles=4)
    basis_DK = subspace_basis(space)
    assert basis_DK is not None
    assert basis_DK.shape == (12, 9)
    torch.testing.assert_close(basis_DK.t() @ basis_DK, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-14)
    projector_DD = space.project(torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(basis_DK @ basis_DK.t(), projector_DD, rtol=0, atol=1e-14)
    assert subspace_basis(PLANE) is None


def test_every_coordinate_moves_and_splits_differ() -> None:
    flow = CouplingFlow(prior=GaussianPrior(space=Space(dim=8, particles=4)), layers=6)
    masks = [coupling.mask for coupling in flow.couplings.transforms]
    assert all(int(mask.sum()) == 3 for mask in masks)
    assert all(torch.equal(masks[i], ~masks[i + 1]) for i in (0, 2, 4))
    assert len({tuple(mask.tolist()) for mask in masks}) > 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: CouplingFlow(prior=GaussianPrior(space=Space(dim=1))), "got 1; write"),
        (lambda: CouplingFlow(prior=GaussianPrior(space=PLANE), layers=1), "layers=1; write"),
        (lambda: CouplingFlow(prior=GaussianPrior(space=PLANE), kind="cubic"), "'cubic'; write"),  # type: ignore[arg-type]
        (lambda: CouplingFlow(prior=GaussianPrior(space=PLANE), bins=1), "bins=1; write"),
        (lambda: made(PARTICLES, "spline").pull(torch.ones(2, 6)), "mean-free"),
        (lambda: made(PLANE, "spline").push(torch.ones(2, 3)), "x0 must have shape"),
        (lambda: made(PLANE, "spline").pull(torch.full((2, 2), math.nan)), "x1 must be finite"),
    ],
)
def test_wrong_input_is_told_with_what_to_write(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()
