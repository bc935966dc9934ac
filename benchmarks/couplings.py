"""Side by side: what pairings cost and what they buy: python benchmarks/couplings.py

One thread a worker. Times are wall time of this machine: medians for short calls, in turns where they are compared.

Shapes: B batch, N particles, d spatial dimensions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from harness.collective import Alone
from harness.loop import Trainer, TrainState, train
from harness.plan import Branch, Optimiser, Phase
from models.contracts import Batch, Space
from models.couplings import (
    Coupling,
    EquivariantOptimalTransport,
    Independent,
    OptimalTransport,
    assign_particles,
    assignment,
    equivariant_costs,
)
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.objectives.flow_matching import FlowMatching
from models.reference import hmc
from models.reference.progress import silent
from models.systems import field_for, system_of

SYSTEMS = {
    "DW4": Space(dim=8, particles=4),
    "LJ13": Space(dim=39, particles=13),
    "LJ55": Space(dim=165, particles=55),
}
BATCH, LARGE_BATCH = 32, 256
REPEATS = 5
TURNS, STEPS = 6, 12
CHAINS = 1024
"""Independent LJ13 configurations that transport costs are averaged over, as batches of 256."""


def looped_costs(x0_BNd: Tensor, x1_BNd: Tensor) -> Tensor:
    """The definition, written pair by pair: what the batched version is measured against."""
    cost_BB = np.empty((len(x0_BNd), len(x1_BNd)))
    for i, x in enumerate(x0_BNd.numpy()):
        for j, y in enumerate(x1_BNd.numpy()):
            matched = y[linear_sum_assignment(((x[:, None] - y[None]) ** 2).sum(-1))[1]]
            u, _, vh = np.linalg.svd(x.T @ matched)
            u[:, -1] *= np.linalg.det(u) * np.linalg.det(vh)
            cost_BB[i, j] = ((x - matched @ (u @ vh).T) ** 2).sum()
    return torch.from_numpy(cost_BB)


def median_ms(call: Callable[[], object]) -> float:
    """Median wall time of a call after one warm-up, in milliseconds."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def draw(space: Space, batch: int) -> tuple[Tensor, Tensor]:
    """Two mean-free batches."""
    x_2BD = torch.randn((2, batch, space.dim), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0_BD, x1_BD = space.project(x_2BD)
    return x0_BD, x1_BD


def pairings() -> None:
    """The loop over pairs against the batched cost matrix, and whole pairings."""
    print(f"batch {BATCH}, median of {REPEATS}, ms")
    print(f"{'system':8}{'loop':>10}{'batched':>10}{'ratio':>8}{'independent':>14}{'OT':>10}{'EQ-OT':>10}")
    for name, space in SYSTEMS.items():
        x0_BD, x1_BD = draw(space, BATCH)
        particles = [x.unflatten(1, (-1, space.spatial_dim)) for x in (x0_BD, x1_BD)]
        torch.testing.assert_close(equivariant_costs(*particles)[0], looped_costs(*particles))
        loop = median_ms(lambda particles=particles: looped_costs(*particles))
        batched = median_ms(lambda particles=particles: equivariant_costs(*particles))
        couplings: list[Coupling] = [Independent(), OptimalTransport(), EquivariantOptimalTransport(space=space)]
        pairing = [median_ms(lambda c=c, a=x0_BD, b=x1_BD: c(a, b)) for c in couplings]
        print(
            f"{name:8}{loop:10.1f}{batched:10.1f}{loop / batched:8.1f}"
            f"{pairing[0]:14.2f}{pairing[1]:10.2f}{pairing[2]:10.1f}"
        )


def large_batch() -> None:
    """Microseconds a pair of configurations of LJ13, with and without what surrounds the assignment."""
    x0_BNd, x1_BNd = (x.unflatten(1, (-1, 3)) for x in draw(SYSTEMS["LJ13"], LARGE_BATCH))
    few = [x[:BATCH] for x in (x0_BNd, x1_BNd)]
    cost_PNN = (x0_BNd[:, None, :, None] - x1_BNd[None, :, None]).square().sum(-1).flatten(0, 1).numpy()
    pairs = LARGE_BATCH**2
    rows = {
        "loop over pairs": 1e3 * median_ms(lambda: looped_costs(*few)) / BATCH**2,
        "batched cost matrix": 1e3 * median_ms(lambda: equivariant_costs(x0_BNd, x1_BNd)) / pairs,
        "  its assignments alone": 1e3 * median_ms(lambda: assign_particles(cost_PNN)) / pairs,
        "  the same by scipy": 1e3 * median_ms(lambda: assignment.assign_one_by_one(cost_PNN)) / pairs,
    }
    print(f"\nLJ13, batch {LARGE_BATCH}, {pairs} pairs, microseconds a pair")
    for name, microseconds in rows.items():
        print(f"{name:28}{microseconds:8.2f}   {rows['loop over pairs'] / microseconds:6.1f} times the loop")


def steps_of(coupling: Coupling, *, ahead: bool) -> Iterator[float]:
    """Milliseconds of each training step of flow matching on LJ13 with its own field."""
    system = system_of("lj13")
    space, phase = (
        system.target.space,
        Phase(name="fm", objective={}, optimiser=Optimiser(learning_rate=5e-4), batch=BATCH),
    )
    torch.manual_seed(0)
    field = field_for(space, hidden=system.hidden, layers=system.layers)
    flow = ContinuousFlow(prior=GaussianPrior(space=space), field=field)
    trainer = Trainer.of(
        Branch(parent="root", phase=phase, seed=0),
        FlowMatching(coupling=coupling),
        Batch(x_BD=draw(space, 2000)[1].float()),
        Alone(),
    )
    state = TrainState.start(flow, phase)
    steps = train(trainer, state, to=10**6) if ahead else (trainer.step(state) for _ in range(10**6))
    while True:
        start = time.perf_counter()
        next(steps)
        yield 1e3 * (time.perf_counter() - start)


def training_steps() -> None:
    """A step of flow matching with each coupling, prepared in line and ahead."""
    space = SYSTEMS["LJ13"]
    kinds: dict[str, Coupling] = {"OT": OptimalTransport(), "EQ-OT": EquivariantOptimalTransport(space=space)}
    runs = {(name, ahead): steps_of(c, ahead=ahead) for name, c in kinds.items() for ahead in (False, True)}
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in runs}
    for _ in range(TURNS):
        for key, run in runs.items():
            times[key] += [next(run) for _ in range(STEPS)][1:]  # before its first, a run has had time to prepare
    print(f"\nLJ13, flow-matching step at batch {BATCH}, median of {TURNS * (STEPS - 1)}, ms")
    base = statistics.median(times["OT", False])
    for (name, ahead), found in times.items():
        milliseconds = statistics.median(found)
        print(f"{name:8}{'prepared ahead' if ahead else 'in line':16}{milliseconds:8.2f}   {milliseconds / base:5.2f}")
    for run in runs.values():
        run.close()  # type: ignore[attr-defined]


def lj13_samples() -> Tensor:
    """One configuration of each of many HMC chains, (CHAINS, 39)."""
    target, settings = system_of("lj13").target, hmc.HmcSettings(chains=CHAINS)
    generator = torch.Generator().manual_seed(0)
    chains = hmc.start_chains(target, settings, CHAINS, generator)
    return hmc.burn_in(target, chains, settings, generator, silent).x_CD.double()


def transport_cost(coupling: Coupling, x0_BD: Tensor, x1_BD: Tensor, rows: int) -> float:
    """Mean squared distance of base and data points that are paired `rows` at a time."""
    costs = [coupling(x0, x1).cost_B for x0, x1 in zip(x0_BD.split(rows), x1_BD.split(rows), strict=True)]
    return float(torch.cat(costs).mean())


def local_or_global() -> None:
    """What it costs that each of several workers pairs its own rows only."""
    system = system_of("lj13")
    x1_BD = lj13_samples()
    x0_BD = GaussianPrior(space=system.target.space).sample(len(x1_BD), torch.Generator().manual_seed(1), like=x1_BD)
    print(f"\nLJ13, mean squared transport cost of {CHAINS} pairs, length units squared")
    print(f"{'':8}" + "".join(f"{f'{LARGE_BATCH // rows} x {rows}':>12}" for rows in (256, 128, 64, 32)))
    couplings: dict[str, Coupling] = {
        "chance": Independent(),
        "OT": OptimalTransport(),
        "EQ-OT": EquivariantOptimalTransport(space=system.target.space),
    }
    for name, coupling in couplings.items():
        found = [transport_cost(coupling, x0_BD, x1_BD, rows) for rows in (256, 128, 64, 32)]
        print(f"{name:8}" + "".join(f"{cost:12.3f}" for cost in found))


def main() -> None:
    torch.set_num_threads(1)
    pairings()
    large_batch()
    training_steps()
    local_or_global()


if __name__ == "__main__":
    main()
