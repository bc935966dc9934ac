"""A real Ray cluster of a head and two nodes on this machine, of which a node can die with all its processes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from ray.cluster_utils import Cluster

WORKER_NODES = 2
FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""A dead node is noticed after some three seconds."""


class Nodes:
    """As a context: a head without cores, which is never killed, and nodes of one core each."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="ray-"))
        head = {"num_cpus": 0, "_system_config": FAST, "temp_dir": str(self._home), "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(WORKER_NODES):
            self._cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._home, ignore_errors=True)

    def kill_node_of(self, pid: int) -> bool:
        """Kill every process of the node on which a process runs, and add another node; False where it has ended."""
        try:
            parents = {process.pid for process in psutil.Process(pid).parents()}
        except psutil.NoSuchProcess:
            return False
        for node in list(self._cluster.worker_nodes):
            servers = [info.process.pid for infos in node.all_processes.values() for info in infos]
            if parents & set(servers):
                self._kill(node, servers)
                self._cluster.add_node(num_cpus=1)
                return True
        return False

    def _kill(self, node: Any, servers: list[int]) -> None:
        victims = {}
        for server in servers:
            if psutil.pid_exists(server):
                process = psutil.Process(server)
                victims |= {found.pid: found for found in (process, *process.children(recursive=True))}
        for victim in victims.values():
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        self._cluster.remove_node(node, allow_graceful=False)
