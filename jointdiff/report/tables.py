"""Which tables there are: each built from score rows, with published numbers where they can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jointdiff.evaluate.scores import MACRO, read_rows
from jointdiff.report.ablation import ablation_tables
from jointdiff.report.layout import WRITERS, Cell, Column, Line, Section, Table, cell_of, digits_of, over, paged, rank
from jointdiff.report.published import Reported, read_published, reported_lines
from jointdiff.report.statistics import (
    Comparison,
    Scores,
    compare_with_best,
    enough_draws,
    read_caveats,
    read_cells,
)
from jointdiff.report.votes import votes_tables
from jointdiff.report.wording import CONTROLS, budget_name, dataset_name, map_name, method_name, sentence

TABLES = ("classification", "systems", "votes", "joint", "localisation", "counterfactual", "ablation", "cost")
FORMATS = ("tex", "csv", "md", "html")
MAX_COLUMNS = 6  # of numbers with their deviation, side by side
CONTROL_MAPS = ("random_map", "centre_prior")
BEST_MAPS = ("counterfactual_control", "counterfactual", "grad_cam", *CONTROL_MAPS)  # the first one stands for a method
_ALL = budget_name("all")
_MAPS_CAPTION = (
    "mean over seeds, in brackets their standard deviation in units of the last digit. Mean change is in percent of "
    "the pixel range; the pointing floor is the score of a map without knowledge; IoU keeps as many pixels as the "
    "region has; flips are the shares of images in which the finding was seen before the edit and is not seen after "
    "it, by the model itself and by an independent judge, and by that judge in the unguided control: what "
    "reconstruction alone loses. Methods trained on all labels only stand beside every budget. Best in bold, second "
    "underlined, control maps apart."
)
# Counterfactual quality in two tables: does the edit convince, and how much does it take?
_EDITS = (
    (
        "",
        "Do the edits convince?",
        (
            Column("own", "flip_rate", "Removed", digits=2),
            Column("judge", "judge_flip_rate", "Removed", digits=2),
            Column("control", "control_flip_rate", "Removed", digits=2, ranked=False),
            Column("before", "probability_before", "Probability", digits=2, ranked=False),
            Column("after", "probability_after", "Probability", digits=2, ranked=False),
            Column("own", "enforce_rate", "Enforced", digits=2),
            Column("judge", "judge_enforce_rate", "Enforced", digits=2),
            Column("control", "control_enforce_rate", "Enforced", digits=2, ranked=False),
            Column("own", "side_effect", "Side effect", ranked=False),
            Column("judge", "judge_side_effect", "Side effect", ranked=False),
        ),
        "Removed: of the images in which the finding was seen (probability at least .5), the share in which it is not "
        "seen after it was taken out, by the model itself (own) and by an independent judge; control: the same by the "
        "judge for the image rebuilt without an edit, which is what reconstruction alone loses. Probability: what the "
        "model itself gives the finding before and after. Enforced: of the images without the finding in which it was "
        "not seen, the share in which it is seen after it was put in. Side effect: mean change of the probabilities of "
        "the other findings when one is taken out. Best in bold, second underlined.",
    ),
    (
        "-size",
        "How much do the edits change?",
        (
            Column("Proximity", "proximity", unit="%", digits=2, ranked=False),
            Column("Edit size", "edit_size", unit="%", digits=2, ranked=False),
            Column("Sparsity", "sparsity", ranked=False),
            Column("Spread", "spread", unit="%", digits=2, ranked=False),
            Column("Calls", "calls_per_counterfactual", digits=0, ranked=False),
        ),
        "Of the images from which the finding was taken out. Proximity: mean absolute difference of the edited from "
        "the original image, in percent of the pixel range; edit size: that from the image rebuilt without an edit, so "
        "without what reconstruction alone changes; sparsity: share of the pixels in which these two differ by more "
        "than 5 % of the range; spread: mean standard deviation of the edit over draws of noise, 0 for a single draw; "
        "calls: of the network, for one edit with its control. Nothing is ranked: what changes nothing changes least, "
        "so that a small number speaks for an edit only if the edit convinces.",
    ),
)


def draw_tables(
    scores: Path | str,
    predictions: Iterable[Path | str],
    out: Path | str,
    *,
    published: Path | str | None = None,
    methods: Sequence[str] = (),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    draws: int = 1000,
    alpha: float = 0.05,
) -> list[Path]:
    """Write every table into the folder ``out``, each in every format, and return the files.

    ``predictions`` are those of the cells, for the comparison of methods (each beside its run.json); ``published`` is
    the file of published numbers; ``methods`` gives the order of lines; ``changes`` are what variants change of their
    base, as ``Experiment.changes`` says it.
    """
    rows = Scores(read_rows(scores))
    predictions = list(predictions)
    cells, caveats = read_cells(predictions), read_caveats(predictions)
    order = [*methods, *(m for m in rows.distinct("method") if m not in methods)]
    reported = read_published(published) if published else []
    tables = {
        "classification": [
            replace(table, caption=f"{table.caption}{_told(caveats.get(dataset, []))}")
            for dataset in rows.distinct("dataset")
            for table in classification_tables(rows, dataset, order, cells, reported, draws=draws, alpha=alpha)
        ],
        "systems": list(systems_tables(rows, order)),
        "votes": list(votes_tables(rows, order, cells)),
        "joint": list(joint_tables(rows, order)),
        "localisation": list(localisation_tables(rows, order)),
        "counterfactual": list(counterfactual_tables(rows, order)),
        "ablation": list(ablation_tables(rows, changes or {}, cells, draws=draws, alpha=alpha)),
        "cost": list(cost_tables(rows, order)),
    }
    missing = {
        "votes": "No method of this experiment votes.",
        "ablation": "No variant of this experiment changes another one.",
        "joint": "No method of this experiment draws images.",
        "localisation": "No method of this experiment explains findings.",
        "counterfactual": "No method of this experiment makes counterfactuals.",
    }
    written = []
    for name in TABLES:
        if not tables[name]:
            tables[name] = [Table(name, missing.get(name, "No score rows."), "Method")]
        for suffix in FORMATS:
            written.append(Path(out) / f"{name}.{suffix}")
            WRITERS[suffix](tables[name], written[-1])
    return written


def classification_tables(
    rows: Scores,
    dataset: str,
    order: Sequence[str],
    cells: Mapping,
    reported: Sequence[Reported],
    *,
    draws: int,
    alpha: float,
) -> Iterator[Table]:
    """Yield table 1 of a data set: classification by label budget, with what is not different from the best."""
    metrics = ("auroc", "average_precision", "accuracy")
    budgets = rows.budgets(dataset)
    methods = rows.methods(dataset, "auroc", order)
    rivals = [m for m in methods if m not in CONTROLS]
    draws = enough_draws(draws, methods=len(rivals), alpha=alpha)
    compared = {
        (labels, metric): compare_with_best(
            cells.get((dataset, labels), {}), metric, methods=rivals, draws=draws, alpha=alpha
        )
        for labels in budgets
        for metric in metrics
    }
    per_table = max(1, MAX_COLUMNS // len(budgets))
    for start in range(0, len(metrics), per_table):
        shown = metrics[start : start + per_table]
        yield _classification_table(
            rows, dataset, budgets, methods, shown, compared, reported, part=start, draws=draws, alpha=alpha
        )


def _told(caveats: Sequence[str]) -> str:
    """Return what a reader must know of a data set, as the end of a caption."""
    return f" Of these data: {'; '.join(caveat.rstrip('.') for caveat in caveats)}." if caveats else ""


def _classification_table(
    rows: Scores,
    dataset: str,
    budgets: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    compared: Mapping[tuple[str, str], Mapping[str, Comparison]],
    reported: Sequence[Reported],
    *,
    part: int,
    draws: int,
    alpha: float,
) -> Table:
    macro = {"auroc": "Macro AUROC", "average_precision": "Macro average precision", "accuracy": "Accuracy"}
    columns = tuple(
        Column(budget_name(labels), metric, group=macro[metric]) for metric in metrics for labels in budgets
    )
    lines = []
    for method in methods:
        own = rows.distinct("labels", dataset=dataset, method=method)
        cells: list[Cell] = []
        for metric in metrics:
            if own == ["all"] and budgets != ["all"]:  # its number belongs to no budget: one cell under all of them
                cells.append(cell_of(rows.summary(dataset, "all", method, metric), span=len(budgets)))
                continue
            for labels in budgets:
                stand = compared[labels, metric].get(method)
                tied = stand is not None and stand.method != stand.other and not stand.different
                cells.append(cell_of(rows.summary(dataset, labels, method, metric), tied=tied))
        name = method_name(method) + (f" ({budget_name('all')})" if own == ["all"] and budgets != ["all"] else "")
        lines.append(Line(name, tuple(cells), competes=method not in CONTROLS and own != ["all"]))
    sections = [
        rank(Section("", tuple(line for line in lines if line.competes)), columns),
        Section("Controls", tuple(line for line in lines if not line.competes)),
        Section("Reported elsewhere, not measured here", reported_lines(rows, dataset, columns, budgets, reported)),
    ]
    seeds = rows.distinct_seeds(dataset)
    return Table(
        label=f"classification-{dataset}" + (f"-{part + 1}" if part else ""),
        caption=(
            f"Semi-supervised classification on {dataset_name(dataset)} by label budget: mean{over(seeds)}. "
            "Best in bold, second underlined; † marks what is not significantly different from the best "
            f"(paired bootstrap over groups, {draws:,} draws, Holm-corrected, level {alpha:g}). "
            "Controls compete with nobody."
        ),
        stub="Method",
        columns=columns,
        sections=tuple(section for section in sections if section.lines),
    )


def systems_tables(rows: Scores, order: Sequence[str]) -> Iterator[Table]:
    """Yield, for each data set, all systems side by side at the largest budget: how good, and at what cost."""
    for dataset in rows.distinct("dataset"):
        largest = rows.budgets(dataset)[-1]
        standing = _standing(rows, dataset, "auroc", order)
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
            table = _systems_table(rows, dataset, standing, columns)
            if table.columns:
                yield replace(table, label=f"systems-{dataset}" + (f"-{part + 1}" if part else ""), caption=caption)


def _systems_table(
    rows: Scores, dataset: str, standing: Sequence[tuple[str, str, str]], columns: Sequence[Column]
) -> Table:
    """Lay out the columns for which any system has a number."""
    kept, found = [], []
    for column in columns:
        cells = [_system_cell(rows, dataset, labels, method, column.metric) for method, labels, _ in standing]
        values = [cell.summary.mean for cell in cells if not cell.empty]
        if values:
            # What is counted needs no digits unless it is a mean; distances and times come in all sizes.
            plain = column.metric.startswith("calls") and all(value == round(value) for value in values)
            sized = column.metric.startswith(("calls", "ms", "frechet")) and not plain
            kept.append(replace(column, digits=digits_of(values)) if sized else column)
            found.append(cells)
    lines = [
        # One that used all labels is not a rival of those that had few.
        Line(name, tuple(cells[i] for cells in found), competes=method not in CONTROLS and f"({_ALL})" not in name)
        for i, (method, _, name) in enumerate(standing)
    ]
    rivals, controls = ([line for line in lines if line.competes == wanted] for wanted in (True, False))
    sections = (rank(Section("", tuple(rivals)), kept), Section("Controls", tuple(controls)))
    return Table("", "", "System", tuple(kept), tuple(section for section in sections if section.lines))


def _system_cell(rows: Scores, dataset: str, labels: str, method: str, metric: str) -> Cell:
    if metric in ("pointing", "change_ratio"):
        maps = rows.places(dataset, labels, method, metric)
        best = next((place for place in BEST_MAPS if place in maps), "")
        summary = rows.summary(dataset, labels, method, metric, map=best)
        what = sentence(map_name(best)) if best and not math.isnan(summary.mean) else ""
        return Cell(summary, note="; ".join(filter(None, [what, summary.reason])))
    summary = rows.summary(dataset, labels, method, metric)
    if metric.startswith(("calls", "ms")):  # seeds differ in the noise of the clock alone
        return Cell(replace(summary, sd=math.nan, reason=""))
    return cell_of(summary)


def joint_tables(rows: Scores, order: Sequence[str]) -> Iterator[Table]:
    """Yield table 2 for each data set: how well generators classify, beside how well they draw."""
    for dataset in rows.distinct("dataset"):
        methods = rows.methods(dataset, "frechet_distance", order)
        if not methods:
            continue
        sections = []
        extractor = "a classifier"
        for labels in rows.distinct("labels", dataset=dataset, metric="frechet_distance"):
            lines = []
            for method in methods:
                distance = rows.summary(dataset, labels, method, "frechet_distance")
                if not distance.facts and not distance.reason:
                    continue
                extractor = (distance.facts or {}).get("extractor", extractor)
                shown = ("auroc", "accuracy", "guidance_auroc", "frechet_distance", "fid")
                cells = tuple(cell_of(rows.summary(dataset, labels, method, metric)) for metric in shown)
                lines.append(Line(method_name(method), cells))
            reference = rows.summary(dataset, labels, methods[0], "frechet_distance_real")
            if not math.isnan(reference.mean):
                empty = Cell()
                lines.append(
                    Line("Real training images", (empty, empty, empty, cell_of(reference), empty), competes=False)
                )
            sections.append(Section(budget_name(labels) if len(methods) > 1 or lines else "", tuple(lines)))
        distances = [line.cells[3].summary.mean for section in sections for line in section.lines]
        columns = (
            Column("Macro AUROC", "auroc", "Classification"),
            Column("Accuracy", "accuracy", "Classification"),
            Column("Match AUROC", "guidance_auroc", "Generation"),
            Column(
                f"FD-{method_name(extractor).lower()}", "frechet_distance", "Generation", digits=digits_of(distances)
            ),
            Column("FID", "fid", "Generation", digits=1),
        )
        yield Table(
            label=f"joint-{dataset}",
            caption=(
                f"Joint models on {dataset_name(dataset)}: classification beside the quality of synthetic images, "
                f"mean{over(rows.distinct_seeds(dataset))}. Match AUROC: how well an independent classifier finds in "
                "an image what was asked for. FD: Frechet distance to the real test images in the features of the "
                f"{method_name(extractor).lower()} classifier; the line of real images is what as many real training "
                "images reach. Smaller distances are better."
            ),
            stub="Method",
            columns=columns,
            sections=tuple(rank(section, columns) for section in sections),
        )


def localisation_tables(rows: Scores, order: Sequence[str]) -> Iterator[Table]:
    """Yield table 4 for each data set and budget: do maps show the right place, finding by finding?"""
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
                lines = _map_lines(rows, dataset, {budget, "all"}, finding, columns, order)
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
                        f"{', continued' if page else ''}: {_MAPS_CAPTION}"
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
    lines: list[Line] = []
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
                if place in CONTROL_MAPS:
                    controls.setdefault(place, Line(map_name(place), cells, competes=False))
                else:
                    lines.append(Line(f"{method_name(method)}: {map_name(place)}", cells))
    return lines + [controls[place] for place in CONTROL_MAPS if place in controls]


def _floor(rows: Scores, dataset: str, budgets: set[str], finding: str) -> float:
    for method in rows.distinct("method", dataset=dataset, metric="pointing_floor"):
        for labels in sorted(budgets):
            floor = rows.summary(dataset, labels, method, "pointing_floor", finding=finding, map="uniform").mean
            if not math.isnan(floor):
                return floor
    return math.nan


def counterfactual_tables(rows: Scores, order: Sequence[str]) -> Iterator[Table]:
    """Yield table 5 for each data set and budget: do counterfactuals convince, and what do they change?"""
    for dataset in rows.distinct("dataset"):
        every = rows.distinct("labels", dataset=dataset, metric="proximity")
        findings = rows.findings(dataset, "proximity")
        if len(findings) > 2:
            findings = [MACRO, *(finding for finding in findings if finding != MACRO)]
        else:  # of one finding the mean is the finding's
            findings = findings[:1]
        seeds = rows.distinct_seeds(dataset)
        spread = ", in brackets their standard deviation in units of the last digit" if seeds > 1 else ""
        for budget in [labels for labels in every if labels != "all"] or every:
            for suffix, question, plan, explained in _EDITS:
                table = _edits_table(rows, dataset, budget, findings, plan, order)
                for page, part in enumerate(paged(table.sections)):
                    yield replace(
                        table,
                        label=f"counterfactual-{dataset}-{budget}{suffix}" + (f"-{page + 1}" if page else ""),
                        caption=(
                            f"{question} Counterfactuals on {dataset_name(dataset)}, {budget_name(budget)}"
                            f"{', continued' if page else ''}: mean{over(seeds, spread=False)}{spread}. {explained}"
                        ),
                        sections=tuple(part),
                    )


def _edits_table(
    rows: Scores, dataset: str, budget: str, findings: Sequence[str], plan: Sequence[Column], order: Sequence[str]
) -> Table:
    """Lay out the columns of which there are scores; methods that used all labels stand beside every budget."""
    standing = [
        (method, labels)
        for method in rows.methods(dataset, "proximity", order)
        for labels in dict.fromkeys((budget, "all"))
        if rows.places(dataset, labels, method, "proximity")
    ]
    columns = tuple(
        column
        for column in plan
        if any(rows.places(dataset, labels, method, column.metric) for method, labels in standing)
    )
    sections = []
    for finding in findings:
        lines = []
        for method, labels in standing:
            name = method_name(method) + ("" if labels == budget else f" ({_ALL})")
            cells = tuple(_edits_cell(rows, dataset, labels, method, column.metric, finding) for column in columns)
            lines.append(Line(name, cells, competes=labels == budget))
        title = "All findings (macro)" if finding == MACRO else sentence(finding)
        sections.append(rank(Section(title, tuple(lines)), columns))
    return Table("", "", "Method", columns, tuple(sections), compact=True)


def _edits_cell(rows: Scores, dataset: str, labels: str, method: str, metric: str, finding: str) -> Cell:
    if metric.startswith("calls"):  # the same for every finding and seed
        return Cell(replace(rows.summary(dataset, labels, method, metric), sd=math.nan))
    return cell_of(rows.summary(dataset, labels, method, metric, finding=finding, map="counterfactual"))


def cost_tables(rows: Scores, order: Sequence[str]) -> Iterator[Table]:
    """Yield table 7 for each data set: what each method costs, beside what it reaches."""
    for dataset in rows.distinct("dataset"):
        largest = rows.budgets(dataset)[-1]
        lines = _standing(rows, dataset, "parameters", order)
        if not lines:
            continue
        plan = (
            ("Parameters", "parameters", "M", 1e-6, ""),
            ("Memory", "peak_memory_mib", "MiB", 1.0, ""),
            ("Time", "train_seconds", "s", 1.0, "Training"),
            ("Speed", "images_per_second", "images/s", 1.0, "Training"),
            ("Prediction", "ms_per_prediction", "ms", 1.0, "Time per image"),
            ("Sample", "ms_per_sample", "ms", 1.0, "Time per image"),
            ("Edit", "ms_per_counterfactual", "ms", 1.0, "Time per image"),
            ("Sample", "calls_per_sample", "", 1.0, "Network calls"),
            ("Edit", "calls_per_counterfactual", "", 1.0, "Network calls"),
            ("Macro AUROC", "auroc", "", 1.0, ""),
        )
        columns, found = [], []
        for name, metric, unit, scale, group in plan:
            summaries = [rows.summary(dataset, labels, method, metric) for method, labels, _ in lines]
            values = [scale * s.mean for s in summaries]
            if all(math.isnan(value) for value in values):
                continue
            digits = 3 if metric == "auroc" else 0 if metric.startswith("calls") else digits_of(values)
            columns.append(Column(name, metric, group, unit, digits, scale))
            found.append([replace(s, sd=math.nan, reason="") for s in summaries])
        competing, controls = (
            tuple(
                Line(name, tuple(Cell(column[i]) for column in found), competes=wanted)
                for i, (method, _, name) in enumerate(lines)
                if (method not in CONTROLS) == wanted
            )
            for wanted in (True, False)
        )
        used = (rows.summary(dataset, labels, method, "train_seconds") for method, labels, _ in lines)
        devices = dict.fromkeys(s.facts["device"] for s in used if s.facts and "device" in s.facts)
        sections = [Section("", competing), Section("Controls", controls)]
        yield Table(
            label=f"cost-{dataset}",
            caption=(
                f"Cost on {dataset_name(dataset)} with {budget_name(largest)} where nothing else is said, mean over "
                f"seeds, on {', '.join(devices) or 'an unknown device'}. Memory is the peak of the training process; "
                "an edit is one counterfactual with its control."
            ),
            stub="Method",
            columns=tuple(columns),
            sections=tuple(section for section in sections if section.lines),
        )


def _standing(rows: Scores, dataset: str, metric: str, order: Sequence[str]) -> list[tuple[str, str, str]]:
    """List (method, labels, name) of all that have a metric: at the largest budget, or else with all labels."""
    largest = rows.budgets(dataset)[-1]
    found = []
    for method in rows.methods(dataset, metric, order):
        labels = largest if largest in rows.distinct("labels", dataset=dataset, method=method) else "all"
        found.append((method, labels, method_name(method) + (f" ({_ALL})" if labels == "all" != largest else "")))
    return found
