"""Rows of a benchmark: the naive way and ours, taken in turns in one process, as medians and their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def seconds_of(call: Call, *, repeats: int = 1, wall: bool = False) -> float:
    """Wall time of a call on a GPU or where asked for, else process time (a busy machine disturbs it less)."""
    clock = time.perf_counter if wall or torch.cuda.is_available() else time.process_time
    synchronise()
    start = clock()
    for _ in range(repeats):
        call()
    synchronise()
    return (clock() - start) / repeats


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def header(title: str, *, slow: str = "naive", fast: str = "here") -> None:
    """Print what the columns of the rows below are."""
    print(f"\n{title}\n{'':52}{slow + ' / ms':>21}{fast + ' / ms':>21}{'ratio [quartiles]':>24}")


def row(label: str, slow: Call, fast: Call, *, rounds: int = 7, repeats: int = 1, wall: bool = False) -> float:
    """Print medians of `slow` and of `fast` (each `fast` measurement over `repeats` calls) and their ratio.

    The quartiles are those of the ratios of neighbouring measurements. Several threads want `wall` time, since process
    time adds theirs up. Returns the ratio of medians.
    """
    slow(), fast()
    pairs = [(seconds_of(slow, wall=wall), seconds_of(fast, repeats=repeats, wall=wall)) for _ in range(rounds)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    low, _, high = statistics.quantiles([x / y for x, y in pairs], n=4)
    print(f"{label:52}{1e3 * a:21.3f}{1e3 * b:21.3f}{a / b:10.2f} [{low:.2f}, {high:.2f}]", flush=True)
    return a / b


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
