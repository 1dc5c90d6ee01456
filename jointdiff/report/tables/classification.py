"""Table 1: classification by label budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Cell, Column, Line, Section, Table, cell_of, over, rank
from jointdiff.report.published import reported_lines
from jointdiff.report.statistics import Comparison, compare_with_best, enough_draws
from jointdiff.report.wording import CONTROLS, budget_name, dataset_name, method_name

MAX_COLUMNS = 6  # of numbers with their deviation, side by side


def classification_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, classification by label budget, with what is not different from the best."""
    for dataset in evidence.rows.distinct("dataset"):
        yield from _tables_of(evidence, dataset)


def _tables_of(evidence: Evidence, dataset: str) -> Iterator[Table]:
    rows, alpha = evidence.rows, evidence.alpha
    metrics = ("auroc", "average_precision", "accuracy")
    budgets = rows.budgets(dataset)
    methods = rows.methods(dataset, "auroc", evidence.order)
    rivals = [m for m in methods if m not in CONTROLS]
    draws = enough_draws(evidence.draws, methods=len(rivals), alpha=alpha)
    compared = {
        (labels, metric): compare_with_best(
            evidence.cells.get((dataset, labels), {}), metric, methods=rivals, draws=draws, alpha=alpha
        )
        for labels in budgets
        for metric in metrics
    }
    per_table = max(1, MAX_COLUMNS // len(budgets))
    for start in range(0, len(metrics), per_table):
        shown = metrics[start : start + per_table]
        yield _table(evidence, dataset, budgets, methods, shown, compared, part=start, draws=draws)


def _told(caveats: Sequence[str]) -> str:
    """Return what a reader must know of a data set, as the end of a caption."""
    return f" Of these data: {'; '.join(caveat.rstrip('.') for caveat in caveats)}." if caveats else ""


def _table(
    evidence: Evidence,
    dataset: str,
    budgets: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    compared: Mapping[tuple[str, str], Mapping[str, Comparison]],
    *,
    part: int,
    draws: int,
) -> Table:
    rows = evidence.rows
    macro = {"auroc": "Macro AUROC", "average_precision": "Macro average precision", "accuracy": "Accuracy"}
    columns = tuple(
        Column(budget_name(labels), metric, group=macro[metric]) for metric in metrics for labels in budgets
    )
    lines = []
    for method in methods:
        beside = rows.distinct("labels", dataset=dataset, method=method) == ["all"] != list(budgets)
        cells: list[Cell] = []
        for metric in metrics:
            if beside:  # its number belongs to no budget: one cell under all of them
                cells.append(cell_of(rows.summary(dataset, "all", method, metric), span=len(budgets)))
                continue
            for labels in budgets:
                stand = compared[labels, metric].get(method)
                tied = stand is not None and stand.method != stand.other and not stand.different
                cells.append(cell_of(rows.summary(dataset, labels, method, metric), tied=tied))
        name = method_name(method) + (f" ({budget_name('all')})" if beside else "")
        lines.append(Line(name, tuple(cells), competes=method not in CONTROLS and not beside))
    published = reported_lines(rows, dataset, columns, budgets, evidence.reported)
    sections = [
        rank(Section("", tuple(line for line in lines if line.competes)), columns),
        Section("Controls", tuple(line for line in lines if not line.competes)),
        Section("Reported elsewhere, not measured here", published),
    ]
    seeds = rows.distinct_seeds(dataset)
    return Table(
        label=f"classification-{dataset}" + (f"-{part + 1}" if part else ""),
        caption=(
            f"Semi-supervised classification on {dataset_name(dataset)} by label budget: mean{over(seeds)}. "
            "Best in bold, second underlined; † marks what is not significantly different from the best "
            f"(paired bootstrap over groups, {draws:,} draws, Holm-corrected, level {evidence.alpha:g}). "
            f"Controls compete with nobody.{_told(evidence.caveats.get(dataset, ()))} "
            f"{evidence.networks(dataset, methods)}"
        ).rstrip(),
        stub="Method",
        columns=columns,
        sections=tuple(section for section in sections if section.lines),
    )
