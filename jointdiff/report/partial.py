"""Tables and figures of what there is so far: whatever of the grid is missing is a gap with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from jointdiff.config import Experiment, MethodVariant
from jointdiff.declared import abilities
from jointdiff.evaluate.scores import (
    COLUMNS,
    MACRO,
    Identity,
    Row,
    format_protocol,
    parse_protocol,
    read_rows,
    score_row,
    sort_rows,
    write_csv,
    write_rows,
)
from jointdiff.files import read_json
from jointdiff.paths import PUBLISHED, TAG, cell
from jointdiff.report.figures import draw_figures
from jointdiff.report.paper import TexMissingError, compile_paper
from jointdiff.report.statistics import PARTING
from jointdiff.report.tables import draw_tables

# The steps that lead to each kind of scores, by the folders of their logs.
STEPS = {
    "classification": ("train_method", "classify_images", "classify_by_votes", "score_classification"),
    "cost": (
        "train_method",
        "classify_images",
        "classify_by_votes",
        "generate_images",
        "explain_findings",
        "score_cost",
    ),
    "votes": ("train_method", "classify_by_votes", "score_votes"),
    "generation": ("train_method", "generate_images", "score_generation"),
    "localisation": ("train_method", "explain_findings", "score_localisation"),
}
OWN = ("votes", "localisation")  # whose facts differ from method to method: one says nothing of another's gaps
LONGEST = 200  # letters of a reason

Cell = tuple[str, str, str, int]  # data set, budget, method, seed


@dataclass(frozen=True)
class Gap:
    """Scores of one kind that a cell lacks."""

    cell: Cell
    kind: str
    reason: str
    log: Path | None  # that says more


@dataclass
class Found:
    """What there is of a grid."""

    rows: dict[str, list[Row]] = field(default_factory=dict)  # by kind
    gaps: list[Gap] = field(default_factory=list)
    trained: list[Path] = field(default_factory=list)  # folders of cells
    classified: list[Path] = field(default_factory=list)


def draw_partial(experiment: Experiment, results: Path, *, logs: Path) -> tuple[Path, list[Gap]]:
    """Write tables, figures and a paper of the finished cells into ``results``/partial; return it and what is missing.

    Nothing is trained or scored, so that it can be asked at any time. Without TeX the paper is its source alone.

    Args:
        experiment: the grid.
        results: its folder of results.
        logs: its folder of logs, which say why something is missing.

    Raises:
        ValueError: no cell has a score yet.
    """
    found = look(experiment, results, logs=logs)
    if not found.rows:
        raise ValueError(f"{results} has no scores yet; uv run snakemake --cores all --configfile ... makes them")
    out = results / "partial"
    rows = sort_rows(chain(*found.rows.values(), gap_rows(found)))
    write_rows(rows, out / "scores.parquet")
    write_csv(out / "scores.csv", list(COLUMNS), ([row[column] for column in COLUMNS] for row in rows))
    predictions = [folder / "predictions.parquet" for folder in found.classified]
    level = 1 - experiment.evaluation.confidence
    draw_tables(
        out / "scores.parquet",
        predictions,
        out / "tables",
        published=PUBLISHED,
        methods=list(experiment.methods),
        changes=experiment.changes(),
        draws=experiment.evaluation.bootstrap,
        alpha=level,
    )
    metrics = [folder / "metrics.jsonl" for folder in found.trained]
    draw_figures(
        out / "scores.parquet", predictions, metrics, out / "figures", methods=list(experiment.methods), alpha=level
    )
    with suppress(TexMissingError):
        compile_paper(
            out / "tables",
            out / "figures",
            out / "paper.pdf",
            scores=out / "scores.parquet",
            title=f"JointDiff Bench: {experiment.name}, as far as it is",
        )
    return out, found.gaps


def look(experiment: Experiment, results: Path, *, logs: Path) -> Found:
    """Read the scores of all cells of a grid, and find out why some are missing."""
    found = Found()
    for at in experiment.cells():
        folder = cell(results, *at)
        trained = (folder / "run.json").is_file() and _as_configured(experiment, at, folder)
        if trained:
            found.trained.append(folder)
        for kind in kinds(experiment.methods[at[2]], at[2]):
            scores = folder / "scores" / f"{kind}.parquet"
            if trained and scores.is_file():
                found.rows.setdefault(kind, []).extend(read_rows(scores))
                if kind == "classification":
                    found.classified.append(folder)
            else:
                found.gaps.append(Gap(at, kind, *_why(at, kind, folder, trained=trained, logs=logs)))
    return found


def kinds(variant: MethodVariant, name: str) -> Iterator[str]:
    """Yield the kinds of scores that each cell of a variant comes to."""
    yield "classification"
    yield "cost"
    if "vote" in abilities(variant.method or name):
        yield "votes"
    if variant.generate:
        yield "generation"
    if variant.explain:
        yield "localisation"


def _as_configured(experiment: Experiment, at: Cell, folder: Path) -> bool:
    """Say whether a cell was trained as the configuration says now; what a search chose cannot be told from it."""
    return experiment.searched(at[2]) or read_json(folder / "run.json")["config_digest"] == experiment.run(*at).digest


def _why(at: Cell, kind: str, folder: Path, *, trained: bool, logs: Path) -> tuple[str, Path | None]:
    """Return why scores are missing, and the log that says more."""
    if (folder / "run.json").is_file() and not trained:
        return "trained by another configuration", None
    tag = TAG.format(**dict(zip(("dataset", "labels", "method", "seed"), at, strict=True)))
    there = [log for step in STEPS[kind] if (log := logs / step / f"{tag}.log").is_file()]
    for log in there:
        if complaint := _complaint(log.read_text(encoding="utf-8", errors="replace")):
            return f"failed: {complaint}"[:LONGEST], log
    if not there:
        return "not run yet", None
    return ("trained, not scored yet" if trained else "not finished"), there[-1]


def _complaint(log: str) -> str:
    """Return with what a step stopped, as its log ends with it; nothing where it did not."""
    if stopped := re.findall(r"^\w+ stopped: (.+)$", log, flags=re.MULTILINE):
        return stopped[-1]
    lines = log.split("Traceback (most recent call last):")[1:]
    return lines[-1].strip().splitlines()[-1].strip() if lines and lines[-1].strip() else ""


def gap_rows(found: Found) -> list[Row]:
    """Return rows without value for what is missing: those that such a cell would have, as far as others show them."""
    like: dict[tuple[str, ...], dict[tuple[str, ...], Mapping[str, str]]] = {}
    for kind, rows in found.rows.items():
        for row in rows:
            facts = parse_protocol(row["protocol"])
            parting = {fact: facts[fact] for fact in PARTING if fact in facts}
            shown = like.setdefault((row["dataset"], kind, row["method"] if kind in OWN else ""), {})
            shown[row["metric"], row["finding"], row["split"], *parting.values()] = parting
    gaps = []
    for gap in found.gaps:
        dataset, labels, method, seed = gap.cell
        identity = Identity(dataset, labels, method, seed, code_version="", config_digest="", run_id="")
        known = like.get((dataset, gap.kind, method if gap.kind in OWN else ""), {})
        if gap.kind == "classification" and not known:
            known = {("auroc", MACRO, "test"): {}}
        gaps += [
            score_row(
                identity,
                metric=metric,
                value=math.nan,
                finding=finding,
                split=split,
                protocol=format_protocol(**parting, reason=gap.reason),
            )
            for (metric, finding, split, *_), parting in known.items()
        ]
    return gaps
