"""How much of a result each setting explains, with intervals over trials and the share that chance alone would give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Point = Mapping[str, Any]
Shares = Callable[[Sequence[Point], Sequence[float], int], Mapping[str, float]]
"""Points, results and a seed to the share of each name; an evaluator such as functional ANOVA."""
FEWEST_A_NAME = 5
"""Trials for each setting below which shares are said to rest on too few."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The share of the variance of the results' ranks that one setting explains by itself.

    Attributes:
        lo, hi: 95 % bootstrap interval over trials. chance: what 95 % of shuffled results stay below. n: trials.
    """

    name: str
    share: float
    lo: float
    hi: float
    chance: float
    n: int

    @property
    def is_told_from_chance(self) -> bool:
        return self.lo > self.chance


def importances(
    points: Sequence[Point], results: Sequence[float], *, shares: Shares, resamples: int, seed: int
) -> tuple[Importance, ...]:
    """The importance of every name, the largest first; nothing for fewer than two trials.

    Ranks are explained, not values, so that neither the unit nor one diverged trial (infinite: the worst rank) decides.
    """
    n = len(points)
    if n < 2:
        return ()
    ranks = mid_ranks(results)
    whole = shares(points, ranks.tolist(), seed)
    rng = np.random.default_rng(seed)
    drawn, shuffled = [], []
    for k in range(resamples):
        rows = rng.integers(n, size=n)
        drawn.append(shares([points[row] for row in rows], ranks[rows].tolist(), seed + k + 1))
        shuffled.append(shares(points, rng.permutation(ranks).tolist(), seed + k + 1))
    found = []
    for name, share in whole.items():
        lo, hi = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        chance = float(np.quantile([one[name] for one in shuffled], 0.95))
        found.append(Importance(name=name, share=share, lo=float(lo), hi=float(hi), chance=chance, n=n))
    return tuple(sorted(found, key=lambda one: -one.share))


def mid_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    array = np.asarray(values, dtype=float)
    below = (array[None, :] < array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2, dtype=float)


def verdict(found: Sequence[Importance]) -> str:
    """What may be concluded, in words."""
    if not found:
        return "importance: fewer than two trials were judged, so nothing is known"
    n, asked, told = found[0].n, FEWEST_A_NAME * len(found), [one.name for one in found if one.is_told_from_chance]
    if n < asked:
        return f"too few trials to say which settings matter: {n} for {len(found)} settings, where {asked} are asked"
    return f"told from chance: {', '.join(told)}" if told else "no setting is told from chance"
