"""From a number in a table back to the rows and runs that it was computed from."""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
from pathlib import Path

import pytest

from jointdiff import cli
from jointdiff.evaluate.scores import Identity, Row, format_protocol, read_rows, score_row, split_protocol, write_rows
from jointdiff.report.tables import draw_tables
from jointdiff.report.trace import trace
from tests.unit.made_results import CHANGES, make_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("work") / "results" / "made"
    scores, predictions, _ = make_results(root, n=90, draws=10)
    draw_tables(scores, predictions, root / "tables", changes=CHANGES, draws=10)
    log = root.parents[1] / "logs" / "made" / "train_method" / "phantom-50-joint-0.log"
    log.parent.mkdir(parents=True)
    log.touch()
    return root


def rows_of(results: Path, **equal: str) -> list[Row]:
    return [row for row in read_rows(results / "scores.parquet") if all(row[k] == v for k, v in equal.items())]


def test_a_mean_is_traced_to_the_rows_of_its_seeds(results: Path) -> None:
    said = trace(results / "tables" / "classification.csv", "joint diffusion", "Macro AUROC 50 labels")
    rows = rows_of(results, method="joint", labels="50", metric="auroc", finding="macro")
    assert len(rows) == 2
    for row in rows:
        line = next(line for line in said.splitlines() if f" {row['run_id']} " in line and "auroc" in line)
        facts, made_with = split_protocol(row["protocol"])
        for said_of in (*(str(row[name]) for name in ("dataset", "seed", "n", "code_version", "config_digest")), facts):
            assert said_of in line
        assert "environment" not in line and f"  scores made with: {made_with}\n" in said
        assert f"{row['value']:.6g}" in line and f"{row['ci_low']:.6g}" in line
    mean, sd = sum(row["value"] for row in rows) / 2, abs(rows[0]["value"] - rows[1]["value"]) / math.sqrt(2)
    assert said.startswith(f"classification-phantom, Joint diffusion, Macro AUROC 50 labels: {mean:.3f} ± {sd:.3f}\n")
    assert f"folder: {results / 'phantom/labels-50/joint/seed-0'}" in said
    assert said.count("\n  trained with: torch 2.6.0, commit 0123456789ab (changed)\n") == 2
    assert f"scores made with: Python {platform.python_version()}, torch 2.6.0" in said
    assert "logs/made/STEP/phantom-50-joint-0.log of train_method" in said
    assert 'tags.`jointdiff.run` = "joint-50-0 0123456789ab"' in said


def test_every_number_of_every_table_comes_from_rows_that_are_there(results: Path) -> None:
    there = {json.dumps(row, default=str) for row in read_rows(results / "scores.parquet")}
    for path in (results / "tables").glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["numbers"] or path.stem == "usefulness", path.name
        for number in found["numbers"]:
            assert number["rows"] or number["shown"] == "–", (path.name, number)
        for row in found["rows"]:
            assert json.dumps({k: math.nan if v is None else v for k, v in row.items()}, default=str) in there


def test_a_difference_is_traced_to_both_of_its_sides(results: Path) -> None:
    said = trace(results / "tables" / "ablation.json", "joint diffusion, max", "Macro AUROC difference")
    for run in ("joint_max-50-0", "joint_max-50-1", "joint-50-0", "joint-50-1", "joint_max-200-0", "joint-200-1"):
        assert f"\nrun {run}: " in said
    assert "fixmatch" not in said


def test_a_line_without_a_column_is_traced_whole(results: Path) -> None:
    said = trace(results / "tables" / "joint.html", "Joint diffusion")
    heads = re.findall(r"^joint-phantom, (\d+ labels), Joint diffusion, (.*?): ", said, flags=re.MULTILINE)
    assert len(heads) == 2 * 5  # at both budgets, in all columns, FID with the reason of its absence
    assert "weights absent: set x_y" in said


def test_a_run_trained_anew_is_told(results: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(results, tmp_path / "results" / "made")
    record = copy / "phantom" / "labels-50" / "joint" / "seed-0" / "run.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"run_id": "joint-50-0"', '"run_id": "newer"'))
    said = trace(copy / "tables" / "classification.csv", "joint diffusion", "accuracy 50")
    assert said.count("it holds another run by now, newer") == 1


def test_a_gap_is_traced_to_its_reason(tmp_path: Path) -> None:
    rows = [
        score_row(
            Identity("d", "50", method, 0, "c", method, method),
            metric="auroc",
            value=value,
            protocol=format_protocol(reason="it failed" if math.isnan(value) else None),
        )
        for method, value in (("good", 0.9), ("bad", math.nan))
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    said = trace(tmp_path / "tables" / "classification.csv", "bad", "Macro AUROC 50")
    assert "Macro AUROC 50 labels: – (it failed)" in said and "its folder is not there" in said


def test_the_page_names_the_runs_under_the_pointer(results: Path) -> None:
    page = (results / "tables" / "classification.html").read_text(encoding="utf-8")
    assert 'title="joint 50 seed 0: run joint-50-0\njoint 50 seed 1: run joint-50-1"' in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere/classification.csv", "joint"), "run the workflow first"),
        (("tables/clasification.csv", "joint"), "no table 'clasification'; it has ablation, classification, cost"),
        (("tables/classification.csv", "jiont"), "no line 'jiont'; it has: 'Diffusion classifier', 'FixMatch'"),
        (("tables/classification.csv", "joint"), "several begin so: 'Joint diffusion', 'Joint diffusion, long'"),
        (("tables/classification.csv", "fix", "macro"), "several begin so: 'Macro AUROC 50 labels'"),
    ],
)
def test_a_mistake_names_the_choices(
    results: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, *names = arguments
    assert cli.main(["trace", str(results / table), *names]) == 1
    assert says in capsys.readouterr().err
    assert cli.main(["trace", str(results / "tables/classification.md"), "fixm", "accuracy 2"]) == 0
    assert "fixmatch-200-1" in capsys.readouterr().out
