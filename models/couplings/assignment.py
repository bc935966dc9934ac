"""Many small assignment problems at once: lapx over all threads, or scipy one by one where lapx is not installed.

Both are exact. Among matchings of equal cost they may choose differently.

Shapes: P problems, N rows and columns.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

lapjvr_batch: Any = None
with suppress(ImportError):  # lapx is missing, or older than its batch solver
    from lap import lapjvr_batch


def assign_particles(cost_PNN: np.ndarray) -> Tensor:
    """The cheapest matching of rows to columns of every N x N matrix, (P, N, N) -> (P, N).

    Infinite costs are never chosen. Uses as many threads as torch does.

    Raises:
        ValueError: for NaN or minus infinity, and where no matching has a finite cost.
    """
    if cost_PNN.size and not cost_PNN.min() > -np.inf:
        raise ValueError(
            "costs of an assignment must be numbers above minus infinity, got NaN or -inf; check x0 and x1"
        )
    return assign_all(cost_PNN) if lapjvr_batch is not None else assign_one_by_one(cost_PNN)


def assign_all(cost_PNN: np.ndarray) -> Tensor:
    """By lapx (Jonker and Volgenant 1987), which leaves Python alone while it works. Fastest without negative costs."""
    problems = np.ascontiguousarray(cost_PNN, dtype=np.float64)
    _, columns = lapjvr_batch(problems, return_cost=False, n_threads=torch.get_num_threads())
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *columns])).view(cost_PNN.shape[:2])


def assign_one_by_one(cost_PNN: np.ndarray) -> Tensor:
    """By scipy (Crouse 2016), in this thread."""
    columns_PN = np.empty(cost_PNN.shape[:2], dtype=np.int64)
    for columns_N, cost_NN in zip(columns_PN, cost_PNN, strict=True):
        columns_N[:] = linear_sum_assignment(cost_NN)[1]
    return torch.from_numpy(columns_PN)
