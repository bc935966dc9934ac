"""What page faults cost a training step: the same step in a process that keeps freed memory and in one that does not.

Run by hand: `python benchmarks/allocator.py`. Each row: medians of process time over fresh processes, taken in turns.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from harness.allocator import keep_freed_memory
from models.fields.egnn import EGNN

SYSTEMS = {"DW4": (4, 2, 32, 3, 256), "LJ13": (13, 3, 32, 3, 256), "LJ55": (55, 3, 64, 5, 4)}
"""Particles, dimensions, hidden size, layers, batch."""
PROCESSES = 3
STEPS = 15


def regression_step(field: EGNN, x_BD: Tensor) -> None:
    """One forward and one backward pass."""
    v_BD = field(torch.full((len(x_BD),), 0.5), x_BD)
    torch.autograd.grad((v_BD - x_BD).square().mean(), list(field.parameters()), allow_unused=True)


def measure(*, keep: bool) -> dict[str, tuple[float, float]]:
    """Milliseconds and page faults of a step, by system, in this process."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    found = {}
    for name, (particles, d, hidden, layers, batch) in SYSTEMS.items():
        field, x_BD = EGNN(particles, d, hidden, layers), torch.randn(batch, particles * d)
        for _ in range(3):
            regression_step(field, x_BD)
        faults, times = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
        for _ in range(STEPS):
            start = time.process_time()
            regression_step(field, x_BD)
            times.append(1e3 * (time.process_time() - start))
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        found[name] = (statistics.median(times), faults / STEPS)
    return found


def in_new_process(*, keep: bool) -> dict[str, tuple[float, float]]:
    command = [sys.executable, __file__, "keep" if keep else "default"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    runs: dict[bool, list[dict[str, tuple[float, float]]]] = {False: [], True: []}
    for _ in range(PROCESSES):
        for keep, found in runs.items():
            found.append(in_new_process(keep=keep))
    print(f"regression step, one thread, median of {PROCESSES} processes")
    print(f"{'system':8}{'default / ms':>14}{'kept / ms':>12}{'ratio':>8}{'faults a step':>16}{'kept':>8}")
    for name in SYSTEMS:
        (slow, many), (fast, few) = (
            tuple(statistics.median(each[name][k] for each in runs[keep]) for k in (0, 1)) for keep in (False, True)
        )
        print(f"{name:8}{slow:14.2f}{fast:12.2f}{slow / fast:8.2f}{many:16.0f}{few:8.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(keep=sys.argv[1] == "keep")))
    else:
        main()
