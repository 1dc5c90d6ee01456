"""The table of trust: calibration, uncertainty and conformal sets."""

from __future__ import annotations

from collections.abc import Iterator

from jointdiff.evaluate.classification import CALIBRATION_BINS, CONFORMAL_ERROR, SURE
from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Column, Line, Section, Table, cell_of, over, paged, rank
from jointdiff.report.wording import CONTROLS, budget_name, dataset_name, method_name

COLUMNS = (
    Column("ECE", "ece", "Calibration"),
    Column("Brier", "brier", "Calibration"),
    Column("NLL", "nll", "Calibration", unit="nats"),
    Column("AURC", "aurc", "Risk-coverage"),
    *(Column(f"{100 * kept:g} %", f"accuracy_kept_{kept:g}", "Surest") for kept in SURE),
    Column("coverage", "conformal_coverage", "Conformal sets", ranked=False),
    Column("size", "conformal_size", "Conformal sets", digits=2),
)
MEANING = {
    "Calibration": f"ECE: expected calibration error of {CALIBRATION_BINS} bins; Brier: mean squared error of the "
    "probabilities, over the sum of classes where there is one of several; NLL: negative log-likelihood of the truth.",
    "Risk-coverage": "AURC: area under the risk-coverage curve.",
    "Surest": "Surest: accuracy of that share of the cases, the least certain ones left out.",
    "Conformal sets": "Conformal sets: calibrated on the validation cases to hold the truth of "
    f"{100 * (1 - CONFORMAL_ERROR):g} % of new ones; how many hold it, which is to be near that and is not ranked, and "
    "how many answers are in one: the fewer the better where the coverage is kept.",
}


def trust_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, whether probabilities can be trusted, budget by budget."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset"):
        measured = set(rows.distinct("metric", dataset=dataset))
        columns = tuple(column for column in COLUMNS if column.metric in measured)
        if not columns:
            continue
        sections = []
        for labels in rows.distinct("labels", dataset=dataset):
            lines = [
                Line(
                    method_name(method),
                    tuple(cell_of(rows.summary(dataset, labels, method, column.metric)) for column in columns),
                    competes=method not in CONTROLS,
                )
                for method in rows.methods(dataset, "auroc", evidence.order)
                if method in rows.distinct("method", dataset=dataset, labels=labels)
            ]
            lines.sort(key=lambda line: not line.competes)
            sections.append(rank(Section(budget_name(labels), tuple(lines)), columns))
        seeds = rows.distinct_seeds(dataset)
        spread = ", in brackets the standard deviation in units of the last digit" if seeds > 1 else ""
        meaning = " ".join(MEANING[group] for group in dict.fromkeys(column.group for column in columns))
        caption = (
            f"Can the probabilities be trusted? {dataset_name(dataset)}: mean{over(seeds, spread=False)}{spread}, of "
            f"findings their mean. {meaning} Best in bold, second underlined; controls compete with nobody."
        )
        yield from paged(Table(f"trust-{dataset}", caption, "Method", columns, tuple(sections), compact=True))
