"""The table of mean ranks over data sets and budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Cell, Column, Line, Section, Table, rank
from jointdiff.report.ranks import rank_methods
from jointdiff.report.statistics import Summary
from jointdiff.report.wording import budget_name, dataset_name, method_name


def ranks_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield mean ranks by macro AUROC with the ranks in each block, if there is enough to rank."""
    found = rank_methods(evidence.rows, evidence.order, alpha=evidence.alpha)
    if found is None:
        return
    columns = (
        Column("Mean rank", "rank", digits=2),
        *(
            Column(budget_name(labels), "rank", dataset_name(dataset), digits=1, ranked=False)
            for dataset, labels in found.blocks
        ),
    )
    lines = []
    for method, scores, ranks, mean in zip(found.methods, found.scores, found.ranks, found.means, strict=True):
        # A rank is made of the scores that it ranks.
        blocks = [
            replace(s, mean=float(r), sd=math.nan, low=math.nan, high=math.nan)
            for s, r in zip(scores, ranks, strict=True)
        ]
        gap = mean - found.means[0]
        cells = (
            Cell(Summary(float(mean), rows=[row for s in scores for row in s.rows]), tied=0 < gap <= found.critical),
            *map(Cell, blocks),
        )
        lines.append(Line(method_name(method), cells))
    left_out = ", ".join(map(method_name, found.left_out))
    yield Table(
        label="ranks",
        caption=(
            f"Mean ranks by macro AUROC over {len(found.blocks)} blocks, the budgets of all data sets, in each of "
            "which methods are ranked by their mean over seeds; 1 is best. Friedman test: "
            f"p = {found.p:.2g} that no method differs from any other. † marks what the Nemenyi test cannot tell from "
            f"the best (critical difference {found.critical:.2f} at level {found.alpha:g}). Budgets of one data set "
            "share their images, so that there are fewer independent blocks than it seems; few blocks tell little "
            "apart." + (f" Left out, for want of a seed or budget: {left_out}." if left_out else "")
        ),
        stub="Method",
        columns=columns,
        sections=(rank(Section("", tuple(lines)), columns),),
    )
