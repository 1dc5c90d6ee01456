"""Published numbers: which of them can stand beside ours."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jointdiff.report.layout import Cell, Column, Line
from jointdiff.report.statistics import Scores, Summary


@dataclass(frozen=True)
class Reported:
    """A published number, as its file says it."""

    system: str
    dataset: str
    setting: str
    metric: str
    value: str
    source: str


def read_published(path: Path | str) -> list[Reported]:
    """Read published numbers.

    Raises:
        ValueError: the file has other columns.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as stream:
        lines = list(csv.DictReader(stream))
    wanted = set(Reported.__dataclass_fields__)
    if lines and set(lines[0]) != wanted:
        raise ValueError(f"{path}: columns must be {', '.join(Reported.__dataclass_fields__)}")
    return [Reported(**line) for line in lines]


def matching(reported: Reported, *, dataset: str, size: str, labels: str, metric: str) -> float:
    """Return a published number in our unit where data set, image size, budget and metric are the same, else NaN.

    A setting with any further word is another setting: nothing is shown beside what it cannot be compared with.
    """
    names = {_bare(dataset), _bare(f"{dataset}{size}px")}
    ours = {"auroc": {"auroc": 0.01}, "accuracy": {"accuracy": 0.01, "error": -0.01}}.get(metric, {})
    factor = ours.get(reported.metric.lower())
    if _bare(reported.dataset) not in names or factor is None or _budget(reported.setting) != labels:
        return math.nan
    return float(reported.value) * factor + (1.0 if factor < 0 else 0.0)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _budget(setting: str) -> str:
    if setting == "full labels":
        return "all"
    if found := re.fullmatch(r"(\d+) labels", setting):
        return found[1]
    found = re.fullmatch(r"([\d.]+) % labels", setting)
    return f"{float(found[1]) / 100:g}" if found else ""


def reported_lines(
    rows: Scores, dataset: str, columns: Sequence[Column], budgets: Sequence[str], reported: Sequence[Reported]
) -> tuple[Line, ...]:
    """Return a line for each published system that has a number in any of the columns."""
    size = rows.image_size(dataset)
    lines: dict[tuple[str, str], list[Cell]] = {}
    for number in reported:
        for c, column in enumerate(columns):
            labels = budgets[c % len(budgets)]
            value = matching(number, dataset=dataset, size=size, labels=labels, metric=column.metric)
            if not math.isnan(value):
                cells = lines.setdefault((number.system, number.source), [Cell()] * len(columns))
                cells[c] = Cell(Summary(mean=value))
    return tuple(
        Line(system, tuple(cells), competes=False, note=f"reported by {source}")
        for (system, source), cells in lines.items()
    )
