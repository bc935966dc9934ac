"""Views of studies: what they show, and that MLflow's own page knows the form that they are kept in."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import mlflow
import pytest

from harness.adapters.mlflow_view import COMPRESSED, KIND, VIEW_TAG, page_address, shared_view
from harness.answers.question import MetricChoice, Question
from harness.budget import Currency
from harness.view import BUDGET, COST, FIRST_RUNG, View, plan_view, split_view, sweep_view

KL = MetricChoice(name="forward_kl", log=True)
QUESTION = Question(
    first="fm",
    second="pg",
    refinement="fm_tail",
    metric=KL,
    beside=(MetricChoice(name="nll"), MetricChoice(name="ess_q", direction="max")),
    quality="nll",
)
SETTINGS = tuple(f"setting_{k}" for k in range(12))
VIEWS = {
    "split": split_view(QUESTION, Currency.FLOP),
    "plan": plan_view(QUESTION),
    "sweep": sweep_view(KL, SETTINGS, always=SETTINGS[2:], costs=True),
}
MOST_TAG_CHARACTERS = 5000
"""Of a tag of an experiment, in MLflow."""


def state_of(view: View) -> dict[str, Any]:
    text = shared_view(view, "s1")
    assert len(text) < MOST_TAG_CHARACTERS
    return json.loads(zlib.decompress(base64.b64decode(text.removeprefix(COMPRESSED))))


def test_a_budget_study_opens_on_its_frontier_and_one_seed() -> None:
    state = state_of(VIEWS["split"])
    assert state["searchFilter"] == "tags.study = 's1' and tags.view = 'compare'"
    frontier, share, plans, further = state["compareRunCharts"]
    assert frontier["selectedMetricKeys"] == [
        f"answer/{way}_forward_kl" for way in ("fm_only", "pg_only", "hybrid", "best")
    ]
    assert (frontier["selectedXAxisMetricKey"], frontier["scaleType"]) == (BUDGET, "log")
    assert (share["metricKey"], share["scaleType"]) == ("answer/best_share", "linear")
    assert (plans["metricKey"], plans["selectedXAxisMetricKey"]) == ("test/forward_kl", COST)
    assert further["metricKey"] == "test/ess_q"
    assert "tags.`plan`" in state["selectedColumns"]


def test_a_sweep_opens_on_its_losses_and_settings_the_best_first() -> None:
    state = state_of(VIEWS["sweep"])
    losses, settings = state["compareRunCharts"]
    assert losses["selectedXAxisMetricKey"] == "sweep/cost"
    assert len(settings["selectedParams"]) + len(settings["selectedMetrics"]) == 6
    assert settings["selectedMetrics"] == [FIRST_RUNG]
    assert settings["selectedParams"][0] == "setting_2", "a point without a setting would not be drawn"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`sweep/loss`", True)


@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_charts_stand_in_their_section(view: View) -> None:
    state = state_of(view)
    (section,) = state["compareRunSections"]
    assert section["name"].lower() < "again", "sections of metrics come after it"
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {section["uuid"]}
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(view.charts)


def test_mlflows_page_knows_every_word_of_a_view() -> None:
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    page = "".join(script.read_text() for script in sorted(scripts.glob("*.js")))
    states = [state_of(view) for view in VIEWS.values()]
    words = {word for state in states for word in state}
    words |= {word for state in states for chart in state["compareRunCharts"] for word in chart}
    words |= {word for state in states for section in state["compareRunSections"] for word in section}
    words |= {VIEW_TAG, KIND, "viewStateShareKey", "compareRunsMode", "FIRST_20_RUNS", "PARALLEL", "LINE"}
    assert len(words) > 30
    assert sorted(word for word in words if word not in page) == []


def test_the_address_is_of_the_view() -> None:
    address = page_address("http://host:1/", "7", "s 1")
    assert address == "http://host:1/#/experiments/7/runs?compareRunsMode=CHART&viewStateShareKey=s%201"
