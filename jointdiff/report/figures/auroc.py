"""AUROC against the label budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import CONTROL_STYLE, bars, colours, legend_below, nothing, panels
from jointdiff.report.wording import budget_name, dataset_name, method_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_auroc(evidence: Evidence) -> Figure:
    """Draw macro AUROC against the label budget, with the mean over seeds of the 95 % intervals."""
    rows = evidence.rows
    datasets = rows.distinct("dataset", metric="auroc")
    if not datasets:
        return nothing("No classification scores.")
    figure, axes = panels([dataset_name(dataset) for dataset in datasets])
    look = colours(evidence.order)
    for axis, dataset in zip(axes, datasets, strict=True):
        budgets = rows.budgets(dataset)
        place = np.arange(len(budgets))
        shift = np.linspace(-0.07, 0.07, max(len(look), 2))
        for i, method in enumerate(look):
            values = [rows.summary(dataset, labels, method, "auroc") for labels in budgets]
            if all(math.isnan(v.mean) for v in values):
                continue
            colour, marker = look[method]
            axis.errorbar(
                place + shift[i],
                [v.mean for v in values],
                yerr=bars(values),
                color=colour,
                marker=marker,
                capsize=2.5,
                elinewidth=1,
                label=method_name(method),
            )
        # The axis shows the competitors; a floor far below them is named instead of drawn.
        bottom, below = axis.get_ylim()[0], []
        for method, (colour, line) in CONTROL_STYLE.items():
            values = [rows.summary(dataset, labels, method, "auroc") for labels in budgets]
            if all(math.isnan(v.mean) for v in values):
                values = [rows.summary(dataset, "all", method, "auroc")] * len(budgets)
            means = [v.mean for v in values]
            if any(mean < bottom for mean in means):
                below.append(f"{method_name(method).lower()}: {np.nanmean(means):.2f} ↓")
            elif not all(math.isnan(mean) for mean in means):
                ends = np.r_[-0.35, place, len(budgets) - 0.65]
                axis.plot(ends, [means[0], *means, means[-1]], line, color=colour, label=method_name(method), zorder=1)
        axis.set_xticks(place, [budget_name(labels) for labels in budgets])
        axis.set_xlim(-0.35, len(budgets) - 0.65)
        axis.set_ylabel("macro AUROC")
        axis.set_ylim(bottom, min(1.0 + 0.04 * (1.0 - bottom), axis.get_ylim()[1]))
        axis.set_title("\n".join(below), loc="right", color="#666666", fontsize=8)
    legend_below(figure, axes)
    return figure
