"""Files for other programs: surface.csv, frontier.csv and answer.json, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.answers.crossover import Crossing
from harness.answers.curves import MEASURED_BELOW
from harness.answers.fit import Fit
from harness.answers.frontier import BudgetAnswer, Candidate, Outcome
from harness.answers.laws import Laws
from harness.answers.question import MetricChoice, Question
from harness.answers.savings import GridCost, spent_costs
from harness.answers.scores import Score
from harness.answers.surface import Cell
from harness.budget import Currency
from harness.checkpoint import write_atomically
from harness.identity import plain
from models.estimators import Estimate

Row = dict[str, Any]
WAYS = ("best", "hybrid", "first_only", "second_only")


def write_surface(path: Path, cells: Iterable[Cell], currency: Currency, question: Question) -> None:
    """A row for every evaluated model; see `surface_rows`."""
    write_csv(path, surface_rows(cells, currency, question))


def write_frontier(path: Path, answers: Sequence[BudgetAnswer], question: Question) -> None:
    """A row for every budget; see `frontier_rows`."""
    write_csv(path, frontier_rows(answers, question))


def surface_rows(cells: Iterable[Cell], currency: Currency, question: Question) -> list[Row]:
    """Cost of either phase, as-if and spent, then every metric on test points and (prefixed) on validation points.

    A refinement tail counts to the first phase. `cost` is what the plan would have cost alone, `spent_cost` what this
    model added to the tree's bill: these sum to all that was spent on training.
    """
    held = sorted(cells, key=lambda c: (c.seed, c.fork_steps if c.tail else -1, c.tail, c.cost(currency)))
    spent = spent_costs(held, currency)
    names = {"": _metric_names(c.test for c in held), "validation_": _metric_names(c.validation for c in held)}
    rows = []
    for cell in held:
        row = _place(cell, currency, question) | {"spent_cost": spent[cell.segment]}
        for prefix, estimates in (("", cell.test), ("validation_", cell.validation)):
            for name in names[prefix]:
                row |= _estimate_columns(prefix + name, estimates.get(name))
        rows.append(row)
    return rows


def frontier_rows(answers: Sequence[BudgetAnswer], question: Question) -> list[Row]:
    """The best split, the best hybrid and both ends at every budget, with paired differences between them."""
    return [_frontier_row(answer, question) for answer in answers]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows; a number that does not exist, or a column that a row lacks, is an empty field.

    Floats are written in full, so that reading them gives the same numbers again.
    """
    text = io.StringIO()
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _field(value) for key, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue().encode())


def answer(
    answers: Sequence[BudgetAnswer],
    question: Question,
    *,
    crossings: Sequence[Crossing] = (),
    laws: Laws | None = None,
    savings: Mapping[str, GridCost] | None = None,
) -> dict[str, Any]:
    """The plain form of the whole answer; what is not known is None."""
    return strict(
        {
            "question": plain(question),
            "methods": methods(question),
            "budgets": [_budget_answer(a, question) for a in answers],
            "crossover": [_crossing(c, question.metric) for c in crossings],
            "laws": None if laws is None else _laws(laws),
            "savings": {name: plain(cost) | {"ratio": cost.ratio} for name, cost in (savings or {}).items()},
        }
    )


def write_answer(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON: no NaN and no Infinity."""
    write_atomically(path, (json.dumps(strict(value), indent=2, allow_nan=False) + "\n").encode())


def strict(value: Any) -> Any:
    """The same value with null in place of every number that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): strict(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def methods(question: Question) -> str:
    """How the numbers came about, for a reader of the file alone."""
    first, second, metric = question.first_title, question.second_title, question.metric
    scale = "logarithm, so means are geometric and differences are ratios" if metric.log else "plain value"
    return (
        f"One {first} trunk a seed; from checkpoints of it and from the untrained model two tails start, {second} and "
        f"{first} at its fine-tuning settings. Costs are as-if: what a plan would have cost alone, at measured step "
        f"prices. {first} only is each seed's best of trunk and refined trunks by that seed's own validation points, "
        "which favours it over the hybrids. A share is the trunk's "
        f"part of the cost of a plan that ends with {second}. The best share has the best mean {metric.name} over "
        f"seeds on validation points ({metric.direction}; compared by its {scale}); its score is that of each seed's "
        "test points at the share that the other seeds choose. Its set holds the shares whose paired 95 % t interval "
        "over seeds against that does not lie on the worse side. A model within "
        f"{MEASURED_BELOW:.0%} below a budget, or the longest on its grid of steps that fits, counts as measured "
        "there; between evaluated models values are "
        "interpolated in the logarithm of the cost and marked; nothing is extrapolated. Diverged models (not finite, "
        "or worse than untrained) rank last: a share with fewer diverged seeds "
        "goes before one with more. seed_lo and seed_hi: 95 % t interval over seeds; eval_lo and eval_hi: "
        "bootstrap over test points."
    )


def _place(cell: Cell, currency: Currency, question: Question) -> Row:
    trunk, tail, total = cell.trunk_cost.amount(currency), cell.tail_cost.amount(currency), cell.cost(currency)
    second = tail if cell.tail == question.second else 0.0
    first = trunk + tail - second
    return {
        "seed": cell.seed,
        f"{question.first}_cost": first,
        f"{question.second}_cost": second,
        f"{question.first}_share": first / total if total > 0 else 1.0,
        "tail": cell.tail,
        "fork_steps": cell.fork_steps,
        "tail_steps": cell.tail_steps,
        "cost": total,
        "currency": currency.value,
        "diverged": cell.diverged,
        "segment": cell.segment,
    }


def _frontier_row(answer: BudgetAnswer, question: Question) -> Row:
    share = f"{question.first}_share"
    row: Row = {
        "budget": answer.budget.amount,
        "currency": answer.budget.currency.value,
        "seeds": len(answer.seeds),
        f"best_{share}": answer.best.share,
        f"best_{share}_lo": min(answer.indistinguishable),
        f"best_{share}_hi": max(answer.indistinguishable),
        f"hybrid_{share}": None if answer.hybrid is None else answer.hybrid.share,
    }
    for way in WAYS:
        outcome: Outcome | None = getattr(answer, way)
        name = _way_name(way, question)
        for metric in question.metrics:
            score = None if outcome is None else outcome.scores.get(metric.name)
            row |= {f"{name}_{key}": v for key, v in _score_columns(metric.name, score).items()}
        row[f"{name}_diverged"] = None if outcome is None else outcome.diverged
        row[f"{name}_interpolated"] = None if outcome is None else outcome.interpolated
    ends = (("first_only", answer.hybrid_vs_first), ("second_only", answer.hybrid_vs_second))
    kind = "ratio" if question.metric.log else "difference"
    for way, difference in ends:
        value, lo, hi = _unscaled(difference, question.metric)
        name = f"hybrid_{question.metric.name}_{kind}_to_{_way_name(way, question)}"
        row |= {name: value, f"{name}_seed_lo": lo, f"{name}_seed_hi": hi}
    return row


def _budget_answer(answer: BudgetAnswer, question: Question) -> dict[str, Any]:
    return {
        "budget": answer.budget.amount,
        "currency": answer.budget.currency.value,
        "seeds": list(answer.seeds),
        "best_share": answer.best.share,
        "indistinguishable_shares": list(answer.indistinguishable),
        **{_way_name(way, question): _outcome(getattr(answer, way)) for way in WAYS},
        "hybrid_against": {
            _way_name(way, question): _difference(difference, question.metric)
            for way, difference in (("first_only", answer.hybrid_vs_first), ("second_only", answer.hybrid_vs_second))
        },
        "shares": [_candidate(c, answer, question.metric) for c in answer.candidates],
        "notes": list(answer.notes),
    }


def _way_name(way: str, question: Question) -> str:
    return {"first_only": f"{question.first}_only", "second_only": f"{question.second}_only"}.get(way, way)


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "share": outcome.share,
        "fork_steps": outcome.fork_steps,
        "shares_by_seed": {str(s): share for s, share in outcome.shares_by_seed.items()},
        "diverged_rate": outcome.diverged / len(outcome.readings),
        "interpolated": outcome.interpolated,
        "cost_by_seed": {str(s): r.cost for s, r in outcome.readings.items()},
        "segments_by_seed": {str(s): list(r.segments) for s, r in outcome.readings.items()},
        "metrics": {name: _score(score) for name, score in outcome.scores.items()},
    }


def _candidate(candidate: Candidate, answer: BudgetAnswer, metric: MetricChoice) -> dict[str, Any]:
    score = candidate.test(metric)
    return {
        "share": candidate.share,
        "fork_steps": candidate.fork_steps,
        "indistinguishable": candidate.share in answer.indistinguishable,
        "diverged_rate": candidate.diverged / len(candidate.readings),
        "interpolated": candidate.interpolated,
        metric.name: None if score is None else _score(score),
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "_seed_lo": score.seed_lo,
        "_seed_hi": score.seed_hi,
        "_eval_lo": score.eval_lo,
        "_eval_hi": score.eval_hi,
        "_n": score.n,
        "by_seed": {str(seed): value for seed, value in score.by_seed.items()},
        "reason": score.reason,
    }


def _crossing(crossing: Crossing, metric: MetricChoice) -> dict[str, Any]:
    return {
        "fork_steps": crossing.fork_steps,
        "fork_cost": crossing.fork_cost,
        "quality_at_fork": None if crossing.quality is None else _score(crossing.quality),
        "cost": crossing.cost,
        "second_against_refinement": _difference(crossing.difference, metric),
        "helps": crossing.helps,
    }


def _difference(difference: Estimate | None, metric: MetricChoice) -> dict[str, Any] | None:
    if difference is None:
        return None
    value, lo, hi = _unscaled(difference, metric)
    kind = "ratio" if metric.log else "difference"
    return {kind: value, "_seed_lo": lo, "_seed_hi": hi, "seeds": difference.n, "reason": difference.reason}


def _unscaled(difference: Estimate | None, metric: MetricChoice) -> tuple[float, float, float]:
    if difference is None:
        return math.nan, math.nan, math.nan
    return metric.unscaled(difference.value), metric.unscaled(difference.lo), metric.unscaled(difference.hi)


def _laws(laws: Laws) -> dict[str, Any]:
    return {
        "metrics": {name: _fit(fit) for name, fit in laws.metrics.items()},
        "best_share": _fit(laws.share),
        "verdict": None if laws.verdict is None else plain(laws.verdict),
        "verdict_note": laws.verdict_note,
    }


def _fit(fit: Fit) -> dict[str, Any]:
    if fit.law is None:
        return {"law": None, "note": fit.note}
    law = {key: value for key, value in plain(fit.law).items() if key != "resampled"}
    return {"law": law, "note": fit.note}


def _metric_names(estimates: Iterable[Mapping[str, Estimate]]) -> list[str]:
    """Every name that any cell has, in the order of first appearance."""
    return list(dict.fromkeys(name for each in estimates for name in each))


def _estimate_columns(name: str, estimate: Estimate | None) -> Row:
    e = estimate or Estimate(value=math.nan, lo=math.nan, hi=math.nan, n=0)
    return {name: e.value, f"{name}_eval_lo": e.lo, f"{name}_eval_hi": e.hi, f"{name}_n": e.n}


def _score_columns(name: str, score: Score | None) -> Row:
    parts = ("seed_lo", "seed_hi", "eval_lo", "eval_hi", "n")
    return {name: None if score is None else score.value} | {
        f"{name}_{part}": None if score is None else getattr(score, part) for part in parts
    }


def _field(value: Any) -> Any:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else value
