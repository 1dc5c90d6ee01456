"""A grid of which not all has run: what there is, and why the rest is not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from jointdiff import cli
from jointdiff.config import Experiment, parse_experiment
from jointdiff.evaluate.classification import score_predictions
from jointdiff.evaluate.cost import score_cost
from jointdiff.evaluate.scores import read_rows, write_rows
from jointdiff.paths import cell
from jointdiff.report.partial import draw_partial, look
from jointdiff.report.trace import trace
from tests.unit.made_results import write_metrics, write_predictions, write_run

CONFIG = {
    "name": "part",
    "seeds": [0, 1],
    "datasets": {"phantom": {"size": 32, "labels": [50, 200]}},
    "methods": {"supervised": {}, "fixmatch": {}, "mean_teacher": {}, "random": {"explain": ["random_map"]}},
    "evaluation": {"bootstrap": 10},
}
MISSING = {
    ("phantom", "50", "fixmatch", 1): "failed: loss is not finite at step 20; lower learning_rate",
    ("phantom", "200", "fixmatch", 0): "failed: RuntimeError: out of memory",
    ("phantom", "200", "fixmatch", 1): "not finished",
    ("phantom", "50", "mean_teacher", 0): "not run yet",
    ("phantom", "50", "mean_teacher", 1): "not run yet",
    ("phantom", "200", "mean_teacher", 0): "trained by another configuration",
    ("phantom", "200", "mean_teacher", 1): "trained, not scored yet",
}
LOGS = {
    ("phantom", "50", "fixmatch", 1): "Traceback (most recent call last):\n  x\nValueError: loss\n\n"
    "train_method stopped: loss is not finite at step 20; lower learning_rate\n(The traceback is in x.)\n",
    ("phantom", "200", "fixmatch", 0): "step 1\nTraceback (most recent call last):\n  x\nRuntimeError: out of memory\n",
    ("phantom", "200", "fixmatch", 1): "step 1\n",
    ("phantom", "200", "mean_teacher", 1): "step 1\ntrained\n",
}


@pytest.fixture
def part(tmp_path: Path) -> tuple[Experiment, Path, Path]:
    """Return an experiment, its results and its logs."""
    experiment = parse_experiment(CONFIG)
    results, logs = tmp_path / "results" / "part", tmp_path / "logs" / "part"
    for at in experiment.cells():
        why = MISSING.get(at, "")
        folder = cell(results, *at)
        if not why or why.startswith("trained"):
            folder.mkdir(parents=True)
            run = write_run(folder, *at)
            if "another" not in why:
                run["config_digest"] = experiment.run(*at).digest
            (folder / "run.json").write_text(json.dumps(run))
            write_metrics(folder, 1.0)
            predictions = write_predictions(folder, {"supervised": 1, "random": 0}.get(at[2], 1.5), at[3], 90)
            if why != "trained, not scored yet":
                write_rows(score_predictions(predictions, run, bootstrap=10), folder / "scores/classification.parquet")
                write_rows(score_cost(run, predictions=predictions), folder / "scores/cost.parquet")
        if at in LOGS:
            log = logs / "train_method" / f"{'-'.join(map(str, at))}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(LOGS[at])
    return experiment, results, logs


def test_each_gap_has_its_reason(part: tuple[Experiment, Path, Path]) -> None:
    experiment, results, logs = part
    gaps = look(experiment, results, logs=logs).gaps
    assert {gap.cell: gap.reason for gap in gaps if gap.kind == "classification"} == MISSING
    assert {gap.cell for gap in gaps if gap.kind == "localisation"} == {
        at for at in experiment.cells() if at[2] == "random"
    }
    assert all((gap.log is not None) == (gap.cell in LOGS) for gap in gaps)


def test_tables_show_gaps_and_what_there_is(part: tuple[Experiment, Path, Path]) -> None:
    experiment, results, logs = part
    out, _ = draw_partial(experiment, results, logs=logs)
    with (out / "tables" / "classification.csv").open(newline="") as stream:
        lines = {line["line"]: line for line in csv.DictReader(stream)}
    assert list(lines) == ["Supervised", "FixMatch", "Mean Teacher", "Random scores"]
    column = "Macro AUROC 200 labels"
    assert float(lines["Supervised"][column]) > 0.5
    assert lines["FixMatch"][column] == ""
    assert f"{column}: failed: RuntimeError: out of memory, not finished" in lines["FixMatch"]["notes"]
    one = float(lines["FixMatch"]["Macro AUROC 50 labels"])  # of the seed that there is
    assert "50 labels: 1 of 2 seeds: failed: loss is not finite at step 20, lower learning_rate" in str(
        lines["FixMatch"]
    )
    (row,) = (
        row
        for row in read_rows(cell(results, "phantom", "50", "fixmatch", 0) / "scores/classification.parquet")
        if (row["metric"], row["finding"]) == ("auroc", "macro")
    )
    assert one == row["value"]
    assert "Parameters" in (out / "tables" / "cost.md").read_text(encoding="utf-8")
    for table in ("cost", "trust"):  # the gap has its reason wherever there is one
        assert "trained by another configuration, trained, not scored yet" in (
            out / "tables" / f"{table}.md"
        ).read_text(encoding="utf-8")
    assert (out / "figures" / "auroc.pdf").is_file()
    assert (out / "paper.tex").is_file()
    said = trace(out / "tables" / "classification.csv", "FixMatch", "Macro AUROC 50")
    assert str(cell(results, "phantom", "50", "fixmatch", 0)) in said


def test_the_command_lists_what_is_missing(
    part: tuple[Experiment, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("part.yaml").write_text(yaml.safe_dump(CONFIG))
    assert cli.main(["partial", "part.yaml"]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("fixmatch on phantom, labels 200, seed 0: failed: RuntimeError: out of memory (see logs/part/") == 1
    )
    assert "5 of 16 cells are complete; wrote results/part/partial" in said  # random is not explained


def test_without_any_score_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no scores yet; uv run snakemake"):
        draw_partial(parse_experiment(CONFIG), tmp_path / "results", logs=tmp_path / "logs")
