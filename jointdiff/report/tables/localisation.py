"""Table 4: do maps show the right place?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jointdiff.evaluate.scores import MACRO
from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Column, Line, Section, Table, cell_of, paged, rank
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import CONTROL_MAPS, budget_name, dataset_name, map_name, method_name, sentence

CAPTION = (
    "mean over seeds, in brackets their standard deviation in units of the last digit. Mean change is in percent of "
    "the pixel range; the pointing floor is the score of a map without knowledge; IoU keeps as many pixels as the "
    "region has; flips are the shares of images in which the finding was seen before the edit and is not seen after "
    "it, by the model itself and by an independent judge, and by that judge in the unguided control: what "
    "reconstruction alone loses. Methods trained on all labels only stand beside every budget. Best in bold, second "
    "underlined, control maps apart."
)


def localisation_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set and budget, whether maps show the right place, finding by finding."""
    rows = evidence.rows
    columns = (
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
    )
    for dataset in rows.distinct("dataset"):
        findings = rows.findings(dataset, "pointing")
        if not findings:
            continue
        every = rows.distinct("labels", dataset=dataset, metric="pointing")
        for budget in [labels for labels in every if labels != "all"] or every:
            sections = []
            for finding in findings:
                lines = _map_lines(rows, dataset, {budget, "all"}, finding, columns, evidence.order)
                floor = _floor(rows, dataset, {budget, "all"}, finding)
                title = "All findings (macro)" if finding == MACRO else sentence(finding)
                title += f"; pointing floor {floor:.3f}" if not math.isnan(floor) else ""
                if lines:
                    sections.append(rank(Section(title, tuple(lines)), columns))
            for page, part in enumerate(paged(sections)):
                yield Table(
                    label=f"localisation-{dataset}-{budget}" + (f"-{page + 1}" if page else ""),
                    caption=(
                        f"Localisation of findings on {dataset_name(dataset)}, {budget_name(budget)}"
                        f"{', continued' if page else ''}: {CAPTION}"
                    ),
                    stub="Map",
                    columns=columns,
                    sections=tuple(part),
                    compact=True,
                )


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
                    rows.summary(dataset, labels, method, column.metric, finding=finding, map=place)
                    for column in columns
                ]
                if all(math.isnan(s.mean) and not s.reason for s in summaries):
                    continue
                cells = tuple(cell_of(summary) for summary in summaries)
                control = place in CONTROL_MAPS
                name = map_name(place) if control else f"{method_name(method)}: {map_name(place)}"
                line = Line(name, cells, competes=not control)
                never_run = not any(row["run_id"] for s in summaries for row in s.rows)
                if all(math.isnan(s.mean) for s in summaries) and not never_run:
                    silent.setdefault(name, line)
                elif control:
                    controls.setdefault(place, line)
                else:
                    lines.append(line)
    return lines + [controls[place] for place in CONTROL_MAPS if place in controls] or list(silent.values())


def _floor(rows: Scores, dataset: str, budgets: set[str], finding: str) -> float:
    for method in rows.distinct("method", dataset=dataset, metric="pointing_floor"):
        for labels in sorted(budgets):
            floor = rows.summary(dataset, labels, method, "pointing_floor", finding=finding, map="uniform").mean
            if not math.isnan(floor):
                return floor
    return math.nan
