"""All that a method can do, and what it takes, in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jointdiff.report.evidence import Evidence, Standing
from jointdiff.report.layout import Cell, Column, Line, Section, Table, cell_of, digits_of, over, rank
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import CONTROL_MAPS, CONTROLS, budget_name, dataset_name, map_name, method_name, sentence

BEST_MAPS = ("counterfactual_control", "counterfactual", "grad_cam", *CONTROL_MAPS)  # the first one stands for a method


def systems_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, all systems side by side at the largest budget: how good, and at what cost."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset"):
        largest = rows.budgets(dataset)[-1]
        standing = evidence.standing(dataset, "auroc")
        found = (rows.summary(dataset, labels, method, "frechet_distance").facts for method, labels, _ in standing)
        extractor = method_name(next((facts["extractor"] for facts in found if facts and "extractor" in facts), ""))
        here = f"on {dataset_name(dataset)} with {budget_name(largest)} where nothing else is said, mean"
        seeds = rows.distinct_seeds(dataset)
        direction = "Best in bold, second underlined; arrows say which way is better; controls compete with nobody."
        parts = (
            (
                (
                    Column("Macro AUROC", "auroc", "Classification"),
                    Column("Accuracy", "accuracy", "Classification"),
                    Column(f"FD-{extractor.lower()}", "frechet_distance", "Generation"),
                    Column("Match AUROC", "guidance_auroc", "Generation"),
                    Column("Pointing", "pointing", "Localisation"),
                    Column("Change ratio", "change_ratio", "Localisation", digits=2),
                ),
                f"All systems {here}{over(seeds)}. FD: Frechet distance of synthetic images to "
                "the real test images in the features of the classifier named. Match AUROC: how well an independent "
                "classifier finds in a synthetic image what was asked for. Pointing: how often the hottest pixel of a "
                "map lies in the marked region; change ratio: mean of the map inside the region over that outside; "
                f"over all findings, of the map that the footnote names. {direction}",
            ),
            (
                tuple(
                    Column(name, f"{quantity}_per_{what}", group, unit, digits=0)
                    for quantity, group, unit in (("calls", "Network calls", ""), ("ms", "Time", "ms"))
                    for name, what in (("Prediction", "prediction"), ("Sample", "sample"), ("Edit", "counterfactual"))
                ),
                f"What all systems take {here}{over(seeds, spread=False)}: calls of the network and "
                "milliseconds for one prediction, one synthetic image, and one edit, which is a counterfactual with "
                f"its control. {direction}",
            ),
        )
        for part, (columns, caption) in enumerate(parts):
            table = _table(rows, dataset, largest, standing, columns)
            if table.columns:
                yield replace(table, label=f"systems-{dataset}" + (f"-{part + 1}" if part else ""), caption=caption)


def _table(rows: Scores, dataset: str, largest: str, standing: Sequence[Standing], columns: Sequence[Column]) -> Table:
    """Lay out the columns for which any system has a number."""
    kept, found = [], []
    for column in columns:
        cells = [_cell(rows, dataset, labels, method, column.metric) for method, labels, _ in standing]
        values = [cell.summary.mean for cell in cells if not cell.empty]
        if values:
            # What is counted needs no digits unless it is a mean; distances and times come in all sizes.
            plain = column.metric.startswith("calls") and all(value == round(value) for value in values)
            sized = column.metric.startswith(("calls", "ms", "frechet")) and not plain
            kept.append(replace(column, digits=digits_of(values)) if sized else column)
            found.append(cells)
    lines = [
        # One that used all labels is not a rival of those that had few.
        Line(at.name, tuple(cells[i] for cells in found), competes=at.method not in CONTROLS and at.labels == largest)
        for i, at in enumerate(standing)
    ]
    rivals, controls = ([line for line in lines if line.competes == wanted] for wanted in (True, False))
    sections = (rank(Section("", tuple(rivals)), kept), Section("Controls", tuple(controls)))
    return Table("", "", "System", tuple(kept), tuple(section for section in sections if section.lines))


def _cell(rows: Scores, dataset: str, labels: str, method: str, metric: str) -> Cell:
    if metric in ("pointing", "change_ratio"):
        maps = rows.places(dataset, labels, method, metric)
        best = next((place for place in BEST_MAPS if place in maps), "")
        summary = rows.summary(dataset, labels, method, metric, map=best)
        what = sentence(map_name(best)) if best and not math.isnan(summary.mean) else ""
        return Cell(summary, note="; ".join(filter(None, [what, summary.reason])))
    summary = rows.summary(dataset, labels, method, metric)
    if metric.startswith(("calls", "ms")):  # seeds differ in the noise of the clock alone
        return cell_of(replace(summary, sd=math.nan, reason="" if summary.seeds else summary.reason))
    return cell_of(summary)
