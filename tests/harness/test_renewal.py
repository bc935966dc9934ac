"""The replay buffer in the training loop: refilled at its steps, the same after a resume and for any number of workers.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from harness import calibrate
from harness.calibrate import counted_step, measure_price
from harness.checkpoint import Store
from harness.collective import Alone, ProcessGroup, joined
from harness.generation_price import COUNTED_ROWS, refill_cost, without_refills
from harness.loop import Trainer, TrainState
from harness.plan import Branch
from harness.trial import Event
from models.contracts import Batch, Prepared, Random
from models.objectives.replayed_energy_matching import ReplayedEnergyMatching
from models.problem import build
from models.replay import ReplayBuffer
from tests.harness.energy_only import IDEM, PDEM, chain, stepped, trainer_of, weights
from tests.harness.tiny import SETTINGS, checksums, events, root, trial
from tests.harness.two_workers import TwoWorkers

EVERY, ROWS, CAPACITY = 3, 11, 30


def rows_of(state: TrainState) -> Tensor:
    return buffer_of(state).x_BD


def buffer_of(state: TrainState) -> ReplayBuffer:
    assert isinstance(state.buffer, ReplayBuffer)
    return state.buffer


# refills


def test_refills_come_before_their_steps_and_are_counted_there() -> None:
    trainer, state = trainer_of(IDEM)
    assert state.buffer is None
    work = stepped(trainer, state, 7)
    plain = 2 * IDEM.batch
    generated = 5 * ROWS  # steps of the reverse process times rows
    assert [one.field_evaluations - plain for one in work] == [0, 0, 0, generated, 0, 0, generated]
    assert all(one.samples == IDEM.batch for one in work)
    assert len(rows_of(state)) == CAPACITY
    assert buffer_of(state).added == 16 + 2 * ROWS


def test_the_loop_refills_as_single_steps_do() -> None:
    trainer, state = trainer_of(IDEM)
    alone = stepped(trainer, state, 7)
    again, other = trainer_of(IDEM)
    assert list(again.steps(other, to=7)) == alone
    assert torch.equal(rows_of(state), rows_of(other))
    assert torch.equal(weights(state), weights(other))


def test_the_model_fills_the_buffer_with_its_own_rows() -> None:
    trainer, state = trainer_of(IDEM)
    stepped(trainer, state, EVERY)
    before, assumed = rows_of(state), trainer.renewal
    assert assumed is not None
    expected, _ = assumed.refilled(buffer_of(state), state.flow, EVERY)
    stepped(trainer, state, 1)
    assert isinstance(expected, ReplayBuffer)
    assert torch.equal(rows_of(state), expected.x_BD)
    assert torch.equal(rows_of(state)[: len(before)], before)
    with torch.no_grad():
        for parameter in state.flow.parameters():
            parameter.add_(0.1)
    changed, _ = assumed.refilled(buffer_of(state), state.flow, EVERY)
    assert isinstance(changed, ReplayBuffer)
    assert not torch.equal(changed.x_BD[-ROWS:], expected.x_BD[-ROWS:])


def test_batches_come_from_the_buffer() -> None:
    trainer, state = trainer_of(IDEM)
    trainer.renew(state)
    assert state.buffer is not None
    batch, _ = trainer._drawn(4, 2, 9, state.buffer)
    whole, _ = trainer._drawn(4, 0, IDEM.batch, state.buffer)
    assert torch.equal(batch.x_BD, whole.x_BD[2:9])
    assert torch.equal(whole.x_BD, buffer_of(state).sample(IDEM.batch, draw=4).x_BD)


def test_rows_that_are_not_finite_stay_outside() -> None:
    trainer, state = trainer_of(IDEM)
    stepped(trainer, state, EVERY)
    broken = replace(trainer, renewal=replace(trainer.renewal, objective=like_idem(Broken, bad=4)))  # type: ignore[type-var]
    before = rows_of(state)
    broken.renew(state)
    assert torch.equal(rows_of(state), torch.cat([before, torch.ones(ROWS - 4, 2)]))
    hopeless = replace(trainer, renewal=replace(trainer.renewal, objective=like_idem(Broken, bad=ROWS)))  # type: ignore[type-var]
    kept = rows_of(state)
    hopeless.renew(state)
    assert torch.equal(rows_of(state), kept)


@dataclass(frozen=True, kw_only=True)
class Broken(ReplayedEnergyMatching):
    """Some of its rows are infinite."""

    bad: int

    def generate(self, flow: Any, experience: ReplayBuffer, random: Random) -> Prepared:
        x_BD = torch.ones(self.rows, 2)
        x_BD[: self.bad, 0] = float("inf")
        return Prepared(tensors={"x": x_BD})


@dataclass(frozen=True, kw_only=True)
class Impatient(ReplayedEnergyMatching):
    prepares_ahead: ClassVar[bool] = True


def like_idem(kind: type[ReplayedEnergyMatching], **more: Any) -> Any:
    """The objective of the phase, with a flaw."""
    whole: Any = build(SETTINGS, cache=Path("unused")).objective(IDEM.objective)
    return kind(**{f.name: getattr(whole, f.name) for f in fields(whole)}, **more)


def test_a_buffer_cannot_be_read_ahead_of_its_refill() -> None:
    branch = Branch(parent=root(), phase=IDEM, seed=0)
    with pytest.raises(ValueError, match="wait for its refill"):
        Trainer.of(branch, like_idem(Impatient), Batch(x_BD=torch.zeros(4, 2)), Alone())


def test_without_a_buffer_nothing_is_renewed_or_saved() -> None:
    trainer, state = trainer_of(PDEM)
    stepped(trainer, state, 4)
    assert trainer.renewal is None
    assert state.buffer is None
    assert "buffer" not in state.state_dict()


# resuming


@pytest.mark.parametrize("after", range(8))
def test_a_resumed_state_goes_on_bit_for_bit(after: int) -> None:
    trainer, state = trainer_of(IDEM)
    stepped(trainer, state, after)
    saved = state.state_dict()
    stepped(trainer, state, 8 - after)
    again, other = trainer_of(IDEM)
    other.load_state_dict(saved, again.objective)
    stepped(again, other, 8 - after)
    assert torch.equal(weights(other), weights(state))
    assert torch.equal(rows_of(other), rows_of(state))
    assert (buffer_of(other).added, buffer_of(other).seed) == (buffer_of(state).added, buffer_of(state).seed)


def run_until(found: Iterator[Event], count: int) -> int:
    return len(list(islice(found, count)))


def test_an_interrupted_trial_ends_in_the_same_weights_and_buffer(tmp_path: Path) -> None:
    works = chain((IDEM, 10))
    assert len(list(events(trial(tmp_path / "whole", works)))) > 3
    run = events(trial(tmp_path / "cut", works))
    run_until(run, 6)
    run.close()
    partial = Store(tmp_path / "cut").latest(works[0].branch)
    assert partial is not None
    assert EVERY < partial["steps"] < 10  # after a refill, before the end
    list(events(trial(tmp_path / "cut", works)))
    marks = [checksums(tmp_path / name, works) for name in ("whole", "cut")]
    assert marks[0] == marks[1]
    kept = []
    for name in ("whole", "cut"):
        store = Store(tmp_path / name)
        segment = store.segment(works[0].segments[0].hash)
        assert segment is not None
        kept.append(store.get_state(segment["state"]))
    assert torch.equal(kept[0]["buffer"]["x"], kept[1]["buffer"]["x"])
    assert all(torch.equal(kept[0]["weights"][name], kept[1]["weights"][name]) for name in kept[0]["weights"])


# prices


def test_a_price_shares_the_refill_over_the_steps_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    trainer, state = trainer_of(IDEM)
    price = measure_price(trainer, state.flow)
    again, fresh = trainer_of(IDEM)
    again.renew(fresh)
    step = counted_step(without_refills(again), fresh)
    refill = refill_cost(again, fresh)
    assert step.field_evaluations == 2 * IDEM.batch
    assert refill.field_evaluations == 5 * ROWS
    assert price.per_step.field_evaluations == step.field_evaluations + round(5 * ROWS / EVERY)
    assert price.per_step.flops == pytest.approx(step.flops + refill.flops / EVERY, rel=1e-12)
    widths = [3, 8, 8, 2]
    forward = sum(2 * a * b for a, b in pairwise(widths))
    assert refill.flops == 5 * ROWS * forward
    assert price.device_seconds_lo > 0
    assert price.per_step.device_seconds >= price.device_seconds_lo


def test_operations_of_a_large_refill_are_counted_on_a_few_rows() -> None:
    replay = {"capacity": 500, "every": 3, "rows": 10 * COUNTED_ROWS}
    trainer, state = trainer_of(replace(IDEM, objective={**IDEM.objective, "replay": replay}))
    few, short = trainer_of(IDEM)
    large, small = refill_cost(trainer, state), refill_cost(few, short)
    assert large.flops / (10 * COUNTED_ROWS) == pytest.approx(small.flops / ROWS, rel=1e-12)


def test_no_buffer_no_refill() -> None:
    trainer, state = trainer_of(PDEM)
    assert refill_cost(trainer, state).field_evaluations == 0
    assert without_refills(trainer) is trainer


# two processes


def as_one_of_two(group: ProcessGroup) -> dict[str, Any]:
    trainer, state = trainer_of(IDEM, collective=group)
    work = stepped(trainer, state, 8)
    return {
        "weights": weights(state),
        "buffer": rows_of(state),
        "generated": [one.field_evaluations - 2 * one.samples for one in work],
        "joined": joined(torch.full((2 + group.rank, 2), float(group.rank)), 5, group),
    }


def test_two_workers_share_the_refill_and_end_as_one_does(two_workers: TwoWorkers) -> None:
    first, second = two_workers(as_one_of_two)
    assert torch.equal(first["buffer"], second["buffer"])
    assert torch.equal(first["weights"], second["weights"])
    assert first["generated"] == [0, 0, 0, 25, 0, 0, 25, 0]
    assert second["generated"] == [0, 0, 0, 30, 0, 0, 30, 0]
    assert torch.equal(first["joined"], torch.tensor([[0.0], [0.0], [1.0], [1.0], [1.0]]).expand(5, 2))
    trainer, state = trainer_of(IDEM)
    stepped(trainer, state, 8)
    torch.testing.assert_close(first["buffer"], rows_of(state), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first["weights"], weights(state), rtol=1e-4, atol=1e-4)
