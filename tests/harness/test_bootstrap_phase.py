"""Flow annealed bootstrap in the training loop: a weighted buffer that is filled, drawn from, revised and resumed.

Shapes: B rows, D coordinates, M intermediate densities.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import calibrate
from harness.calibrate import counted_step, measure_price
from harness.checkpoint import Store
from harness.collective import ProcessGroup
from harness.generation_price import refill_cost, without_refills
from harness.loop import TrainState
from harness.microbatch import within_memory
from harness.renewal import MOST_BARREN
from models.contracts import Prepared, Random
from models.flows.coupling import CouplingFlow
from models.objectives.flow_annealed_bootstrap import BootstrapState
from models.objectives.replayed_bootstrap import ReplayedBootstrap
from models.prioritised import PrioritisedBuffer
from tests.harness.energy_only import FAB, PDEM, chain, stepped, trainer_of, weights
from tests.harness.tiny import checksums, events, trial
from tests.harness.two_workers import TwoWorkers

EVERY, ROWS, CAPACITY, FIRST = 3, 11, 40, 33
LOOKS = 1 + 2 * 2
"""At each row: the start, and two steps at each of two bridges."""


def bootstrap_of(state: TrainState) -> BootstrapState:
    assert isinstance(state.buffer, BootstrapState)
    return state.buffer


def buffer_of(state: TrainState) -> PrioritisedBuffer:
    buffer = bootstrap_of(state).buffer
    assert buffer is not None
    return buffer


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# filling, drawing, revising


def test_the_buffer_is_filled_to_its_minimum_first_and_refilled_at_its_steps() -> None:
    trainer, state = trainer_of(FAB)
    work = stepped(trainer, state, 7)
    assert [one.force_evaluations for one in work] == [n * LOOKS for n in (FIRST, 0, 0, ROWS, 0, 0, ROWS)]
    assert all(one.samples == FAB.batch for one in work)
    assert buffer_of(state).added == FIRST + 2 * ROWS
    assert len(buffer_of(state)) == CAPACITY


def test_rows_that_were_drawn_are_weighted_for_the_flow_of_their_step() -> None:
    trainer, state = trainer_of(FAB)
    stepped(trainer, state, 4)
    before, flow = buffer_of(state), state.flow
    assert isinstance(flow, CouplingFlow)
    row_B = before.rows(FAB.batch, draw=4)
    with torch.no_grad():
        log_q_B = flow.log_prob(before.x_BD[row_B]).double()
    stepped(trainer, state, 1)
    after = buffer_of(state)
    assert torch.equal(after.log_q_B[row_B], log_q_B)
    torch.testing.assert_close(
        after.log_w_B[row_B], before.log_w_B[row_B] + before.log_q_B[row_B] - log_q_B, rtol=1e-12, atol=1e-12
    )
    assert float((after.log_q_B[row_B] - before.log_q_B[row_B]).abs().max()) > 0
    others_B = torch.ones(len(before), dtype=torch.bool).index_fill(0, row_B, False)
    assert torch.equal(after.log_w_B[others_B], before.log_w_B[others_B])


def test_step_sizes_adapt_at_each_generation_and_stay_in_between() -> None:
    trainer, state = trainer_of(FAB)
    found = []
    for _ in range(5):
        stepped(trainer, state, 1)
        found.append(bootstrap_of(state).step_size_M)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[2], found[3])
    assert torch.equal(found[3], found[4])


def test_a_batch_in_pieces_revises_the_same_rows() -> None:
    whole, pieces = trainer_of(FAB), trainer_of(FAB)
    for trainer, state in (whole, (replace(pieces[0], microbatch=3), pieces[1])):
        stepped(trainer, state, 2)
    for name, tensor in bootstrap_of(whole[1]).tensors.items():
        torch.testing.assert_close(bootstrap_of(pieces[1]).tensors[name], tensor, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Hopeless(ReplayedBootstrap):
    """None of its rows has a weight."""

    def generate(self, flow: Any, experience: BootstrapState, random: Random) -> Prepared:
        made = super().generate(flow, experience, random)
        return replace(made, tensors={**made.tensors, "log_w": torch.full((len(made),), -torch.inf)})


def test_a_model_that_never_fills_its_buffer_is_told() -> None:
    trainer, state = trainer_of(FAB)
    assert trainer.renewal is not None
    assert isinstance(trainer.objective, ReplayedBootstrap)
    hopeless = Hopeless(**{f.name: getattr(trainer.objective, f.name) for f in fields(trainer.objective)})
    broken = replace(trainer, renewal=replace(trainer.renewal, objective=hopeless))
    with pytest.raises(ValueError, match=rf"usable, got none in {MOST_BARREN} refills.*write"):
        broken.renew(state)


# resuming


@pytest.mark.parametrize("after", [0, 1, 3, 4, 7])
def test_a_resumed_state_goes_on_bit_for_bit(after: int) -> None:
    trainer, state = trainer_of(FAB)
    stepped(trainer, state, after)
    stream = io.BytesIO()
    torch.save(state.state_dict(), stream)
    stepped(trainer, state, 7 - after)
    again, other = trainer_of(FAB)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True), again.objective)
    stepped(again, other, 7 - after)
    assert torch.equal(weights(other), weights(state))
    assert same(bootstrap_of(other).tensors, bootstrap_of(state).tensors)
    assert buffer_of(other).added == buffer_of(state).added


def test_an_interrupted_trial_ends_in_the_same_weights_and_buffer(tmp_path: Path) -> None:
    works = chain((FAB, 10))
    assert len(list(events(trial(tmp_path / "whole", works)))) > 3
    run = events(trial(tmp_path / "cut", works))
    assert len(list(islice(run, 6))) == 6
    run.close()
    partial = Store(tmp_path / "cut").latest(works[0].branch)
    assert partial is not None
    assert EVERY < partial["steps"] < 10  # after a refill, before the end
    list(events(trial(tmp_path / "cut", works)))
    marks = [checksums(tmp_path / name, works) for name in ("whole", "cut")]
    assert len(marks[0]) == 1
    assert marks[0] == marks[1]  # of weights, rows, their weights and the step sizes


def test_a_buffer_is_restored_by_the_objective_that_it_belongs_to() -> None:
    trainer, state = trainer_of(FAB)
    stepped(trainer, state, 1)
    other, _ = trainer_of(PDEM)
    with pytest.raises(ValueError, match=r"belongs to an objective.*DenoisingEnergyMatching; write"):
        state.load_state_dict(state.state_dict(), other.objective)


# prices


def test_a_price_shares_a_generation_over_the_steps_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    trainer, state = trainer_of(FAB)
    price = measure_price(trainer, state.flow)
    again, fresh = trainer_of(FAB)
    again.renew(fresh)
    step, refill = counted_step(without_refills(again), fresh), refill_cost(again, fresh)
    assert (step.force_evaluations, refill.force_evaluations) == (0, LOOKS * ROWS)
    assert price.per_step.force_evaluations == round(LOOKS * ROWS / EVERY)
    assert price.per_step.flops == pytest.approx(step.flops + refill.flops / EVERY, rel=1e-12)
    assert refill.flops > step.flops > 0


def test_a_micro_batch_is_found_below_a_cap() -> None:
    trainer, state = trainer_of(FAB)
    found = within_memory(trainer, state.flow, 1.0)
    assert found.microbatch == 1
    stepped(found, state, 1)
    assert state.step == 1


# two processes


def as_one_of_two(group: ProcessGroup) -> dict[str, Any]:
    trainer, state = trainer_of(FAB, collective=group)
    work = stepped(trainer, state, 8)
    return {
        "weights": weights(state),
        "forces": [one.force_evaluations for one in work],
        **bootstrap_of(state).tensors,
    }


def test_two_workers_hold_the_same_buffer_and_end_as_one_does(two_workers: TwoWorkers) -> None:
    first, second = two_workers(as_one_of_two)
    assert first.pop("forces") == [LOOKS * n for n in (15, 0, 0, 5, 0, 0, 5, 0)]
    assert second.pop("forces") == [LOOKS * n for n in (18, 0, 0, 6, 0, 0, 6, 0)]
    assert same(first, second)
    trainer, state = trainer_of(FAB)
    stepped(trainer, state, 8)
    for name, tensor in {"weights": weights(state), **bootstrap_of(state).tensors}.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-3)
