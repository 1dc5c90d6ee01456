"""How good votes are against the network calls they take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jointdiff.report.evidence import Evidence
from jointdiff.report.figures._drawing import legend_below, nothing, panels
from jointdiff.report.wording import RULES, budget_name, dataset_name, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_votes(evidence: Evidence) -> Figure:
    """Draw how good the votes of diffusion classifiers are against the network calls they take, by rule.

    Of findings this is the macro AUROC, of classes the accuracy; bands are the mean over seeds of the intervals.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = evidence.rows
    voting = [
        (dataset, method, labels)
        for dataset in rows.distinct("dataset", metric="vote_calls")
        for method in rows.methods(dataset, "vote_calls", evidence.order)
        for labels in rows.distinct("labels", dataset=dataset, method=method, metric="vote_calls")
    ]
    if not voting:
        return nothing("No method of this experiment votes.")
    several = len({(dataset, method) for dataset, method, _ in voting}) > 1
    names = [
        f"{dataset_name(d)}: {budget_name(b)}"
        if not several
        else f"{dataset_name(d)}: {method_name(m)}\n{budget_name(b)}"
        for d, m, b in voting
    ]
    figure, axes = panels(names, height=3.1)
    for axis, (dataset, method, labels) in zip(axes, voting, strict=True):
        metric = "auroc" if rows.distinct("seed", dataset=dataset, method=method, metric="vote_auroc") else "accuracy"
        ends = {}
        for rule in RULES:
            label, colour, line, marker = _RULE_STYLE[rule]
            trials = [str(n) for n in rows.trials(dataset, labels, method).get(rule, [])]
            calls, values = (
                [rows.summary(dataset, labels, method, f"vote_{m}", rule=rule, trials=n) for n in trials]
                for m in ("calls", metric)
            )
            if not trials or all(math.isnan(v.mean) for v in values):
                continue
            x, y = ([s.mean for s in summaries] for summaries in (calls, values))
            fill = "white" if rule == "race" else colour  # seen where it lies on the majority
            axis.plot(x, y, line, color=colour, marker=marker, markerfacecolor=fill, label=label, zorder=3)
            axis.fill_between(
                x,
                *([getattr(v, end) for v in values] for end in ("low", "high")),
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
            ends[rule] = (x[-1], y[-1])
        axis.set_xscale("log")
        axis.set(xlabel="network calls per image", ylabel="macro AUROC" if metric == "auroc" else "accuracy")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        if {"majority", "race"} <= ends.keys():
            _mark_saving(axis, ends["majority"], ends["race"])
    legend_below(figure, axes, columns=3)
    return figure


# No colours of methods: these are rules.
_RULE_STYLE = {
    "majority": ("Majority of N trials", "#111111", "-", "o"),
    "mean": ("Mean error of N trials", "#8C8C8C", "--", "s"),
    "race": ("Race over at most N trials", "#111111", ":", "^"),
}


def _mark_saving(axis: Axes, majority: tuple[float, float], race: tuple[float, float]) -> None:
    """Point from the majority of all trials to the race over them, and say what that saves and costs."""
    axis.annotate("", race, majority, arrowprops={"arrowstyle": "->", "color": "#444444", "shrinkA": 4, "shrinkB": 4})
    points = 100 * (race[1] - majority[1])
    said = f"race: {majority[0] / race[0]:.1f} times fewer calls\nat {points:+.1f} points"
    axis.text(0.98, 0.03, said, transform=axis.transAxes, ha="right", va="bottom", color="#444444", fontsize=8)
