"""One variant that begins with the network of another, through the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointdiff.files import read_json
from jointdiff.models import load_model
from tests.workflow.flow import copy_tree, small, snakemake

pytestmark = pytest.mark.workflow

TINY = {"depth": 10, "width": 1}
SIMCLR = {"labels": "all", "settings": {**TINY, "unlabelled_ratio": 1}}


def test_a_cell_starts_from_the_same_cell_or_from_that_with_every_label(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    methods = {
        "simclr": SIMCLR,
        "supervised": {"start": "simclr", "settings": TINY, "training": {"steps": 0}},
        "again": {"base": "supervised", "start": "supervised"},
    }
    cell = "results/small/phantom/labels-{}/{}/seed-0"
    config, target = small(tree, methods=methods), f"{cell.format(40, 'again')}/run.json"
    said = snakemake(tree, target, "--configfile", str(config))
    assert said.count("rule train_first:") == 2 and said.count("rule train_method:") == 1

    folders = [tree / cell.format(*which) for which in (("all", "simclr"), (40, "supervised"), (40, "again"))]
    states = [load_model(folder / "model").state_dict() for folder in folders]
    simclr, supervised, again = states
    assert {n for n in supervised if not simclr[n].equal(supervised[n])} == {"net.head.weight", "net.head.bias"}
    assert all(supervised[n].equal(again[n]) for n in again), "the new head is the one of this seed"
    records = [read_json(folder / "run.json") for folder in folders]
    assert [record["spec"]["start"] for record in records] == [None, *[record["run_id"] for record in records[:2]]]

    # What the first of the chain is trained with decides them all.
    methods["simclr"] = {**SIMCLR, "settings": {**SIMCLR["settings"], "temperature": 0.2}}  # type: ignore[dict-item]
    said = snakemake(tree, target, "-n", "--configfile", str(small(tree, methods=methods)))
    assert said.count("rule train_first:") == 2 and said.count("rule train_method:") == 1
