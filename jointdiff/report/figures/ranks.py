"""Critical-difference diagram: mean ranks on a line, and who cannot be told apart (Demšar 2006, figure 1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import PAGE, colours, nothing
from jointdiff.report.ranks import TOO_FEW, Ranks, rank_methods
from jointdiff.report.wording import method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.2  # inches of one method
BAR = 0.09  # inches between bars
INK = "#333333"


def draw_ranks(evidence: Evidence) -> Figure:
    """Draw the mean ranks by macro AUROC; bars join methods that the Nemenyi test cannot tell apart."""
    from matplotlib.figure import Figure

    found = rank_methods(evidence.rows, evidence.order, alpha=evidence.alpha)
    if found is None:
        return nothing(f"Nothing to rank: {TOO_FEW}.")
    k = len(found.methods)
    bars = list(found.together())
    left = math.ceil(k / 2)
    head, below = 0.85, 0.14 + BAR * len(bars)  # inches above the line, and from it to the first name
    height = head + below + ROW * left + 0.1
    figure = Figure(figsize=(PAGE, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    room = 0.7 + 0.06 * max(len(method_name(method)) for method in found.methods)  # inches of names on either side
    unit = (PAGE - 2 * room) / (k - 1)  # inches of one rank
    axis.set(xlim=(1 - room / unit, k + room / unit), ylim=(-(height - head), head))  # y in inches

    axis.plot([1, k], [0, 0], color=INK, linewidth=1, solid_capstyle="butt")
    step = math.ceil((k - 1) / 8)
    for value in range(1, k + 1):
        marked = (value - 1) % step == 0
        axis.plot([value, value], [0, 0.07 if marked else 0.04], color=INK, linewidth=0.8)
        if marked:
            axis.text(value, 0.1, str(value), ha="center", va="bottom", fontsize=8.5)
    axis.text(1 - 0.12 / unit, 0, "best", ha="right", va="center", fontsize=8.5, color="#666666")
    _critical(axis, found, top=head)

    for i, (first, last) in enumerate(bars):
        y = -0.1 - BAR * i
        ends = (found.means[first] - 0.05 / unit, found.means[last] + 0.05 / unit)
        axis.plot(ends, [y, y], color=INK, linewidth=2.6, solid_capstyle="round", zorder=3)

    look = colours(evidence.order)
    for i, (method, mean) in enumerate(zip(found.methods, found.means, strict=True)):
        to_left = i < left
        # The outermost ranks get the lowest names, so that no line crosses another.
        row = i if to_left else k - 1 - i
        y = -below - ROW * (row + 0.5)
        edge = 1 - 0.2 / unit if to_left else k + 0.2 / unit
        colour, marker = look[method]
        axis.plot([mean, mean, edge], [0, y, y], color=colour, linewidth=1, zorder=2)
        axis.plot([mean], [0], color=colour, marker=".", zorder=4)
        axis.plot([edge], [y], color=colour, marker=marker, zorder=4)  # methods of one colour differ in it
        name = f"{method_name(method)}  {mean:.2f}" if to_left else f"{mean:.2f}  {method_name(method)}"
        shift = -0.1 / unit if to_left else 0.1 / unit
        axis.text(edge + shift, y, name, ha="right" if to_left else "left", va="center", fontsize=8.5)
    return figure


def _critical(axis: Axes, found: Ranks, *, top: float) -> None:
    """Say above the line what was tested, and draw the critical difference to scale unless it is longer."""
    k, y = len(found.methods), top - 0.45
    p = f"p = {found.p:.2g}" if found.p >= 0.001 else "p < 0.001"
    tested = f"{k} methods in {len(found.blocks)} blocks, Friedman {p}, critical difference {found.critical:.2f}"
    possible = found.critical <= k - 1
    tested += "" if possible else f",\nmore than the {k - 1} that ranks can differ by: nobody is told apart"
    axis.text((k + 1) / 2, top - 0.05, tested, ha="center", va="top", fontsize=8.5)
    if possible:
        ends = (1, 1 + found.critical)
        axis.plot(ends, [y, y], color=INK, linewidth=1)
        for end in ends:
            axis.plot([end, end], [y - 0.04, y + 0.04], color=INK, linewidth=1)
