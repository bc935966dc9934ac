"""What a cluster has room for, and whether its nodes see the study's files."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

import ray
from ray import PlacementGroupID
from ray._private.state import state
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.adapters.ray_session import cores
from harness.trial import Placement

log = logging.getLogger(__name__)


def demand(placement: Placement) -> dict[str, float]:
    """What all workers of a trial need at once."""
    return {
        "CPU": placement.workers * placement.threads,
        "GPU": placement.workers * placement.gpus_per_worker,
    }


def check_cores(placement: Placement) -> None:
    """Refuse what this machine can never run, before anything is started.

    Raises:
        ValueError: if a trial's workers need more cores than there are.
    """
    need, have = placement.workers * placement.threads, cores()
    if need > have:
        raise too_much(placement, "CPU", need, have)


def check_room(placement: Placement, *, local: bool) -> None:
    """Refuse a trial that is larger than the whole cluster can become.

    Raises:
        ValueError: if a trial can never be placed.
    """
    now, largest = ray.cluster_resources(), state.get_max_resources_from_cluster_config()
    for kind, need in demand(placement).items():
        have = max(now.get(kind, 0.0), (largest or {}).get(kind, 0.0))
        if need > have and (local or largest is not None):
            raise too_much(placement, kind, need, have)
        if need > have:
            # A cluster that does not tell its limits may be one that has not grown yet.
            log.warning("a trial needs %g %s and the cluster has %g now: waiting until it has grown", need, kind, have)


def too_much(placement: Placement, kind: str, need: float, have: float) -> ValueError:
    workers = f"{placement.workers} workers with {placement.threads} threads each"
    return ValueError(
        f"a trial must fit onto the machines, got {workers}, which need {need:g} {kind}s where there are {have:g}; "
        "write fewer --workers or --threads, or start a larger cluster"
    )


def check_shared(folder: Path) -> None:
    """Write a file here and read it on every node.

    Raises:
        ValueError: if a node does not see the folder.
    """
    token = secrets.token_hex(8)
    file = folder.resolve() / f"shared-{token}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(token)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        seen = ray.get([_read_on(node["NodeID"], str(file)) for node in nodes])
    finally:
        file.unlink(missing_ok=True)
    blind = [node["NodeManagerHostname"] for node, text in zip(nodes, seen, strict=True) if text != token]
    if blind:
        raise ValueError(
            f"the study's folder must be on storage that all nodes share, got {folder}, which {', '.join(blind)} "
            "cannot see; write --output with a folder on a shared file system"
        )


def _read_on(node_id: str, file: str) -> ray.ObjectRef:
    here = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return read_text.options(num_cpus=0, scheduling_strategy=here).remote(file)


@ray.remote
def read_text(file: str) -> str:
    """The file's text on the node that runs this, "" where there is no such file."""
    path = Path(file)
    return path.read_text() if path.exists() else ""


def remove_all_groups() -> None:
    """Free everything that is reserved for workers: for a Ray of our own in which no worker lives any more."""
    for hexadecimal, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(hexadecimal))))
