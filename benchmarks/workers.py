"""Data-parallel training at one and two workers: the same global batch of LJ13, gradients summed over gloo."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from harness.allocator import keep_freed_memory
from harness.collective import ProcessGroup
from harness.loop import Trainer, TrainState
from harness.plan import Branch, Optimiser, Phase
from models.contracts import Batch
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.objective_settings import objective_of
from models.systems import field_for, system_of

PHASES: dict[str, tuple[dict[str, Any], int]] = {
    "flow matching, OT, batch 256": (
        {"kind": "flow_matching", "coupling": "optimal-transport", "sigma": 0.01},
        256,
    ),
    "path gradient, Hutchinson, batch 64": (
        {"kind": "path_gradient", "kl": "forward", "divergence": "hutchinson", "solver_steps": 15},
        64,
    ),
}
STEPS = {256: 12, 64: 3}


def train_a_little(rank: int, workers: int, folder: str, phase: Phase) -> None:
    """Time some steps in one worker; rank 0 leaves the median wall seconds."""
    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{workers}", rank=rank, world_size=workers)
    system = system_of("lj13")
    torch.manual_seed(0)
    space = system.target.space
    flow = ContinuousFlow(
        prior=GaussianPrior(space=space), field=field_for(space, hidden=system.hidden, layers=system.layers)
    )
    x_BD = space.project(torch.randn(2048, space.dim))
    data = Batch(x_BD=x_BD, force_BD=-x_BD)
    branch = Branch(parent="benchmark", phase=phase, seed=0)
    trainer = Trainer.of(branch, objective_of(phase.objective, system), data, ProcessGroup())
    state = TrainState.start(flow, phase)
    trainer.step(state)
    seconds = []
    for _ in range(STEPS[phase.batch]):
        start = time.perf_counter()
        trainer.step(state)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, f"seconds{workers}").write_text(str(statistics.median(seconds)))
    dist.barrier()
    dist.destroy_process_group()


def median_seconds(workers: int, phase: Phase) -> float:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train_a_little, args=(workers, folder, phase), nprocs=workers)
        return float(Path(folder, f"seconds{workers}").read_text())


def main() -> None:
    print("\nthe same global batch, wall time (on a GPU machine: not run, it has one device)")
    print(f"{'':52}{'1 worker / ms':>16}{'2 workers / ms':>16}{'speed-up':>10}{'efficiency':>12}")
    for label, (objective, batch) in PHASES.items():
        phase = Phase(name="benchmark", objective=objective, optimiser=Optimiser(learning_rate=1e-4), batch=batch)
        one, two = (median_seconds(workers, phase) for workers in (1, 2))
        print(f"{label:52}{1e3 * one:16.1f}{1e3 * two:16.1f}{one / two:10.2f}{one / two / 2:12.0%}", flush=True)


if __name__ == "__main__":
    main()
