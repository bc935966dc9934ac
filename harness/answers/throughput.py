"""Throughput and efficiency over workers, read off rounds of measurements that took turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.answers.report import table

Way = Literal["alone", "strong", "weak", "apart"]

WAYS: Mapping[Way, str] = {
    "alone": "one worker",
    "strong": "strong: one global batch, shared",
    "weak": "weak: the batch grows with the workers",
    "apart": "apart: a trial each, at the same time",
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a step in every round, of one phase at one number of workers in one way.

    Attributes:
        batch: of the phase on one worker; the global batch is as large, or `workers` times that where it grows.
    """

    phase: str
    batch: int
    way: Way
    workers: int
    seconds: tuple[float, ...]

    @property
    def rows(self) -> int:
        """Rows that all workers together train on in a step."""
        return self.batch if self.way in ("alone", "strong") else self.batch * self.workers

    @property
    def rows_per_second(self) -> float:
        return self.rows / statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Quartiles:
    """Median and quartiles of ratios of neighbouring measurements, one a round."""

    median: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Quartiles:
        if len(values) < 2:
            return Quartiles(median=values[0], low=values[0], high=values[0], n=len(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Quartiles(median=median, low=low, high=high, n=len(values))


def efficiency(timing: Timing, alone: Timing) -> Quartiles:
    """Rows a second and worker over those of one worker by itself, round by round: 1 is perfect.

    Args:
        alone: the same phase on one worker.
    """
    share = timing.rows / (timing.workers * alone.rows)
    return Quartiles.of([share * one / many for one, many in zip(alone.seconds, timing.seconds, strict=True)])


def throughput_rows(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """A row for every phase, way and number of workers."""
    alone = {timing.phase: timing for timing in timings if timing.way == "alone"}
    rows = []
    for t in timings:
        e = efficiency(t, alone[t.phase])
        low, _, high = statistics.quantiles(t.seconds, n=4, method="inclusive")
        rows.append(
            {
                "phase": t.phase,
                "way": t.way,
                "workers": t.workers,
                "rows": t.rows,
                "seconds": statistics.median(t.seconds),
                "seconds_low": low,
                "seconds_high": high,
                "rows_per_second": t.rows_per_second,
                "efficiency": e.median,
                "efficiency_low": e.low,
                "efficiency_high": e.high,
                "rounds": e.n,
            }
        )
    return rows


def throughput_table(timings: Sequence[Timing]) -> str:
    """Medians with quartiles of ratios, a row for every way at every number of workers."""
    header = ["phase", "workers", "way", "rows", "step / ms", "rows / s", "throughput", "efficiency"]
    rows = [
        [
            row["phase"],
            str(row["workers"]),
            WAYS[row["way"]],
            str(row["rows"]),
            f"{1e3 * row['seconds']:.3g}",
            f"{row['rows_per_second']:.4g}",
            ratio_text(*(row["workers"] * row[name] for name in ("efficiency", "efficiency_low", "efficiency_high"))),
            ratio_text(row["efficiency"], row["efficiency_low"], row["efficiency_high"]),
        ]
        for row in throughput_rows(timings)
    ]
    rounds = len(timings[0].seconds) if timings else 0
    legend = (
        f"medians of {rounds} rounds by the clock, all ways in turns in one group of workers; throughput against one "
        "worker, efficiency by worker; [ ] quartiles of neighbouring ratios"
    )
    return "\n".join([table(header, rows), legend])


def ratio_text(median: float, low: float, high: float) -> str:
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"
