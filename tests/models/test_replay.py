"""The replay buffer: first in, first out; draws by counter; a state that resumes bit for bit.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.replay import ReplayBuffer


def numbered(start: int, stop: int) -> Tensor:
    """Rows that carry their own number."""
    return torch.arange(start, stop, dtype=torch.float64)[:, None].expand(-1, 3)


def buffer(rows: int = 10, capacity: int = 20, seed: int = 4) -> ReplayBuffer:
    return ReplayBuffer.of(numbered(0, rows), capacity=capacity, seed=seed)


class TestFirstInFirstOut:
    def test_the_oldest_rows_go_first(self) -> None:
        grown = buffer()
        for start in range(10, 34, 8):
            grown = grown.add(numbered(start, start + 8))
        assert grown.x_BD[:, 0].tolist() == list(range(14, 34))
        assert (len(grown), grown.added) == (20, 34)

    def test_more_rows_than_room_leave_the_newest(self) -> None:
        assert buffer(rows=50).x_BD[:, 0].tolist() == list(range(30, 50))
        assert buffer(rows=50).added == 50
        assert buffer().add(numbered(10, 60)).x_BD[:, 0].tolist() == list(range(40, 60))

    def test_adding_leaves_the_first_buffer_as_it_was_and_nothing_is_shared(self) -> None:
        first, rows_BD = buffer(), numbered(10, 14).clone()
        second = first.add(rows_BD)
        rows_BD.zero_()
        assert first.x_BD[:, 0].tolist() == list(range(10))
        assert second.x_BD[:, 0].tolist() == list(range(14))

    def test_rows_take_the_dtype_and_lose_the_graph(self) -> None:
        grown = buffer().add(torch.ones(2, 3, requires_grad=True))
        assert grown.x_BD.dtype == torch.float64
        assert not grown.x_BD.requires_grad


class TestDraws:
    def test_the_number_of_the_draw_decides_and_nothing_else(self) -> None:
        whole = buffer()
        in_order = [whole.rows(8, draw=draw).tolist() for draw in range(4)]
        in_reverse = [whole.rows(8, draw=draw).tolist() for draw in (3, 2, 1, 0)]
        assert in_order == in_reverse[::-1]
        assert len({tuple(rows) for rows in in_order}) == 4
        assert whole.rows(8, draw=0).tolist() != buffer(seed=5).rows(8, draw=0).tolist()

    def test_a_shorter_draw_starts_a_longer_one(self) -> None:
        assert buffer().rows(100, draw=3)[:7].tolist() == buffer().rows(7, draw=3).tolist()

    def test_draws_are_uniform_and_with_replacement(self) -> None:
        """Counts of 100,000 draws of 10 rows: chi squared with 9 degrees of freedom is below 28 in 999 of 1000."""
        whole = buffer()
        rows = torch.cat([whole.rows(1000, draw=draw) for draw in range(100)])
        counts = torch.bincount(rows, minlength=10).double()
        assert counts.shape == (10,)
        assert 1.0 < float(((counts - 10_000).square() / 10_000).sum()) < 28.0
        # Neighbouring draws do not know of each other: 1000 pairs, 100 equal, standard deviation below 10.
        pairs = [whole.rows(1000, draw=draw) for draw in (0, 1)]
        assert abs(int((pairs[0] == pairs[1]).sum()) - 100) < 40

    def test_a_sample_is_those_rows(self) -> None:
        batch = buffer().sample(6, draw=2)
        assert batch.x_BD[:, 0].tolist() == [float(row) for row in buffer().rows(6, draw=2)]
        assert batch.force_BD is None


class TestState:
    def test_a_resumed_buffer_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        def go_on(held: ReplayBuffer, first: int) -> tuple[Tensor, ReplayBuffer]:
            drawn = []
            for draw in range(first, first + 3):
                drawn.append(held.sample(5, draw=draw).x_BD)
                held = held.add(drawn[-1] + 0.1 * draw)
            return torch.cat(drawn), held

        _, half = go_on(buffer(), 0)
        torch.save(half.state_dict(), tmp_path / "buffer.pt")
        restored = ReplayBuffer.from_state(torch.load(tmp_path / "buffer.pt", weights_only=True))
        (drawn, end), (drawn_again, end_again) = go_on(half, 3), go_on(restored, 3)
        assert torch.equal(drawn, drawn_again)
        assert torch.equal(end.x_BD, end_again.x_BD)
        assert (end.added, end.capacity, end.seed) == (end_again.added, end_again.capacity, end_again.seed)

    def test_a_state_is_a_copy(self) -> None:
        held = buffer()
        held.state_dict()["x"].zero_()
        assert held.x_BD[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: buffer(capacity=0), "capacity=0; write"),
        (lambda: buffer(rows=0), "got 0; write"),
        (lambda: ReplayBuffer(x_BD=numbered(0, 5), capacity=4, seed=0, added=5), "got 5; write"),
        (lambda: ReplayBuffer(x_BD=numbered(0, 5), capacity=9, seed=0, added=3), "added=3 for 5 rows; write"),
        (lambda: buffer(seed=-1), "seed=-1"),
        (lambda: buffer().add(torch.ones(2, 4)), "got 4 for 3 coordinates; write"),
        (lambda: buffer().add(torch.full((2, 3), float("nan"))), "got 2 of 2 with NaN"),
        (lambda: buffer().add(torch.ones(2, 3, dtype=torch.long)), "int64; write"),
        (lambda: buffer().rows(3, draw=-1), "draw=-1; write"),
        (lambda: ReplayBuffer.from_state({"x": numbered(0, 2)}), r"got \['x'\]; write"),
    ],
)
def test_wrong_input_is_told_with_what_to_write(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()
