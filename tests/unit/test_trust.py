"""The table that asks whether probabilities can be trusted."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from jointdiff.evaluate.scores import Identity, read_rows, score_row, write_rows
from jointdiff.report.tables import draw_tables
from tests.unit.made_results import make_results


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_what_was_measured_stands_by_budget_and_less_is_better(tmp_path: Path) -> None:
    scores, predictions, _ = make_results(tmp_path, n=90, draws=10)
    draw_tables(scores, predictions, tmp_path / "tables", draws=10)
    lines = lines_of(tmp_path / "tables" / "trust.csv")
    assert list(dict.fromkeys(line["section"] for line in lines)) == ["50 labels", "200 labels", "all labels"]
    few = {line["line"]: line for line in lines if line["section"] == "50 labels"}
    assert list(few)[-1] == "Random scores", "controls come last"
    errors = {}
    for row in read_rows(scores):
        if (row["labels"], row["metric"], row["finding"]) == ("50", "ece", "macro"):
            errors.setdefault(row["method"], []).append(row["value"])
    means = {method: sum(values) / len(values) for method, values in errors.items()}
    assert float(few["FixMatch"]["Calibration ECE"]) == pytest.approx(means["fixmatch"])
    best = min((method for method in means if method != "random"), key=means.get)
    assert [name for name, line in few.items() if "Calibration ECE: best" in line["notes"]] == [
        {"joint": "Joint diffusion", "fixmatch": "FixMatch"}.get(best, best.replace("_", " ").capitalize())
    ]


def test_columns_without_a_score_are_left_out_and_coverage_is_not_ranked(tmp_path: Path) -> None:
    rows = [
        score_row(Identity("d", "50", method, 0, "c", method, method), metric=metric, value=value)
        for method, values in {"a": (0.8, 0.95, 0.9, 1.4), "b": (0.7, 0.9, 0.97, 1.9)}.items()
        for metric, value in zip(
            ("auroc", "accuracy_kept_0.5", "conformal_coverage", "conformal_size"), values, strict=True
        )
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    one, other = lines_of(tmp_path / "tables" / "trust.csv")
    shown = [column for column in one if column.split()[0] in ("Calibration", "Risk-coverage", "Surest", "Conformal")]
    assert [column for column in shown if not column.endswith((" sd", " low", " high"))] == [
        "Surest 50 %",
        "Conformal sets coverage",
        "Conformal sets size",
    ]
    assert one["notes"] == "Surest 50 %: best; Conformal sets size: best"
    assert other["notes"] == "Surest 50 %: second; Conformal sets size: second"
    assert "expected calibration error" not in (tmp_path / "tables" / "trust.md").read_text()
