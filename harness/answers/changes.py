"""What the last stage of a plan changed, sample by sample: paired differences between two judged cells, and over seeds.

Two cells of a study share test points and base noise, so the difference of a per-sample column is known far better
than either mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.answers.question import MetricChoice
from harness.answers.report import table
from harness.answers.scores import seed_interval
from harness.answers.surface import Cell
from harness.contracts import Records
from models.estimators import BootstrapMeans, Estimate, mean_estimate

Array = NDArray[np.float64]
ALL_SEEDS = "all"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A per-sample column whose change is asked for.

    Args:
        name: for files. key: in the records, "<set>/<quantity>". label: for tables and axes.
        sign: -1 where the quantity is minus the column. relative: a change is the ratio of means less one, in per cent.
    """

    name: str
    key: str
    label: str
    sign: float = 1.0
    relative: bool = False

    def of(self, records: Records) -> Array:
        return self.sign * np.asarray(records[self.key], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Change:
    """After less before, over the samples that both share.

    Attributes:
        estimate: the change (in per cent where the column is relative) with its bootstrap interval over samples.
        standard_error: of that, from the spread of the differences.
    """

    estimate: Estimate
    standard_error: float

    @property
    def standard_errors(self) -> float:
        """How many standard errors the change is away from none."""
        return self.estimate.value / self.standard_error if self.standard_error > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class CellPair:
    """A plan's cells before and after its last stage, with what changed between them, by the column's name."""

    plan: str
    before: Cell
    after: Cell
    changes: Mapping[str, Change]

    @property
    def seed(self) -> int:
        return self.before.seed


def paired_change(before: Records, after: Records, column: Column, *, seed: int = 0) -> Change:
    """The paired change of a column.

    Args:
        seed: of the resampling.

    Raises:
        ValueError: where the two records hold different samples.
    """
    ids = f"{column.key.split('/')[0]}/sample_id"
    if not np.array_equal(before[ids], after[ids]):
        raise ValueError(
            f"a paired change needs the same samples before and after, got {len(before[ids])} and {len(after[ids])} "
            f"rows of {column.key}; judge both with the same settings"
        )
    first_n, last_n = column.of(before), column.of(after)
    if not column.relative:
        difference_n = last_n - first_n
        return Change(estimate=mean_estimate(difference_n, seed=seed), standard_error=_standard_error(difference_n))
    table_of_both = BootstrapMeans.of({"first": first_n, "last": last_n}, seed=seed)
    ratio = last_n.mean() / first_n.mean()
    return Change(
        estimate=table_of_both.estimate(lambda m: 100 * (m["last"] / m["first"] - 1)),
        standard_error=100 * _standard_error(last_n - ratio * first_n) / abs(float(first_n.mean())),
    )


def pooled_change(pairs: Sequence[CellPair], column: Column) -> Estimate:
    """The mean over seeds with its t interval; none below three seeds, neither where one diverged."""
    return seed_interval([pair.changes[column.name].estimate.value for pair in pairs])


def by_plan(pairs: Sequence[CellPair]) -> dict[str, list[CellPair]]:
    """The pairs of every plan, in the order in which they came."""
    found: dict[str, list[CellPair]] = {}
    for pair in pairs:
        found.setdefault(pair.plan, []).append(pair)
    return found


def change_rows(
    pairs: Sequence[CellPair], metrics: Sequence[MetricChoice], columns: Sequence[Column]
) -> list[dict[str, Any]]:
    """A row for every plan and seed, then one over the seeds of each plan.

    Every metric stands there before and after, every column with its paired change. `_eval_lo` and `_eval_hi` are a
    bootstrap over samples, `_seed_lo` and `_seed_hi` a t interval over seeds; `_n` counts samples, or seeds.
    """
    rows = []
    for plan, held in by_plan(pairs).items():
        for pair in held:
            row = _place(plan, str(pair.seed), held[:1], [pair])
            for metric in metrics:
                for when, cell in (("before", pair.before), ("after", pair.after)):
                    row |= _value(f"{metric.name}_{when}", cell.test.get(metric.name), over="eval")
            for column in columns:
                change, name = pair.changes[column.name], change_name(column)
                row |= _value(name, change.estimate, over="eval")
                row |= {f"{name}_standard_error": change.standard_error}
                row |= {f"{name}_in_standard_errors": change.standard_errors}
            rows.append(row)
        row = _place(plan, ALL_SEEDS, held[:1], held)
        for metric in metrics:
            for when in ("before", "after"):
                row |= _value(f"{metric.name}_{when}", _over_seeds(held, metric, when), over="seed")
        for column in columns:
            name = change_name(column)
            row |= _value(name, pooled_change(held, column), over="seed")
            row |= {f"{name}_standard_error": None, f"{name}_in_standard_errors": None}
        rows.append(row)
    return rows


def change_table(pairs: Sequence[CellPair], metrics: Sequence[MetricChoice], columns: Sequence[Column]) -> str:
    """Before and after, and the paired changes, for every plan and seed and over the seeds."""
    header = ["plan", "seed", *(metric.title for metric in metrics), *(column_title(column) for column in columns)]
    rows = []
    for plan, held in by_plan(pairs).items():
        for pair in held:
            values = [f"{_text(pair.before, metric)} -> {_text(pair.after, metric)}" for metric in metrics]
            changes = [change_text(pair.changes[column.name]) for column in columns]
            rows.append([plan, str(pair.seed) + (" diverged" if pair.after.diverged else ""), *values, *changes])
        if len(held) > 1:
            means = [[_over_seeds(held, metric, when).value for when in ("before", "after")] for metric in metrics]
            values = [f"{before:.4g} -> {after:.4g}" for before, after in means]
            changes = [interval_text(pooled_change(held, column)) for column in columns]
            rows.append([plan, ALL_SEEDS, *values, *changes])
    return table(header, rows)


def change_name(column: Column) -> str:
    return f"{column.name}_change_percent" if column.relative else f"{column.name}_change"


def column_title(column: Column) -> str:
    return f"change of {column.label} / %" if column.relative else f"change of {column.label}"


def change_text(change: Change) -> str:
    """With its interval, and its distance from zero in standard errors."""
    return f"{interval_text(change.estimate)} ({change.standard_errors:+.1f} se)"


def interval_text(estimate: Estimate) -> str:
    text = f"{estimate.value:+.3g}"
    return f"{text} [{estimate.lo:+.3g}, {estimate.hi:+.3g}]" if math.isfinite(estimate.lo) else text


def _place(plan: str, seed: str, first: Sequence[CellPair], pairs: Sequence[CellPair]) -> dict[str, Any]:
    before, after = first[0].before, first[0].after
    return {
        "plan": plan,
        "seed": seed,
        "before": before.tail or "untrained",
        "after": after.tail,
        "diverged": sum(pair.after.diverged or pair.before.diverged for pair in pairs),
    }


def _value(name: str, estimate: Estimate | None, *, over: str) -> dict[str, Any]:
    """The columns of one value: both kinds of interval, of which it has one."""
    e = estimate or Estimate(value=math.nan, lo=math.nan, hi=math.nan, n=0)
    ends = {f"{name}_{kind}_{end}": None for kind in ("eval", "seed") for end in ("lo", "hi")}
    return {name: e.value, **ends, f"{name}_{over}_lo": e.lo, f"{name}_{over}_hi": e.hi, f"{name}_n": e.n}


def _over_seeds(pairs: Sequence[CellPair], metric: MetricChoice, when: str) -> Estimate:
    cells = [pair.before if when == "before" else pair.after for pair in pairs]
    return seed_interval([cell.test[metric.name].value if metric.name in cell.test else math.nan for cell in cells])


def _text(cell: Cell, metric: MetricChoice) -> str:
    estimate = cell.test.get(metric.name)
    return "-" if estimate is None else f"{estimate.value:.4g}"


def _standard_error(values_n: Array) -> float:
    with np.errstate(invalid="ignore"):
        return float(values_n.std(ddof=1) / math.sqrt(len(values_n)))
