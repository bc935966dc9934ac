"""What workers do together: sum, gather, broadcast. Alone, or over a torch.distributed process group."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist


class Collective(Protocol):
    """The group of workers of one trial, seen from one of them."""

    rank: int
    workers: int

    def sum_(self, flat: torch.Tensor) -> None:
        """Replace the tensor by its sum over workers (one all-reduce)."""

    def gather(self, value: Any) -> list[Any] | None:
        """All workers' values in rank order on rank 0, None elsewhere."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, everywhere."""


def share(size: int, rank: int, workers: int) -> tuple[int, int]:
    """The rows [start, stop) of a global batch that belong to one rank; sizes differ by one at most."""
    return size * rank // workers, size * (rank + 1) // workers


def joined(mine: torch.Tensor, size: int, collective: Collective) -> torch.Tensor:
    """The shares of all ranks in their order, (size, ...), the same bits everywhere.

    One all-reduce of rows that are zero where others have theirs: adding zeros is exact, and what an all-reduce gives
    is what keeps the weights of all ranks alike.
    """
    start, stop = share(size, collective.rank, collective.workers)
    whole = mine.new_zeros(size, *mine.shape[1:])
    whole[start:stop] = mine
    collective.sum_(whole)
    return whole


class Alone:
    """One worker: nothing to exchange."""

    rank = 0
    workers = 1

    def sum_(self, flat: torch.Tensor) -> None:
        return None

    def gather(self, value: Any) -> list[Any] | None:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


class ProcessGroup:
    """The default process group of torch.distributed (gloo on CPUs, NCCL on GPUs), which must be initialised."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.workers = dist.get_world_size()

    def sum_(self, flat: torch.Tensor) -> None:
        dist.all_reduce(flat)

    def gather(self, value: Any) -> list[Any] | None:
        into: list[Any] | None = [None] * self.workers if self.rank == 0 else None
        dist.gather_object(value, into)
        return into

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
