"""Path gradients against golden numbers, and the laws of objectives.

Shapes: B batch, D coordinates, P flat parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Space, whole_batch
from models.fields.egnn import EGNN
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence, hutchinson
from models.flows.prior import GaussianPrior
from models.flows.solvers import RungeKutta4
from models.objectives.path_gradient import PathGradient, forward_kl, reverse_kl
from tests.laws.field_laws import perturbed
from tests.laws.objective_laws import ObjectiveLaws, flat, gradient_of
from tests.laws.path_gradient_golden import (
    compare,
    forward_pairs,
    four_modes,
    golden_flow,
    load,
    mixture,
    small_flow,
)


class TestGoldenPlane:
    """Two-dimensional tanh network: 15 steps to rounding, and against 240 steps to the solver's error."""

    @pytest.fixture(scope="class")
    def golden(self) -> dict[str, Tensor]:
        return load("A_path_gradient.npz")

    @pytest.mark.parametrize(("stored", "tolerance"), [("n15", 1e-12), ("n240", 1e-4)])
    def test_forward(self, golden: dict[str, Tensor], stored: str, tolerance: float) -> None:
        solver = RungeKutta4(steps=15)
        record = forward_kl(
            golden_flow(golden), golden["x1"], golden["force_p"], solver=solver, divergence=exact_divergence
        )
        pairs = forward_pairs(record, golden, f"fwd_{stored}")
        assert len(pairs) == 8
        compare(pairs, tolerance)

    @pytest.mark.parametrize(("stored", "tolerance"), [("n15", 1e-12), ("n240", 1e-4)])
    def test_forward_with_a_probe(self, golden: dict[str, Tensor], stored: str, tolerance: float) -> None:
        record = forward_kl(
            golden_flow(golden),
            golden["x1"],
            golden["force_p"],
            solver=RungeKutta4(steps=15),
            divergence=hutchinson(golden["eps"]),
        )
        pairs = forward_pairs(record, golden, f"fwd_hutch_{stored}")
        assert len(pairs) == 6
        compare(pairs, tolerance)

    @pytest.mark.parametrize(("stored", "tolerance"), [("n15", 1e-12), ("n240", 1e-4)])
    def test_reverse(self, golden: dict[str, Tensor], stored: str, tolerance: float) -> None:
        record = reverse_kl(
            golden_flow(golden),
            golden["z0"],
            mixture(golden).score,
            solver=RungeKutta4(steps=15),
            divergence=exact_divergence,
        )
        tag = f"rev_{stored}"
        found = {
            "grad_flat": record.gradient_P / 6,
            "x1": record.carried.x_BD,
            "s1": record.carried.score_BD,
            "a1": record.difference_BD,
            "logdet": record.logdet_B,
            "log_q": record.log_q_B,
        }
        compare({key: (value, golden[f"{tag}_{key}"]) for key, value in found.items()}, tolerance)

    def test_the_objective_is_the_record(self, golden: dict[str, Tensor]) -> None:
        batch = Batch(x_BD=golden["x1"], force_BD=golden["force_p"])
        whole = gradient_of(PathGradient(kl="forward"), golden_flow(golden), batch, whole_batch(6, 0))
        compare({"gradient": (flat(whole.gradients) / 6, golden["fwd_n15_grad_flat"])}, 1e-12)
        compare({"loss": (whole.loss_sum, -golden["fwd_n15_log_q"].sum())}, 1e-12)

    def test_kl_per_sample(self, golden: dict[str, Tensor]) -> None:
        log_q_B = golden_flow(golden).log_prob(golden["x1"], solver=RungeKutta4(steps=15))
        compare({"kl": (-mixture(golden).energy(golden["x1"]) - log_q_B, golden["fwd_n15_kl_sample"])}, 1e-12)


class TestGoldenParticles:
    """A small EGNN on four particles: mean-free scores, parameters that never act."""

    @pytest.mark.parametrize("steps", [15, 60])
    def test_forward(self, steps: int) -> None:
        golden = load("A_path_gradient_egnn_dw4.npz")
        field = EGNN(particles=4, spatial_dim=2, hidden=8, layers=2).double()
        field.load_state_dict({k.removeprefix("param_"): v for k, v in golden.items() if k.startswith("param_")})
        flow = ContinuousFlow(prior=GaussianPrior(space=Space(dim=8, particles=4)), field=field)
        record = forward_kl(
            flow, golden["x1"], golden["force_p"], solver=RungeKutta4(steps=steps), divergence=exact_divergence
        )
        pairs = forward_pairs(record, golden, f"n{steps}")
        pairs["nll"] = (-record.log_q_B, golden[f"n{steps}_nll_meanfree"])
        gradient, expected = pairs.pop("grad_flat")
        # Entries reach hundreds, so rounding alone is larger than for the other numbers.
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-11)
        assert len(pairs) == 6
        compare(pairs, 1e-12)
        for score_BD in (record.carried.score_BD, record.difference_BD):
            assert (score_BD - flow.space.project(score_BD)).abs().max() < 1e-12
        pieces = record.gradient_P.split([p.numel() for p in field.parameters()])
        named = dict(zip((name for name, _ in field.named_parameters()), pieces, strict=True))
        for name in ("emb_out.weight", "layers.1.n1.weight", "layers.1.n2.bias"):
            assert not bool(named[name].any()), name


class TestForwardObjective(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return PathGradient(kl="forward", solver_steps=4)

    def make_flow(self) -> nn.Module:
        return small_flow()

    def make_batch(self) -> Batch:
        x_BD = four_modes().sample(6, torch.Generator().manual_seed(3)).double()
        return Batch(x_BD=x_BD, force_BD=four_modes().score(x_BD))


class TestForwardObjectiveWithProbes(TestForwardObjective):
    def make_objective(self) -> Objective:
        return PathGradient(kl="forward", solver_steps=4, divergence="hutchinson", target=four_modes())


class TestReverseObjective(TestForwardObjective):
    def make_objective(self) -> Objective:
        return PathGradient(kl="reverse", solver_steps=4, divergence="hutchinson", target=four_modes())


class TestParticleObjective(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return PathGradient(kl="forward", solver_steps=2, divergence="hutchinson")

    def make_flow(self) -> nn.Module:
        field = perturbed(EGNN(particles=4, spatial_dim=2, hidden=4, layers=2), scale=0.1)
        return ContinuousFlow(prior=GaussianPrior(space=Space(dim=8, particles=4)), field=field)

    def make_batch(self) -> Batch:
        noise_BD = torch.randn(6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        x_BD = Space(dim=8, particles=4).project(noise_BD)
        return Batch(x_BD=2.0 * x_BD, force_BD=-x_BD)


@pytest.mark.parametrize("settings", [{"kl": "sideways"}, {"kl": "reverse"}, {"kl": "forward", "divergence": "guess"}])
def test_impossible_objectives_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got.*write"):
        PathGradient(**settings)


def test_missing_forces_are_refused() -> None:
    batch = Batch(x_BD=torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"needs forces at the data.*write Batch"):
        gradient_of(PathGradient(kl="forward"), small_flow(), batch, whole_batch(2, 0))
