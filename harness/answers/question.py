"""What a study asks of its records: which phases are set against each other, and by which metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MetricChoice:
    """A metric and the scale that its values are compared, averaged and interpolated on.

    Args:
        name: as in a cell's estimates.
        direction: whether smaller ("min") or larger ("max") is better.
        log: compare logarithms, so that differences are ratios and means geometric. For positive metrics only.
        label: for tables and axes, with its unit; the name if left out.
    """

    name: str
    direction: Literal["min", "max"] = "min"
    log: bool = False
    label: str = ""

    @property
    def title(self) -> str:
        return self.label or self.name

    def scaled(self, value: float) -> float:
        """The value on the comparison scale; NaN stays NaN.

        Raises:
            ValueError: for a value that has no logarithm where one is asked for.
        """
        if not self.log or not math.isfinite(value):
            return value
        if value <= 0:
            raise ValueError(
                f"a metric compared on a log scale must be positive, got {value:g} for {self.name}; "
                f"write MetricChoice(name={self.name!r}, log=False)"
            )
        return math.log(value)

    def unscaled(self, scaled: float) -> float:
        """Back from the comparison scale."""
        return math.exp(scaled) if self.log and math.isfinite(scaled) else scaled

    def loss(self, value: float) -> float:
        """The comparison scale turned so that smaller is better; what is not finite is the worst, +inf."""
        if not math.isfinite(value):
            return math.inf
        return self.scaled(value) if self.direction == "min" else -self.scaled(value)


@dataclass(frozen=True, kw_only=True)
class Question:
    """How much of the first phase, how much of the second?

    Args:
        first, second: names of the phases whose shares are asked for.
        refinement: name of the first phase at its fine-tuning settings; what it costs counts to the first.
        metric: what the best share is chosen by.
        beside: further metrics that answers report.
        quality: name of the metric by which a model is diverged where it is worse than the untrained one; the deciding
            metric if left out. Smaller is better.
    """

    first: str
    second: str
    refinement: str
    metric: MetricChoice
    beside: tuple[MetricChoice, ...] = ()
    quality: str | None = None

    @property
    def metrics(self) -> tuple[MetricChoice, ...]:
        return (self.metric, *self.beside)

    def choice(self, name: str) -> MetricChoice:
        """The scale of any metric; a plain one where the question does not mention it."""
        return next((metric for metric in self.metrics if metric.name == name), MetricChoice(name=name))

    @property
    def first_title(self) -> str:
        return self.first.replace("_", " ").upper()

    @property
    def second_title(self) -> str:
        return self.second.replace("_", " ").upper()
