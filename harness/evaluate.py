"""Sharded evaluation: every worker makes its share of the per-sample records, rank 0 puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.collective import Collective
from harness.contracts import Problem, Records

SAMPLE_ID = "sample_id"


def gather_records(problem: Problem, flow: Any, collective: Collective) -> Records | None:
    """The records of all workers on rank 0, None elsewhere."""
    mine = problem.evaluate(flow, rank=collective.rank, workers=collective.workers)
    shards = collective.gather(dict(mine))
    return None if shards is None else merge_records(shards)


def merge_records(shards: Sequence[Records]) -> Records:
    """Concatenate the shards of every set and put the rows in the order of their sample ids.

    Raises:
        ValueError: where a sample is missing or comes twice.
    """
    merged: dict[str, np.ndarray] = {}
    keys = list(shards[0])
    for group in sorted({key.split("/")[0] for key in keys}):
        ids = np.concatenate([shard[f"{group}/{SAMPLE_ID}"] for shard in shards])
        order = np.argsort(ids, kind="stable")
        if not np.array_equal(ids[order], np.arange(len(ids))):
            raise ValueError(
                f"the records of {group!r} must hold every sample id from 0 to {len(ids) - 1} once, got "
                f"{len(np.unique(ids))} different ids in {len(ids)} rows; let every worker evaluate its own rows"
            )
        for key in (key for key in keys if key.split("/")[0] == group):
            merged[key] = np.concatenate([shard[key] for shard in shards])[order]
    return merged
