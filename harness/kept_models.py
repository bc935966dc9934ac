"""Models of finished segments, made again from what the store keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.checkpoint import DamagedObject, Store
from harness.contracts import Problem
from harness.identity import Settings


def trained_objective(known: Mapping[str, Any]) -> Settings | None:
    """The objective of a finished segment's phase; None in stores of older versions, where every model was alike."""
    phase = known.get("phase")
    return None if phase is None else phase["objective"]


def finished(store: Store, segment_hash: str) -> Mapping[str, Any]:
    """What the store knows of a segment.

    Raises:
        DamagedObject: where it is not finished.
    """
    known = store.segment(segment_hash)
    if known is None:
        raise DamagedObject(
            f"segment {segment_hash} must be finished before its children start, but the store lacks it; "
            "run the same command again"
        )
    return known


def kept_flow(problem: Problem, store: Store, segment_hash: str, seed: int) -> torch.nn.Module:
    """The model of a finished segment, on the CPU, with the weights that are judged and forked.

    Raises:
        DamagedObject: where it is not finished, or its checkpoint cannot be read (it is then forgotten).
    """
    known = finished(store, segment_hash)
    try:
        saved = store.get_state(known["state"])
    except DamagedObject:
        store.forget_segment(segment_hash)
        raise
    flow = problem.flow(seed, trained_objective(known))
    try:
        flow.load_state_dict(judged_weights(saved, list(dict(flow.named_parameters()))))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        store.forget_segment(segment_hash)
        reason = (str(error).splitlines() or [""])[0]
        raise DamagedObject(
            f"the checkpoint of segment {segment_hash} must hold the weights of its model, got others "
            f"({type(error).__name__}: {reason}); run the same command again"
        ) from error
    return flow


def judged_weights(saved: dict[str, Any], parameter_names: list[str]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint that are evaluated and forked: the average where there is one."""
    weights = dict(saved["weights"])
    if saved["average"] is not None:
        weights.update(zip(parameter_names, saved["average"], strict=True))
    return weights
