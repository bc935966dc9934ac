"""Small trials that tests place on workers by the address of their generator."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from harness.collective import Collective
from harness.trial import Event, Placement, TrialSpec


def count(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """Says who it is, then sums over ranks a few times; raises at step 3 if the name of the trial says so."""
    yield introduction(collective)
    for step in range(1, 6):
        if step == 3 and spec.name.startswith("broken"):
            raise ValueError(f"trials named {spec.name} must fail\nin two lines")
        flat = torch.tensor([float(step), float(collective.rank + 1)])
        collective.sum_(flat)
        yield Event(
            kind="train", step=step, timestamp=time.time(), values={"sum": float(flat[0]), "ranks": float(flat[1])}
        )


def introduction(collective: Collective) -> Event:
    me = f"{socket.gethostname()} {os.getpid()} {torch.get_num_threads()} {os.environ.get('OMP_NUM_THREADS', '')}"
    everyone = collective.gather(me) or []
    tools = sorted({name.partition(".")[0] for name in sys.modules} & {"optuna", "mlflow"})
    notes = {f"rank_{rank}": text for rank, text in enumerate(everyone)}
    return Event(kind="workers", timestamp=time.time(), notes={**notes, "tools": " ".join(tools)})


def die_once(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """Resumes at the step in its store; the last rank is killed at step 3 of the first attempt."""
    progress, scar = Path(spec.store) / "step", Path(spec.store) / "killed"
    first = collective.broadcast(int(progress.read_text()) + 1 if progress.exists() else 1)
    yield introduction(collective)
    for step in range(first, 6):
        if step == 3 and collective.rank == collective.workers - 1 and not scar.exists():
            scar.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        flat = torch.tensor([float(step)])
        collective.sum_(flat)
        if collective.rank == 0:
            progress.write_text(str(step))
        values = {"sum": float(flat[0]), "first": float(first)}
        yield Event(kind="train", step=step, timestamp=time.time(), values=values)


def linger(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """Never ends by itself."""
    while True:
        (Path(spec.store) / f"alive-{os.getpid()}").touch()
        yield Event(kind="train", timestamp=time.time())
        time.sleep(0.2)


def spec(name: str, store: Path, *, workers: int = 1, threads: int = 1) -> TrialSpec:
    placement = Placement(workers=workers, threads=threads)
    return TrialSpec(name=name, build="", problem={}, store=str(store), placement=placement)


def interrupted(spec: TrialSpec, collective: Collective) -> Iterator[Event]:
    """Somebody presses Ctrl-C."""
    yield introduction(collective)
    raise KeyboardInterrupt
