"""Peak memory by count: what is made inside a block, what is let go, what only a graph holds, what was there before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.memory import LiveBytes, held_bytes, peak_of

CPU = torch.device("cpu")
FLOATS = 1000
BYTES = 4 * FLOATS


def made() -> Tensor:
    return torch.zeros(FLOATS)


def test_the_peak_is_what_was_alive_at_once() -> None:
    with LiveBytes() as tally:
        first = made()
        second = made()
        assert tally.live == 2 * BYTES
        del first
        assert tally.live == BYTES
        third = made()
    assert (tally.live, tally.peak) == (2 * BYTES, 2 * BYTES)
    del second, third
    assert (tally.live, tally.peak) == (0, 2 * BYTES)


def test_temporaries_count_although_nobody_names_them() -> None:
    x = made()
    with LiveBytes() as tally:
        total = ((x + 1.0) * 2.0).sum()
    assert tally.peak == 2 * BYTES
    assert tally.live == total.element_size()


def test_views_and_changes_in_place_are_nothing_new() -> None:
    before = made()
    with LiveBytes() as tally:
        kept = [before.view(10, 100), before[:5].detach(), before.add_(1.0)]
    assert (tally.peak, len(kept)) == (0, 3)
    with LiveBytes() as tally:
        views = [(x := made()), x.view(10, 100), x[:5], x.mul_(2.0)]
    assert (tally.peak, len(views)) == (BYTES, 4)


def test_what_a_graph_holds_is_alive_until_the_graph_is_gone() -> None:
    weight = torch.ones(FLOATS, requires_grad=True)

    def layers(count: int) -> tuple[int, int]:
        with LiveBytes() as tally:
            y = weight
            for _ in range(count):
                y = torch.tanh(y)
            held = tally.live
            (gradient,) = torch.autograd.grad(y.sum(), weight)
            del y
        assert tally.live == gradient.nbytes
        return held, tally.peak

    assert layers(5)[0] == 5 * BYTES
    assert layers(50)[0] == 50 * BYTES
    assert layers(50)[1] < 50 * BYTES + 4 * BYTES


def test_without_a_graph_layers_do_not_add_up() -> None:
    def peak(count: int) -> int:
        with torch.no_grad(), LiveBytes() as tally:
            y = made()
            for _ in range(count):
                y = torch.tanh(y)
        return tally.peak

    assert peak(50) == peak(5) == 2 * BYTES


def test_a_storage_that_grows_is_counted_anew() -> None:
    with LiveBytes() as tally:
        x = torch.empty(0)
        x.resize_(FLOATS)
        assert tally.live == BYTES
        del x
    assert tally.live == 0


def test_two_blocks_do_not_see_each_other() -> None:
    with LiveBytes() as first:
        x = made()
    with LiveBytes() as second:
        del x
        y = made()
    assert (first.peak, first.live) == (BYTES, 0)
    assert (second.peak, second.live) == (BYTES, y.nbytes)


def test_a_call_gives_its_result_and_its_peak() -> None:
    result, peak = peak_of(lambda: made().sum() + 3.0, CPU)
    assert float(result) == 3.0
    assert BYTES <= peak <= BYTES + 64


def test_shared_bytes_are_held_once() -> None:
    x = torch.zeros(10, 100)
    assert held_bytes([x, x[3], x.T, x.detach()]) == x.nbytes
    assert held_bytes([x, x.clone()]) == 2 * x.nbytes
    assert held_bytes([]) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_the_same_up_to_its_blocks() -> None:
    device = torch.device("cuda")
    resident = torch.zeros(10 * FLOATS, device=device)
    result, peak = peak_of(lambda: ((resident[:FLOATS] + 1.0) * 2.0).sum(), device)
    assert float(result) == 2.0 * FLOATS
    assert 2 * BYTES <= peak <= 2 * (BYTES + 512) + 1024
