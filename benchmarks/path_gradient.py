"""What path gradients cost beside flow matching, measured side by side in one run: python benchmarks/path_gradient.py

Each row is two medians of process time, taken in turns so that a busy machine disturbs both alike, and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.contracts import Batch, Space, whole_batch
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence
from models.flows.prior import GaussianPrior
from models.objectives.path_gradient import DivergenceMode, PathGradient, pullback

Step = Callable[[], object]


def milliseconds(step: Step) -> float:
    start = time.process_time()
    step()
    return 1e3 * (time.process_time() - start)


def row(label: str, slow: Step, fast: Step, *, rounds: int, repeats: int = 1) -> None:
    """Print the medians of `slow` and of `repeats` calls of `fast`, per call, and their ratio."""
    slow(), fast()
    slow_ms, fast_ms = [], []
    for _ in range(rounds):
        slow_ms.append(milliseconds(slow))
        fast_ms.append(milliseconds(lambda: [fast() for _ in range(repeats)]) / repeats)
    a, b = statistics.median(slow_ms), statistics.median(fast_ms)
    print(f"{label:<64} {a:10.3f} ms {b:9.3f} ms   ratio {a / b:7.1f}")


def flow_matching_step(flow: ContinuousFlow, x_BD: Tensor) -> Step:
    """The plain regression step: one forward, one backward."""
    parameters = list(flow.parameters())

    def step() -> None:
        v_BD = flow.field(torch.rand(len(x_BD)), x_BD)
        torch.autograd.grad((v_BD - x_BD).square().mean(), parameters, allow_unused=True)

    return step


def path_gradient_step(flow: ContinuousFlow, x_BD: Tensor, divergence: DivergenceMode) -> Step:
    objective = PathGradient(kl="forward", divergence=divergence)
    batch = Batch(x_BD=x_BD, force_BD=-x_BD)
    return lambda: objective.gradient(flow, batch, whole_batch(len(x_BD), 0))


def divergence_by_rows(field: MLPField, t: Tensor, x_BD: Tensor) -> Tensor:
    """The plain way to the trace: one vector-Jacobian product a coordinate, differentiable again."""
    v_BD = field(t, x_BD)
    rows = [torch.autograd.grad(v_BD[:, k].sum(), x_BD, create_graph=True)[0][:, k] for k in range(x_BD.shape[1])]
    return torch.stack(rows).sum(dim=0)


def stage_by_autograd(field: MLPField, x_BD: Tensor, *, by_rows: bool) -> Step:
    def step() -> None:
        y_BD = x_BD.clone().requires_grad_()
        if by_rows:
            divergence_B = divergence_by_rows(field, torch.tensor(0.3), y_BD)
        else:
            divergence_B = field.with_divergence(torch.tensor(0.3), y_BD)[1]
        torch.autograd.grad(divergence_B.sum(), y_BD)

    return step


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plane = ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=MLPField(dim=2))
    x_BD = torch.randn(250, 2)
    print("two dimensions, MLP 4 x 64, batch 250; one thread, float32")
    modes: tuple[DivergenceMode, ...] = ("exact", "hutchinson")
    for mode in modes:
        steps = path_gradient_step(plane, x_BD, mode), flow_matching_step(plane, x_BD)
        row(f"path gradient ({mode}) / flow matching, step", *steps, rounds=7, repeats=50)
    field, t = MLPField(dim=2), torch.tensor(0.3)
    by_rows, by_layers = (stage_by_autograd(field, x_BD, by_rows=rows) for rows in (True, False))
    row("grad div v: row by row / tangents by hand", by_rows, by_layers, rounds=50)
    by_hand = lambda: pullback(field, exact_divergence, t, x_BD, x_BD)  # noqa: E731
    row("grad div v: tangents by hand / both sweeps by hand", by_layers, by_hand, rounds=50)

    space = Space(dim=8, particles=4)
    particles = ContinuousFlow(prior=GaussianPrior(space=space), field=EGNN(particles=4, spatial_dim=2))
    x_BD = space.project(torch.randn(256, 8))
    print("four particles in the plane, EGNN 3 x 32, batch 256")
    for mode in reversed(modes):
        steps = path_gradient_step(particles, x_BD, mode), flow_matching_step(particles, x_BD)
        row(f"path gradient ({mode}) / flow matching, step", *steps, rounds=3, repeats=10)
    with torch.no_grad():
        trace = lambda: particles.field.with_divergence(t, x_BD)  # noqa: E731
        row("exact trace / velocity, no gradients", trace, lambda: particles.field(t, x_BD), rounds=20)


if __name__ == "__main__":
    main()
