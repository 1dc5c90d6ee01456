"""How MLflow's pages open: which runs of an experiment, in which columns, order and groups, and with which charts.

MLflow keeps what its "Share" button saves as a tag of the experiment, and a link that bears the tag's key opens it. The
state is JSON: the filter and order of the search, and the columns, groups and charts of the page (as of MLflow 3).
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

SHARED = "mlflow.sharedViewState."  # beginning of a tag; what follows is the key in the link
PICTURES = ".pictures"  # end of the key of the page of pictures
SCORE = "test/auroc"

_GROUPS = ("method", "labels")
_METRICS = (
    SCORE,
    "test/average_precision",
    "test/accuracy",
    "test/ece",
    "validation/auroc",
    "test/frechet_distance",
    "cost/train_seconds",
)
_CHARTS = (
    ("BAR", SCORE),
    ("BAR", "test/accuracy"),
    ("BAR", "cost/train_seconds"),
    ("LINE", "validation/auroc"),
    ("LINE", "train/loss"),
)
_IMAGES = ("images/generated", "images/explanations")


def experiment_tags(datasets: list[str]) -> dict[str, str]:
    """Return an experiment's tags: its kind, its first metric, and for each data set the states of two pages."""
    states = {dataset: _scores(dataset) for dataset in datasets}
    states |= {dataset + PICTURES: _pictures(dataset) for dataset in datasets}
    return {
        "mlflow.experimentKind": "custom_model_development",  # else MLflow offers pages for chat bots
        "mlflow.experiment.primaryMetric.name": SCORE,
        "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
        **{SHARED + key: json.dumps(state, separators=(",", ":")) for key, state in states.items()},
    }


def links(server: str, experiment: str, tags: dict[str, str]) -> dict[str, str]:
    """Return the addresses of an experiment's pages by what they show.

    Args:
        server: address of the MLflow server.
        experiment: the experiment's id in MLflow.
        tags: the experiment's tags.
    """
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode="
    keys = sorted(tag.removeprefix(SHARED) for tag in tags if tag.startswith(SHARED))
    return {
        key.replace(".", ", "): f"{page}{'CHART' if key.endswith(PICTURES) else 'TABLE'}&viewStateShareKey={quote(key)}"
        for key in keys
    }


def _scores(dataset: str) -> dict[str, Any]:
    """Show all trainings on a data set, grouped so that means over seeds stand in a line, the best first."""
    columns = [f"tags.`{name}`" for name in (*_GROUPS, "seed")] + [f"metrics.`{name}`" for name in _METRICS]
    order = ["attributes.`Run Name`", *columns, "duration", "runDateAndNestInfo"]
    widths = {name: 380 if "Run Name" in name else 90 if name.startswith("tags.") else 120 for name in order}
    groups = [{"mode": "tag", "groupByData": name} for name in _GROUPS]
    line = {"xAxisKey": "step", "scaleType": "linear", "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    charts = [
        {"type": kind, "metricKey": key, "selectedMetricKeys": [key], **(line if kind == "LINE" else {})}
        for kind, key in _CHARTS
    ]
    return {
        **_page(f"tags.kind = 'training' and tags.dataset = '{dataset}'", "Which method at which budget?", charts),
        "selectedColumns": columns,
        "columnOrder": order,
        "columnWidths": widths,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": groups},
    }


def _pictures(dataset: str) -> dict[str, Any]:
    """Show the pictures of a data set's runs side by side; groups have none, so the runs stand alone."""
    charts = [{"type": "IMAGE", "imageKeys": list(_IMAGES), "step": 0, "showRunParams": False}]
    search = f"tags.`mlflow.loggedImages` = 'True' and tags.dataset = '{dataset}'"
    return _page(search, "Pictures", charts, columns=1, cardHeight=800)


def _page(search: str, section: str, charts: list[dict[str, Any]], **layout: int) -> dict[str, Any]:
    common = {"metricSectionId": "first", "runsCountToCompare": 20}
    return {
        "searchFilter": search,
        "orderByKey": f"metrics.`{SCORE}`",
        "orderByAsc": False,
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,  # our section stays first; else MLflow sorts them by name
        "compareRunSections": [{"uuid": "first", "name": section, "display": True, "isReordered": False, **layout}],
        "compareRunCharts": [{**chart, **common, "uuid": f"chart {index}"} for index, chart in enumerate(charts)],
    }
