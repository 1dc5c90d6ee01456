"""The figures, each a module of its own and its line in ``FIGURES``; PDF for a paper and PNG for a screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jointdiff.evaluate.scores import read_rows
from jointdiff.files import atomic_path
from jointdiff.letters import settle
from jointdiff.report.evidence import Evidence, read_curves
from jointdiff.report.figures._drawing import STYLE
from jointdiff.report.figures.auroc import draw_auroc
from jointdiff.report.figures.change import draw_change
from jointdiff.report.figures.loss import draw_loss
from jointdiff.report.figures.ranks import draw_ranks
from jointdiff.report.figures.reliability import draw_reliability
from jointdiff.report.figures.risk import draw_risk
from jointdiff.report.figures.votes import draw_votes
from jointdiff.report.statistics import Scores, read_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "auroc": draw_auroc,
    "change": draw_change,
    "loss": draw_loss,
    "ranks": draw_ranks,
    "reliability": draw_reliability,
    "risk": draw_risk,
    "votes": draw_votes,
}
FORMATS = ("pdf", "png")


def draw_figures(
    scores: Path | str,
    predictions: Iterable[Path | str],
    metrics: Iterable[Path | str],
    out: Path | str,
    *,
    methods: Sequence[str] = (),
    alpha: float = 0.05,
) -> list[Path]:
    """Write every figure into the folder ``out`` and return the files.

    ``predictions`` and ``metrics`` (metrics.jsonl) are those of the cells, each beside its run.json; ``methods`` gives
    the order of legends, ``alpha`` the level of tests. What an experiment has no data for is a figure that says so.
    """
    import matplotlib as mpl

    rows = Scores(read_rows(scores))
    evidence = Evidence(
        rows,
        order=rows.ordered(methods),
        cells=read_cells(predictions),
        curves=read_curves(metrics),
        alpha=alpha,
    )
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            written += save(draw(evidence), Path(out) / name)
    return written


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as ``path``.pdf and .png, without dates or versions in it."""
    settle(figure)
    written = []
    for suffix, extra in (
        ("pdf", {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}}),
        ("png", {"metadata": {"Software": None}, "dpi": 160}),
    ):
        written.append(path.with_name(f"{path.name}.{suffix}"))
        with atomic_path(written[-1]) as aside:
            figure.savefig(aside, **extra)
    return written
