"""Two worker processes that serve all tests that need a pair: starting them takes seconds, a test a moment."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.collective import ProcessGroup

Work = Callable[[ProcessGroup], dict[str, Any]]
"""What either worker does: a function of a module, since its name travels."""


class TwoWorkers:
    """Calls a function in both workers at once; what it returns in each, by rank.

    Args:
        folder: of the files where pairs meet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.met = folder, 0
        self.pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))

    def __call__(self, work: Work) -> list[dict[str, Any]]:
        self.met += 1
        # Each waits for the other, so neither process takes both.
        tasks = [self.pool.submit(joined, rank, self.folder / f"meeting{self.met}", work) for rank in range(2)]
        return [torch.load(io.BytesIO(task.result())) for task in tasks]


def joined(rank: int, meeting: Path, work: Work) -> bytes:
    torch.set_num_threads(1)
    patience = timedelta(minutes=3)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=patience)
    try:
        found = io.BytesIO()
        torch.save(work(ProcessGroup()), found)
        return found.getvalue()
    finally:
        dist.destroy_process_group()
