"""Table 6, first part: what synthetic images are worth to a classifier that learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Table, paged
from jointdiff.report.tables.ablation import CLASSIFICATION, blocks_of, compare_blocks, lay_out
from jointdiff.report.wording import dataset_name, method_name


def usefulness_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, classifiers that learn from synthetic images beside the same one without."""
    rows = evidence.rows
    changes = evidence.from_synthetic()

    def named(variant: str) -> tuple[str, str]:
        changed = changes[variant]["changes"]
        generator = f"images drawn by {method_name(changed['synthetic'][1]).lower()}"
        alone = "real_labels" in changed and not changed["real_labels"][1]
        return (generator[0].upper() + generator[1:] if alone else f"Both: real and {generator}"), ""

    for dataset in rows.distinct("dataset"):
        blocks = blocks_of(rows, dataset, changes)
        if not blocks:
            continue
        compared, drawn = compare_blocks(evidence, dataset, blocks)
        table = lay_out(
            rows,
            dataset,
            blocks,
            CLASSIFICATION,
            compared,
            named=named,
            base_named=lambda base: f"{method_name(base)}: real labelled images",
        )
        spread = ", in brackets the standard deviation in units of the last digit"
        yield from paged(
            replace(
                table,
                label=f"usefulness-{dataset}",
                caption=f"Are synthetic images useful on {dataset_name(dataset)}? A fresh classifier trained on the "
                "real labelled images, on synthetic ones with the labels asked for, and on both, tested on real test "
                f"images. Value: mean over seeds{spread if rows.distinct_seeds(dataset) > 1 else ''}. Difference: less "
                f"real images alone, with its {100 * (1 - evidence.alpha):g} % interval (paired bootstrap over the "
                f"groups of the same test cases and seeds, {drawn:,} draws); * marks what differs at level "
                f"{evidence.alpha:g} after Holm's correction over the lines of one budget and metric. All of them "
                "choose weights on the same real validation images.",
                stub="Learns from",
            )
        )
