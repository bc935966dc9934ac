"""Prefetching: the same values in the same order, one ahead, never beyond the end, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.collective import Alone
from harness.loop import Trainer, TrainState, train
from harness.plan import Branch, Phase
from harness.prefetch import THREAD_NAME, prefetched
from harness.trial import Event
from models.contracts import Batch, GradientSum, Objective, Prepared, Random
from models.problem import build
from tests.harness.tiny import FM, SETTINGS

PATIENCE_SECONDS = 30.0
"""After which a wait counts as failed."""


def prefetching_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 6), (4, 9)])
def test_values_come_in_order_and_none_is_made_beyond_the_last(start: int, stop: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step**2

    with prefetched(make, start=start, stop=stop) as value_of:
        assert [value_of(step) for step in range(start, stop)] == [step**2 for step in range(start, stop)]
    assert made == list(range(start, stop))


def test_nothing_is_made_before_it_is_asked_for() -> None:
    made: list[int] = []
    with prefetched(made.append, start=0, stop=5):
        assert prefetching_threads() == []
    assert made == []


def test_the_next_value_is_made_while_the_caller_works_on_this_one() -> None:
    begun = [threading.Event() for _ in range(4)]
    makers: set[int] = set()

    def make(step: int) -> int:
        begun[step].set()
        makers.add(threading.get_ident())
        return step

    with prefetched(make, start=0, stop=4) as value_of:
        for step in range(3):
            assert value_of(step) == step
            # The caller has not asked for the next one, and waits for it to have begun all the same.
            assert begun[step + 1].wait(PATIENCE_SECONDS)
            assert not any(later.is_set() for later in begun[step + 2 :])
    assert len(makers) == 1
    assert threading.get_ident() not in makers


def test_a_failure_is_told_at_the_step_that_it_belongs_to() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ArithmeticError("two")
        return step

    with prefetched(make, start=0, stop=5) as value_of:
        assert (value_of(0), value_of(1)) == (0, 1)
        with pytest.raises(ArithmeticError, match="two"):
            value_of(2)
    assert prefetching_threads() == []


def test_a_failure_of_a_step_that_is_never_asked_for_is_not_told() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ArithmeticError("one")
        return step

    with prefetched(make, start=0, stop=5) as value_of:
        assert value_of(0) == 0


def ended_by(error: BaseException | None) -> None:
    """A block that ends in the middle, by itself or by an error."""
    with prefetched(lambda step: step, start=0, stop=5) as value_of:
        assert value_of(0) == 0
        assert len(prefetching_threads()) == 1
        if error is not None:
            raise error


def test_no_thread_outlives_the_block_however_it_ends() -> None:
    ended_by(None)
    assert prefetching_threads() == []
    for error in (RuntimeError(), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(type(error)):
            ended_by(error)
        assert prefetching_threads() == []


def test_a_step_out_of_turn_is_made_all_the_same() -> None:
    with prefetched(lambda step: 10 * step, start=0, stop=9) as value_of:
        assert [value_of(step) for step in (0, 5, 2, 3)] == [0, 50, 20, 30]


# the training loop


@dataclass(frozen=True)
class Watched:
    """An objective that keeps count of who prepared and can be told to fail at one of its calls."""

    inner: Objective
    prepares_ahead: bool
    fails_at: int | None = None
    prepares_globally: bool = False
    needs_force: bool = False
    threads: list[str] = field(default_factory=list)

    def prepare(self, prior: Any, batch: Batch, random: Random) -> Prepared:
        self.threads.append(threading.current_thread().name)
        if self.fails_at == len(self.threads) - 1:
            raise ArithmeticError("no pairing")
        return self.inner.prepare(prior, batch, random)

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        return self.inner.gradient(flow, prepared)


def watched(*, ahead: bool, fails_at: int | None = None) -> tuple[Trainer, Watched, TrainState]:
    settings = {**FM.objective, "coupling": "optimal-transport", "sigma": 0.1}
    phase: Phase = replace(FM, objective=settings)
    problem = build(SETTINGS, cache=Path("unused"))
    objective = Watched(inner=problem.objective(settings), prepares_ahead=ahead, fails_at=fails_at)
    trainer = Trainer.of(Branch(parent="root", phase=phase, seed=1), objective, problem.training_data(1), Alone())
    return trainer, objective, TrainState.start(problem.flow(1), phase)


def told(events: Iterator[Event | None]) -> list[tuple[int, float, float]]:
    """What events say that is not a time."""
    return [(e.step, e.values["loss"], e.values["gradient_norm"]) for e in events if e is not None]


def test_training_ahead_is_training_in_line_bit_by_bit_also_when_it_is_resumed() -> None:
    ends, stories = [], []
    for ahead in (False, True):
        trainer, objective, state = watched(ahead=ahead)
        story = told(train(trainer, state, to=7))
        snapshot = state.state_dict()
        again, _, resumed = watched(ahead=ahead)
        resumed.load_state_dict(snapshot)
        story += told(train(again, resumed, to=12))
        assert len(objective.threads) == 7
        assert all(name.startswith(THREAD_NAME) == ahead for name in objective.threads)
        ends.append(torch.cat([p.detach().reshape(-1) for p in resumed.flow.parameters()]))
        stories.append(story)
    assert torch.equal(*ends)
    assert stories[0] == stories[1]
    assert prefetching_threads() == []


def test_a_generator_that_is_closed_takes_its_thread_along() -> None:
    trainer, objective, state = watched(ahead=True)
    steps = train(trainer, state, to=100)
    for _ in range(3):
        next(steps)
    assert len(prefetching_threads()) == 1
    steps.close()  # type: ignore[attr-defined]
    assert prefetching_threads() == []
    assert state.step == 3
    assert len(objective.threads) in (3, 4)


def test_a_step_that_cannot_be_prepared_fails_where_it_is_due() -> None:
    trainer, _, state = watched(ahead=True, fails_at=3)
    with pytest.raises(ArithmeticError, match="no pairing"):
        list(train(trainer, state, to=100))
    assert state.step == 3
    assert prefetching_threads() == []


def test_a_thread_computes_with_the_threads_of_its_worker() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with prefetched(lambda step: torch.get_num_threads(), start=0, stop=2) as value_of:
                assert [value_of(0), value_of(1)] == [threads, threads]
    finally:
        torch.set_num_threads(before)
