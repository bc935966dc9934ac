"""What score_estimator.py measured: rows with intervals, slopes of the bias, tables and pictures.

Shapes: P points, R bootstrap replicates, K noises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.answers.export import write_csv
from harness.answers.report import table
from models.estimators import BootstrapMeans, Estimate, mean_estimate, proportion_estimate, undefined
from models.estimators.estimate import LEVEL, resampling_counts
from models.score_estimator import Form

Records = Mapping[str, list[float]]
Array = NDArray[np.float64]
Row = dict[str, Any]

MEASURES = ("bias", "relative_bias", "variance", "cosine")
ASYMPTOTIC = 10.0
"""The law of 1 / K is asked of K that many times E (p / P)^2, the number of noises that count as one."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is measured by itself. x: noise time (part "target") or dimension."""

    part: str
    form: Form
    x: float
    samples: int

    @property
    def title(self) -> str:
        return f"{self.part}, {self.form}, {self.x:g}, K = {self.samples}"


def report(folder: Path, found: Mapping[Piece, Records]) -> str:
    """Write every file and picture; the text to print."""
    parts = {part: {p: r for p, r in found.items() if p.part == part} for part in ("target", "dimension", "sampling")}
    texts, files = [], []
    if parts["target"]:
        rows, slopes = error_rows(parts["target"], "time"), slope_rows(parts["target"])
        write_csv(folder / "errors.csv", rows)
        write_csv(folder / "slopes.csv", slopes)
        draw_errors(folder / "errors.png", rows)
        texts += [error_table(rows), slope_table(slopes)]
        files += ["errors.csv", "slopes.csv", "errors.png"]
    if parts["dimension"]:
        rows = error_rows(parts["dimension"], "dimension")
        write_csv(folder / "dimension.csv", rows)
        draw_dimension(folder / "dimension.png", rows)
        texts.append(dimension_table(rows))
        files += ["dimension.csv", "dimension.png"]
    for piece, records in parts["sampling"].items():
        rows = sampling_rows(records)
        write_csv(folder / "sampling.csv", rows)
        draw_sampling(folder / "sampling.png", records, int(piece.x))
        texts.append(sampling_table(rows, piece))
        files += ["sampling.csv", "sampling.png"]
    listed = "\n".join(f"  {name}" for name in files)
    return "\n\n".join([*texts, f"in {folder}:\n{listed}"])


def measures(records: Records) -> dict[str, Estimate]:
    """Over points, with bootstrap intervals: root mean square bias, that relative to the score, variance, cosine."""
    columns = {name: np.asarray(records[name]) for name in ("bias_square_P", "score_square_P", "variance_P")}
    means = BootstrapMeans.of(columns, seed=0)
    cosine = mean_estimate(records["cosine_P"], seed=0)
    variance = means.estimate(lambda m: m["variance_P"] / m["score_square_P"])
    if means.means["bias_square_P"] <= 0.0:
        bias = relative = undefined("the bias is not told from zero", n=means.n)
    else:
        bias = means.estimate(lambda m: np.sqrt(np.maximum(m["bias_square_P"], 0.0)))
        relative = means.estimate(lambda m: np.sqrt(np.maximum(m["bias_square_P"], 0.0) / m["score_square_P"]))
    return {"bias": bias, "relative_bias": relative, "variance": variance, "cosine": cosine}


def error_rows(found: Mapping[Piece, Records], axis: str) -> list[Row]:
    """A row for every piece. The variance is the trace of the covariance over the mean square of the exact score."""
    rows = []
    for piece, records in found.items():
        row: Row = {"form": piece.form, axis: piece.x, "samples": piece.samples}
        for name, e in measures(records).items():
            row |= {name: e.value, f"{name}_eval_lo": e.lo, f"{name}_eval_hi": e.hi, f"{name}_reason": e.reason}
        rows.append(
            row | {"weight_square": float(np.median(records["weight_square_P"])), "points": len(records["cosine_P"])}
        )
    return rows


def slope_rows(found: Mapping[Piece, Records]) -> list[Row]:
    """Slope of log bias in log K, over the K and at the points where 1 / K should rule: see `ruled`."""
    rows = []
    for form, tau in dict.fromkeys((piece.form, piece.x) for piece in found if piece.form != "jensen"):
        held = ruled({p.samples: r for p, r in found.items() if (p.form, p.x) == (form, tau)})
        e = slope_estimate(held)
        row: Row = {"form": form, "time": tau, "slope": e.value, "slope_eval_lo": e.lo, "slope_eval_hi": e.hi}
        rows.append(
            row | {"points": e.n, "from_samples": min(held, default=0), "counts": len(held), "reason": e.reason}
        )
    return rows


def ruled(held: Mapping[int, Records]) -> dict[int, Array]:
    """Squared biases of the points that K is large enough for, from the smallest K on that is so for half of them."""
    needed_P = ASYMPTOTIC * np.asarray(next(iter(held.values()))["weight_square_P"])
    counts = [k for k in held if np.mean(needed_P <= k) >= 0.5]
    points = needed_P <= min(counts, default=0)
    return {k: np.asarray(held[k]["bias_square_P"])[points] for k in counts}


def slope_estimate(bias_square: Mapping[int, Array]) -> Estimate:
    """The least-squares slope of log bias against log K with its percentile interval over points."""
    n = len(next(iter(bias_square.values()))) if bias_square else 0
    if len(bias_square) < 2:
        return undefined("fewer than two K are large enough", n=n)
    log_k = np.log(np.array(list(bias_square), dtype=np.float64))
    table_PK = np.stack(list(bias_square.values()), axis=1)
    means_RK = np.concatenate([counts_RP @ table_PK / n for counts_RP in resampling_counts(n, seed=0)])
    lever_K = (log_k - log_k.mean()) / np.square(log_k - log_k.mean()).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(0.5 * np.log(table_PK.mean(axis=0)) @ lever_K)
        slopes_R = 0.5 * np.log(means_RK) @ lever_K
    if not (math.isfinite(value) and np.isfinite(slopes_R).all()):
        return undefined("a bias is not told from zero", n=n)
    lo, hi = np.quantile(slopes_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, lo=float(lo), hi=float(hi), n=n)


def sampling_rows(records: Records) -> list[Row]:
    """Samples of the estimate alone beside exact ones: energy per dimension, weight of the first mode, width."""
    rows = []
    for who in ("model", "exact"):
        first = np.asarray(records[f"{who}/first"])
        found = {
            "energy_per_dimension": mean_estimate(records[f"{who}/energy_per_dimension"], seed=0),
            "first_mode": proportion_estimate(int((first < 0).sum()), len(first)),
        }
        if records[f"{who}/width"]:
            found["width"] = mean_estimate(records[f"{who}/width"], seed=0)
        row: Row = {"samples_of": who, "n": len(first)}
        for name, e in found.items():
            row |= {name: e.value, f"{name}_eval_lo": e.lo, f"{name}_eval_hi": e.hi}
        rows.append(row)
    return rows


def error_table(rows: Sequence[Row]) -> str:
    """At the largest K: all measures of all forms and times."""
    largest = max(row["samples"] for row in rows)
    lines = [
        [row["form"], f"{row['time']:g}", *(shown(row, name) for name in MEASURES[1:])]
        for row in rows
        if row["samples"] == largest
    ]
    legend = (
        "bias over the root mean square of the exact score, variance over its mean square; [ ] 95 % bootstrap interval "
        f"over n = {rows[0]['points']} points; -: not told from zero"
    )
    return f"K = {largest}\n{table(['form', 'time', 'bias', 'variance', 'cosine'], lines)}\n{legend}"


def slope_table(slopes: Sequence[Row]) -> str:
    lines = [
        [s["form"], f"{s['time']:g}", str(s["from_samples"]), str(s["counts"]), str(s["points"]), shown(s, "slope")]
        for s in slopes
    ]
    return "slope of log bias in log K\n" + table(["form", "time", "K from", "counts", "points", "slope"], lines)


def dimension_table(rows: Sequence[Row]) -> str:
    lines = [
        [f"{row['dimension']:.0f}", f"{row['weight_square']:.3g}", *(shown(row, name) for name in MEASURES[1:])]
        for row in rows
    ]
    head = f"two modes, K = {rows[0]['samples']}, noise as wide as a mode"
    return head + "\n" + table(["dimension", "noises that count as one, median", "bias", "variance", "cosine"], lines)


def sampling_table(rows: Sequence[Row], piece: Piece) -> str:
    names = [name for name in ("energy_per_dimension", "first_mode", "width") if name in rows[0]]
    lines = [[row["samples_of"], str(row["n"]), *(shown(row, name) for name in names)] for row in rows]
    head = f"{piece.x:.0f} dimensions, reverse process driven by clipped S_K alone, K = {piece.samples}"
    return head + "\n" + table(["samples of", "n", *(name.replace("_", " ") for name in names)], lines)


def shown(row: Row, name: str) -> str:
    """A value with its interval, or a dash."""
    value, lo, hi = row[name], row[f"{name}_eval_lo"], row[f"{name}_eval_hi"]
    return f"{value:.4g} [{lo:.4g}, {hi:.4g}]" if math.isfinite(value) else "-"


def draw_errors(path: Path, rows: Sequence[Row]) -> None:
    """Three pictures with a panel a measure: against K by time and by form, and against time by form."""
    # Matplotlib is imported late, so that a wrong option does not wait for it.
    from harness.answers.figure_changes import CurvePanel, draw_curves

    times, counts = sorted({row["time"] for row in rows}), sorted({row["samples"] for row in rows})
    middle, largest = times[len(times) // 2], counts[-1]
    labels = {"bias": "relative bias", "variance": "relative variance", "cosine": "1 - cosine"}
    by_time = {f"time {tau:g}": [r for r in rows if (r["form"], r["time"]) == (rows[0]["form"], tau)] for tau in times}
    forms = list(dict.fromkeys(row["form"] for row in rows))
    by_form = {form: [r for r in rows if (r["form"], r["time"]) == (form, middle)] for form in forms}
    over_time = {form: [r for r in rows if (r["form"], r["samples"]) == (form, largest)] for form in forms}
    for groups, axis, name, title in (
        (by_time, "samples", "", f"{rows[0]['form']} form"),
        (by_form, "samples", "_forms", f"time {middle:g}"),
        (over_time, "time", "_times", f"K = {largest}"),
    ):
        panels = [
            CurvePanel(
                title=f"{label}, {title}",
                xlabel="K" if axis == "samples" else "noise time",
                ylabel=label,
                curves=[curve(group, axis, measure, each) for group, each in groups.items()],
            )
            for measure, label in labels.items()
        ]
        caption = (
            "GMM40 in [-1, 1]. Bias over the root mean square of the exact score, variance over its mean square. "
            f"Shaded: 95 % bootstrap intervals over n = {rows[0]['points']} points."
        )
        draw_curves(path.with_name(path.stem + name + path.suffix), panels, caption=caption)


def draw_dimension(path: Path, rows: Sequence[Row]) -> None:
    from harness.answers.figure_changes import CurvePanel, draw_curves

    labels = {"bias": "relative bias", "variance": "relative variance", "cosine": "1 - cosine"}
    panels = [
        CurvePanel(title=label, xlabel="dimension", ylabel=label, curves=[curve("S_K", "dimension", name, rows)])
        for name, label in labels.items()
    ]
    caption = (
        f"Two modes, noise as wide as a mode, K = {rows[0]['samples']}. Shaded: 95 % bootstrap intervals over points."
    )
    draw_curves(path, panels, caption=caption)


def draw_sampling(path: Path, records: Records, dim: int) -> None:
    from harness.answers.figure_changes import draw_distributions

    states = {name: records[f"{name}/energy_per_dimension"] for name in ("exact", "model")}
    draw_distributions(path, {f"{dim} dimensions": states}, label="energy per dimension / kT")


def curve(label: str, axis: str, measure: str, rows: Sequence[Row]) -> Any:
    """A measure against an axis; of a cosine, what it lacks of one."""
    from harness.answers.figure_changes import Curve

    name = "relative_bias" if measure == "bias" else measure
    y, lo, hi = ([row[name + end] for row in rows] for end in ("", "_eval_lo", "_eval_hi"))
    if measure == "cosine":
        y, lo, hi = ([1.0 - value for value in values] for values in (y, hi, lo))
    return Curve(label=label, x=[row[axis] for row in rows], y=y, lo=lo, hi=hi)
