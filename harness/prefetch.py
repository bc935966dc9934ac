"""Prefetching: while one step computes, a thread prepares the next.

What a step needs is a function of its number alone, so preparing ahead changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")

THREAD_NAME = "prefetch"
"""First letters of the names of prefetching threads."""


@contextmanager
def prefetched(make: Callable[[int], Value], *, start: int, stop: int) -> Iterator[Callable[[int], Value]]:
    """A function of step numbers that has the next one made in a thread while the caller works on this one.

    Steps are asked for in order, from `start` up to but not including `stop`; nothing is made beyond. The thread is
    this block's own: it begins with the first step asked for and ends with the block, whatever ends that.

    Raises:
        Whatever `make` raised for a step, when that step is asked for.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME)
    ahead: dict[int, Future[Value]] = {}

    def take(step: int) -> Value:
        value = (ahead.pop(step, None) or pool.submit(make, step)).result()
        ahead.clear()
        if step + 1 < stop:
            ahead[step + 1] = pool.submit(make, step + 1)
        return value

    try:
        yield take
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
