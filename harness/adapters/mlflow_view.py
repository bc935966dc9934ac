"""A View in the form in which MLflow 3 keeps a shared view: the tag of an experiment that an address names."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any
from urllib.parse import quote

from harness.identity import content_hash
from harness.view import Coordinates, Lines, View

VIEW_TAG = "mlflow.sharedViewState."
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Without it MLflow takes an experiment for one of language models."""
COMPRESSED = "deflate;"
COLUMNS, CARD_HEIGHT_PIXELS = 2, 400
SECTION = "answer-charts"


def page_address(server: str, experiment_id: str, key: str) -> str:
    """Address of the page that shows a view. Args: server: scheme, host and port. key: of the view."""
    return f"{charts_address(server, experiment_id)}&viewStateShareKey={quote(key)}"


def charts_address(server: str, experiment_id: str) -> str:
    """Address of the charts of all runs of an experiment."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART"


def shared_view(view: View, study: str) -> str:
    """The value of the tag. Args: study: id of the study whose runs are shown."""
    text = json.dumps(view_state(view, study), separators=(",", ":"))
    return COMPRESSED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def view_state(view: View, study: str) -> dict[str, Any]:
    """What MLflow's page remembers of a view, with one section of charts."""
    wanted = {"study": study, **view.tags}
    columns = [
        *(f"params.`{name}`" for name in view.params),
        *(f"metrics.`{name}`" for name in view.metrics),
        *(f"tags.`{name}`" for name in view.tag_columns),
    ]
    section = {"uuid": SECTION, "name": view.title, "columns": COLUMNS, "cardHeight": CARD_HEIGHT_PIXELS}
    kept = {"deleted": False, "isGenerated": False}
    return {
        "searchFilter": " and ".join(f"tags.{name} = '{value}'" for name, value in wanted.items()),
        "orderByKey": f"metrics.`{view.sort_by}`" if view.sort_by else "attributes.start_time",
        "orderByAsc": bool(view.sort_by),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunSections": [{**section, "display": True, "isReordered": False, **kept}],
        "compareRunCharts": [{**card(chart), **kept, "metricSectionId": SECTION} for chart in view.charts],
        "hideEmptyCharts": True,
    }


def card(chart: Lines | Coordinates) -> dict[str, Any]:
    """One chart as MLflow's page describes it."""
    start = {"uuid": content_hash(chart), "runsCountToCompare": 100}
    if isinstance(chart, Coordinates):
        settings = {"selectedParams": list(chart.params), "selectedMetrics": list(chart.metrics), "showAllRuns": True}
        return {**start, "type": "PARALLEL", **settings}
    return {
        **start,
        "type": "LINE",
        "metricKey": chart.metrics[0],
        "selectedMetricKeys": list(chart.metrics),
        "xAxisKey": "metric" if chart.against else "step",
        "selectedXAxisMetricKey": chart.against,
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "log" if chart.log_x else "linear",
        "scaleType": "log" if chart.log_y else "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "ignoreOutliers": False,
        "displayPoints": True,
    }
