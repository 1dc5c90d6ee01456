"""How often what was predicted with a probability is so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate.classification import Predictions
from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import colours, legend_below, nothing, panels_at
from jointdiff.report.wording import method_name

RELIABILITY_BINS = 10
FEWEST = 10  # cases behind a point of the diagram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_reliability(evidence: Evidence) -> Figure:
    """Draw how often what was predicted with a probability is so, at the largest budget, over seeds and findings."""
    budgets = evidence.predicted()
    if not budgets:
        return nothing("No predictions.")
    figure, axes = panels_at(budgets)
    look = colours(evidence.order)
    for axis, (dataset, budget) in zip(axes, budgets.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="#AAAAAA", linewidth=1, zorder=1)
        for method in evidence.order:
            labels, found = evidence.predictions_of(dataset, budget, method)
            if not found or method in ("random", "class_prior"):
                continue
            colour, marker = look.get(method, ("#000000", ""))
            error = evidence.rows.summary(dataset, labels, method, "ece").mean
            axis.plot(
                *reliability(found),
                color=colour,
                marker=marker,
                markersize=4,
                linestyle="-" if method in look else "--",
                label=method_name(method) + (f" (ECE {error:.3f})" if len(budgets) == 1 and error == error else ""),
            )
        binary = next(iter(evidence.cells[dataset, budget].values())).kind == "multi_label"
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="predicted probability")
        axis.set_ylabel("share of positives" if binary else "accuracy")
        axis.grid(visible=True, axis="both")
    legend_below(figure, axes, columns=3 if len(budgets) > 1 else 2)
    return figure


def reliability(cells: Sequence[Predictions]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability and frequency in equal bins that hold enough cases, over seeds and findings."""
    probability, outcome = [], []
    for cell in cells:
        if cell.kind == "one_of_k":
            probability.append(cell.scores.max(1))
            outcome.append((cell.decided * cell.labels).sum(1))
        else:
            known = ~np.isnan(cell.labels)
            probability.append(cell.scores[known])
            outcome.append(cell.labels[known])
    p, y = np.concatenate(probability), np.concatenate(outcome)
    bins = np.minimum((p * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    count = np.bincount(bins, minlength=RELIABILITY_BINS)
    enough = count >= FEWEST
    mean, share = (np.bincount(bins, weights=v, minlength=RELIABILITY_BINS)[enough] / count[enough] for v in (p, y))
    return mean, share
