"""Error against the share of cases kept, surest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import CONTROL_STYLE, colours, legend_below, nothing, panels_at
from jointdiff.report.statistics import risk_at
from jointdiff.report.wording import method_name

COVERAGE = np.linspace(0.05, 1, 96)  # shares kept; fewer cases than these are noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_risk(evidence: Evidence) -> Figure:
    """Draw the error among the surest cases against their share, at the largest budget, mean over seeds."""
    budgets = evidence.predicted()
    if not budgets:
        return nothing("No predictions.")
    figure, axes = panels_at(budgets)
    look = colours(evidence.order)
    for axis, (dataset, budget) in zip(axes, budgets.items(), strict=True):
        curves = {}
        for method in [*look, *(m for m in CONTROL_STYLE if m in evidence.order)]:
            labels, found = evidence.predictions_of(dataset, budget, method)
            if found:
                area = evidence.rows.summary(dataset, labels, method, "aurc").mean
                name = method_name(method) + (f" (AURC {area:.3f})" if len(budgets) == 1 and area == area else "")
                curves[method] = name, np.nanmean([risk_at(cell, COVERAGE) for cell in found], axis=0)
        # The axis shows the competitors; a ceiling far above them is named instead of drawn.
        top = 1.06 * max((risk.max() for m, (_, risk) in curves.items() if m in look), default=1.0) + 0.005
        above = []
        for i, (method, (name, risk)) in enumerate(curves.items()):
            if risk.min() > top:
                above.append(f"{method_name(method).lower()}: {risk[-1]:.2f} ↑")
                continue
            colour, line = CONTROL_STYLE.get(method) or (look[method][0], "-")
            # Methods of one colour differ in their markers, which stand apart where curves lie on one another.
            mark = {} if method in CONTROL_STYLE else {"marker": look[method][1], "markevery": (3 + 4 * i % 24, 24)}
            axis.plot(COVERAGE, risk, line, color=colour, label=name, zorder=2 if mark else 1, **mark)
        axis.text(0.01, 0.98, "\n".join(above), transform=axis.transAxes, va="top", color="#666666", fontsize=8)
        axis.set(xlim=(0, 1.01), ylim=(-0.02 * top, top))
        axis.set(xlabel="share of cases kept, surest first", ylabel="error among them")
    legend_below(figure, axes, columns=3 if len(budgets) > 1 else 2)
    return figure
