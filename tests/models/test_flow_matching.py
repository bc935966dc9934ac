"""The flow-matching objective: golden losses and gradients, sharding, counted work."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Prepared, Random, Space, Work, parameter_gradients, whole_batch
from models.couplings import Coupling, EquivariantOptimalTransport, Independent, OptimalTransport
from models.flows.prior import GaussianPrior
from models.objectives.flow_matching import FlowMatching, flow_matching_loss, path_points
from tests.laws.objective_laws import ObjectiveLaws, gradient_of

GOLDEN = Path(__file__).parents[1] / "golden" / "B_flow_matching.npz"
SYSTEMS = {"N4D2": Space(dim=8, particles=4), "N5D3": Space(dim=15, particles=5)}


class TanhField(nn.Module):
    """Three tanh layers on (x, t)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(dim + 1, 8), nn.Linear(8, 8), nn.Linear(8, dim)
        self.double()

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        t_B1 = t.expand(len(x_BD))[:, None]
        return self.l3(torch.tanh(self.l2(torch.tanh(self.l1(torch.cat([x_BD, t_B1], dim=1))))))


class SmallFlow(nn.Module):
    """A prior and a field: all that the objective asks for."""

    def __init__(self, space: Space, std: float = 1.0) -> None:
        super().__init__()
        self.prior = GaussianPrior(space=space, std=std)
        self.field = TanhField(space.dim)


@dataclass
class ScriptedRandom:
    """Hands out given arrays in order and remembers what was asked for."""

    draws: list[Tensor]
    asked: list[str] = field(default_factory=list)

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        self.asked.append("normal")
        return self.draws.pop(0)

    def uniform(self, *shape: int, like: Tensor) -> Tensor:
        self.asked.append("uniform")
        return self.draws.pop(0)


def seeded_flow(space: Space, std: float = 1.0) -> SmallFlow:
    torch.manual_seed(5)
    return SmallFlow(space, std)


def data(space: Space, n: int) -> Tensor:
    return space.project(torch.randn((n, space.dim), generator=torch.Generator().manual_seed(9), dtype=torch.float64))


def coupling_of(tag: str, space: Space) -> Coupling:
    couplings = {"standard": Independent(), "ot": OptimalTransport(), "eqot": EquivariantOptimalTransport(space=space)}
    return couplings[tag]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("tag", ["standard", "ot", "eqot"])
def test_loss_and_gradient_match_golden(system: str, tag: str) -> None:
    with np.load(GOLDEN) as file:
        golden = {name[5:]: torch.from_numpy(np.array(file[name])) for name in file if name.startswith(system)}
    flow = SmallFlow(SYSTEMS[system])
    flow.field.load_state_dict({name: golden[f"field_{name}"] for name in flow.field.state_dict()})
    random = ScriptedRandom([golden["x0"].flatten(1), golden["t"].flatten(), golden["noise"].flatten(1)])
    x1_BD = golden["x1"].flatten(1)
    objective = FlowMatching(coupling=coupling_of(tag, SYSTEMS[system]), sigma=0.01)
    points = objective.draw(flow.prior, x1_BD, ScriptedRandom(list(random.draws)))
    torch.testing.assert_close(points.x_BD, golden[f"fm_{tag}_xt"], rtol=0, atol=1e-12)
    torch.testing.assert_close(points.velocity_BD, golden[f"fm_{tag}_u"], rtol=0, atol=1e-12)
    result = gradient_of(objective, flow, Batch(x_BD=x1_BD), random)
    assert random.asked == ["normal", "uniform", "normal"]
    assert result.weight == len(x1_BD)
    assert (result.loss_sum / result.weight).item() == pytest.approx(golden[f"fm_{tag}_loss_mean"].item(), abs=1e-12)
    flat = torch.cat([g.flatten() for g in result.gradients]) / result.weight
    torch.testing.assert_close(flat, golden[f"fm_{tag}_grad"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bounds", [(0, 3, 8, 12), (0, 1, 11, 12)])
def test_gradients_of_shards_add_up_to_that_of_the_whole_batch(bounds: tuple[int, ...]) -> None:
    space = SYSTEMS["N4D2"]
    flow, x1_BD, objective = seeded_flow(space), data(space, 12), FlowMatching()
    whole = gradient_of(objective, flow, Batch(x_BD=x1_BD), whole_batch(12, seed=1))
    parts = []
    for start, stop in pairwise(bounds):
        random = Random(generator=torch.Generator().manual_seed(1), global_size=12, start=start, stop=stop)
        parts.append(gradient_of(objective, flow, Batch(x_BD=x1_BD[start:stop]), random))
    summed = [sum(gradients) for gradients in zip(*(part.gradients for part in parts), strict=True)]
    for total, expected in zip(summed, whole.gradients, strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-13)
    assert sum(part.weight for part in parts) == whole.weight
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum)


def test_gradient_is_that_of_the_evaluated_loss() -> None:
    space = Space(dim=3)
    flow, x1_BD = seeded_flow(space, std=2.0), data(space, 7)
    result = gradient_of(FlowMatching(), flow, Batch(x_BD=x1_BD), whole_batch(7, seed=3))
    loss_B = flow_matching_loss(flow, x1_BD, whole_batch(7, seed=3))
    assert loss_B.shape == (7,)
    assert not loss_B.requires_grad
    torch.testing.assert_close(loss_B.sum(), result.loss_sum)
    step = 1e-6
    parameter, gradient = next(flow.parameters()), result.gradients[0]
    with torch.no_grad():
        parameter[0, 0] += step
        above = flow_matching_loss(flow, x1_BD, whole_batch(7, seed=3)).sum()
        parameter[0, 0] -= 2 * step
        below = flow_matching_loss(flow, x1_BD, whole_batch(7, seed=3)).sum()
    assert gradient[0, 0].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-6)


def test_path_points_stay_mean_free_and_noise_scales_with_the_prior() -> None:
    space = SYSTEMS["N5D3"]
    x1_BD = data(space, 4000)
    noisy = FlowMatching(sigma=0.5).draw(GaussianPrior(space=space, std=3.0), x1_BD, whole_batch(4000, seed=2))
    space.check(noisy.x_BD)
    still = FlowMatching(sigma=0.0).draw(GaussianPrior(space=space, std=3.0), x1_BD, whole_batch(4000, seed=2))
    variance = (noisy.x_BD - still.x_BD).square().sum(dim=1).mean() / space.degrees_of_freedom
    assert variance.item() == pytest.approx(1.5**2, rel=0.02)


def test_ends_of_the_path_are_base_and_data() -> None:
    x0_BD, x1_BD = torch.randn((2, 5, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t, end_BD in ((torch.zeros(5), x0_BD), (torch.ones(5), x1_BD)):
        points = path_points(x0_BD, x1_BD, t.double(), torch.ones_like(x0_BD), sigma=0.0)
        torch.testing.assert_close(points.x_BD, end_BD, rtol=0, atol=0)


def test_no_noise_is_drawn_where_sigma_is_zero() -> None:
    x1_BD = data(Space(dim=2), 3)
    random = ScriptedRandom([torch.zeros(3, 2).double(), torch.zeros(3).double()])
    FlowMatching(sigma=0.0).draw(GaussianPrior(space=Space(dim=2)), x1_BD, random)
    assert random.asked == ["normal", "uniform"]


def test_loss_is_least_at_the_conditional_mean_of_a_gaussian_pair() -> None:
    """For base and data both N(0, 1) in one dimension, E[x1 - x0 | x_t] = x_t (2 t - 1) / (t^2 + (1 - t)^2)."""

    class LinearField(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

        def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
            return self.scale * x_BD * ((2 * t - 1) / (t**2 + (1 - t) ** 2))[:, None]

    flow = SmallFlow(Space(dim=1))
    flow.field = LinearField(1.0)
    n = 200_000
    result = gradient_of(FlowMatching(sigma=0.0), flow, Batch(x_BD=data(Space(dim=1), n)), whole_batch(n, seed=8))
    assert abs(result.gradients[0].item()) / n < 0.01


def test_work_counts_forward_backward_and_pairing() -> None:
    space = SYSTEMS["N4D2"]
    flow, x1_BD = seeded_flow(space), data(space, 6)
    for coupling in (Independent(), OptimalTransport(), EquivariantOptimalTransport(space=space)):
        work = gradient_of(FlowMatching(coupling=coupling), flow, Batch(x_BD=x1_BD), whole_batch(6, seed=0)).work
        assert (work.samples, work.field_evaluations) == (6, 12)
        assert work.declared_flops == coupling.declared_flops(6, 8)
        assert (work.energy_evaluations, work.force_evaluations) == (0, 0)
    assert not FlowMatching().needs_force


def test_parameters_that_the_loss_does_not_reach_get_zero_gradients() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    gradients = parameter_gradients((2 * used).sum(), [used, unused])
    assert [g.tolist() for g in gradients] == [[2.0, 2.0], [0.0, 0.0, 0.0]]


def test_negative_sigma_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma"):
        FlowMatching(sigma=-0.1)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 'everywhere'; write"):
        FlowMatching(scope="everywhere")  # type: ignore[arg-type]


def test_rows_that_no_pairing_joins_are_prepared_where_they_are() -> None:
    assert not FlowMatching(scope="global").prepares_globally
    assert FlowMatching(scope="global", coupling=OptimalTransport()).prepares_globally
    assert not FlowMatching(coupling=OptimalTransport()).prepares_globally


def test_prepared_tensors_share_their_rows() -> None:
    with pytest.raises(ValueError, match=r"common number of rows, got .*; write"):
        Prepared(tensors={"a": torch.ones(3, 2), "b": torch.ones(2)})
    for tensors in ({}, {"a": torch.tensor(1.0)}):
        with pytest.raises(ValueError, match="common number of rows"):
            Prepared(tensors=tensors)
    prepared = Prepared(tensors={"a": torch.arange(5), "b": torch.ones(5, 2)}, work=Work(declared_flops=7))
    assert [part["a"].tolist() for part in prepared.slices(2)] == [[0, 1], [2, 3], [4]]
    assert [part.work.declared_flops for part in prepared.slices(2)] == [7, 0, 0]
    assert [len(part) for part in prepared.rows(0, 0).slices(2)] == [0]
    assert (prepared.rows(1, 3)["a"].tolist(), prepared.rows(1, 3).work) == ([1, 2], prepared.work)
    assert prepared.rows(1, 3)["b"].data_ptr() == prepared["b"][1:].data_ptr()
    assert prepared.to(torch.device("meta"))["b"].is_meta
    assert prepared.to(torch.device("cpu"))["b"] is prepared["b"]
    with pytest.raises(ValueError, match="at least one row"):
        next(prepared.slices(0))


class TestFlowMatching(ObjectiveLaws):
    tag = "standard"

    def make_objective(self) -> Objective:
        return FlowMatching(coupling=coupling_of(self.tag, SYSTEMS["N4D2"]))

    def make_flow(self) -> nn.Module:
        return SmallFlow(SYSTEMS["N4D2"])

    def make_batch(self) -> Batch:
        return Batch(x_BD=data(SYSTEMS["N4D2"], 6))

    def test_only_a_search_for_pairs_is_worth_preparing_ahead(self) -> None:
        assert self.make_objective().prepares_ahead == (self.tag != "standard")


class TestOptimalTransportFlowMatching(TestFlowMatching):
    tag, additive = "ot", False


class TestEquivariantOptimalTransportFlowMatching(TestFlowMatching):
    tag, additive = "eqot", False
