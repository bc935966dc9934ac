"""Flow annealed bootstrap as a phase: rows of several workers are those of one, and what a draw shows is remembered.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.annealed import PUSH_EVALUATIONS, Annealing
from models.contracts import Batch, Experience, LearnsFromExperience, Objective, Random, whole_batch
from models.flows.coupling import CouplingFlow
from models.flows.prior import GaussianPrior
from models.made_rows import made_rows_of
from models.objectives.flow_annealed_bootstrap import BootstrapState, BufferedBootstrap, generate
from models.objectives.replayed_bootstrap import ReplayedBootstrap
from models.targets import gmm4
from tests.laws.objective_laws import ObjectiveLaws, flat
from tests.models.test_flow_annealed_bootstrap import FewRows

ANNEALING = Annealing(bridges=2, leapfrog_steps=2, step_size=0.3)
DATA = Batch(x_BD=torch.zeros(1, 2, dtype=torch.float64))


def phase(**changes: Any) -> ReplayedBootstrap:
    settings: dict[str, Any] = {"capacity": 50, "minimum": 8, "every": 2, "rows": 12, "loss": BufferedBootstrap()}
    return ReplayedBootstrap(target=gmm4(), annealing=ANNEALING, **{**settings, **changes})


def small_flow() -> CouplingFlow:
    torch.manual_seed(0)
    return CouplingFlow(prior=GaussianPrior(space=gmm4().space, std=1.5), layers=2, hidden=(8,), bins=4).double()


def filled(fab: ReplayedBootstrap, flow: CouplingFlow) -> BootstrapState:
    """After one generation."""
    state = fab.begin(DATA, seed=3)
    return fab.extended(state, fab.generate(flow, state, whole_batch(12, 1)).tensors)


class TestLaws(FewRows, ObjectiveLaws):
    def make_objective(self) -> Objective:
        return phase()


def test_rows_of_two_workers_extend_the_state_as_a_generation_of_one_does() -> None:
    flow, fab = small_flow(), phase()
    state = fab.begin(DATA, seed=3)
    shares = [
        Random(generator=torch.Generator().manual_seed(1), global_size=12, start=start, stop=stop)
        for start, stop in ((0, 5), (5, 12))
    ]
    parts = [fab.generate(flow, state, random) for random in shares]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors}
    found = fab.extended(state, whole)
    expected, samples = generate(
        flow, gmm4(), state, annealing=ANNEALING, random=whole_batch(12, 1), like=torch.zeros(0, dtype=torch.float64)
    )
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-10, atol=1e-10)
    assert (len(found), found.ready) == (12, True)
    assert sum(part.work.force_evaluations for part in parts) == samples.work.force_evaluations


def test_shares_of_a_draw_are_the_draw_and_the_state_comes_back() -> None:
    fab = phase()
    state = filled(fab, small_flow())
    whole, parts = state.batch(0, 8, draw=4), [state.batch(*bounds, draw=4) for bounds in ((0, 3), (3, 8))]
    assert torch.equal(torch.cat([part.x_BD for part in parts]), whole.x_BD)
    assert torch.equal(torch.cat([part.log_q_B for part in parts]), whole.log_q_B)
    again = fab.restored(state.state_dict(), like=DATA.x_BD)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in state.tensors.items())
    revised = fab.revised(again, whole.log_q_B + 1.0, draw=4)
    drawn_B = again.tensors["log_w"] != revised.tensors["log_w"]
    assert int(drawn_B.sum()) == 8
    torch.testing.assert_close(revised.tensors["log_w"][drawn_B], again.tensors["log_w"][drawn_B] - 1.0)
    assert fab.revised(again, None, draw=4) is again


def test_it_fulfils_what_the_training_loop_asks_for() -> None:
    fab = phase()
    loop: LearnsFromExperience = fab
    state: Experience = loop.begin(DATA, seed=0)
    assert isinstance(fab, LearnsFromExperience)
    assert (len(state), state.ready) == (0, False)


def test_seen_densities_stand_in_the_order_of_the_rows_however_they_are_cut() -> None:
    flow, fab = small_flow(), phase()
    state = filled(fab, flow)
    prepared = fab.prepare(flow.prior, state.batch(0, 8, draw=0), whole_batch(8, 0))
    whole = fab.gradient(flow, prepared)
    first, *others = (fab.gradient(flow, piece) for piece in prepared.slices(3))
    pieces = sum(others, first)
    assert whole.seen_B is not None
    assert pieces.seen_B is not None
    torch.testing.assert_close(pieces.seen_B, whole.seen_B, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat(pieces.gradients), flat(whole.gradients), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("resampled", [False, True])
def test_a_coupling_flow_hands_its_rows_on(resampled: bool) -> None:
    data = {"from": "parent", "rows": 30, "resampled": resampled}
    rows = made_rows_of({"kind": "flow_matching", "data": data}, gmm4())
    assert rows is not None
    drawn = rows.draw(small_flow(), whole_batch(30, 1))
    assert drawn.work.field_evaluations == 30 * PUSH_EVALUATIONS
    batch, _ = rows.finish(drawn.tensors, seed=0)
    assert batch.x_BD.shape == (30, 2)
    if resampled:
        x_BD = drawn["x"]
        expected_B = -gmm4().energy(x_BD) - small_flow().log_prob(x_BD).detach()
        torch.testing.assert_close(drawn["log_weight"], expected_B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: phase(minimum=51), "got minimum=51, capacity=50.*write"),
        (lambda: phase(minimum=0), "got minimum=0"),
        (lambda: phase(every=0), "every=0"),
        (lambda: phase(rows=0), "rows=0; write"),
        (lambda: BootstrapState(step_size_M=torch.ones(1)).batch(0, 1, draw=0), "drawn from a buffer.*write"),
    ],
)
def test_wrong_input_is_told_with_what_to_write(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()
