"""A search for settings in the workflow: as many trials for every method that trains, none where none are wanted."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from jointdiff.files import read_json
from tests.workflow.flow import copy_tree, small, snakemake

pytestmark = pytest.mark.workflow

NETWORK = {"depth": 10, "width": 1}
METHODS = {
    "fully_supervised": {"method": "supervised", "labels": "all", "settings": NETWORK, "tune": False},
    "supervised": {"settings": NETWORK},
    "fixmatch": {"settings": NETWORK},
    "random": {},
}
TUNING = {"trials": 2, "spread": 3.0, "training": {"steps": 3}}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


def planned(tree: Path, config: str) -> dict[str, int]:
    """Count the jobs of a dry run by rule."""
    said = snakemake(tree, "-n", "--configfile", config)
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, flags=re.MULTILINE)}


def test_every_method_that_trains_is_searched_as_often(tree: Path, tmp_path: Path) -> None:
    config = str(small(tmp_path, methods=METHODS, tuning=TUNING))
    jobs = planned(tree, config)
    assert (jobs["try_settings"], jobs["choose_settings"], jobs["collect_trials"]) == (4, 2, 1)
    assert jobs["train_first"] + jobs["train_method"] == 4

    cells = {
        name: f"results/small/phantom/labels-{labels}/{name}/seed-0"
        for name, labels in {"fully_supervised": "all", "supervised": "40", "fixmatch": "40"}.items()
    }
    asked = ["results/small/tuning.csv", *(f"{cell}/run.json" for cell in cells.values())]
    snakemake(tree, *asked, "--configfile", config)
    with (tree / "results/small/tuning.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["trial"]) for row in rows] == [
        (method, trial) for method in ("fixmatch", "supervised") for trial in "01"
    ]
    for name in ("supervised", "fixmatch"):
        tried = {int(row["trial"]): row for row in rows if row["method"] == name}
        assert all(row["steps"] == "3" for row in tried.values())
        record = read_json(tree / cells[name] / "run.json")
        chosen = record["tuning"]["chosen"]
        assert record["tuning"]["trials"] == 2
        assert [trial for trial, row in tried.items() if row["chosen"] == "1"] == [chosen]
        assert record["settings"]["learning_rate"] == float(tried[chosen]["learning_rate"])
        assert record["cost"]["steps"] == 6, "the training itself is as long as it ever was"
        assert (tree / cells[name] / "tuning/trial-1.jsonl").stat().st_size
        assert not list((tree / cells[name]).rglob("trial-*/*")), "of a trial only numbers are kept"
    assert read_json(tree / cells["fully_supervised"] / "run.json")["tuning"] is None
    assert not list((tree / "state").glob("*/*"))
    assert "Nothing to be done" in snakemake(tree, "-n", *asked, "--configfile", config)


def test_one_trial_is_no_search(tree: Path, tmp_path: Path) -> None:
    config = str(small(tmp_path, methods=METHODS, name="alone"))
    jobs = planned(tree, config)
    assert jobs["train_first"] + jobs["train_method"] == 4
    assert not jobs.keys() & {"try_settings", "choose_settings", "collect_trials"}
