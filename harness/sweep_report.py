"""What a sweep found: the best point, the table of trials, importance with intervals, pictures and CSV files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.answers.export import write_csv
from harness.answers.figure_sweep import Mark, draw_history, draw_importance, draw_slices
from harness.answers.importance import Importance, importances, verdict
from harness.answers.pareto import Priced, draw_pareto, hypervolume, pareto_front
from harness.answers.report import table
from harness.finished_study import AGAIN
from harness.sweep import Sweep
from harness.sweep_again import Again, again_rows, again_text, train_again
from harness.sweep_points import neutral
from harness.sweep_run import SweepRun, SweptPoint

Share = Callable[..., Mapping[str, float]]
"""(space, points, results, seed=...) to the share of each name, such as functional ANOVA."""
SUMMARY = "summary"


def conclude_sweep(
    run: SweepRun, points: Sequence[SweptPoint], *, share: Share, resamples: int, again: Again | None = None
) -> str:
    """Train the best points again where asked, write everything, also into a summary run; the text to print."""
    sweep = run.sweep
    found = importance_of(sweep, points, share=share, resamples=resamples)
    files = write_files(run, points, found)
    further = [] if not any(priced(point) for point in points) else [front_text(run, points)]
    (run.folder / AGAIN).unlink(missing_ok=True)  # of other points, where a sweep was prolonged
    if again is not None:
        trained = train_again(run, points, again)
        write_csv(run.folder / AGAIN, again_rows(trained, again))
        files.append(run.folder / AGAIN)
        further.append(again_text(sweep, trained, again))
    failures = [f"failed: {result.spec.name}: {result.error}" for result in run.session.failures]
    parts = [trial_table(sweep, points), best_text(sweep, points), importance_text(sweep, found), *further, *failures]
    text = "\n\n".join(parts)
    params = {"points": len(points), "rungs": ", ".join(map(str, sweep.ladder.steps)), "pruner": sweep.pruner}
    run.recorder.start(
        SUMMARY, name=f"{SUMMARY} · {sweep.name}", params={}, tags={k: str(v) for k, v in params.items()}
    )
    for file in (*files, run.folder / "study.json"):
        if file.is_file():
            run.recorder.attach(SUMMARY, file)
    run.recorder.describe(SUMMARY, f"```\n{text}\n```")
    run.recorder.finish(SUMMARY, "finished")
    return f"{text}\n\nin {run.folder}:\n  {', '.join(file.name for file in files)}"


def judged_first(points: Sequence[SweptPoint]) -> list[SweptPoint]:
    """Those that have a result at the first rung: judged there, or failed on the way to it."""
    return [point for point in points if point.rungs or point.tried.state == "failed"]


def first_loss(point: SweptPoint) -> float:
    return point.rungs[0].loss if point.rungs else math.inf


def importance_of(
    sweep: Sweep, points: Sequence[SweptPoint], *, share: Share, resamples: int
) -> tuple[Importance, ...]:
    """Of every setting for the loss at the first rung, which pruning has not thinned out yet.

    A setting that does not act on a point stands at its neutral value there, so that nothing is credited to it.
    """
    held, space = judged_first(points), sweep.space
    filled = [neutral(space) | sweep.acting(point.tried.values) for point in held]
    return importances(
        filled,
        [first_loss(point) for point in held],
        shares=lambda some, results, seed: share(space, some, results, seed=seed),
        resamples=resamples,
        seed=sweep.setting.seeds[0],
    )


def best_point(points: Sequence[SweptPoint]) -> SweptPoint | None:
    done = [point for point in points if point.tried.state == "finished"]
    return min(done, key=lambda point: point.rungs[-1].loss if point.rungs else math.inf, default=None)


def best_text(sweep: Sweep, points: Sequence[SweptPoint]) -> str:
    best = best_point(points)
    if best is None or not best.rungs:
        return "best: no point reached the last rung"
    last, settings = best.rungs[-1], ", ".join(f"{k} {short(v)}" for k, v in sweep.acting(best.tried.values).items())
    seeds = len(sweep.setting.seeds)
    return (
        f"best: point {best.tried.number}: {settings}\n"
        f"{sweep.question.metric.title} {last.loss:.4g} on validation points, {last.test_loss:.4g} on test points, "
        f"after {sweep.rungs[-1]}, mean of {seeds} seed{'' if seeds == 1 else 's'}. It was chosen by the validation "
        "points as the best of many, so train it with fresh seeds before comparing it"
    )


def trial_table(sweep: Sweep, points: Sequence[SweptPoint]) -> str:
    """Every point with its state, settings, and the loss at each rung that it reached."""
    steps = sweep.ladder.steps
    header = ["point", "state", *sweep.space, *(f"at {name}" for name in sweep.rungs), "device-s"]
    rows = []
    for point in points:
        acting = sweep.acting(point.tried.values)
        losses = {rung.steps: f"{rung.loss:.4g}" for rung in point.rungs}
        settings = [short(acting[name]) if name in acting else "-" for name in sweep.space]
        cells = [losses.get(n, "-") for n in steps]
        rows.append([str(point.tried.number), point.tried.state, *settings, *cells, f"{point.device_seconds:.3g}"])
    states = [point.tried.state for point in points]
    count = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    legend = f"{sweep.question.metric.title} on validation points; {count}"
    return "\n".join([table(header, rows), legend])


def importance_text(sweep: Sweep, found: Sequence[Importance]) -> str:
    if not found:
        return verdict(found)
    rows = [[one.name, f"{one.share:.2f} [{one.lo:.2f}, {one.hi:.2f}]", f"{one.chance:.2f}"] for one in found]
    legend = (
        f"share of the variance of ranks at the first rung ({sweep.rungs[0]}), which every trial reached; "
        f"[ ] 95 % bootstrap interval over n = {found[0].n} trials; chance: 95 % of shuffled results stay below"
    )
    return "\n".join([table(["setting", "importance", "chance"], rows), legend, verdict(found)])


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_files(run: SweepRun, points: Sequence[SweptPoint], found: Sequence[Importance]) -> list[Path]:
    """trials.csv, importance.csv and the pictures; their paths."""
    sweep, folder = run.sweep, run.folder
    title = sweep.question.metric.title
    trials, shares = folder / "trials.csv", folder / "importance.csv"
    write_csv(trials, [row for point in points for row in rung_rows(sweep, point)])
    write_csv(shares, [asdict(one) for one in found])
    history, slices, bars = (folder / name for name in ("history.png", "slices.png", "importance.png"))
    marks = [mark_of(sweep, point) for point in points]
    draw_history(history, marks, title=title)
    draw_slices(slices, marks, list(sweep.space), title=title, rung=sweep.rungs[0])
    draw_importance(bars, found)
    files = [trials, shares, history, slices, bars]
    if judged := [one for point in points for one in priced(point)]:
        files.append(folder / "pareto.png")
        draw_pareto(files[-1], judged, title=title, currency=currency_of(run))
    return files


def priced(point: SweptPoint) -> list[Priced]:
    """A point on every rung that it was judged on, where rungs have a cost."""
    return [
        Priced(name=f"{point.tried.number} on rung {number}", cost=rung.cost, loss=rung.loss)
        for number, rung in enumerate(point.rungs, start=1)
        if rung.cost is not None
    ]


def currency_of(run: SweepRun) -> str:
    return run.meaning.currency


def front_text(run: SweepRun, points: Sequence[SweptPoint]) -> str:
    """The Pareto front of loss against cost, over all points and rungs."""
    judged = [one for point in points for one in priced(point)]
    title, currency = run.sweep.question.metric.title, currency_of(run)
    rows = [[one.name, f"{one.cost:.3g}", f"{one.loss:.4g}"] for one in pareto_front(judged)]
    legend = f"Pareto front of n = {len(judged)} judged models: none is as cheap and better, on validation points"
    shares = [hypervolume(some, within=judged) for some in (judged[: len(judged) // 2], judged)]
    share = (
        f"behind it lies a share of {shares[1]:.3f} of the box from the cheapest and best to the dearest and median "
        f"(log cost, loss); behind the front of the first half of them {shares[0]:.3f}"
    )
    return "\n".join([table(["point", f"cost / {currency}", title], rows), legend, share])


def rung_rows(sweep: Sweep, point: SweptPoint) -> list[dict[str, Any]]:
    """A row for every rung that a point was judged on, one without a loss where it was judged on none.

    `segments` are the hashes of what was judged, seed by seed, in the order of the seeds.
    """
    tried, acting = point.tried, sweep.acting(point.tried.values)
    start: dict[str, Any] = {"point": tried.number, "state": tried.state, "rungs": len(point.rungs)}
    start |= {name: acting.get(name) for name in sweep.space}
    end = {"device_seconds": point.device_seconds}
    if not point.rungs:
        return [start | {"steps": 0, "loss": None, "test_loss": None, "segments": ""} | end]
    return [
        start
        | {"steps": rung.steps, "loss": rung.loss, "test_loss": rung.test_loss}
        | ({} if rung.cost is None else {"cost": rung.cost, "stages": rung.stages})
        | {"segments": " ".join(rung.segments[seed] for seed in sweep.setting.seeds)}
        | end
        for rung in point.rungs
    ]


def mark_of(sweep: Sweep, point: SweptPoint) -> Mark:
    last = point.rungs[-1].loss if point.rungs else math.inf
    values = sweep.acting(point.tried.values)
    return Mark(number=point.tried.number, state=point.tried.state, values=values, first=first_loss(point), last=last)
