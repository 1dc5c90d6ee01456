"""Mean ranks, the Friedman test and the critical difference, against SciPy and Demšar's tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jointdiff.evaluate.scores import Identity, Row, score_row, write_rows
from jointdiff.report.evidence import Evidence
from jointdiff.report.figures.ranks import draw_ranks
from jointdiff.report.ranks import critical_difference, friedman, rank, rank_methods
from jointdiff.report.statistics import Scores
from jointdiff.report.tables import draw_tables

# Macro AUROC of three methods in four blocks, a tie in the last one.
SCORES = {"a": (0.9, 0.8, 0.7, 0.6), "b": (0.8, 0.7, 0.8, 0.6), "c": (0.5, 0.6, 0.4, 0.3)}
BLOCKS = (("x", "50"), ("x", "200"), ("y", "50"), ("y", "0.1"))


def row(method: str, block: tuple[str, str], value: float, seed: int = 0) -> Row:
    return score_row(Identity(*block, method, seed, "c", "d", f"{method}{seed}"), metric="auroc", value=value)


def rows() -> list[Row]:
    """Return two seeds of every score, half a hundredth to either side."""
    return [
        row(method, block, value + (0.005, -0.005)[seed], seed)
        for method, values in SCORES.items()
        for block, value in zip(BLOCKS, values, strict=True)
        for seed in (0, 1)
    ]


def test_ranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).integers(0, 4, (7, 9)).astype(float)  # many ties
    assert rank(values) == pytest.approx(stats.rankdata(values, axis=0))


@pytest.mark.parametrize("ties", [False, True])
def test_the_friedman_test_is_that_of_scipy(ties: bool) -> None:
    values = np.random.default_rng(1).normal(size=(5, 12)) + np.arange(5)[:, None] / 3
    values = np.round(values) if ties else values
    assert friedman(rank(values)) == pytest.approx(stats.friedmanchisquare(*values).pvalue)
    assert friedman(rank(np.ones((3, 4)))) == 1


def test_the_critical_difference_has_the_quantiles_of_the_paper() -> None:
    printed = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)  # Demšar 2006, table 5 (a), level .05
    for k, q in enumerate(printed, start=2):
        assert critical_difference(k, 10, alpha=0.05) == pytest.approx(q * math.sqrt(k * (k + 1) / 60), abs=0.002)
    # The paper's example: four classifiers, 14 data sets, level .10.
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_a_block_is_a_budget_with_the_mean_over_seeds() -> None:
    found = rank_methods(Scores(rows()), ["c", "b", "a"])
    assert found is not None
    assert found.methods == ("a", "b", "c")
    assert dict(zip(found.methods, found.means, strict=True)) == {"a": 1.375, "b": 1.625, "c": 3.0}
    assert set(found.blocks) == set(BLOCKS)
    assert found.p == pytest.approx(stats.friedmanchisquare(*SCORES.values()).pvalue)


def test_controls_and_the_incomplete_are_left_out() -> None:
    more = [row("random", block, 0.5, seed) for block in BLOCKS for seed in (0, 1)]
    more += [row("late", block, 0.99, seed) for block in BLOCKS[:3] for seed in (0, 1)]
    more += [row("failed", block, 0.99 if block != BLOCKS[0] else math.nan) for block in BLOCKS]
    more += [row("all_of_them", ("x", "all"), 0.99, seed) for seed in (0, 1)]
    found = rank_methods(Scores(rows() + more), ["random", "late", "a", "failed", "all_of_them", "b", "c"])
    assert found is not None
    assert set(found.methods) == {"a", "b", "c"}
    assert found.left_out == ("late", "failed", "all_of_them")


def test_bars_join_the_largest_groups_within_the_critical_difference() -> None:
    values = np.linspace(0, 1, 6)[:, None] + np.random.default_rng(0).normal(0, 0.01, (6, 20))
    made = [row(f"m{i}", ("d", str(n)), values[i, n]) for i in range(6) for n in range(20)]
    found = rank_methods(Scores(made), [f"m{i}" for i in range(6)])
    assert found is not None
    assert found.critical == pytest.approx(2.850 * math.sqrt(42 / 120), abs=0.01)  # 1.69: neighbours alone
    assert list(found.together()) == [(i, i + 1) for i in range(5)]


@pytest.mark.parametrize("kept", [["a", "b"], ["a", "b", "c"]], ids=["two methods", "one block"])
def test_too_little_to_rank_is_said(kept: list[str], tmp_path: Path) -> None:
    few = [one for one in rows() if one["method"] in kept and (len(kept) < 3 or one["labels"] == "200")]
    assert rank_methods(Scores(few), kept) is None
    assert "Nothing to rank" in draw_ranks(Evidence(Scores(few), kept)).texts[0].get_text()
    write_rows(few, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path)
    assert "takes 3 methods with all seeds in 2 blocks" in (tmp_path / "ranks.md").read_text()


def test_the_table_marks_who_cannot_be_told_from_the_best(tmp_path: Path) -> None:
    write_rows(rows(), tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path)
    with (tmp_path / "ranks.csv").open(newline="") as stream:
        lines = {line["line"]: line for line in csv.DictReader(stream)}
    assert [float(lines[name]["Mean rank"]) for name in "ABC"] == [1.375, 1.625, 3.0]
    assert "Mean rank: best" in lines["A"]["notes"]
    assert "not different from best" in lines["B"]["notes"] and "not different" in lines["C"]["notes"]  # CD 1.66
    assert float(lines["C"]["Y 10 % of labels"]) == 3


@pytest.mark.parametrize("k", [3, 8, 20])
def test_names_overlap_neither_each_other_nor_the_edge(k: int) -> None:
    drawn = np.random.default_rng(k)
    names = [f"joint_variant_{i}" for i in range(k)]
    made = [row(m, ("d", str(n)), 0.6 + drawn.normal() / 9) for m in names for n in range(10, 70, 10)]
    figure = draw_ranks(Evidence(Scores(made), names))
    figure.canvas.draw()
    inside = figure.bbox
    boxes = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    assert len(boxes) > k
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
