"""Shards of an evaluation put together are the whole, whatever their order; lost or doubled samples are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.collective import Alone
from harness.evaluate import gather_records, merge_records
from models.problem import build
from models.problem_settings import evaluation_settings
from tests.harness.tiny import SETTINGS


def shard(ids: list[int], others: list[int]) -> dict[str, np.ndarray]:
    return {
        "model/sample_id": np.array(ids),
        "model/x": np.array([[10.0 * i, 10.0 * i + 1] for i in ids]).reshape(-1, 2),
        "test/sample_id": np.array(others),
        "test/energy": np.array([-1.0 * i for i in others]),
    }


@pytest.mark.parametrize(
    "shards",
    [
        [shard([0, 1, 2, 3], [0, 1])],
        [shard([0, 1], [0]), shard([2, 3], [1])],
        [shard([3, 1], [1]), shard([0, 2], [0])],
        [shard([2, 3], []), shard([1, 0], [1, 0])],
    ],
)
def test_merged_shards_are_the_whole(shards: list[dict[str, np.ndarray]]) -> None:
    merged = merge_records(shards)
    whole = shard([0, 1, 2, 3], [0, 1])
    assert merged.keys() == whole.keys()
    assert all(np.array_equal(merged[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    "shards",
    [
        [shard([0, 1], [0]), shard([1, 2], [1])],
        [shard([0, 1], [0]), shard([3], [1])],
        [shard([0, 1], [0]), shard([2, 3], [2])],
        [shard([1, 2], [0, 1])],
        [shard([0, 0], [0])],
    ],
)
def test_lost_and_doubled_samples_are_refused(shards: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="every sample id from 0 to"):
        merge_records(shards)


@pytest.mark.parametrize("workers", [2, 3])
def test_shards_of_a_real_evaluation_tell_what_one_worker_tells(workers: int, tmp_path: Path) -> None:
    settings = {**SETTINGS, "evaluation": evaluation_settings("gmm4", samples=64, tolerance=1e-8)}
    problem = build(settings, cache=tmp_path)
    flow = problem.flow(0)
    whole = gather_records(problem, flow, Alone())
    assert whole is not None
    merged = merge_records([problem.evaluate(flow, rank=rank, workers=workers) for rank in range(workers)])
    assert merged.keys() == whole.keys()
    for key in whole:
        # dopri5 chooses its steps for the rows that it sees, so rows agree to its tolerance.
        np.testing.assert_allclose(merged[key], whole[key], rtol=1e-5, atol=1e-5, err_msg=key)
    for split in ("validation", "test"):
        estimates = problem.estimates(merged, split)  # type: ignore[arg-type]
        assert np.isfinite(estimates["nll"].value)
        assert estimates["nll"].n == 64


def test_judging_leaves_the_flow_as_it_was(tmp_path: Path) -> None:
    problem = build(SETTINGS, cache=tmp_path)
    flow = problem.flow(0)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    problem.evaluate(flow, rank=0, workers=1)
    after = flow.state_dict()
    assert all(value.dtype == torch.float32 for value in after.values())
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, float("nan"), float("inf")])
def test_a_tolerance_is_positive(tolerance: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        evaluation_settings("gmm4", tolerance=tolerance)


@pytest.mark.parametrize("samples", [0, 31, 10_001])
def test_an_evaluation_has_enough_samples_and_no_more_than_there_are(samples: int) -> None:
    with pytest.raises(ValueError, match="32 to"):
        evaluation_settings("gmm4", samples=samples)
