"""Levels that samples fall to: how many of a set reach the lowest one, as a table and as rows of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.answers.report import table
from models.estimators import Estimate, proportion_estimate


@dataclass(frozen=True, kw_only=True)
class LevelSet:
    """Where the samples of one set ended.

    Args:
        title: what they are samples of. level_n: (n,) in the unit of the answer. settled_n: (n,) whether a sample came
            to rest; the others have no level, and count among the n.
    """

    title: str
    level_n: NDArray[np.float64]
    settled_n: NDArray[np.bool_]

    @property
    def settled_levels(self) -> NDArray[np.float64]:
        """The levels of the samples that came to rest, rising."""
        return np.sort(self.level_n[self.settled_n])

    def share_at(self, level: float, *, within: float) -> Estimate:
        """The share of all n samples that came to rest at a level."""
        there = self.settled_n & (np.abs(self.level_n - level) <= within)
        return proportion_estimate(int(there.sum()), len(self.level_n))

    def distinct(self, *, within: float) -> int:
        """How many levels were met, taking those apart that are further than `within` from their lower neighbour."""
        levels = self.settled_levels
        return int(len(levels) > 0) + int((np.diff(levels) > within).sum())


def lowest_level(sets: Sequence[LevelSet], known: float | None, *, within: float) -> float:
    """The lowest level of all: the known one, unless samples went below it.

    Raises:
        ValueError: where none is known and no sample came to rest.
    """
    found = np.concatenate([each.settled_levels for each in sets])
    if known is None and len(found) == 0:
        raise ValueError("a lowest level needs a sample that came to rest, got none in any set; give other samples")
    if known is None:
        return float(found.min())
    return float(found.min()) if len(found) and found.min() < known - within else known


def level_table(sets: Sequence[LevelSet], lowest: float, *, within: float, unit: str) -> str:
    """One line a set, in the order given."""
    header = ["samples of", "n", "at the lowest", "levels met", f"lowest / {unit}", f"median / {unit}", "not at rest"]
    rows = []
    for each in sets:
        levels, share = each.settled_levels, each.share_at(lowest, within=within)
        ends = (f"{levels[0]:.6f}", f"{np.median(levels):.4g}") if len(levels) else ("-", "-")
        text = f"{share.value:.2%} [{share.lo:.2%}, {share.hi:.2%}]"
        rows.append(
            [each.title, str(share.n), text, str(each.distinct(within=within)), *ends, str((~each.settled_n).sum())]
        )
    legend = (
        f"lowest level {lowest:.6f} {unit}, within {within:g}; [ ] 95 % Wilson interval over n samples, taken as "
        "independent"
    )
    return "\n".join([table(header, rows), legend])


def share_rows(sets: Sequence[LevelSet], lowest: float, *, within: float) -> list[dict[str, Any]]:
    """A row for every set."""
    rows = []
    for each in sets:
        share = each.share_at(lowest, within=within)
        rows.append(
            {
                "set": each.title,
                "lowest": lowest,
                "within": within,
                "share": share.value,
                "share_eval_lo": share.lo,
                "share_eval_hi": share.hi,
                "share_n": share.n,
                "levels_met": each.distinct(within=within),
                "not_at_rest": int((~each.settled_n).sum()),
            }
        )
    return rows
