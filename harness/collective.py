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
    """A process group of torch.distributed (gloo on CPUs, NCCL on GPUs) that begins with the first process.

    Args:
        group: the default one, which must be initialised, if left out.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.workers = dist.get_world_size(group)

    def sum_(self, flat: torch.Tensor) -> None:
        dist.all_reduce(flat, group=self.group)

    def gather(self, value: Any) -> list[Any] | None:
        into: list[Any] | None = [None] * self.workers if self.rank == 0 else None
        dist.gather_object(value, into, group=self.group)
        return into

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, group=self.group)
        return box[0]


def first_workers(collective: Collective, count: int) -> Collective | None:
    """The first few workers as a group of their own; None for the others. All workers must ask for it at once."""
    if count == collective.workers:
        return collective
    if count == 1:
        return Alone() if collective.rank == 0 else None
    group = dist.new_group(list(range(count)))
    return ProcessGroup(group) if collective.rank < count else None
