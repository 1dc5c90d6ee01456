"""Table 4: do maps show the right place?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jointdiff.evaluate.scores import MACRO
from jointdiff.explain.localisation import OVERLAPS
from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Column, Line, Section, Table, cell_of, paged, rank
from jointdiff.report.statistics import Scores, Summary
from jointdiff.report.wording import CONTROL_MAPS, budget_name, dataset_name, map_name, method_name, sentence

# Localisation in two tables: does the map point at the region, and would a box around its hottest part be a detection?
PARTS = (
    (
        "",
        "Localisation of findings",
        (
            Column("inside", "change_inside", "Mean change", unit="%", digits=1, ranked=False),
            Column("outside", "change_outside", "Mean change", unit="%", digits=1, ranked=False),
            Column("ratio", "change_ratio", "Mean change", digits=2),
            Column("Pointing", "pointing"),
            Column("AUROC", "pixel_auroc", "Pixels"),
            Column("AP", "pixel_ap", "Pixels"),
            Column("IoU", "iou"),
            Column("own", "flip_rate", "Flips", digits=2),
            Column("judge", "judge_flip_rate", "Flips", digits=2),
            Column("control", "control_flip_rate", "Flips", digits=2, ranked=False),
        ),
        "Mean change is in percent of the pixel range; the pointing floor is the score of a map without knowledge; IoU "
        "keeps as many pixels as the region has; flips are the shares of images in which the finding was seen before "
        "the edit and is not seen after it, by the model itself and by an independent judge, and by that judge in the "
        "unguided control: what reconstruction alone loses.",
    ),
    (
        "-boxes",
        "Boxes around the hottest 5 % of the pixels",
        (
            Column("mean", "box_iou", "Box IoU"),
            *(Column(f"> {least:g}", f"box_iou_above_{least}", "Box IoU", digits=2) for least in OVERLAPS),
            Column("mean", "box_iobb", "Box IoBB"),
            *(Column(f"> {least:g}", f"box_iobb_above_{least}", "Box IoBB", digits=2) for least in OVERLAPS),
            Column("Calls", "calls_per_map", "Cost of a map", digits=0, ranked=False),
            Column("Time", "ms_per_map", "Cost of a map", unit="ms", digits=1, ranked=False),
        ),
        "The box around the hottest 5 % of a map is held against that around the marked region: IoU is their "
        "intersection over their union, IoBB over the box of the map, so that a small box inside the region has 1; "
        "then the shares of images above .1, .25 and .5. Calls of the network and time are those of one map, and of "
        "one edit with its control, from which both maps of a counterfactual come.",
    ),
)
CAPTION = (
    "Methods trained on all labels only stand beside every budget. Best in bold, second underlined, control maps apart."
)


def localisation_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set and budget, whether maps show the right place, finding by finding."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset"):
        findings = rows.findings(dataset, "pointing")
        if not findings:
            continue
        every = rows.distinct("labels", dataset=dataset, metric="pointing")
        for budget in [labels for labels in every if labels != "all"] or every:
            for suffix, what, columns, explained in PARTS:
                sections = []
                for finding in findings:
                    lines = _map_lines(rows, dataset, {budget, "all"}, finding, columns, evidence.order)
                    floor = _floor(rows, dataset, {budget, "all"}, finding)
                    title = "All findings (macro)" if finding == MACRO else sentence(finding)
                    title += f"; pointing floor {floor:.3f}" if not suffix and not math.isnan(floor) else ""
                    if lines:
                        sections.append(rank(Section(title, tuple(lines)), columns))
                caption = (
                    f"{what} on {dataset_name(dataset)}, {budget_name(budget)}: mean over seeds, in brackets their "
                    f"standard deviation in units of the last digit. {explained} {CAPTION}"
                )
                label = f"localisation-{dataset}-{budget}{suffix}"
                yield from paged(Table(label, caption, "Map", columns, tuple(sections), compact=True))


def _map_lines(
    rows: Scores,
    dataset: str,
    budgets: set[str],
    finding: str,
    columns: Sequence[Column],
    order: Sequence[str],
) -> list[Line]:
    """Return a line per map; of a data set without regions, those that say more than that there is nothing to say."""
    lines: list[Line] = []
    silent: dict[str, Line] = {}  # gaps with their reasons
    controls: dict[str, Line] = {}
    for method in order:
        for labels in sorted(budgets, key=lambda b: b == "all"):
            for place in rows.places(dataset, labels, method, "pointing"):
                summaries = [
                    _summary(rows, dataset, labels, method, column.metric, finding=finding, place=place)
                    for column in columns
                ]
                # What a map costs says nothing of where it points.
                said = [s for s, column in zip(summaries, columns, strict=True) if not _is_cost(column.metric)]
                if all(math.isnan(s.mean) and not s.reason for s in said):
                    continue
                cells = tuple(cell_of(summary) for summary in summaries)
                control = place in CONTROL_MAPS
                name = map_name(place) if control else f"{method_name(method)}: {map_name(place)}"
                line = Line(name, cells, competes=not control)
                never_run = not any(row["run_id"] for s in summaries for row in s.rows)
                if all(math.isnan(s.mean) for s in said) and not never_run:
                    silent.setdefault(name, line)
                elif control:
                    controls.setdefault(place, line)
                else:
                    lines.append(line)
    return lines + [controls[place] for place in CONTROL_MAPS if place in controls] or list(silent.values())


def _summary(rows: Scores, dataset: str, labels: str, method: str, metric: str, *, finding: str, place: str) -> Summary:
    if _is_cost(metric):  # the same for every finding; seeds differ in the noise of the clock alone
        return replace(rows.summary(dataset, labels, method, metric, map=place), sd=math.nan)
    return rows.summary(dataset, labels, method, metric, finding=finding, map=place)


def _is_cost(metric: str) -> bool:
    return metric.endswith("_per_map")


def _floor(rows: Scores, dataset: str, budgets: set[str], finding: str) -> float:
    for method in rows.distinct("method", dataset=dataset, metric="pointing_floor"):
        for labels in sorted(budgets):
            floor = rows.summary(dataset, labels, method, "pointing_floor", finding=finding, map="uniform").mean
            if not math.isnan(floor):
                return floor
    return math.nan
