"""Data-parallel training at one and two workers: LJ13, processes that sum gradients over gloo, all ways in turns."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness.adapters.process_runner import ProcessRunner
from harness.answers.throughput import throughput_table
from harness.checkpoint import Store
from harness.measure import WORKER, measure_with
from harness.trial import Placement
from studies.scaling import Scaling


def main() -> None:
    print("\nLJ13 at one and two workers, wall time (on a GPU machine: not run, it has one device)")
    asked = Scaling(target="lj13", runner="inline")
    trunk, second, _ = asked.phases().all
    study = asked.placed("workers", Placement(workers=2), (trunk, second))
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_with(ProcessRunner(worker=WORKER), study, Store(Path(folder)))
    print(throughput_table(measured.timings), flush=True)


if __name__ == "__main__":
    main()
