"""How much memory a step takes: what it holds all the time, and what it makes while it runs.

Both are counted in bytes of tensors, so that the same step has the same number on every machine. Not counted: the
training set, which lies there whatever the step, arrays outside torch, and the libraries themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes, in storages made inside the block by this thread, that were alive at once.

    Attributes:
        live: bytes that are alive now. peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view of what was there before is nothing new: its storage came in with the arguments.
        given = {address(storage) for storage in storages((args, *(kwargs or {}).values()))}
        for storage in storages((out,)):
            key = address(storage)
            if key in self._sizes or key not in given:
                self._hold(key, storage)
        self.peak = max(self.peak, self.live)
        return out

    def _hold(self, key: int, storage: torch.UntypedStorage) -> None:
        if key not in self._sizes:
            # A storage's Python object lives as long as the storage itself, also where only a graph holds it.
            self._watched[key] = weakref.ref(storage, lambda _: self._release(key))
        size = storage.nbytes()
        self.live += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
        del self._watched[key]


def peak_of(call: Callable[[], Result], device: torch.device) -> tuple[Result, int]:
    """What a call returns, and the most bytes that it made on a device and held at once.

    On a GPU torch's own allocator counts (its blocks are multiples of 512 bytes), elsewhere `LiveBytes`.
    """
    if device.type != "cuda":
        with LiveBytes() as tally:
            result = call()
        return result, tally.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors; what several of them share is counted once."""
    sizes = {address(storage): storage.nbytes() for storage in storages(tensors)}
    return sum(sizes.values())


def storages(values: Iterable[Any]) -> Iterator[torch.UntypedStorage]:
    """Of the tensors among the values, and in lists and tuples among them: what an operator takes and returns."""
    for value in values:
        if isinstance(value, Tensor):
            yield value.untyped_storage()
        elif isinstance(value, (list, tuple)):
            yield from storages(value)


def address(storage: torch.UntypedStorage) -> int:
    """Of the storage itself: tensors without bytes share the address of their data."""
    return storage._cdata
