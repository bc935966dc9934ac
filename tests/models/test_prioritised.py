"""The prioritised buffer: draws by weight and by counter, adjusted weights, a state that resumes bit for bit.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.prioritised import PrioritisedBuffer, WeightedBatch

LIKE = torch.empty(0, dtype=torch.float64)


def numbered(start: int, stop: int) -> Tensor:
    """Rows that carry their own number."""
    return torch.arange(start, stop, dtype=torch.float64)[:, None].expand(-1, 3)


def weights(start: int, stop: int) -> Tensor:
    return torch.sin(torch.arange(start, stop, dtype=torch.float64))


def buffer(rows: int = 10, capacity: int = 20, *, replacement: bool = True, seed: int = 4) -> PrioritisedBuffer:
    empty = PrioritisedBuffer.empty(LIKE, dim=3, capacity=capacity, minimum=2, replacement=replacement, seed=seed)
    return empty.add(numbered(0, rows), log_w_B=weights(0, rows), log_q_B=-weights(0, rows)) if rows else empty


class TestRows:
    def test_the_oldest_rows_go_first_with_their_weights(self) -> None:
        grown = buffer()
        for start in range(10, 34, 8):
            stop = start + 8
            grown = grown.add(numbered(start, stop), log_w_B=weights(start, stop), log_q_B=-weights(start, stop))
        assert grown.x_BD[:, 0].tolist() == list(range(14, 34))
        assert torch.equal(grown.log_w_B, weights(14, 34))
        assert torch.equal(grown.log_q_B, -weights(14, 34))
        assert (len(grown), grown.added) == (20, 34)
        assert buffer(rows=50).x_BD[:, 0].tolist() == list(range(30, 50))

    def test_it_is_ready_from_its_minimum_on(self) -> None:
        first = replace(buffer(rows=0), minimum=6)
        assert not first.ready
        five, six = (first.add(numbered(0, n), log_w_B=weights(0, n), log_q_B=weights(0, n)) for n in (5, 6))
        assert not five.ready
        assert six.ready
        with pytest.raises(ValueError, match="needs 6 rows, got 5"):
            five.rows(1, draw=0)

    def test_adding_shares_nothing_and_keeps_double_weights(self) -> None:
        x_BD, log_w_B = numbered(0, 4).float().clone(), weights(0, 4).clone()
        held = buffer(rows=0).add(x_BD, log_w_B=log_w_B, log_q_B=log_w_B)
        single = PrioritisedBuffer.empty(torch.empty(0), dim=3, capacity=9, minimum=1, seed=0)
        single = single.add(x_BD, log_w_B=log_w_B, log_q_B=log_w_B)
        x_BD.zero_(), log_w_B.zero_()
        assert held.x_BD[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert torch.equal(held.log_w_B, weights(0, 4))
        assert (single.x_BD.dtype, single.log_w_B.dtype) == (torch.float32, torch.float64)


class TestDraws:
    def test_the_number_of_the_draw_decides_and_nothing_else(self) -> None:
        for replacement in (True, False):
            whole = buffer(replacement=replacement)
            in_order = [whole.rows(8, draw=draw).tolist() for draw in range(4)]
            in_reverse = [whole.rows(8, draw=draw).tolist() for draw in (3, 2, 1, 0)]
            assert in_order == in_reverse[::-1]
            assert len({tuple(rows) for rows in in_order}) == 4
            assert in_order[0] != buffer(replacement=replacement, seed=5).rows(8, draw=0).tolist()
            assert whole.rows(9, draw=3)[:5].tolist() == whole.rows(5, draw=3).tolist()

    @pytest.mark.parametrize("replacement", [True, False])
    def test_draws_follow_the_weights(self, replacement: bool) -> None:
        """The first row of 4000 draws; chi squared with 9 degrees of freedom is below 28 in 999 of 1000."""
        whole = buffer(replacement=replacement)
        first = torch.cat([whole.rows(1, draw=draw) for draw in range(4000)])
        expected = 4000 * torch.softmax(whole.log_w_B, dim=0)
        counts = torch.bincount(first, minlength=10).double()
        assert 1.0 < float(((counts - expected).square() / expected).sum()) < 28.0

    def test_a_long_draw_with_replacement_follows_the_weights(self) -> None:
        whole = buffer()
        expected = 100_000 * torch.softmax(whole.log_w_B, dim=0)
        counts = torch.bincount(whole.rows(100_000, draw=1), minlength=10).double()
        assert 1.0 < float(((counts - expected).square() / expected).sum()) < 28.0

    def test_without_replacement_no_row_comes_twice(self) -> None:
        whole = buffer(replacement=False)
        heavy = replace(whole, log_w_B=whole.log_w_B.index_fill(0, torch.tensor([3]), 500.0))
        for draw in range(20):
            assert len(set(heavy.rows(10, draw=draw).tolist())) == 10
            assert int(heavy.rows(1, draw=draw)) == 3
        assert set(replace(heavy, replacement=True).rows(10, draw=0).tolist()) == {3}

    def test_huge_weights_overflow_nothing(self) -> None:
        for shift in (1e5, -1e5):
            moved = replace(buffer(), log_w_B=buffer().log_w_B + shift)
            assert moved.rows(200, draw=1).tolist() == buffer().rows(200, draw=1).tolist()

    def test_a_sample_is_those_rows_and_can_be_shared_out(self) -> None:
        batch = buffer().sample(6, draw=2)
        assert batch.row_B is not None
        assert batch.row_B.tolist() == buffer().rows(6, draw=2).tolist()
        assert batch.x_BD[:, 0].tolist() == [float(row) for row in batch.row_B]
        assert torch.equal(batch.log_w_B, buffer().log_w_B[batch.row_B])
        mine = batch.rows(2, 5)
        assert mine.row_B is not None
        for name in ("x_BD", "log_w_B", "log_q_B", "row_B"):
            assert torch.equal(getattr(mine, name), getattr(batch, name)[2:5])


class TestAdjustment:
    def test_weights_follow_the_flow(self) -> None:
        """log w = 2 log p - log q at fixed places: after any adjustments it is that of the last density."""
        held, log_p_B = buffer(), torch.cos(torch.arange(10, dtype=torch.float64))
        held = replace(held, log_w_B=2 * log_p_B - held.log_q_B)
        for seed in range(3):
            new_B = torch.randn(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            held = held.adjusted(torch.arange(10), new_B)
            torch.testing.assert_close(held.log_w_B, 2 * log_p_B - new_B, rtol=0, atol=1e-12)
            assert torch.equal(held.log_q_B, new_B)

    def test_a_row_drawn_twice_is_adjusted_once_and_others_stay(self) -> None:
        held = buffer()
        after = held.adjusted(torch.tensor([7, 2, 7, 7]), torch.tensor([0.5, 0.1, 0.5, 0.5]))
        assert float(after.log_w_B[7]) == pytest.approx(float(held.log_w_B[7] + held.log_q_B[7]) - 0.5, abs=1e-14)
        rest = [i for i in range(10) if i not in (2, 7)]
        assert torch.equal(after.log_w_B[rest], held.log_w_B[rest])
        assert torch.equal(held.log_w_B, weights(0, 10))

    def test_a_density_that_is_not_finite_changes_nothing(self) -> None:
        held = buffer()
        after = held.adjusted(torch.tensor([1, 2, 3]), torch.tensor([math.nan, 0.3, -math.inf]))
        changed = (after.log_w_B != held.log_w_B).nonzero().flatten().tolist()
        assert changed == [2]


class TestState:
    def test_a_resumed_buffer_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        def go_on(held: PrioritisedBuffer, first: int) -> tuple[Tensor, PrioritisedBuffer]:
            drawn = []
            for draw in range(first, first + 4):
                batch = held.sample(5, draw=draw)
                assert batch.row_B is not None
                drawn.append(batch.x_BD)
                held = held.adjusted(batch.row_B, batch.log_q_B + 0.1 * draw)
                held = held.add(batch.x_BD + 0.1, log_w_B=batch.log_w_B / 3, log_q_B=batch.log_q_B)
            return torch.cat(drawn), held

        for replacement in (True, False):
            _, half = go_on(buffer(replacement=replacement), 0)
            torch.save(half.state_dict(), tmp_path / "buffer.pt")
            restored = PrioritisedBuffer.from_state(torch.load(tmp_path / "buffer.pt", weights_only=True))
            (drawn, end), (drawn_again, end_again) = go_on(half, 4), go_on(restored, 4)
            assert torch.equal(drawn, drawn_again)
            for name, value in end.state_dict().items():
                again = end_again.state_dict()[name]
                assert torch.equal(value, again) if isinstance(value, Tensor) else value == again

    def test_a_state_is_a_copy(self) -> None:
        held = buffer()
        for tensor in ("x", "log_w", "log_q"):
            held.state_dict()[tensor].zero_()
        assert torch.equal(held.log_w_B, weights(0, 10))
        assert held.x_BD[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: buffer(capacity=0), "capacity=0; write"),
        (lambda: replace(buffer(), minimum=21), "got 21; write"),
        (lambda: replace(buffer(), added=3), "added=3"),
        (lambda: replace(buffer(), log_w_B=weights(0, 9)), "10 rows has a log weight"),
        (lambda: replace(buffer(), log_w_B=weights(0, 10) / 0.0), "that are not; drop"),
        (lambda: buffer().add(torch.ones(2, 4), log_w_B=weights(0, 2), log_q_B=weights(0, 2)), "got 4 for 3"),
        (lambda: buffer(seed=-1), "seed=-1"),
        (lambda: buffer().rows(3, draw=-1), "draw=-1; write"),
        (lambda: buffer(replacement=False).rows(11, draw=0), "needs 11 rows, got 10"),
        (lambda: buffer().adjusted(torch.arange(3), weights(0, 2)), "every row has one log density"),
        (lambda: PrioritisedBuffer.from_state({"x": numbered(0, 2)}), r"got \['x'\]; write"),
    ],
)
def test_wrong_input_is_told_with_what_to_write(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_a_weighted_batch_is_a_batch_with_forces_where_given() -> None:
    whole = WeightedBatch(x_BD=numbered(0, 4), force_BD=numbered(4, 8), log_w_B=weights(0, 4), log_q_B=weights(0, 4))
    mine = whole.rows(1, 3)
    assert mine.force_BD is not None
    assert np.array_equal(mine.force_BD.numpy(), numbered(5, 7).numpy())
    assert mine.row_B is None
