"""Which tables there are: each is a module that builds it from score rows, and has its line in ``TABLES``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jointdiff.evaluate.scores import read_rows
from jointdiff.report.environments import mark_environments
from jointdiff.report.evidence import Changes, Evidence
from jointdiff.report.layout import WRITERS, Table
from jointdiff.report.published import read_published
from jointdiff.report.ranks import TOO_FEW
from jointdiff.report.statistics import Scores, read_caveats, read_cells
from jointdiff.report.tables.ablation import ablation_tables
from jointdiff.report.tables.classification import classification_tables
from jointdiff.report.tables.cost import cost_tables
from jointdiff.report.tables.counterfactual import counterfactual_tables
from jointdiff.report.tables.images import images_tables
from jointdiff.report.tables.joint import joint_tables
from jointdiff.report.tables.localisation import localisation_tables
from jointdiff.report.tables.ranks import ranks_tables
from jointdiff.report.tables.systems import systems_tables
from jointdiff.report.tables.trust import trust_tables
from jointdiff.report.tables.usefulness import usefulness_tables
from jointdiff.report.tables.votes import votes_tables


class Kind(NamedTuple):
    """How a kind of table is built, and what is said where there is nothing to show."""

    build: Callable[[Evidence], Iterator[Table]]
    nothing: str = "No score rows."


TABLES = {
    "classification": Kind(classification_tables),
    "ranks": Kind(ranks_tables, f"Nothing to rank: {TOO_FEW}."),
    "systems": Kind(systems_tables),
    "votes": Kind(votes_tables, "No method of this experiment votes."),
    "joint": Kind(joint_tables, "No method of this experiment draws images."),
    "images": Kind(images_tables, "No method of this experiment draws images."),
    "usefulness": Kind(usefulness_tables, "No variant of this experiment learns from synthetic images."),
    "localisation": Kind(localisation_tables, "No method of this experiment explains findings."),
    "counterfactual": Kind(counterfactual_tables, "No method of this experiment makes counterfactuals."),
    "trust": Kind(trust_tables),
    "ablation": Kind(ablation_tables, "No variant of this experiment changes another one."),
    "cost": Kind(cost_tables),
}
FORMATS = ("tex", "csv", "md", "html", "json")


def draw_tables(
    scores: Path | str,
    predictions: Iterable[Path | str],
    out: Path | str,
    *,
    published: Path | str | None = None,
    methods: Sequence[str] = (),
    changes: Changes | None = None,
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
    evidence = Evidence(
        rows,
        order=rows.ordered(methods),
        cells=read_cells(predictions),
        caveats=read_caveats(predictions),
        reported=read_published(published) if published else (),
        changes=changes or {},
        draws=draws,
        alpha=alpha,
    )
    written = []
    for name, kind in TABLES.items():
        tables = mark_environments(kind.build(evidence)) or [Table(name, kind.nothing, "Method")]
        for suffix in FORMATS:
            written.append(Path(out) / f"{name}.{suffix}")
            WRITERS[suffix](tables, written[-1])
    return written
