"""Mean change inside and outside the marked region (the figure of Mediffusion)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate.scores import MACRO
from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import PALETTE, bars, legend_below, nothing, panels
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import budget_name, dataset_name, map_name, method_name, sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_change(evidence: Evidence) -> Figure:
    """Draw the mean change inside and outside the region per finding, plain and with the control subtracted."""
    rows = evidence.rows
    candidates = []
    for dataset in rows.distinct("dataset", metric="change_inside"):
        for method in evidence.order:
            budgets = rows.distinct("labels", dataset=dataset, method=method, metric="change_inside")
            shown = [labels for labels in budgets if labels != "all"] or budgets
            if shown and rows.places(dataset, shown[-1], method, "change_inside"):
                candidates.append((dataset, method, shown[-1]))
    drawn = [candidate for candidate in candidates if _has_change(rows, *candidate)]
    if not drawn:
        return nothing("No counterfactual with a region to compare with.")
    names = [f"{dataset_name(d)}: {method_name(m)}, {budget_name(b)}" for d, m, b in drawn]
    figure, axes = panels(names, width=4.6, columns=2)
    for axis, (dataset, method, labels) in zip(axes, drawn, strict=True):
        findings = rows.findings(dataset, "change_inside")
        places = rows.places(dataset, labels, method, "change_inside")
        width = 0.8 / (2 * len(places))
        for p, place in enumerate(places):
            for side, (metric, alpha) in enumerate((("change_inside", 1.0), ("change_outside", 0.35))):
                values = [rows.summary(dataset, labels, method, metric, finding=f, map=place) for f in findings]
                axis.bar(
                    np.arange(len(findings)) - 0.4 + (2 * p + side + 0.5) * width,
                    [v.mean for v in values],
                    width * 0.92,
                    yerr=bars(values),
                    color=PALETTE[p],
                    alpha=alpha,
                    error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
                    label=f"{map_name(place)}, {metric.removeprefix('change_')}",
                )
        axis.set_xticks(range(len(findings)), ["all findings" if f == MACRO else sentence(f) for f in findings])
        if max(len(f) for f in findings) * len(findings) > 45:
            axis.tick_params(axis="x", rotation=35)
        axis.set_ylabel("mean change (% of range)")
    legend_below(figure, axes, columns=2)
    return figure


def _has_change(rows: Scores, dataset: str, method: str, labels: str) -> bool:
    places = rows.places(dataset, labels, method, "change_inside")
    return any(not math.isnan(rows.summary(dataset, labels, method, "change_inside", map=p).mean) for p in places)
