"""Table 5: do counterfactuals convince, and what do they change?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jointdiff.evaluate.scores import MACRO
from jointdiff.report.evidence import Evidence, name_beside
from jointdiff.report.layout import Cell, Column, Line, Section, Table, cell_of, over, paged, rank
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import budget_name, dataset_name, sentence

# Counterfactual quality in two tables: does the edit convince, and what does it take?
EDITS = (
    (
        "",
        "Do the edits convince?",
        (
            Column("own", "flip_rate", "Removed", digits=2),
            Column("judge", "judge_flip_rate", "Removed", digits=2),
            Column("control", "control_flip_rate", "Removed", digits=2, ranked=False),
            Column("before", "probability_before", "Probability", digits=2, ranked=False),
            Column("after", "probability_after", "Probability", digits=2, ranked=False),
            Column("before", "judge_probability_before", "Judge's probability", digits=2, ranked=False),
            Column("after", "judge_probability_after", "Judge's probability", digits=2, ranked=False),
            Column("control", "control_probability", "Judge's probability", digits=2, ranked=False),
            Column("own", "enforce_rate", "Enforced", digits=2),
            Column("judge", "judge_enforce_rate", "Enforced", digits=2),
            Column("control", "control_enforce_rate", "Enforced", digits=2, ranked=False),
            Column("own", "side_effect", "Side effect", ranked=False),
            Column("judge", "judge_side_effect", "Side effect", ranked=False),
        ),
        "Removed: of the images in which the finding was seen (probability at least .5), the share in which it is not "
        "seen after it was taken out, by the model itself (own) and by an independent judge; control: the same by the "
        "judge for the image rebuilt without an edit, which is what reconstruction alone loses. Probability: what the "
        "model itself gives the finding before and after. Judge's probability: the same by the judge, and in the "
        "control: what it falls by from control to after is due to the edit. Enforced: of the images without the "
        "finding in which it was not seen, the share in which it is seen after it was put in. Side effect: mean change "
        "of the probabilities of the other findings when one is taken out. Best in bold, second underlined.",
    ),
    (
        "-size",
        "How much do the edits change, how soon do they tell, and are they still images?",
        (
            Column("Proximity", "proximity", unit="%", digits=2, ranked=False),
            Column("LPIPS", "lpips", ranked=False),
            Column("Edit size", "edit_size", unit="%", digits=2, ranked=False),
            Column("Sparsity", "sparsity", ranked=False),
            Column("Spread", "spread", unit="%", digits=2, ranked=False),
            Column("own", "cout", "COUT", digits=2),
            Column("judge", "judge_cout", "COUT", digits=2),
            Column("control", "control_cout", "COUT", digits=2, ranked=False),
            Column("edited", "edit_frechet_distance", "Frechet distance", digits=1, ranked=False),
            Column("control", "control_frechet_distance", "Frechet distance", digits=1, ranked=False),
            Column("unedited", "unedited_frechet_distance", "Frechet distance", digits=1, ranked=False),
            Column("Calls", "calls_per_counterfactual", digits=0, ranked=False),
        ),
        "Of the images from which the finding was taken out. Proximity: mean absolute difference of the edited from "
        "the original image, in percent of the pixel range; LPIPS, where it was measured: the same as people see it "
        "(Zhang et al. 2018); edit size: that from the image rebuilt without an edit, so "
        "without what reconstruction alone changes; sparsity: share of the pixels in which these two differ by more "
        "than 5 % of the range; spread: mean standard deviation of the edit over draws of noise, 0 for a single draw. "
        "COUT: with the pixels of the edit put into the image, the most changed first, the area under the probability "
        "that the finding is gone less that under the probability that it is there, from -1 to 1 (1: gone with the "
        "first pixels), of images in which it was seen, by the model itself (unless it votes), by the judge, and by "
        "the judge when the pixels are those of the control. Frechet distance: of all edited images together to the "
        "real test images in the judge's features, beside that of the controls and of the images before the edit, "
        "which no edit needs to surpass. Calls: of the network, for one edit with its control. Sizes and distances are "
        "not ranked: what changes nothing changes least, so that a small number speaks for an edit only if the edit "
        "convinces.",
    ),
)


def counterfactual_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set and budget, whether counterfactuals convince, and what they change."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset"):
        every = rows.distinct("labels", dataset=dataset, metric="proximity")
        findings = sorted(rows.findings(dataset, "proximity"), key=lambda finding: finding != MACRO)  # macro first
        seeds = rows.distinct_seeds(dataset)
        spread = ", in brackets their standard deviation in units of the last digit" if seeds > 1 else ""
        for budget in [labels for labels in every if labels != "all"] or every:
            for suffix, question, plan, explained in EDITS:
                table = _edits_table(rows, dataset, budget, findings, plan, evidence.order)
                caption = (
                    f"{question} Counterfactuals on {dataset_name(dataset)}, {budget_name(budget)}: "
                    f"mean{over(seeds, spread=False)}{spread}. {explained}"
                )
                label = f"counterfactual-{dataset}-{budget}{suffix}"
                yield from paged(replace(table, label=label, caption=caption))


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
    for place, finding in enumerate(findings):
        lines = []
        for method, labels in standing:
            name = name_beside(method, labels, budget=budget)
            cells = tuple(
                _edits_cell(rows, dataset, labels, method, column.metric, finding, first=not place)
                for column in columns
            )
            lines.append(Line(name, cells, competes=labels == budget))
        title = "All findings (macro)" if finding == MACRO else sentence(finding)
        sections.append(rank(Section(title, tuple(lines)), columns))
    return Table("", "", "Method", columns, tuple(sections), compact=True)


def _edits_cell(
    rows: Scores, dataset: str, labels: str, method: str, metric: str, finding: str, *, first: bool
) -> Cell:
    if metric.startswith("calls"):  # the same for every finding and seed
        return Cell(replace(rows.summary(dataset, labels, method, metric), sd=math.nan))
    if metric.endswith("frechet_distance"):  # of the images of all findings: said once
        return cell_of(rows.summary(dataset, labels, method, metric, map="counterfactual")) if first else Cell()
    return cell_of(rows.summary(dataset, labels, method, metric, finding=finding, map="counterfactual"))
