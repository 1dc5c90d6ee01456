"""What all figures share: colours, panels, legends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.report.statistics import Summary
from jointdiff.report.wording import CONTROLS, budget_name, dataset_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe & Ito (2008): told apart with every kind of colour vision, and in grey by their order and markers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#7F3C8D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The same colour in every experiment.
FIRST = ("joint", "fixmatch", "supervised", "mean_teacher", "diffusion_classifier", "mediffusion")
PAGE = 6.5  # inches of a page's text: what is no wider is printed with letters of the size below
CONTROL_STYLE: dict[Any, Any] = {
    "fully_supervised": ("#000000", "--"),
    "random": ("#808080", ":"),
    "class_prior": ("#808080", "-."),
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "jointdiff",
}


def colours(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Give each method a colour and a marker; the usual ones keep theirs whoever else takes part.

    Where there are more methods than colours, a colour comes again with another marker.
    """
    competing = [m for m in methods if m not in CONTROLS]
    queue = [*FIRST, *(m for m in competing if m not in FIRST)]
    places = {method: divmod(queue.index(method), len(PALETTE)) for method in competing}
    return {m: (PALETTE[i], MARKERS[(i + turn) % len(MARKERS)]) for m, (turn, i) in places.items()}


def panels(names: Sequence[str], *, height: float = 2.9, columns: int = 2) -> tuple[Figure, list]:
    """Return a figure as wide as a page and an axis for each name, ``height`` inches high."""
    from matplotlib.figure import Figure

    across = min(len(names), columns)
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(PAGE, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name, loc="left", fontweight="bold")
    return figure, axes[: len(names)]


def panels_at(budgets: Mapping[str, str]) -> tuple[Figure, list]:
    """Return a panel for each data set at one of its budgets."""
    names = [f"{dataset_name(dataset)}, {budget_name(budget)}" for dataset, budget in budgets.items()]
    return panels(names, height=3.4)


def nothing(message: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 1.2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", color="#555555")
    return figure


def legend_below(figure: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Put one legend for all panels below them, in as many columns as fit; many rows make the figure higher."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    wide = 0.5 + 0.063 * max(map(len, entries), default=0)  # inches of an entry, by the letters of the longest
    columns = max(1, min(columns, len(entries), int(figure.get_figwidth() / wide)))
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, math.ceil(len(entries) / columns) - 2))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def bars(values: Sequence[Summary]) -> np.ndarray:
    """Return lengths below and above the means, (2, n), never negative."""
    lengths = [[v.mean - v.low, v.high - v.mean] for v in values]
    return np.nan_to_num(np.array(lengths).T).clip(0)
