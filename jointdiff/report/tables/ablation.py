"""The table of ablations: what every variant changes of its base, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jointdiff.report.evidence import Changes, Evidence
from jointdiff.report.layout import Cell, Column, Line, Section, Table, cell_of, digits_of, paged
from jointdiff.report.statistics import Comparison, Scores, compare_with_base, enough_draws
from jointdiff.report.wording import budget_name, change_name, dataset_name, method_name

MAX_NAME = 60  # letters of a line's name: more changes become a footnote
CLASSIFICATION = {"auroc": "Macro AUROC", "accuracy": "Accuracy"}
GENERATION = {"frechet_distance": "Frechet distance", "guidance_auroc": "Match AUROC"}


@dataclass(frozen=True)
class Block:
    """A base with its variants at one budget."""

    labels: str
    base: str
    variants: tuple[str, ...]


def ablation_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, every variant beside its base: classification, and images where any are drawn.

    What learns from synthetic images stands in the table of usefulness.
    """
    rows, alpha = evidence.rows, evidence.alpha
    elsewhere = evidence.from_synthetic()
    changes = {name: change for name, change in evidence.changes.items() if name not in elsewhere}
    for dataset in rows.distinct("dataset"):
        blocks = blocks_of(rows, dataset, changes)
        if not blocks:
            continue
        compared, drawn = compare_blocks(evidence, dataset, blocks)
        spread = ", in brackets the standard deviation in units of the last digit"
        caption = (
            f"What the parts are worth on {dataset_name(dataset)}: the base first, below it what each variant changes "
            f"of it. Value: mean over seeds{spread if rows.distinct_seeds(dataset) > 1 else ''}. "
        )
        tested = (
            f"Difference: the variant less its base, with its {100 * (1 - alpha):g} % interval (paired bootstrap over "
            f"the groups of the same test cases and seeds, {drawn:,} draws); * marks what differs at level {alpha:g} "
            "after Holm's correction over the variants of one budget and metric. This speaks of other test cases, not "
            "of other trainings."
        )
        untested = (
            "Frechet distance: of synthetic to real test images; match AUROC: how well an independent classifier finds "
            "in a synthetic image what was asked for. Difference: the variant less its base, mean over the seeds that "
            "both have, not tested."
        )
        for metrics, explained, what in ((CLASSIFICATION, tested, ""), (GENERATION, untested, "-images")):
            table = lay_out(
                rows, dataset, blocks, metrics, compared, named=lambda v: change_of(v, changes[v]["changes"])
            )
            yield from paged(replace(table, label=f"ablation-{dataset}{what}", caption=caption + explained))


def blocks_of(rows: Scores, dataset: str, changes: Changes) -> list[Block]:
    """List every base of a data set with those of its variants that have scores, budget by budget."""
    blocks = []
    for labels in rows.distinct("labels", dataset=dataset):
        present = rows.distinct("method", dataset=dataset, labels=labels, metric="auroc")
        for base in dict.fromkeys(change["base"] for change in changes.values()):
            variants = tuple(v for v, change in changes.items() if change["base"] == base and v in present)
            if base in present and variants:
                blocks.append(Block(labels, base, variants))
    return blocks


def compare_blocks(
    evidence: Evidence, dataset: str, blocks: Sequence[Block]
) -> tuple[dict[tuple[str, str], dict[str, Comparison]], int]:
    """Compare variants with their bases, {(budget, metric): {variant: how it stands}}, and say with how many draws."""
    families: dict[str, dict[str, str]] = {}
    for block in blocks:
        families.setdefault(block.labels, {}).update(dict.fromkeys(block.variants, block.base))
    compared = {
        (labels, metric): compare_with_base(
            evidence.cells.get((dataset, labels), {}), metric, bases=bases, draws=evidence.draws, alpha=evidence.alpha
        )
        for labels, bases in families.items()
        for metric in CLASSIFICATION
    }
    return compared, enough_draws(evidence.draws, methods=max(map(len, families.values())), alpha=evidence.alpha)


def lay_out(
    rows: Scores,
    dataset: str,
    blocks: Sequence[Block],
    metrics: Mapping[str, str],
    compared: Mapping[tuple[str, str], Mapping[str, Comparison]],
    *,
    named: Callable[[str], tuple[str, str]],  # a variant's name and its footnote
    base_named: Callable[[str], str] = method_name,
) -> Table:
    """Lay out the metrics for which any variant or base has a number."""
    columns: list[Column] = []
    lines: dict[tuple[Block, str], list[Cell]] = {(b, method): [] for b in blocks for method in (b.base, *b.variants)}
    for metric, title in metrics.items():
        pairs = {
            (block, method): _pair(
                rows, dataset, block, method, metric, compared.get((block.labels, metric), {}).get(method)
            )
            for block, method in lines
        }
        values = [value.summary.mean for value, _ in pairs.values() if not value.empty]
        if not values:
            continue
        digits = digits_of(values) if metric == "frechet_distance" else 3
        columns.append(Column("value", metric, title, digits=digits))
        columns.append(Column("difference", metric, title, digits=digits, ranked=False, signed=True))
        for at, pair in pairs.items():
            lines[at] += pair
    sections = []
    for block in blocks:
        base = Line(base_named(block.base), tuple(lines[block, block.base]))
        variants = [Line(named(v)[0], tuple(lines[block, v]), note=named(v)[1]) for v in block.variants]
        if measured := [line for line in variants if not all(cell.empty for cell in line.cells)]:
            sections.append(Section(budget_name(block.labels), (base, *measured)))
    return Table("", "", "Variant", tuple(columns), tuple(sections), compact=True)


def _pair(
    rows: Scores, dataset: str, block: Block, method: str, metric: str, tested: Comparison | None
) -> tuple[Cell, Cell]:
    """Return a number of a variant, and what it differs by from its base."""
    value = cell_of(rows.summary(dataset, block.labels, method, metric))
    if method == block.base:
        return value, Cell()
    gap = rows.difference(dataset, block.labels, method, block.base, metric)
    if tested is None:
        return value, Cell(gap)
    gap = replace(gap, mean=tested.difference, sd=math.nan, low=tested.low, high=tested.high, seeds=tested.seeds)
    return value, Cell(gap, different=tested.different)


def change_of(name: str, changed: Mapping[str, Sequence[Any]]) -> tuple[str, str]:
    """Name a variant by what it changes; what is too long for a line is its footnote."""
    said = "; ".join(change_name(key, old, new) for key, (old, new) in changed.items())
    return (said, "") if 0 < len(said) <= MAX_NAME else (method_name(name), said)
