"""Mean change inside and outside the marked region (the figure of Mediffusion)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate.scores import MACRO
from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import CONTROL_STYLE, bars, colours, legend_below, nothing, panels
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import budget_name, dataset_name, map_name, method_name, sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_change(evidence: Evidence) -> Figure:
    """Draw the mean change inside and outside the region per finding, plain and with the control subtracted."""
    from matplotlib.colors import to_rgba

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
    names = [f"{dataset_name(d)}: {method_name(m)}\n{budget_name(b)}" for d, m, b in drawn]
    figure, axes = panels(names)
    look = colours(evidence.order)
    for axis, (dataset, method, labels) in zip(axes, drawn, strict=True):
        findings = rows.findings(dataset, "change_inside")
        places = rows.places(dataset, labels, method, "change_inside")
        colour = look[method][0] if method in look else CONTROL_STYLE[method][0]
        width = 0.8 / (2 * len(places))
        for p, place in enumerate(places):
            for side, (metric, alpha) in enumerate((("change_inside", 1.0), ("change_outside", 0.35))):
                values = [rows.summary(dataset, labels, method, metric, finding=f, map=place) for f in findings]
                axis.bar(
                    np.arange(len(findings)) - 0.4 + (2 * p + side + 0.5) * width,
                    [v.mean for v in values],
                    width * 0.92,
                    yerr=bars(values),
                    facecolor=to_rgba(colour, alpha),
                    edgecolor="white" if p else "none",
                    hatch="////" if p else None,
                    error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
                )
                if axis is axes[0]:  # in the legend all methods are grey
                    grey = {
                        "facecolor": to_rgba("#555555", alpha),
                        "edgecolor": "white",
                        "hatch": "////" if p else None,
                    }
                    axis.bar([0], [math.nan], label=f"{map_name(place)}, {metric.removeprefix('change_')}", **grey)
        axis.set_xticks(range(len(findings)), ["all findings" if f == MACRO else sentence(f) for f in findings])
        if max(len(f) for f in findings) * len(findings) > 45:
            axis.tick_params(axis="x", rotation=35)
        axis.set_ylabel("mean change (% of range)")
    legend_below(figure, axes, columns=2)
    return figure


def _has_change(rows: Scores, dataset: str, method: str, labels: str) -> bool:
    places = rows.places(dataset, labels, method, "change_inside")
    return any(not math.isnan(rows.summary(dataset, labels, method, "change_inside", map=p).mean) for p in places)
