"""MLP and EGNN fields: the laws, the golden Jacobians, the published numbers of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Space
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.fields.scaled_score import ScaledScore
from models.fields.sinusoidal import SinusoidalField
from models.schedules import Geometric
from tests.laws.field_laws import FieldLaws, ParticleFieldLaws, perturbed

GOLDEN = Path(__file__).parents[1] / "golden"


class TestMLPElu(FieldLaws):
    space = Space(dim=3)

    def make(self) -> nn.Module:
        return MLPField(dim=3, hidden=16, layers=4)


class TestMLPTanh(FieldLaws):
    space = Space(dim=2)

    def make(self) -> nn.Module:
        return MLPField(dim=2, hidden=16, layers=1, activation="tanh")


class TestMLPSilu(FieldLaws):
    space = Space(dim=5)

    def make(self) -> nn.Module:
        return MLPField(dim=5, hidden=16, layers=2, activation="silu")


@pytest.mark.parametrize("activation", ["elu", "tanh", "silu"])
@pytest.mark.parametrize(("dim", "layers"), [(2, 4), (3, 1)])
def test_hand_written_pullback_is_that_of_autograd(activation: Any, dim: int, layers: int) -> None:
    torch.manual_seed(0)
    field = perturbed(MLPField(dim=dim, hidden=8, layers=layers, activation=activation))
    t, x_BD, s_BD = torch.tensor(0.3), *torch.randn(2, 5, dim, dtype=torch.float64)
    y_BD = x_BD.clone().requires_grad_()
    v_BD, divergence_B = field.with_divergence(t, y_BD)
    (expected_BD,) = torch.autograd.grad((v_BD * s_BD).sum() + divergence_B.sum(), y_BD)
    for actual, expected in zip(field.with_pullback(t, x_BD, s_BD), (v_BD, divergence_B, expected_BD), strict=True):
        assert not actual.requires_grad
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-12, atol=1e-12)


class TestSinusoidal(FieldLaws):
    space = Space(dim=3)

    def make(self) -> nn.Module:
        scales = {"length": 2.0, "output_scale": 0.5, "coordinate_frequency": 3.0}
        return SinusoidalField(3, hidden=6, layers=2, embedding=8, **scales)


class TestScaledPerceptron(FieldLaws):
    space = Space(dim=2)

    def make(self) -> nn.Module:
        schedule = Geometric(sigma_min=0.1, sigma_max=2.0)
        return ScaledScore(network=MLPField(2, hidden=6, layers=2), schedule=schedule, length=0.7)


class TestScaledEGNN(ParticleFieldLaws):
    space = Space(dim=8, particles=4)

    def make(self) -> nn.Module:
        schedule = Geometric(sigma_min=0.1, sigma_max=2.0)
        field = EGNN(particles=4, spatial_dim=2, hidden=6, layers=2)
        return ScaledScore(network=field, schedule=schedule, length=0.7)


class TestEGNNPlane(ParticleFieldLaws):
    space = Space(dim=8, particles=4)

    def make(self) -> nn.Module:
        return EGNN(particles=4, spatial_dim=2, hidden=8, layers=3)


class TestEGNNSpace(ParticleFieldLaws):
    space = Space(dim=15, particles=5)

    def make(self) -> nn.Module:
        return EGNN(particles=5, spatial_dim=3, hidden=8, layers=2)


class TestEGNNTyped(ParticleFieldLaws):
    space = Space(dim=15, particles=5)

    def make(self) -> nn.Module:
        return EGNN(particles=5, spatial_dim=3, hidden=8, layers=2, types=(0, 1, 0, 2, 1))

    def exchange(self) -> list[int]:
        return [2, 4, 0, 3, 1]


CASES: dict[str, dict[str, Any]] = {
    "plain": {"particles": 5, "spatial_dim": 3, "layers": 3},
    "typed": {"particles": 5, "spatial_dim": 3, "layers": 2, "types": (0, 1, 0, 2, 1)},
    "two_d": {"particles": 4, "spatial_dim": 2, "layers": 3},
}


class TestGoldenEGNN:
    """Stored velocities, Jacobians and sweeps of three small networks, to 1e-11."""

    @pytest.fixture(params=sorted(CASES))
    def case(self, request: pytest.FixtureRequest) -> tuple[EGNN, dict[str, Tensor], list[str]]:
        tag = request.param
        with np.load(GOLDEN / "C_egnn.npz") as stored:
            mine = {key[len(tag) + 1 :]: stored[key] for key in stored.files if key.startswith(f"{tag}_")}
        dead = mine.pop("dead_params").tolist()
        values = {key: torch.as_tensor(array) for key, array in mine.items()}
        field = EGNN(hidden=8, **CASES[tag]).double()
        field.load_state_dict({k.removeprefix("param_"): v for k, v in values.items() if k.startswith("param_")})
        return field, values, dead

    def test_velocity_jacobian_and_divergence(self, case: tuple[EGNN, dict[str, Tensor], list[str]]) -> None:
        field, golden, _ = case
        x_BD = golden["x"].clone().requires_grad_()
        v_BD, divergence_B = field.with_divergence(golden["t"], x_BD)
        rows = [torch.autograd.grad(v_BD[:, k].sum(), x_BD, retain_graph=True)[0] for k in range(x_BD.shape[1])]
        (gradient_BD,) = torch.autograd.grad(divergence_B.sum(), x_BD, retain_graph=True)
        (swept_BD,) = torch.autograd.grad(v_BD, x_BD, golden["s"])
        pairs = {
            "v": v_BD,
            "J": torch.stack(rows, dim=1),
            "div": divergence_B,
            "grad_div": gradient_BD,
            "JTs": swept_BD,
        }
        for key, value in pairs.items():
            torch.testing.assert_close(value, golden[key], rtol=0, atol=1e-11, msg=key)

    def test_parameter_sweep_and_dead_parameters(self, case: tuple[EGNN, dict[str, Tensor], list[str]]) -> None:
        field, golden, dead = case
        names = [name for name, _ in field.named_parameters()]
        loss = (field(golden["t"], golden["x"]) * golden["s"]).sum()
        gradients = torch.autograd.grad(loss, list(field.parameters()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            assert (gradient is None) == (name in dead), name
            if gradient is not None:
                torch.testing.assert_close(gradient, golden[f"vjp_{name}"], rtol=0, atol=1e-11, msg=name)

    def test_divergence_reaches_the_parameters(self, case: tuple[EGNN, dict[str, Tensor], list[str]]) -> None:
        field, golden, _ = case
        divergence_B = field.with_divergence(golden["t"], golden["x"])[1]
        gradients = torch.autograd.grad(divergence_B.sum(), list(field.parameters()), allow_unused=True)
        norm = torch.sqrt(sum((g.square().sum() for g in gradients if g is not None), torch.zeros(())))
        torch.testing.assert_close(norm, golden["div_param_grad_norm"].reshape(()), rtol=1e-10, atol=1e-11)


def test_published_numbers_of_parameters() -> None:
    with np.load(GOLDEN / "C_egnn.npz") as stored:
        counts, ad2_types = stored["param_counts"].tolist(), tuple(stored["ad2_atom_types"].tolist())
    sizes = [(4, 2, 32, 3, None), (13, 3, 32, 3, None), (55, 3, 64, 5, None), (22, 3, 64, 5, ad2_types)]
    for count, (particles, spatial_dim, hidden, layers, types) in zip(counts, sizes, strict=True):
        field = EGNN(particles=particles, spatial_dim=spatial_dim, hidden=hidden, layers=layers, types=types)
        assert sum(p.numel() for p in field.parameters()) == count


def test_a_new_egnn_hardly_moves() -> None:
    torch.manual_seed(0)
    field = EGNN(particles=4, spatial_dim=2)
    assert field(torch.tensor(0.5), torch.randn(10, 8)).abs().max() < 0.1


def test_hutchinson_sweep_matches_the_golden_probe() -> None:
    from models.flows.divergence import hutchinson

    with np.load(GOLDEN / "C_egnn.npz") as stored:
        golden = {k: torch.as_tensor(stored[k]) for k in stored.files if stored[k].dtype.kind == "f"}
    field = EGNN(hidden=8, **CASES["plain"]).double()
    prefix = "plain_param_"
    field.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    x_BD = golden["plain_x"].clone().requires_grad_()
    _, divergence_B = hutchinson(golden["plain_eps"])(field, golden["plain_t"], x_BD)
    (gradient_BD,) = torch.autograd.grad(divergence_B.sum(), x_BD)
    torch.testing.assert_close(divergence_B, golden["plain_hutch_div"], rtol=0, atol=1e-11)
    torch.testing.assert_close(gradient_BD, golden["plain_grad_hutch_div"], rtol=0, atol=1e-11)


def test_relu_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"second derivative.*'relu'.*write one of"):
        MLPField(dim=2, activation="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [{"particles": 1}, {"layers": 0}, {"types": (0, 1)}])
def test_impossible_networks_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"write|fix"):
        EGNN(**({"particles": 4, "spatial_dim": 2} | sizes))


def test_sinusoids_know_lengths_only_as_a_unit() -> None:
    torch.manual_seed(2)
    short = SinusoidalField(2, hidden=6, layers=2, embedding=8).double()
    long = SinusoidalField(2, hidden=6, layers=2, embedding=8, length=50.0, output_scale=1 / 50).double()
    long.load_state_dict(short.state_dict())
    x_BD, t_B = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(long(t_B, 50 * x_BD), short(t_B, x_BD) / 50, rtol=1e-12, atol=0)


def test_a_scaled_score_has_the_width_of_the_noised_rows() -> None:
    """With the network -x it is the score of a Gaussian of that length under any noise."""
    schedule = Geometric(sigma_min=0.1, sigma_max=2.0)
    network = MLPField(2, hidden=1, layers=1).double()
    network.forward = lambda t, x_BD: -x_BD  # type: ignore[method-assign]
    field = ScaledScore(network=network, schedule=schedule, length=0.7)
    x_BD, tau_B = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(field(tau_B, x_BD), -x_BD / (schedule.h(tau_B) + 0.49)[:, None], rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"embedding": 7}, {"length": 0.0}, {"output_scale": -1.0}])
def test_impossible_sinusoids_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        SinusoidalField(2, **wrong)


def test_a_width_of_nothing_is_refused() -> None:
    schedule = Geometric(sigma_min=0.1, sigma_max=2.0)
    with pytest.raises(ValueError, match=r"width of the data.*0\.0.*write"):
        ScaledScore(network=MLPField(2), schedule=schedule, length=0.0)


def test_a_perturbed_copy_leaves_the_original_alone() -> None:
    field = MLPField(dim=2, hidden=4, layers=1)
    before = field.linears[0].weight.clone()
    assert perturbed(field) is not field
    assert torch.equal(before, field.linears[0].weight)
