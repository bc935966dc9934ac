"""A Ray to work with: one started on this machine and ended with the study, or a running cluster."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._raylet import Config  # type: ignore[attr-defined]

from harness.adapters.ray_processes import ProcessRecord, end_leftovers, remove

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "harness", "studies")
LOGS = "ray_logs"
OBJECT_STORE_BYTES = 256 * 2**20
"""Specs and events are all that crosses processes."""
KNOCK_SECONDS = 5.0

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""No statistics sent; a report waits for one poll of Train's controller (2 s by default); relative paths mean the same
on workers; MLflow is the only record; Ctrl-C is ours."""


ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Nobody takes this machine away: one process less for each trial."""


@dataclass
class RaySession:
    """A connection to Ray. `record` is None where the Ray is not ours to end."""

    local: bool
    folder: Path
    record: ProcessRecord | None = None
    owned: bool = True

    def refresh(self) -> None:
        if self.record is not None:
            self.record.refresh()

    def stop(self) -> None:
        """Disconnect; end a local Ray with all its processes and keep its logs under the study's folder."""
        if self.owned:
            ray.shutdown()
        if self.record is not None:
            self.record.close()
            keep_logs(self.record.session, self.folder / LOGS)
            remove(self.record.session)


def open_session(address: str | None, folder: Path) -> RaySession:
    """Connect to the cluster at `address` or $RAY_ADDRESS, or start Ray here; share what this process uses already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return RaySession(local=len(ray.nodes()) == 1, folder=folder, owned=False)
    if starts_locally(address):
        return start_local(folder)
    return connect(address or os.environ["RAY_ADDRESS"], folder)


def starts_locally(address: str | None) -> bool:
    """Whether opening a session at this address would start a Ray on this machine."""
    return not ray.is_initialized() and (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def start_local(folder: Path) -> RaySession:
    ended = end_leftovers(folder)
    if ended:
        log.warning("ended %d processes that a killed run of this study had left behind", ended)
    home = Path(tempfile.mkdtemp(prefix="ray-"))
    record = ProcessRecord(folder, home)
    try:
        # No dashboard: it costs start-up time and memory, and nothing here asks it. MLflow shows the study.
        ray.init(
            address="local",
            num_cpus=cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": {**settings(), **ONE_MACHINE, "PYTHONPATH": python_path()}},
            _temp_dir=str(home),
            **QUIET,
        )
    finally:
        record.refresh()
    return RaySession(local=True, folder=folder, record=record)


def check_address(address: str | None) -> None:
    """Knock at the head of a cluster, which Ray itself would do for half a minute.

    Raises:
        ValueError: if nothing listens at `address`, or at $RAY_ADDRESS without one.
    """
    if ray.is_initialized() or (known := address or os.environ["RAY_ADDRESS"]) == "auto":
        return
    try:
        parts = urlsplit(known if "://" in known else f"ray://{known}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("a host and a port are wanted")
        socket.create_connection((parts.hostname, parts.port), timeout=KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"a Ray cluster must answer at its address, got none at {known} ({error}); write the address of its head, "
            "such as --address 10.0.0.1:6379, or unset RAY_ADDRESS to use this machine"
        ) from error


def connect(address: str, folder: Path) -> RaySession:
    """Join a running cluster, which gets the project's packages from here.

    Modules of the current folder are found there after these, where all nodes see that folder.

    Raises:
        ValueError: if no cluster answers, or it does not let us in.
    """
    use_token_if_there_is_one()
    modules = [str(PROJECT / name) for name in PACKAGES if (PROJECT / name).is_dir()]
    try:
        # Ray puts PYTHONPATH behind what it ships itself.
        variables = {**settings(), "PYTHONPATH": os.getcwd()}
        ray.init(address=address, runtime_env={"env_vars": variables, "py_modules": modules}, **QUIET)
    except ConnectionError as error:
        raise ValueError(
            f"a Ray cluster must answer at its address, got none that lets us in at {address}; write the address of "
            "its head, and set RAY_AUTH_MODE and the token as they were when it was started"
        ) from error
    return RaySession(local=False, folder=folder)


def use_token_if_there_is_one() -> None:
    """A head that finds a token asks for it, but `ray.init` sends one only if told so, and reads that on import."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if "RAY_AUTH_MODE" not in os.environ and (given or (Path.home() / ".ray" / "auth_token").exists()):
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def settings() -> dict[str, str]:
    return {name: os.environ[name] for name in SETTINGS}


def python_path() -> str:
    """Workers find the project, and what the study's own process finds, installed or not."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(PROJECT), os.getcwd(), *filter(None, known)]))


def cores() -> int:
    """CPU cores that this process may use: a machine's, an affinity mask's or a container's."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            count = min(count, max(1, int(allowed) // int(period)))
    return count


def keep_logs(home: Path, into: Path) -> None:
    """Keep the logs of the last session."""
    for session in home.glob("session_*"):
        if not session.is_symlink():
            shutil.rmtree(into, ignore_errors=True)
            shutil.copytree(session / "logs", into, symlinks=True, ignore_dangling_symlinks=True)
