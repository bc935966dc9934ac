"""Of online runs: what each saw and decided, what probing took, and the regret against the surface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.answers.export import write_csv
from harness.answers.frontier import best_splits
from harness.answers.regret import Regret, regret_of, regret_rows
from harness.answers.report import difference_text, percent, score_text, table
from harness.answers.surface import Cell
from harness.online_study import OnlineCell, OnlineRun

SUMMARY = "summary"


def conclude_online(run: OnlineRun, cells: Sequence[OnlineCell], surface: Sequence[Cell]) -> str:
    """Write regret.csv and decisions.csv; the text to print."""
    study = run.study
    answers = {answer.budget: answer for answer in best_splits(surface, study.budgets, study.question)}
    regrets = []
    for budget, answer in answers.items():
        held = [online.cell for online in cells if online.budget == budget]
        found = regret_of(held, answer, study.question) if held else None
        regrets += [] if found is None else [found]
    files = [run.folder / "regret.csv", run.folder / "decisions.csv"]
    write_csv(files[0], regret_rows(regrets, study.question))
    write_csv(files[1], decision_rows(run, cells))
    failed = [f"failed: {result.spec.name}: {result.error}" for result in run.session.failures]
    parts = [decision_table(run, cells), regret_table(run, regrets), judging_text(run, cells), *failed]
    text = "\n\n".join(parts)
    summarise(run, files, text)
    return f"{text}\n\nin {run.folder}:\n  {', '.join(file.name for file in files)}"


def decision_table(run: OnlineRun, cells: Sequence[OnlineCell]) -> str:
    """Of every run: where it left the first phase, for what, and which part of its budget it probed in vain."""
    question, currency = run.study.question, run.study.currency
    metric = question.metric
    header = ["budget", "seed", "looks", f"{question.first_title} steps", "then", "steps", "first share", "in vain"]
    rows = []
    for online in sorted(cells, key=lambda each: (each.budget.amount, each.cell.seed)):
        ended, amount = online.ended, online.budget.amount
        estimate = online.cell.test[metric.name]
        rows.append(
            [
                str(online.budget),
                str(online.cell.seed),
                str(len(ended.looked)),
                str(ended.cell.fork_steps),
                ended.cell.tail or "-",
                str(ended.cell.tail_steps),
                percent(ended.cell.trunk_cost.amount(currency) / amount),
                percent(ended.probing.amount(currency) / amount),
                f"{estimate.value:.3g} [{estimate.lo:.2g}, {estimate.hi:.2g}]",
            ]
        )
    legend = f"shares of the budget; {metric.title}: on test points, [ ] over n = {_points(cells, metric.name)} points"
    return "\n".join([table([*header, metric.title], rows), legend]) if rows else "no online run has ended"


def regret_table(run: OnlineRun, regrets: Sequence[Regret]) -> str:
    """The online runs against every fixed way, a row a budget."""
    if not regrets:
        return "no budget of the online runs is reached by the surface"
    metric = run.study.question.metric
    ways = list(dict.fromkeys(way for regret in regrets for way in regret.against))
    relation = "/" if metric.log else "-"
    header = ["budget", f"{metric.title} online", *(text for way in ways for text in (way, f"online {relation} it"))]
    rows = []
    for regret in regrets:
        row = [str(regret.budget), score_text(regret.online)]
        for way in ways:
            held = regret.against.get(way)
            row += (
                ["-", "-"] if held is None else [score_text(held[0], interval=False), difference_text(held[1], metric)]
            )
        rows.append(row)
    seeds = sorted({len(regret.online.by_seed) for regret in regrets})
    legend = (
        f"test points, mean of {seeds[-1]} seeds; [ ] 95 % t interval over seeds, paired. best fixed: chosen "
        "afterwards on all validation points; of other seeds: every seed at the share that the others choose"
    )
    return "\n".join([table(header, rows), legend])


def judging_text(run: OnlineRun, cells: Sequence[OnlineCell]) -> str:
    """Probes are on the clock; judging them is told beside it, as judging is everywhere."""
    looks = {name for online in cells for looked in online.ended.looked for name in looked.judged}
    training = sum(online.ended.cost.device_seconds for online in cells)
    return (
        "probes, also those in vain, count to their run's budget; off the clock: judging "
        f"{len(looks)} probed models took {run.looking_seconds(cells):.0f} device-seconds, where all runs' training, "
        f"each alone, takes {training:.0f} at recorded prices"
    )


def decision_rows(run: OnlineRun, cells: Sequence[OnlineCell]) -> list[dict[str, object]]:
    """A row for every look: what each way just gained, with intervals over validation points, and the verdict."""
    currency, rows = run.study.currency, []
    for online in cells:
        for looked in online.ended.looked:
            row: dict[str, object] = {
                "budget": online.budget.amount,
                "currency": currency.value,
                "seed": online.cell.seed,
                "fork_steps": looked.steps,
                "probe_steps": looked.probe_steps,
                "spent": looked.spent.amount(currency),
                **looked.gains.plain_columns(),
                "worth_of_leaving": None if looked.worth is None else looked.worth.value,
                "worth_of_leaving_eval_lo": None if looked.worth is None else looked.worth.lo,
                "worth_of_leaving_eval_hi": None if looked.worth is None else looked.worth.hi,
                "verdict": looked.verdict,
            }
            rows.append(row)
    return rows


def summarise(run: OnlineRun, files: Sequence[Path], text: str) -> None:
    """Keep the text and the files in a summary run beside those of the budgets."""
    study, recorder = run.study, run.recorder
    params = {
        "budgets": ", ".join(str(budget) for budget in study.budgets),
        "seeds": len(study.setting.seeds),
        **{f"system.{key}": value for key, value in study.setting.problem["system"].items()},
        **{f"rule.{key}": value for key, value in vars(study.rule).items()},
    }
    recorder.start(SUMMARY, name=f"{SUMMARY} · {study.name}", params=params, tags={"plan": SUMMARY})
    for file in (*files, run.folder / "study.json"):
        recorder.attach(SUMMARY, file)
    recorder.describe(SUMMARY, f"```\n{text}\n```")
    recorder.finish(SUMMARY, "failed" if run.session.failures else "finished")


def _points(cells: Sequence[OnlineCell], metric: str) -> int:
    return max((online.cell.test[metric].n for online in cells), default=0)
