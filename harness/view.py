"""How a study's runs are to be shown when its records are opened: which runs, which charts, which columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.answers.question import MetricChoice, Question
from harness.budget import Currency

SHOWN = {"view": "compare"}
"""Tag of the runs that are shown side by side where all would be too many."""
BUDGET, COST = "answer/budget", "cost/total"
FIRST_RUNG = "sweep/log10_loss_at_first_rung"
MOST_COORDINATES = 6


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Metrics as lines. Args: against: the metric of the x axis, "" for steps. log_x, log_y: logarithmic axes."""

    metrics: tuple[str, ...]
    against: str = ""
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Every run as a line through its settings, coloured by the last metric."""

    params: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a study's page shows first.

    Args:
        title: of the charts. MLflow puts sections in alphabetical order, and this one is to come first.
        tags: that shown runs have, besides their study's.
        sort_by: a metric, smallest first, or "" for the newest run first.
        params, metrics, tag_columns: columns of the table. note: on the experiment.
    """

    title: str
    charts: tuple[Lines | Coordinates, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    sort_by: str = ""
    params: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    tag_columns: tuple[str, ...] = ()
    note: str = ""


def split_view(question: Question, currency: Currency) -> View:
    """The frontier and the best share against budgets, then the first seed's plans against what they cost."""
    metric = question.metric
    ways = (f"{question.first}_only", f"{question.second}_only", "hybrid", "best")
    beside = [choice for choice in question.beside if choice.name != question.quality][:1]
    return View(
        title="A look at the answer by budget, and at plans of one seed",
        charts=(
            Lines(
                metrics=tuple(f"answer/{way}_{metric.name}" for way in ways),
                against=BUDGET,
                log_x=True,
                log_y=metric.log,
            ),
            Lines(metrics=("answer/best_share",), against=BUDGET, log_x=True),
            *(lines_of(choice) for choice in (metric, *beside)),
        ),
        tags=SHOWN,
        metrics=(f"test/{metric.name}", COST),
        tag_columns=("plan", "seed", "fork_steps", "diverged"),
        note=note_on_steps(currency),
    )


def plan_view(question: Question) -> View:
    """What every plan reaches against what it cost."""
    choices = question.metrics[:3]
    return View(
        title="A look at plans against their cost",
        charts=tuple(lines_of(choice) for choice in choices),
        metrics=(*(f"test/{choice.name}" for choice in choices), COST),
        tag_columns=("plan", "seed", "diverged"),
        note=note_on_steps(Currency.DEVICE_SECONDS),
    )


def sweep_view(metric: MetricChoice, settings: tuple[str, ...], *, always: tuple[str, ...], costs: bool) -> View:
    """Losses on the rungs, and which settings go with a small one where all points were judged.

    Args:
        always: those settings that every point has. costs: whether rungs have a cost.
    """
    positive = metric.direction == "min"
    against = "sweep/cost" if costs else ""
    return View(
        title=f"A look at {metric.title} of every point",
        charts=(
            Lines(metrics=("sweep/loss",), against=against, log_x=True, log_y=positive),
            Coordinates(params=always[: MOST_COORDINATES - 1], metrics=(FIRST_RUNG,)),
        ),
        sort_by="sweep/loss",
        params=settings,
        metrics=("sweep/loss", "sweep/test_loss"),
        tag_columns=("state", "rungs"),
        note="A run is a point of the sweep. Steps of sweep/ are those of its rungs, or multiples of their budgets.",
    )


def lines_of(choice: MetricChoice) -> Lines:
    return Lines(metrics=(f"test/{choice.name}",), against=COST, log_x=True, log_y=choice.log)


def note_on_steps(currency: Currency) -> str:
    unit = "millionths of a device-second" if currency is Currency.DEVICE_SECONDS else "thousands of operations"
    return f"Steps are what a plan has cost up to a point, in {unit}: {COST} and {BUDGET} are the same in whole ones."
