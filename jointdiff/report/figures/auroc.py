"""AUROC against the label budget: all methods in a panel for each data set, or of many methods each in its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import CONTROL_STYLE, bars, colours, legend_below, nothing, panels
from jointdiff.report.statistics import Summary
from jointdiff.report.wording import budget_axis, dataset_name, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROWDED = 8  # methods that can be told apart in one panel
ACROSS = 4  # panels of one method each, side by side
HIGHEST = 8.0  # inches of a figure that fits a page with its caption
GREY = "#C4C4C4"
REFERENCE = "supervised"  # which every method of many is held against

Curves = Mapping[str, Sequence[Summary]]  # of each method, at each budget


def draw_auroc(evidence: Evidence) -> Figure:
    """Draw macro AUROC against the label budget, with the mean over seeds of the 95 % intervals."""
    datasets = evidence.rows.distinct("dataset", metric="auroc")
    if not datasets:
        return nothing("No classification scores.")
    curves = {dataset: _curves(evidence, dataset) for dataset in datasets}
    if max(map(len, curves.values())) > CROWDED:
        return _one_by_one(evidence, curves)
    figure, axes = panels([dataset_name(dataset) for dataset in datasets])
    look = colours(evidence.order)
    for axis, dataset in zip(axes, datasets, strict=True):
        shift = np.linspace(-0.07, 0.07, max(len(look), 2))
        for i, method in enumerate(look):
            if method in curves[dataset]:
                _with_bars(axis, curves[dataset][method], look[method], shift=shift[i], label=method_name(method))
        _finish(axis, evidence, dataset)
    legend_below(figure, axes)
    return figure


def _curves(evidence: Evidence, dataset: str) -> Curves:
    """Return the scores of every competitor that has some."""
    rows, found = evidence.rows, {}
    for method in colours(evidence.order):
        values = [rows.summary(dataset, labels, method, "auroc") for labels in rows.budgets(dataset)]
        if not all(math.isnan(v.mean) for v in values):
            found[method] = values
    return found


def _one_by_one(evidence: Evidence, curves: Mapping[str, Curves]) -> Figure:
    """Draw a panel for each method, in front of all others in grey and of supervised learning."""
    shown = [(dataset, method) for dataset, methods in curves.items() for method in methods]
    several = len(curves) > 1
    names = [f"{method_name(m)}\n{dataset_name(d)}" if several else method_name(m) for d, m in shown]
    # On one page, as far as the panels can be read.
    height = min(1.9, max(1.35, HIGHEST / math.ceil(len(names) / ACROSS)))
    figure, axes = panels(names, height=height, columns=ACROSS)
    look = colours(evidence.order)
    for axis, (dataset, method) in zip(axes, shown, strict=True):
        for other, values in curves[dataset].items():
            if other not in (method, REFERENCE):
                _across(axis, values, color=GREY, linewidth=0.8, zorder=1, label="the other methods")
        if method != REFERENCE and REFERENCE in curves[dataset]:
            look_of_it = {"color": "#444444", "linewidth": 1, "label": method_name(REFERENCE)}
            _across(axis, curves[dataset][REFERENCE], zorder=1.5, **look_of_it)
        _with_bars(axis, curves[dataset][method], look[method])
        axis.set_title(axis.get_title(loc="left").replace(", ", ",\n", 1), loc="left", fontsize=8, fontweight="bold")
    lowest = {d: min(axis.get_ylim()[0] for axis, (of, _) in zip(axes, shown, strict=True) if of == d) for d in curves}
    for axis, (dataset, _) in zip(axes, shown, strict=True):
        _finish(axis, evidence, dataset, bottom=lowest[dataset])
        axis.set_ylabel("")
        axis.set_title("", loc="right")  # the floor is the same everywhere and in the tables
    for axis, (dataset, _) in zip(axes, shown, strict=True):  # the panels of a data set alike
        axis.set_ylim(top=max(axes[i].get_ylim()[1] for i, (of, _) in enumerate(shown) if of == dataset))
    for i, axis in enumerate(axes):
        if i % ACROSS and shown[i][0] == shown[i - 1][0]:  # the same scale as its neighbour's
            axis.tick_params(labelleft=False)
        else:
            axis.set_ylabel("macro AUROC", fontsize=8)
        if i + ACROSS < len(axes):
            axis.set_xlabel("")
    legend_below(figure, axes)
    return figure


def _with_bars(
    axis: Axes, values: Sequence[Summary], look: tuple[str, str], *, shift: float = 0.0, label: str | None = None
) -> None:
    axis.errorbar(
        np.arange(len(values)) + shift,
        [v.mean for v in values],
        yerr=bars(values),
        color=look[0],
        marker=look[1],
        capsize=2.5,
        elinewidth=1,
        label=label,
    )


def _across(axis: Axes, values: Sequence[Summary], **look: Any) -> None:
    """Draw means from one side of the panel to the other, so that a single budget is a line as well."""
    means = [v.mean for v in values]
    axis.plot(np.r_[-0.35, np.arange(len(means)), len(means) - 0.65], [means[0], *means, means[-1]], **look)


def _finish(axis: Axes, evidence: Evidence, dataset: str, *, bottom: float | None = None) -> None:
    """Draw the controls and the axes, which show the competitors; a floor far below is named instead of drawn."""
    rows = evidence.rows
    budgets = rows.budgets(dataset)
    bottom = axis.get_ylim()[0] if bottom is None else bottom
    below = []
    for method, (colour, line) in CONTROL_STYLE.items():
        values = [rows.summary(dataset, labels, method, "auroc") for labels in budgets]
        if all(math.isnan(v.mean) for v in values):
            values = [rows.summary(dataset, "all", method, "auroc")] * len(budgets)
        means = [v.mean for v in values]
        if any(mean < bottom for mean in means):
            below.append(f"{method_name(method).lower()}: {np.nanmean(means):.2f} ↓")
        elif not all(math.isnan(mean) for mean in means):
            _across(axis, values, color=colour, linestyle=line, label=method_name(method), zorder=1)
    ticks, unit = budget_axis(budgets)
    axis.set_xticks(np.arange(len(budgets)), ticks)
    axis.set_xlabel(unit)
    axis.set_xlim(-0.35, len(budgets) - 0.65)
    axis.set_ylabel("macro AUROC")
    axis.set_ylim(bottom, min(1.0 + 0.04 * (1.0 - bottom), axis.get_ylim()[1]))
    axis.set_title("\n".join(below), loc="right", color="#666666", fontsize=8)
