"""The table of votes: what the answers of diffusion classifiers give and take, by rule and number of trials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Cell, Column, Line, Section, Table, cell_of, over, paged, rank
from jointdiff.report.statistics import Scores, Summary
from jointdiff.report.wording import RULES, budget_name, dataset_name, method_name, rule_name

SHOWN_TRIALS = (1, 5, 25, 101, 501)  # of those that are scored, and the last one
SUREST = 0.8  # share of the cases that is kept where the least sure ones are dropped


def votes_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, what the votes of diffusion classifiers give and take, by rule and number of trials."""
    rows = evidence.rows
    columns = (
        Column("Accuracy", "vote_accuracy"),
        Column("Points gained", "vote_gain", digits=1, scale=100, ranked=False, signed=True),
        Column("Macro AUROC", "vote_auroc"),
        Column("per image", "vote_calls", "Network calls", digits=1, ranked=False),
        Column("times fewer", "", "Network calls", digits=1, ranked=False),
        Column("AURC", "aurc", "Risk-coverage"),
        Column(f"surest {100 * SUREST:g} %", f"accuracy_kept_{SUREST:g}", "Risk-coverage"),
    )
    for dataset in rows.distinct("dataset", metric="vote_calls"):
        sections = []
        for method in rows.methods(dataset, "vote_calls", evidence.order):
            for labels in rows.distinct("labels", dataset=dataset, method=method, metric="vote_calls"):
                sections.append(rank(_votes_section(rows, dataset, labels, method), columns))
        shown = [c for c in range(len(columns)) if any(not s.cells[c].empty for sec in sections for s in sec.lines)]
        yield from paged(
            Table(
                label=f"votes-{dataset}",
                caption=(
                    f"Votes of diffusion classifiers on {dataset_name(dataset)}, "
                    f"mean{over(rows.distinct_seeds(dataset))}. A trial is one noise at one noise level, the same for "
                    "all conditions of an image; it takes one network call for each. Majority: the condition that is "
                    "best in most trials; mean error: the least error over all trials; race: a condition that is "
                    "beaten beyond doubt is tried no more. Points gained: accuracy less that of the majority of all "
                    "trials, with its interval (bootstrap over groups, paired). Times fewer: calls of all trials of "
                    "all conditions over those taken. As predicted: the answers that all other tables score, with "
                    "their own thresholds; AURC is the area under their risk-coverage curve, and surest "
                    f"{100 * SUREST:g} % the accuracy that is left without the cases of least certain answers. Best in "
                    "bold, second underlined."
                ),
                stub="Rule",
                columns=tuple(columns[c] for c in shown),
                sections=tuple(
                    replace(s, lines=tuple(replace(n, cells=tuple(n.cells[c] for c in shown)) for n in s.lines))
                    for s in sections
                ),
            )
        )


def _votes_section(rows: Scores, dataset: str, labels: str, method: str) -> Section:
    scored = rows.trials(dataset, labels, method)
    full = rows.all_calls(dataset, labels, method)
    most = max(numbers[-1] for numbers in scored.values())
    lines = []
    for rule in sorted(scored, key=RULES.index):
        last = scored[rule][-1]
        for trials in [last] if rule == "race" else [n for n in scored[rule] if n in SHOWN_TRIALS or n == last]:
            accuracy, gain, auroc, calls = (
                rows.summary(dataset, labels, method, f"vote_{metric}", rule=rule, trials=str(trials))
                for metric in ("accuracy", "gain", "auroc", "calls")
            )
            reference = (rule, trials) == ("majority", most)
            cells = cell_of(accuracy), Cell() if reference else Cell(gain), cell_of(auroc), *_taken(calls, full)
            lines.append(Line(rule_name(rule, trials), (*cells, Cell(), Cell())))
    accuracy, auroc, calls, aurc, surest = (
        rows.summary(dataset, labels, method, metric)
        for metric in ("accuracy", "auroc", "calls_per_prediction", "aurc", f"accuracy_kept_{SUREST:g}")
    )
    predicted = (cell_of(accuracy), Cell(), cell_of(auroc), *_taken(calls, full), cell_of(aurc), cell_of(surest))
    lines.append(Line("As predicted", predicted, competes=False))
    return Section(f"{method_name(method)}, {budget_name(labels)}; {most} trials are {full:g} calls", tuple(lines))


def _taken(calls: Summary, full: float) -> tuple[Cell, Cell]:
    """Return the calls of an answer and how many times fewer they are than all."""
    fewer = full / calls.mean if calls.mean > 0 else math.nan
    return Cell(replace(calls, sd=math.nan, reason="")), Cell(Summary(mean=fewer, rows=calls.rows))
