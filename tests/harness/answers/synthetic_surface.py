"""Surfaces from a known law with seeded noise, for the tests of what is read off the records.

The first phase falls like cost^-b to a plateau; the second falls faster but starts late: by how much depends on where
it begins. A price of one device-second a step in every phase makes steps and costs the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from harness.answers.question import MetricChoice, Question
from harness.answers.surface import Cell
from harness.budget import Budget, Cost, Currency
from models.estimators import Estimate

SECONDS = Currency.DEVICE_SECONDS
FORKS = (0, 10, 40, 160)
BUDGETS = (100.0, 400.0, 1600.0)
METRIC = MetricChoice(name="kl", log=True, label="forward KL / nats")
BESIDE = (MetricChoice(name="nll"), MetricChoice(name="ess", direction="max"))
QUESTION = Question(first="fm", second="pg", refinement="fm_tail", metric=METRIC, beside=BESIDE)

Law = Callable[[int, str, float], float]
"""log metric of (fork, tail, total cost)."""


def seconds(amounts: Sequence[float]) -> tuple[Budget, ...]:
    return tuple(Budget(amount=amount, currency=SECONDS) for amount in amounts)


def trunk_law(cost: float) -> float:
    return math.log(2.0 * max(cost, 1.0) ** -0.5 + 0.05)


def known_law(fork: int, tail: str, cost: float) -> float:
    """The second phase wins at equal cost where the fork is at least 10 steps in; from scratch it never gets there."""
    if tail == "pg":
        gain = 1.2 * math.log1p((cost - fork) / 100.0) if fork else -1.0
        return trunk_law(cost) - gain + 0.002 * max(0, 40 - fork)
    return trunk_law(cost) - (0.05 if tail else 0.0)


def noise_only(fork: int, tail: str, cost: float) -> float:
    return 0.0


def estimate(value: float) -> Estimate:
    return Estimate(value=value, lo=value - 0.1 * abs(value), hi=value + 0.1 * abs(value), n=1000)


def estimates(log_metric: float) -> dict[str, Estimate]:
    value = math.exp(log_metric)
    return {"kl": estimate(value), "nll": estimate(3.0 + value), "ess": estimate(1.0 / (1.0 + value))}


def cell(
    seed: int,
    fork: int,
    tail: str,
    steps: int,
    log_metric: float,
    log_test: float | None = None,
    diverged: bool = False,
) -> Cell:
    return Cell(
        seed=seed,
        fork_steps=fork,
        tail=tail,
        tail_steps=steps,
        trunk_cost=Cost(steps=fork, device_seconds=float(fork), flops=10.0 * fork),
        tail_cost=Cost(steps=steps, device_seconds=float(steps), flops=30.0 * steps),
        validation=estimates(log_metric),
        test=estimates(log_metric if log_test is None else log_test),
        diverged=diverged,
        segment=f"{seed}-{fork}-{tail}-{steps}",
    )


def surface(
    law: Law = known_law,
    *,
    seeds: int = 5,
    forks: Sequence[int] = FORKS,
    budgets: Sequence[float] = BUDGETS,
    model_noise: float = 0.02,
    point_noise: float = 0.0,
    rng_seed: int = 0,
) -> list[Cell]:
    """Every cell that a tree would have: trunk at forks and budgets, both tails at every budget beyond their fork.

    Args:
        model_noise: of each model, shared by its validation and test points. point_noise: of each set of points.
    """
    rng = np.random.default_rng(rng_seed)

    def made(seed: int, fork: int, tail: str, steps: int) -> Cell:
        log_metric = law(fork, tail, float(fork + steps)) + model_noise * rng.normal()
        validation, test = log_metric + point_noise * rng.normal(size=2)
        return cell(seed, fork, tail, steps, float(validation), float(test))

    cells = []
    for seed in range(seeds):
        cells += [made(seed, steps, "", 0) for steps in sorted({0, *forks, *(int(b) for b in budgets)})]
        for fork in forks:
            for tail in ("pg", "fm_tail"):
                cells += [made(seed, fork, tail, int(b) - fork) for b in budgets if b > fork]
    return cells
