"""The figures, each as PDF for a paper and PNG for a screen, the same bytes from the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.evaluate.classification import Predictions
from jointdiff.evaluate.scores import MACRO, Identity, budget_order, read_rows
from jointdiff.files import atomic_path, read_json
from jointdiff.report.statistics import Cells, Scores, Summary, read_cells, risk_at
from jointdiff.report.wording import CONTROLS, RULES, budget_name, dataset_name, map_name, method_name, sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("auroc", "change", "loss", "reliability", "risk", "votes")
FORMATS = ("pdf", "png")
RELIABILITY_BINS = 10
FEWEST = 10  # cases behind a point of the reliability diagram
COVERAGE = np.linspace(0.05, 1, 96)  # shares kept in the risk-coverage curve; fewer cases than these are noise

# Okabe & Ito (2008): told apart with every kind of colour vision, and in grey by their order and markers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#7F3C8D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The same colour in every experiment.
FIRST = ("joint", "fixmatch", "supervised", "mean_teacher", "diffusion_classifier", "mediffusion")
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


def draw_figures(
    scores: Path | str,
    predictions: Iterable[Path | str],
    metrics: Iterable[Path | str],
    out: Path | str,
    *,
    methods: Sequence[str] = (),
) -> list[Path]:
    """Write every figure into the folder ``out`` and return the files.

    ``predictions`` and ``metrics`` (metrics.jsonl) are those of the cells, each beside its run.json; ``methods`` gives
    the order of legends. What an experiment has no data for is a figure that says so.
    """
    import matplotlib as mpl

    rows, cells, curves = Scores(read_rows(scores)), read_cells(predictions), read_curves(metrics)
    order = [*methods, *(m for m in rows.distinct("method") if m not in methods)]
    written = []
    with mpl.rc_context(STYLE):
        drawn = {
            "auroc": draw_auroc(rows, order),
            "change": draw_change(rows, order),
            "loss": draw_loss(curves, order),
            "reliability": draw_reliability(cells, rows, order),
            "risk": draw_risk(cells, rows, order),
            "votes": draw_votes(rows, order),
        }
        for name, figure in drawn.items():
            written += save(figure, Path(out) / name)
    return written


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as ``path``.pdf and .png, without dates or versions in it."""
    written = []
    for suffix, extra in (
        ("pdf", {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}}),
        ("png", {"metadata": {"Software": None}, "dpi": 160}),
    ):
        written.append(path.with_name(f"{path.name}.{suffix}"))
        with atomic_path(written[-1]) as aside:
            figure.savefig(aside, **extra)
    return written


def colours(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Give each method a colour and a marker; the usual ones keep theirs whoever else takes part."""
    competing = [m for m in methods if m not in CONTROLS]
    queue = [*FIRST, *(m for m in competing if m not in FIRST)]
    return {m: (PALETTE[queue.index(m) % len(PALETTE)], MARKERS[queue.index(m) % len(MARKERS)]) for m in competing}


def _panels(names: Sequence[str], *, width: float = 3.5, height: float = 2.9, columns: int = 3) -> tuple[Figure, list]:
    from matplotlib.figure import Figure

    across = min(len(names), columns)
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(max(5.5, width * across), height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name, loc="left", fontweight="bold")
    return figure, axes[: len(names)]


def _nothing(message: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 1.2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", color="#555555")
    return figure


def _legend_below(figure: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Put one legend for all panels below them, in as many columns as fit; many rows make the figure higher."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    wide = 0.5 + 0.063 * max(map(len, entries), default=0)  # inches of an entry, by the letters of the longest
    columns = max(1, min(columns, len(entries), int(figure.get_figwidth() / wide)))
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, math.ceil(len(entries) / columns) - 2))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


# --- AUROC against the label budget -----------------------------------------------------------------------------------


def draw_auroc(rows: Scores, order: Sequence[str]) -> Figure:
    """Draw macro AUROC against the label budget, with the mean over seeds of the 95 % intervals."""
    datasets = rows.distinct("dataset", metric="auroc")
    if not datasets:
        return _nothing("No classification scores.")
    figure, axes = _panels([dataset_name(dataset) for dataset in datasets])
    look = colours(order)
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
                yerr=_bars(values),
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
    _legend_below(figure, axes)
    return figure


def _bars(values: Sequence[Summary]) -> np.ndarray:
    """Return lengths below and above the means, (2, n), never negative."""
    lengths = [[v.mean - v.low, v.high - v.mean] for v in values]
    return np.nan_to_num(np.array(lengths).T).clip(0)


# --- Change inside and outside ----------------------------------------------------------------------------------------


def draw_change(rows: Scores, order: Sequence[str]) -> Figure:
    """Draw the mean change inside and outside the region per finding, plain and with the control subtracted."""
    panels = []
    for dataset in rows.distinct("dataset", metric="change_inside"):
        for method in order:
            budgets = rows.distinct("labels", dataset=dataset, method=method, metric="change_inside")
            shown = [labels for labels in budgets if labels != "all"] or budgets
            if shown and rows.places(dataset, shown[-1], method, "change_inside"):
                panels.append((dataset, method, shown[-1]))
    drawn = [panel for panel in panels if _has_change(rows, *panel)]
    if not drawn:
        return _nothing("No counterfactual with a region to compare with.")
    names = [f"{dataset_name(d)}: {method_name(m)}, {budget_name(b)}" for d, m, b in drawn]
    figure, axes = _panels(names, width=4.6, columns=2)
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
                    yerr=_bars(values),
                    color=PALETTE[p],
                    alpha=alpha,
                    error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
                    label=f"{map_name(place)}, {metric.removeprefix('change_')}",
                )
        axis.set_xticks(range(len(findings)), ["all findings" if f == MACRO else sentence(f) for f in findings])
        if max(len(f) for f in findings) * len(findings) > 45:
            axis.tick_params(axis="x", rotation=35)
        axis.set_ylabel("mean change (% of range)")
    _legend_below(figure, axes, columns=2)
    return figure


def _has_change(rows: Scores, dataset: str, method: str, labels: str) -> bool:
    places = rows.places(dataset, labels, method, "change_inside")
    return any(not math.isnan(rows.summary(dataset, labels, method, "change_inside", map=p).mean) for p in places)


# --- Loss curves ------------------------------------------------------------------------------------------------------

Curve = dict[str, tuple[np.ndarray, np.ndarray]]  # "loss" or "auroc" -> steps, values
Curves = dict[tuple[str, str, str], list[Curve]]  # (dataset, labels, method) -> one per seed


def read_curves(metrics: Iterable[Path | str]) -> Curves:
    """Read the training loss and the validation AUROC of cells from their metrics.jsonl."""
    curves: Curves = {}
    for path in map(Path, metrics):
        run = Identity.from_run(read_json(path.parent / "run.json"))
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        curve = {
            metric: _series([line for line in lines if line.get("split") == split and metric in line], metric)
            for split, metric in (("train", "loss"), ("validation", "auroc"))
        }
        curves.setdefault((run.dataset, run.labels, run.method), []).append(curve)
    return curves


def _series(lines: Sequence[Mapping[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([line["step"] for line in lines], float), np.array([line[metric] for line in lines], float)


def draw_loss(curves: Curves, order: Sequence[str]) -> Figure:
    """Draw training loss and validation AUROC against steps, at the largest budget, a thin line per further seed."""
    from matplotlib.ticker import LogLocator, NullFormatter

    trained = {key: seeds for key, seeds in curves.items() if any(len(curve["loss"][0]) for curve in seeds)}
    datasets = sorted({dataset for dataset, _, _ in trained})
    if not datasets:
        return _nothing("No method of this experiment is trained.")
    names = []
    for dataset in datasets:
        names += [f"{dataset_name(dataset)}: training loss", f"validation, {budget_name(_largest(trained, dataset))}"]
    figure, axes = _panels(names, columns=2)
    look = colours(order)
    for i, dataset in enumerate(datasets):
        for method in order:
            largest = _largest(trained, dataset)
            seeds = trained.get((dataset, largest, method)) or trained.get((dataset, "all", method), [])
            colour = look[method][0] if method in look else CONTROL_STYLE.get(method, ("#808080", ""))[0]
            for metric, axis in zip(("loss", "auroc"), axes[2 * i : 2 * i + 2], strict=True):
                for seed, curve in enumerate(seeds):
                    faint = {"linewidth": 0.8, "alpha": 0.5} if seed else {"label": method_name(method)}
                    axis.plot(*curve[metric], color=colour, linestyle="-" if method in look else "--", **faint)
        axes[2 * i].set_yscale("log")
        axes[2 * i].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[2 * i].yaxis.set_major_formatter("{x:g}")
        axes[2 * i].yaxis.set_minor_formatter(NullFormatter())
        axes[2 * i].set(xlabel="step", ylabel="loss (each method its own)")
        axes[2 * i + 1].set(xlabel="step", ylabel="macro AUROC")
    _legend_below(figure, axes)
    return figure


def _largest(keys: Iterable[tuple[str, str, str]], dataset: str) -> str:
    budgets = {labels for name, labels, _ in keys if name == dataset}
    return max(budgets - {"all"} or budgets, key=budget_order)


# --- Reliability ------------------------------------------------------------------------------------------------------


def draw_reliability(cells: Cells, rows: Scores, order: Sequence[str]) -> Figure:
    """Draw how often what was predicted with a probability is so, at the largest budget, over seeds and findings."""
    datasets = sorted({dataset for dataset, _ in cells})
    if not datasets:
        return _nothing("No predictions.")
    largest, names = _at_largest(cells, datasets)
    figure, axes = _panels(names, height=3.4)
    look = colours(order)
    for axis, dataset in zip(axes, datasets, strict=True):
        axis.plot([0, 1], [0, 1], color="#AAAAAA", linewidth=1, zorder=1)
        for method in order:
            labels, found = _of_method(cells, dataset, largest[dataset], method)
            if not found or method in ("random", "class_prior"):
                continue
            colour, marker = look.get(method, ("#000000", ""))
            error = rows.summary(dataset, labels, method, "ece").mean
            axis.plot(
                *reliability(found),
                color=colour,
                marker=marker,
                markersize=4,
                linestyle="-" if method in look else "--",
                label=f"{method_name(method)} (ECE {error:.3f})" if len(datasets) == 1 else method_name(method),
            )
        binary = next(iter(cells[dataset, largest[dataset]].values())).kind == "multi_label"
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="predicted probability")
        axis.set_ylabel("share of positives" if binary else "accuracy")
        axis.grid(visible=True, axis="both")
    _legend_below(figure, axes, columns=3 if len(datasets) > 1 else 2)
    return figure


def _at_largest(cells: Cells, datasets: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the largest budget of each data set, and the titles of their panels."""
    keys = [(dataset, labels, "") for dataset, labels in cells]
    largest = {dataset: _largest(keys, dataset) for dataset in datasets}
    return largest, [f"{dataset_name(dataset)}, {budget_name(largest[dataset])}" for dataset in datasets]


def _of_method(cells: Cells, dataset: str, largest: str, method: str) -> tuple[str, list[Predictions]]:
    """Return a method's predictions of all seeds with their budget: the largest one, or else all labels."""
    for labels in (largest, "all"):
        if found := [cell for (name, _), cell in cells.get((dataset, labels), {}).items() if name == method]:
            return labels, found
    return largest, []


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


# --- Risk against coverage --------------------------------------------------------------------------------------------


def draw_risk(cells: Cells, rows: Scores, order: Sequence[str]) -> Figure:
    """Draw the error among the surest cases against their share, at the largest budget, mean over seeds."""
    datasets = sorted({dataset for dataset, _ in cells})
    if not datasets:
        return _nothing("No predictions.")
    largest, names = _at_largest(cells, datasets)
    figure, axes = _panels(names, height=3.4)
    look = colours(order)
    for axis, dataset in zip(axes, datasets, strict=True):
        curves = {}
        for method in [*look, *(m for m in CONTROL_STYLE if m in order)]:
            labels, found = _of_method(cells, dataset, largest[dataset], method)
            if found:
                area = rows.summary(dataset, labels, method, "aurc").mean
                name = method_name(method) + (f" (AURC {area:.3f})" if len(datasets) == 1 else "")
                curves[method] = name, np.nanmean([risk_at(cell, COVERAGE) for cell in found], axis=0)
        # The axis shows the competitors; a ceiling far above them is named instead of drawn.
        top = 1.06 * max((risk.max() for m, (_, risk) in curves.items() if m in look), default=1.0) + 0.005
        above = []
        for method, (name, risk) in curves.items():
            if risk.min() > top:
                above.append(f"{method_name(method).lower()}: {risk[-1]:.2f} ↑")
                continue
            colour, line = CONTROL_STYLE.get(method) or (look[method][0], "-")
            axis.plot(COVERAGE, risk, line, color=colour, label=name, zorder=1 if method in CONTROL_STYLE else 2)
        axis.text(0.01, 0.98, "\n".join(above), transform=axis.transAxes, va="top", color="#666666", fontsize=8)
        axis.set(xlim=(0, 1.01), ylim=(-0.02 * top, top))
        axis.set(xlabel="share of cases kept, surest first", ylabel="error among them")
    _legend_below(figure, axes, columns=3 if len(datasets) > 1 else 2)
    return figure


# --- Votes against their cost -----------------------------------------------------------------------------------------


def draw_votes(rows: Scores, order: Sequence[str]) -> Figure:
    """Draw how good the votes of diffusion classifiers are against the network calls they take, by rule.

    Of findings this is the macro AUROC, of classes the accuracy; bands are the mean over seeds of the intervals.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = [
        (dataset, method, labels)
        for dataset in rows.distinct("dataset", metric="vote_calls")
        for method in rows.methods(dataset, "vote_calls", order)
        for labels in rows.distinct("labels", dataset=dataset, method=method, metric="vote_calls")
    ]
    if not panels:
        return _nothing("No method of this experiment votes.")
    several = len({(dataset, method) for dataset, method, _ in panels}) > 1
    names = [
        f"{dataset_name(d)}: {budget_name(b)}"
        if not several
        else f"{dataset_name(d)}: {method_name(m)}, {budget_name(b)}"
        for d, m, b in panels
    ]
    figure, axes = _panels(names, width=4.2, height=3.1, columns=2)
    for axis, (dataset, method, labels) in zip(axes, panels, strict=True):
        metric = "auroc" if rows.distinct("seed", dataset=dataset, method=method, metric="vote_auroc") else "accuracy"
        ends = {}
        for i, rule in enumerate(RULES):
            trials = [str(n) for n in rows.trials(dataset, labels, method).get(rule, [])]
            calls, values = (
                [rows.summary(dataset, labels, method, f"vote_{m}", rule=rule, trials=n) for n in trials]
                for m in ("calls", metric)
            )
            if not trials or all(math.isnan(v.mean) for v in values):
                continue
            x, y = ([s.mean for s in summaries] for summaries in (calls, values))
            axis.plot(x, y, color=PALETTE[i], marker=MARKERS[i], markersize=4, label=_RULE_LABELS[rule], zorder=3)
            axis.fill_between(
                x,
                *([getattr(v, end) for v in values] for end in ("low", "high")),
                color=PALETTE[i],
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
    _legend_below(figure, axes, columns=3)
    return figure


_RULE_LABELS = {
    "majority": "Majority of N trials",
    "mean": "Mean error of N trials",
    "race": "Race over at most N trials",
}


def _mark_saving(axis: Axes, majority: tuple[float, float], race: tuple[float, float]) -> None:
    """Point from the majority of all trials to the race over them, and say what that saves and costs."""
    axis.annotate("", race, majority, arrowprops={"arrowstyle": "->", "color": "#444444", "shrinkA": 4, "shrinkB": 4})
    points = 100 * (race[1] - majority[1])
    said = f"race: {majority[0] / race[0]:.1f} times fewer calls\nat {points:+.1f} points"
    axis.text(0.98, 0.03, said, transform=axis.transAxes, ha="right", va="bottom", color="#444444", fontsize=8)
