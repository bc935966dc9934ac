"""Side by side: the batched equivariant cost matrix against a loop over pairs, and what each coupling costs.

Run by hand: `python -m benchmarks.couplings`. Medians of wall time on this machine, one thread, in milliseconds.

Shapes: B batch, N particles, d spatial dimensions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.contracts import Space
from models.couplings import Coupling, EquivariantOptimalTransport, Independent, OptimalTransport, equivariant_costs

SYSTEMS = {
    "DW4": Space(dim=8, particles=4),
    "LJ13": Space(dim=39, particles=13),
    "LJ55": Space(dim=165, particles=55),
}
BATCH = 32
REPEATS = 5


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


def draw(space: Space) -> tuple[Tensor, Tensor]:
    """Two mean-free batches."""
    x_2BD = torch.randn((2, BATCH, space.dim), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0_BD, x1_BD = space.project(x_2BD)
    return x0_BD, x1_BD


def main() -> None:
    torch.set_num_threads(1)
    print(f"batch {BATCH}, median of {REPEATS}, ms")
    print(f"{'system':8}{'loop':>10}{'batched':>10}{'ratio':>8}{'independent':>14}{'OT':>10}{'EQ-OT':>10}")
    for name, space in SYSTEMS.items():
        x0_BD, x1_BD = draw(space)
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


if __name__ == "__main__":
    main()
