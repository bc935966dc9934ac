"""Every table in turn: `python -m benchmarks`; or only some: `python -m benchmarks divergence couplings`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

import torch

from benchmarks import allocator, couplings, divergence, memory, molecules, path_gradient, score_estimate, workers
from harness.allocator import keep_freed_memory

TABLES: dict[str, Callable[[], None]] = {
    "divergence": divergence.main,
    "path_gradient": path_gradient.main,
    "couplings": couplings.main,
    "score_estimate": score_estimate.main,
    "molecules": molecules.main,
    "memory": memory.main,
    "workers": workers.main,
    "allocator": allocator.main,
}
ON_A_CPU = ("workers", "allocator")


def main() -> None:
    chosen = sys.argv[1:] or list(TABLES)
    unknown = [name for name in chosen if name not in TABLES]
    if unknown:
        sys.exit(f"error: a table is one of {', '.join(TABLES)}, got {', '.join(unknown)}; write one of these")
    keep_freed_memory()
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU, one thread"
    print(f"torch {torch.__version__} on {name}; medians, side by side in one run")
    for table in chosen:
        if gpu and table in ON_A_CPU:
            continue
        TABLES[table]()


if __name__ == "__main__":
    main()
