"""The training loop against closed forms: rows, shares, reductions, clipping, averages, and exact resumption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.checkpoint import checksum
from harness.collective import Alone, ProcessGroup, share
from harness.loop import BatchOrder, Trainer, TrainState, train
from harness.memory import LiveBytes
from harness.plan import Branch, Optimiser, Phase, geometric_grid
from models.contracts import Batch, GradientSum, Prepared, Random, Work
from models.problem import BoltzmannProblem, build
from tests.harness.tiny import FM, PG, SETTINGS, TAIL
from tests.harness.two_workers import TwoWorkers

RATE = Optimiser(learning_rate=0.1)
PAIRED = replace(FM, objective={**FM.objective, "coupling": "optimal-transport"})
PAIRED_GLOBALLY = replace(PAIRED, objective={**PAIRED.objective, "scope": "global"})


@cache
def problem() -> BoltzmannProblem:
    return build(SETTINGS, cache=Path("unused"))


def real_trainer(phase: Phase, collective: Any = None, *, microbatch: int | None = None) -> tuple[Trainer, TrainState]:
    branch = Branch(parent="root", phase=phase, seed=3)
    objective, data = problem().objective(phase.objective), problem().training_data(3)
    trainer = Trainer.of(branch, objective, data, collective or Alone(), microbatch=microbatch)
    return trainer, TrainState.start(problem().flow(3), phase)


def weights(state: TrainState) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in state.flow.parameters()])


def gradient_of_last_step(state: TrainState) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in state.flow.parameters() if p.grad is not None])


@dataclass(frozen=True)
class Drift:
    """A loss whose gradient at every row is the row itself; NaN at chosen calls."""

    broken: tuple[int, ...] = ()
    calls: list[int] | None = None
    needs_force: bool = False
    prepares_ahead: bool = False
    prepares_globally: bool = False

    def prepare(self, prior: Any, batch: Batch, random: Random) -> Prepared:
        return Prepared(tensors={"x": batch.x_BD})

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        total = prepared["x"].sum(dim=0)
        if self.calls is not None:
            self.calls.append(len(self.calls))
            if self.calls[-1] in self.broken:
                total = total * float("nan")
        rows = len(prepared)
        return GradientSum(gradients=(total,), loss_sum=total.sum(), weight=float(rows), work=Work(samples=rows))


class Point(torch.nn.Module):
    """Two weights, and no base that would matter."""

    prior = None

    def __init__(self) -> None:
        super().__init__()
        self.at = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))


def drift(
    objective: Any, *, rows: Tensor, optimiser: Optimiser = RATE, batch: int = 4, **phase: Any
) -> tuple[Trainer, TrainState]:
    settings = Phase(name="drift", objective={}, optimiser=optimiser, batch=batch, **phase)
    branch = Branch(parent="root", phase=settings, seed=0)
    return Trainer.of(branch, objective, Batch(x_BD=rows), Alone()), TrainState.start(Point(), settings)


# rows


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (10, 4), (7, 3), (5, 16), (9, 9), (1, 3)])
def test_each_row_comes_once_an_epoch(rows: int, batch: int) -> None:
    order = BatchOrder(rows, batch, seed=1)
    epochs = 6
    steps = -(-epochs * rows // batch)
    stream = torch.cat([order.rows_of(step) for step in range(steps)])
    assert all(len(order.rows_of(step)) == batch for step in range(steps))
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))


def test_the_rows_of_a_step_need_no_history() -> None:
    forward, backward = BatchOrder(50, 8, seed=4), BatchOrder(50, 8, seed=4)
    there = [forward.rows_of(step) for step in range(30)]
    back = [backward.rows_of(step) for step in reversed(range(30))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))
    first, second = (torch.cat([order.rows_of(s) for s in range(6)]) for order in (forward, BatchOrder(50, 8, seed=5)))
    assert not torch.equal(first, second)


def test_epochs_are_shuffled_anew() -> None:
    order = BatchOrder(64, 64, seed=0)
    assert not torch.equal(order.rows_of(0), order.rows_of(1))


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("size", [1, 5, 16, 257])
def test_shares_cover_the_batch_evenly(size: int, workers: int) -> None:
    shares = [share(size, rank, workers) for rank in range(workers)]
    assert [row for start, stop in shares for row in range(start, stop)] == list(range(size))
    lengths = {stop - start for start, stop in shares}
    assert max(lengths) - min(lengths) <= 1


# one step


def test_the_first_adam_step_is_the_rate_along_the_sign() -> None:
    rows = torch.tensor([[1.0, -3.0]], dtype=torch.float64).expand(8, 2)
    trainer, state = drift(Drift(), rows=rows)
    work = trainer.step(state)
    assert weights(state).tolist() == pytest.approx([-0.1, 0.1], rel=1e-6)
    assert (state.step, work.samples) == (1, 4)
    assert state.tally.loss == pytest.approx(-2.0)
    assert state.tally.gradient_norm == pytest.approx(10**0.5)


def test_the_reduced_gradient_is_clipped_to_its_norm() -> None:
    rows = torch.tensor([[3.0, -4.0]], dtype=torch.float64).expand(8, 2)
    for clip, expected in ((1.0, [0.6, -0.8]), (100.0, [3.0, -4.0])):
        trainer, state = drift(Drift(), rows=rows, optimiser=Optimiser(learning_rate=0.1, gradient_clip=clip))
        trainer.step(state)
        (parameter,) = state.flow.parameters()
        assert parameter.grad is not None
        assert parameter.grad.tolist() == pytest.approx(expected)
        assert state.tally.gradient_norm == pytest.approx(5.0)


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    rows = torch.ones(8, 2, dtype=torch.float64)
    trainer, state = drift(Drift(broken=(1, 3), calls=[]), rows=rows)
    path = []
    for _ in range(4):
        trainer.step(state)
        path.append(weights(state).tolist())
    assert path[0] == path[1]
    assert path[2] == path[3]
    assert path[1] != path[2]
    assert (state.step, state.tally.skipped, state.tally.steps) == (4, 2, 2)
    assert state.tally.loss == pytest.approx(4.0)
    steps = next(iter(state.optimiser.state.values()))["step"]
    assert float(steps) == 2.0


def test_events_carry_means_and_skips() -> None:
    rows = torch.ones(8, 2, dtype=torch.float64)
    trainer, state = drift(Drift(broken=(0, 1, 4), calls=[]), rows=rows)
    events = [event for event in train(trainer, state, to=6) if event is not None]
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.values["skipped_steps"] for event in events] == [1, 1, 0, 0, 1, 0]
    assert events[0].values["loss"] != events[0].values["loss"]
    assert events[2].values["loss"] == pytest.approx(2.0)
    assert events[2].values["gradient_norm"] == pytest.approx(2**0.5)


def test_events_lie_on_the_grid_and_at_the_end() -> None:
    trainer, state = drift(Drift(), rows=torch.ones(8, 2, dtype=torch.float64))
    found = list(train(trainer, state, to=100))
    assert len(found) == 100
    steps = [event.step for event in found if event is not None]
    assert steps == sorted({*geometric_grid(100), 100})


def test_the_average_follows_its_closed_form() -> None:
    decay, rows = 0.8, torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trainer, state = drift(Drift(broken=(2,), calls=[]), rows=rows, ema_decay=decay)
    path = [weights(state)]
    for _ in range(7):
        trainer.step(state)
        path.append(weights(state))
    moved = [path[0], path[1], path[2], *path[4:]]  # a skipped step does not move the average either
    n = len(moved) - 1
    expected = decay**n * moved[0] + sum((1 - decay) * decay ** (n - k) * moved[k] for k in range(1, n + 1))
    assert state.average is not None
    torch.testing.assert_close(state.average[0], expected, rtol=1e-12, atol=1e-14)


def test_an_objective_that_needs_forces_gets_them() -> None:
    with pytest.raises(ValueError, match="needs forces"):
        drift(Drift(needs_force=True), rows=torch.ones(8, 2))


# micro-batches


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 99])
def test_rows_one_slice_after_another_sum_to_the_batch(rows: int) -> None:
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (trainer, state), (_, other) = (drift(Drift(calls=[]), rows=data, batch=10) for _ in range(2))
    calls: list[int] = []
    sliced = replace(trainer, microbatch=rows, objective=Drift(calls=calls))
    assert sliced.step(other) == trainer.step(state)
    assert len(calls) == -(-10 // rows)
    torch.testing.assert_close(gradient_of_last_step(other), gradient_of_last_step(state), rtol=1e-12, atol=1e-14)
    assert other.tally.loss == pytest.approx(state.tally.loss, rel=1e-12)


@pytest.mark.parametrize("phase", [FM, PAIRED, PG], ids=["fm", "paired", "pg"])
def test_micro_batches_train_as_the_whole_batch_does_and_hold_less(phase: Phase) -> None:
    peaks, ends = [], []
    for microbatch in (None, 25):
        trainer, state = real_trainer(replace(phase, batch=400), microbatch=microbatch)
        prepared = trainer.prepare(state.flow.prior, 0)
        with LiveBytes() as held:
            work = trainer.step(state, prepared)
        peaks.append(held.peak)
        ends.append((gradient_of_last_step(state), work))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-4, atol=1e-6)
    assert ends[1][1] == ends[0][1]
    assert peaks[1] < 0.3 * peaks[0]


def test_a_micro_batch_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one row, got 0; write"):
        real_trainer(FM, microbatch=0)


# resumption


@pytest.mark.parametrize("phase", [FM, PG, TAIL, PAIRED], ids=["fm", "pg", "fm_tail", "paired"])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_resumed_run_repeats_the_uninterrupted_one(phase: Phase, cut: int) -> None:
    whole_trainer, whole = real_trainer(phase)
    expected = [event for event in train(whole_trainer, whole, to=8) if event is not None]
    trainer, state = real_trainer(phase)
    for event in train(trainer, state, to=8):
        assert event is None or event.step <= 8
        if state.step == cut:
            break
    snapshot = copy.deepcopy(state.state_dict())
    again_trainer, again = real_trainer(phase)
    again.load_state_dict(snapshot)
    events = [event for event in train(again_trainer, again, to=8) if event is not None]
    assert torch.equal(weights(again), weights(whole))
    assert again.step == 8
    assert (again.average is None) == (phase.ema_decay is None)
    assert all(torch.equal(a, b) for a, b in zip(again.average or [], whole.average or [], strict=True))
    late = [event for event in expected if event.step > cut]
    assert [(e.step, e.values["loss"]) for e in events] == [(e.step, e.values["loss"]) for e in late]


def test_a_snapshot_stays_as_it_was() -> None:
    trainer, state = real_trainer(FM)
    for _ in range(2):
        trainer.step(state)
    snapshot = state.state_dict()
    kept = copy.deepcopy(snapshot)
    trainer.step(state)
    other_trainer, other = real_trainer(FM)
    other.load_state_dict(snapshot)
    other_trainer.step(other)
    assert checksum(snapshot["weights"]) == checksum(kept["weights"])
    for number, moments in kept["optimiser"]["state"].items():
        assert all(torch.equal(moments[name], snapshot["optimiser"]["state"][number][name]) for name in moments)
    assert snapshot["step"] == 2
    assert torch.equal(weights(other), weights(state))


def test_a_step_changes_with_the_seed_and_the_branch() -> None:
    ends = set()
    for phase, seed in ((FM, 3), (FM, 4), (replace(FM, batch=21), 3)):
        branch = Branch(parent="root", phase=phase, seed=seed)
        trainer = Trainer.of(branch, problem().objective(phase.objective), problem().training_data(3), Alone())
        state = TrainState.start(problem().flow(3), phase)
        trainer.step(state)
        ends.add(checksum(dict(state.flow.state_dict())))
    assert len(ends) == 3


# the scope of a pairing


@dataclass(frozen=True)
class Apart:
    """One of several workers, with nobody to talk to."""

    rank: int
    workers: int


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("phase", [PAIRED, PAIRED_GLOBALLY], ids=["local", "global"])
def test_only_a_global_pairing_is_the_same_for_any_number_of_workers(phase: Phase, workers: int) -> None:
    trainer, state = real_trainer(phase)
    state.flow.double()
    trainer = replace(trainer, data=Batch(x_BD=trainer.data.x_BD.double()))
    whole = trainer.prepare(state.flow.prior, 5)
    ranks = [replace(trainer, collective=Apart(rank, workers)) for rank in range(workers)]
    parts = [one.prepare(state.flow.prior, 5) for one in ranks]
    assert [len(part) for part in parts] == [b - a for a, b in (share(20, rank, workers) for rank in range(workers))]
    total = reduce(add, [trainer.objective.gradient(state.flow, part) for part in parts])
    expected = trainer.objective.gradient(state.flow, whole)
    together, alone = (torch.cat([g.reshape(-1) for g in found.gradients]) for found in (total, expected))
    assert total.weight == expected.weight
    if workers == 1 or phase is PAIRED_GLOBALLY:
        assert all(torch.equal(torch.cat([part[name] for part in parts]), whole[name]) for name in whole.tensors)
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    else:
        assert float((together - alone).norm() / alone.norm()) > 1e-3
    assert all(part.work == whole.work for part in parts) == (workers == 1 or phase is PAIRED_GLOBALLY)


# two processes

SHARED = {"fm": FM, "pg": PG, "paired": PAIRED, "paired globally": PAIRED_GLOBALLY}


def as_one_of_two(group: ProcessGroup) -> dict[str, Any]:
    """Train both kinds of phase, meet a gradient that is infinite on one rank only, and tell what came out."""
    found: dict[str, Any] = {}
    for name, phase in SHARED.items():
        trainer, state = real_trainer(replace(phase, batch=phase.batch + 1), group)
        found[name] = {"weights": run(trainer, state), "loss": state.tally.loss}
    trainer, state = real_trainer(FM, group)
    broken = replace(trainer, objective=HalfBroken(trainer.objective, group.rank))
    found["skipping"] = {"weights": run(broken, state), "skipped": state.tally.skipped}
    found["told"] = group.broadcast(f"from {group.rank}")
    found["gathered"] = group.gather(group.rank)
    return found


def run(trainer: Trainer, state: TrainState, steps: int = 5) -> Tensor:
    for _ in range(steps):
        trainer.step(state)
    return weights(state)


@dataclass
class HalfBroken:
    """The second rank's gradient is infinite at its third step."""

    objective: Any
    rank: int
    calls: int = 0
    needs_force: bool = False
    prepares_ahead: bool = False
    prepares_globally: bool = False

    def prepare(self, prior: Any, batch: Batch, random: Random) -> Prepared:
        prepared: Prepared = self.objective.prepare(prior, batch, random)
        return prepared

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        self.calls += 1
        found: GradientSum = self.objective.gradient(flow, prepared)
        if self.rank == 1 and self.calls == 3:
            return replace(found, gradients=tuple(g * float("inf") for g in found.gradients))
        return found


@pytest.fixture(scope="module")
def pair(two_workers: TwoWorkers) -> list[dict[str, Any]]:
    return two_workers(as_one_of_two)


@pytest.mark.parametrize("name", ["fm", "pg", "paired globally"])
def test_two_processes_train_as_one_does(pair: list[dict[str, Any]], name: str) -> None:
    trainer, state = real_trainer(replace(SHARED[name], batch=SHARED[name].batch + 1))
    alone = run(trainer, state)
    assert torch.equal(pair[0][name]["weights"], pair[1][name]["weights"])
    together = pair[0][name]["weights"]
    # Adam divides by the gradient's own size, so weights whose gradient is at rounding level need an absolute bound.
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)
    assert float((together - alone).norm() / alone.norm()) < 1e-6
    assert pair[0][name]["loss"] == pytest.approx(state.tally.loss, rel=1e-6)


def test_two_processes_that_pair_their_own_rows_train_otherwise(pair: list[dict[str, Any]]) -> None:
    local, alone = pair[0]["paired"], pair[0]["paired globally"]
    assert torch.equal(local["weights"], pair[1]["paired"]["weights"])
    assert float((local["weights"] - alone["weights"]).norm() / alone["weights"].norm()) > 1e-4
    assert local["loss"] > alone["loss"]  # shorter paths are easier to learn


def test_one_broken_rank_makes_all_skip_together(pair: list[dict[str, Any]]) -> None:
    assert [found["skipping"]["skipped"] for found in pair] == [1, 1]
    assert torch.equal(pair[0]["skipping"]["weights"], pair[1]["skipping"]["weights"])
    assert bool(pair[0]["skipping"]["weights"].isfinite().all())


def test_workers_tell_each_other(pair: list[dict[str, Any]]) -> None:
    assert [found["told"] for found in pair] == ["from 0", "from 0"]
    assert [found["gathered"] for found in pair] == [[0, 1], None]


def test_alone_needs_nobody() -> None:
    flat = torch.ones(3)
    Alone().sum_(flat)
    assert flat.tolist() == [1.0, 1.0, 1.0]
    talk: list[Callable[[Any], Any]] = [Alone().broadcast, Alone().gather]
    assert [say("x") for say in talk] == ["x", ["x"]]
