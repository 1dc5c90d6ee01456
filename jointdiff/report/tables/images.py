"""Synthetic images by every measure of their quality, and how near they come to training images (table 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Column, Line, Section, Table, cell_of, digits_of, over, rank
from jointdiff.report.wording import budget_name, dataset_name, method_name

QUALITY = (
    Column("Frechet", "frechet_distance", "Distance"),
    Column("Kernel", "kernel_distance", "Distance"),
    Column("FID", "fid", "Distance", digits=1),
    Column("KID", "kid", "Distance", "10⁻³", digits=1, scale=1000.0),
    Column("Precision", "image_precision", "Fidelity"),
    Column("Density", "image_density", "Fidelity"),
    Column("Recall", "image_recall", "Variety"),
    Column("Coverage", "image_coverage", "Variety"),
)
PRIVACY = (
    Column("Ratio", "nearest_ratio", "Pixels", digits=2, ranked=False),
    Column("Near copies", "near_copies", "Pixels", "%", digits=1, scale=100.0, ranked=False),
    Column("Ratio", "feature_nearest_ratio", "Features", digits=2, ranked=False),
    Column("Near copies", "feature_near_copies", "Features", "%", digits=1, scale=100.0, ranked=False),
)


def images_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, the quality of synthetic images, and how near they come to training images."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset", metric="frechet_distance"):
        facts = next(
            found
            for labels in rows.distinct("labels", dataset=dataset, metric="frechet_distance")
            for method in rows.methods(dataset, "frechet_distance", evidence.order)
            if (found := rows.summary(dataset, labels, method, "frechet_distance").facts)
        )
        extractor = method_name(facts["extractor"]).lower()
        mean = f"mean{over(rows.distinct_seeds(dataset))}"
        for part, (columns, caption) in enumerate(
            (
                (
                    QUALITY,
                    f"Quality of synthetic images on {dataset_name(dataset)}, {mean}. Distances, precision (share of "
                    "synthetic images among the real ones), density (how deep among them), recall (share of real "
                    "images among the synthetic ones) and coverage are in the features of the "
                    f"{extractor} classifier, against the real test images; FID and KID in Inception's. The line of "
                    "real images is what as many real training images reach.",
                ),
                (
                    PRIVACY,
                    f"Do synthetic images on {dataset_name(dataset)} repeat training images? {mean[0].upper()}"
                    f"{mean[1:]}. Ratio: median distance of synthetic images to the nearest training image, "
                    "over that of test images; 1 is the distance of unseen images, 0 a copy. Near copies: share of "
                    "synthetic images nearer than all but the nearest 1 % of the test images, so that 1 % is chance. "
                    f"Pixels: averaged to at most 32 x 32; features: of the {extractor} classifier. Smooth images are "
                    "near to many in pixels without being copies: look at the pairs.",
                ),
            )
        ):
            table = _table(evidence, dataset, columns)
            if table.sections:
                label = f"images-{dataset}" + (f"-{part + 1}" if part else "")
                yield replace(table, label=label, caption=caption)


def _table(evidence: Evidence, dataset: str, plan: Sequence[Column]) -> Table:
    rows, sections, columns = evidence.rows, [], list(plan)
    for c, column in enumerate(columns):
        if column.metric in ("frechet_distance", "kernel_distance"):
            own = [row["value"] for row in rows.rows if row["dataset"] == dataset and row["metric"] == column.metric]
            columns[c] = replace(column, digits=digits_of(own))
    for labels in rows.distinct("labels", dataset=dataset, metric="frechet_distance"):
        lines, real = [], None
        for method in rows.methods(dataset, "frechet_distance", evidence.order):
            cells = tuple(cell_of(rows.summary(dataset, labels, method, column.metric)) for column in columns)
            if not all(cell.empty and not cell.note for cell in cells):
                lines.append(Line(method_name(method), cells))
            reference = [rows.summary(dataset, labels, method, f"{column.metric}_real") for column in columns]
            if real is None and not all(math.isnan(summary.mean) for summary in reference):
                real = Line("Real training images", tuple(map(cell_of, reference)), competes=False)
        if lines:
            sections.append(rank(Section(budget_name(labels), (*lines, *([real] if real else []))), columns))
    return Table("", "", "Method", tuple(columns), tuple(sections), compact=plan is QUALITY)
