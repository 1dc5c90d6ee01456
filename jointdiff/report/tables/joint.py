"""Table 2: how well generators classify, beside how well they draw."""

from __future__ import annotations

import math
from collections.abc import Iterator

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Cell, Column, Line, Section, Table, cell_of, digits_of, over, rank
from jointdiff.report.wording import budget_name, dataset_name, method_name


def joint_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, how well generators classify, beside how well they draw."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset"):
        methods = rows.methods(dataset, "frechet_distance", evidence.order)
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
