"""The MLflow page over a study's records: `python -m harness.dashboard --output results`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import tyro

from harness.adapters.sqlite_uri import sqlite_uri
from harness.spool import SPOOL
from harness.told import check_paths, one_line

HOST, PORT = "127.0.0.1", 5000
LAST_PORT = 65535
_STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Show the records of finished and running studies in the browser. Stop with Ctrl-C."""

    output: Path = Path("results")
    """Output folder of the study, which holds mlflow.db."""
    port: int = PORT
    """Port on this machine; the page is not visible from others."""

    @property
    def database(self) -> Path:
        return self.output.absolute() / "mlflow.db"


def checked(dashboard: Dashboard) -> Dashboard:
    """The same dashboard, if it can be started.

    Raises:
        ValueError: if there are no records yet, or the port is none or taken.
    """
    if not dashboard.database.is_file() and not any(dashboard.output.glob(f"*/*/{SPOOL}")):
        raise ValueError(
            f"a dashboard shows the records of a study, but there is no {dashboard.database}; "
            "run a study first, or write --output with the folder that it wrote to"
        )
    if not 1 <= dashboard.port <= LAST_PORT:
        raise ValueError(f"a port is a number from 1 to {LAST_PORT}, got {dashboard.port}; write --port 5000")
    if not _is_free(dashboard.port):
        above, below = range(dashboard.port + 1, LAST_PORT + 1), range(dashboard.port - 1, 0, -1)
        other = next(port for port in (*above, *below) if _is_free(port))
        raise ValueError(
            f"a dashboard needs a port of its own, but {dashboard.port} is in use on {HOST}; write --port {other}"
        )
    return dashboard


def links(dashboard: Dashboard) -> list[str]:
    """One line a study: its experiment's name and the address of its runs side by side."""
    # Imported late: reading the records takes seconds, and a wrong command line should be told at once.
    from harness.adapters.mlflow_recorder import pages

    return pages(dashboard.database, f"http://{HOST}:{dashboard.port}")


def send(dashboard: Dashboard) -> Iterator[str]:
    """Send the records that wait because their tracker was away; a line a study."""
    from harness.adapters.mlflow_recorder import recorder_at
    from harness.patient_recorder import send_waiting

    return send_waiting(dashboard.output, partial(recorder_at, dashboard.output))


def serve(dashboard: Dashboard) -> int:
    """Run MLflow's server until it ends or this process is told to stop; returns its exit status."""
    server = subprocess.Popen(_command(dashboard), env=_environment(), start_new_session=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def main() -> None:
    dashboard = tyro.cli(Dashboard, prog="python -m harness.dashboard", description=Dashboard.__doc__)
    try:
        check_paths(dashboard)
        checked(dashboard)
        for line in send(dashboard):
            print(line, flush=True)
        print("\n".join(links(dashboard)), flush=True)
    except (ValueError, RuntimeError) as error:  # wrong options, or a tracker that is away
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    sys.exit(serve(dashboard))


def _command(dashboard: Dashboard) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", sqlite_uri(dashboard.database)),
        *("--artifacts-destination", (dashboard.output.absolute() / "artifacts").as_uri()),
        *("--host", HOST, "--port", str(dashboard.port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def _environment() -> dict[str, str]:
    return {"MLFLOW_DISABLE_TELEMETRY": "true", **os.environ}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does it: a port in the last throes of an old connection counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server's whole group: it starts workers of its own."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signal_number)
        except ProcessLookupError:
            return
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    main()
