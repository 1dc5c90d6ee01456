"""Training loss and validation AUROC against steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jointdiff.report.evidence import Evidence, largest_budget
from jointdiff.report.figures._drawing import CONTROL_STYLE, colours, legend_below, nothing, panels
from jointdiff.report.wording import budget_name, dataset_name, method_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_loss(evidence: Evidence) -> Figure:
    """Draw training loss and validation AUROC against steps, at the largest budget, a thin line per further seed."""
    from matplotlib.ticker import LogLocator, NullFormatter

    trained = {key: seeds for key, seeds in evidence.curves.items() if any(len(curve["loss"][0]) for curve in seeds)}
    datasets = sorted({dataset for dataset, _, _ in trained})
    largest = {name: largest_budget(labels for dataset, labels, _ in trained if dataset == name) for name in datasets}
    if not datasets:
        return nothing("No method of this experiment is trained.")
    names = []
    for dataset in datasets:
        names += [f"{dataset_name(dataset)}: training loss", f"validation, {budget_name(largest[dataset])}"]
    figure, axes = panels(names, columns=2)
    look = colours(evidence.order)
    for i, dataset in enumerate(datasets):
        for method in evidence.order:
            seeds = trained.get((dataset, largest[dataset], method)) or trained.get((dataset, "all", method), [])
            colour, marker = look.get(method) or (CONTROL_STYLE.get(method, ("#808080", ""))[0], "")
            for metric, axis in zip(("loss", "auroc"), axes[2 * i : 2 * i + 2], strict=True):
                for seed, curve in enumerate(seeds):
                    faint = {"linewidth": 0.8, "alpha": 0.5} if seed else {"label": method_name(method)}
                    mark = (
                        {"marker": marker, "markevery": [-1]} if not seed else {}
                    )  # tells methods of one colour apart
                    axis.plot(*curve[metric], color=colour, linestyle="-" if method in look else "--", **faint, **mark)
        axes[2 * i].set_yscale("log")
        axes[2 * i].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[2 * i].yaxis.set_major_formatter("{x:g}")
        axes[2 * i].yaxis.set_minor_formatter(NullFormatter())
        axes[2 * i].set(xlabel="step", ylabel="loss (each method its own)")
        axes[2 * i + 1].set(xlabel="step", ylabel="macro AUROC")
    legend_below(figure, axes)
    return figure
