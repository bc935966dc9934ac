"""S_K, the score of a noised target from its energy: the closed form against automatic differentiation.

Shapes: B rows, K noises of each, D coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import Call, device, header, row
from harness.allocator import keep_freed_memory
from models.contracts import Space, Target
from models.score_estimator import estimate_score
from models.targets import DoubleWell, LennardJones, dw4, lj13

SAMPLES = 1000
BATCH = 8
DEVIATION = 0.05
"""Of the noise, in length units: energies stay moderate, so that the ways can be compared to rounding."""
ROUNDS, REPEATS = 15, 5
THREADS = (1, 2)

Energy = Callable[[Tensor], Tensor]


def distances(x: Tensor, space: Space) -> Tensor:
    """Of all ordered pairs, as a textbook writes them: every difference, the diagonal taken out, a root."""
    assert space.particles is not None
    x_Nd = x.unflatten(-1, (space.particles, space.spatial_dim))
    others = ~torch.eye(space.particles, dtype=torch.bool, device=x.device)
    return (x_Nd.unsqueeze(-2) - x_Nd.unsqueeze(-3))[..., others, :].pow(2).sum(-1).sqrt()


def textbook_energy(target: LennardJones | DoubleWell) -> Energy:
    """The energy written down as papers print it, for any leading shape."""

    def lennard_jones(x: Tensor) -> Tensor:
        assert isinstance(target, LennardJones)
        inverse = 1.0 / distances(x, target.space)
        trap = 0.5 * target.oscillator * target.space.project(x).pow(2).sum(-1)
        return 0.5 * target.pair_factor * (inverse**12 - 2.0 * inverse**6).sum(-1) + trap

    def double_well(x: Tensor) -> Tensor:
        assert isinstance(target, DoubleWell)
        u = distances(x, target.space) - target.offset
        return 0.5 * (target.a * u + target.b * u**2 + target.c * u**4).sum(-1)

    return lennard_jones if isinstance(target, LennardJones) else double_well


def mapped_gradient(energy: Energy, x_BD: Tensor, noise_KBD: Tensor) -> Tensor:
    """vmap over rows of the gradient of log sum_k exp(-E(y_k))."""

    def log_sum(x_D: Tensor, noise_KD: Tensor) -> Tensor:
        return torch.logsumexp(-energy(x_D + DEVIATION * noise_KD), dim=0)

    return torch.vmap(torch.func.grad(log_sum), in_dims=(0, 1))(x_BD, noise_KBD)


def plain_gradient(energy: Energy, x_BD: Tensor, noise_KBD: Tensor) -> Tensor:
    """One backward pass through the log-sum-exp of all rows."""
    leaf_BD = x_BD.clone().requires_grad_()
    energy_KB = energy((leaf_BD + DEVIATION * noise_KBD).flatten(0, 1)).unflatten(0, noise_KBD.shape[:2])
    return torch.autograd.grad(torch.logsumexp(-energy_KB, dim=0).sum(), leaf_BD)[0]


def ways(target: LennardJones | DoubleWell, x_BD: Tensor, noise_KBD: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is compared with the closed form."""
    textbook = textbook_energy(target)
    return {
        "vmap(grad(logsumexp)), energy as printed": lambda: mapped_gradient(textbook, x_BD, noise_KBD),
        "one backward pass, energy as printed": lambda: plain_gradient(textbook, x_BD, noise_KBD),
        "vmap(grad(logsumexp)), energy of models/": lambda: mapped_gradient(target.energy, x_BD, noise_KBD),
        "one backward pass, energy of models/": lambda: plain_gradient(target.energy, x_BD, noise_KBD),
    }


def setting(target: Target) -> tuple[Tensor, Tensor]:
    """Rows in which no two particles are close, (B, D), and noise (K, B, D)."""
    space, generator = target.space, torch.Generator().manual_seed(0)
    many_MD = space.project(1.2 * torch.randn((4096, space.dim), generator=generator))
    x_BD = many_MD[target.energy(many_MD).argsort()[:BATCH]]
    noise_KBD = space.project(torch.randn((SAMPLES, BATCH, space.dim), generator=generator))
    return x_BD.to(device()), noise_KBD.to(device())


def table(target: LennardJones | DoubleWell, threads: int) -> None:
    """One way a row. Times of two threads are wall times, which other work on the machine disturbs."""
    x_BD, noise_KBD = setting(target)
    variance = x_BD.new_tensor(DEVIATION**2)

    def ours() -> Tensor:
        return estimate_score(target, x_BD, variance, noise_KBD).score_BD

    energies: Call = lambda: estimate_score(target, x_BD, variance, noise_KBD, form="ratio")  # noqa: E731
    title = f"{target.name}: S_K, K = {SAMPLES}, batch {BATCH}, float32, {threads} thread{'s' * (threads > 1)}"
    header(title, slow="this way", fast="closed form")
    for label, way in ways(target, x_BD, noise_KBD).items():
        expected_BD = way()
        error = float((ours() - expected_BD).norm() / expected_BD.norm())
        row(f"{label} ({error:.0e} apart)", way, ours, rounds=ROUNDS, repeats=REPEATS, wall=threads > 1)
    row("closed form from energies alone (ratio form)", energies, ours, rounds=ROUNDS, wall=threads > 1)


def main() -> None:
    before = torch.get_num_threads()
    for threads in THREADS if device().type == "cpu" else (before,):
        torch.set_num_threads(threads)
        for target in (lj13(), dw4()):
            table(target, threads)
    torch.set_num_threads(before)


if __name__ == "__main__":
    keep_freed_memory()
    main()
