"""Data sets in the workflow: cut into parts, from the mirror, of the user's own; what is wrong with them said once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jointdiff.config import load_experiment
from tests.workflow.flow import ROOT, copy_tree, small, snakemake

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


def test_three_jobs_prepare_what_one_does(tree: Path, tmp_path: Path) -> None:
    config = small(tmp_path)
    store = f"resources/prepared/phantom-{load_experiment(config).datasets['phantom'].variant}"
    contents = []
    for scatter in ((), ("--set-scatter", "prepare=3")):
        folder = tmp_path / f"scatter{len(scatter)}"
        folder.mkdir()
        said = snakemake(tree, store, "--directory", str(folder), "--configfile", str(config), *scatter, where=folder)
        assert said.count("Finished jobid") == 2 + (3 if scatter else 1)
        contents.append({path.name: path.read_bytes() for path in (folder / store).iterdir()})
        assert [path.name for path in (folder / store).parent.iterdir()] == [Path(store).name], "nothing is left over"
    assert contents[0] == contents[1]


@pytest.mark.mirror
def test_four_real_sets_are_prepared_split_and_trained_on(tree: Path, tmp_path: Path, mirror: Path) -> None:
    text = (ROOT / "config/experiments/four_sets_small.yaml").read_text(encoding="utf-8")
    config = tmp_path / "four.yaml"
    config.write_text(text.replace("steps: 150", "steps: 2"), encoding="utf-8")
    targets = {
        name: f"results/four_sets_small/{name}/labels-{data.labels[0]}/supervised/seed-0/scores/classification.parquet"
        for name, data in load_experiment(config).datasets.items()
    }
    audits = [f"results/four_sets_small/{name}/audit.html" for name in targets]
    snakemake(
        tree, *targets.values(), *audits, "--directory", str(tmp_path), "--configfile", str(config),
        where=tmp_path, JOINTDIFF_MIRROR=str(mirror),
    )  # fmt: skip
    for target in targets.values():
        scores = pd.read_parquet(tmp_path / target).query("metric == 'auroc' and finding == 'macro'")
        assert 0 < scores.value.item() < 1
    said = (tmp_path / "results/four_sets_small/pneumonia/audit.html").read_text(encoding="utf-8")
    assert "pneumoniamnist.npz is not the published file" in said, "the mirror's differs, and its keeper says so"


def own(folder: Path, rows: str) -> dict[str, Any]:
    (folder / "scans").mkdir()
    (folder / "scans/table.csv").write_text(f"path,fracture\n{rows}")
    return {"source": "own", "options": {"path": str(folder / "scans"), "labels": ["fracture"]}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            lambda folder: {"source": "chexpert"},
            "datasets.chexpert.options.folder: '' is no folder. CheXpert needs",
        ),
        (lambda folder: {"source": "medmnist", "options": {"set": "bloodmist"}}, "did you mean 'bloodmnist'?"),
        (lambda folder: {"source": "own", "options": {"path": "/nowhere"}}, "/nowhere"),
        (lambda folder: own(folder, "a.png,1\n"), "a.png"),
        (lambda folder: {"source": "phantom", "labels": ["list mine"]}, "'mine' is no key of datasets.mine.lists"),
        (lambda folder: {"source": "phantom", "lists": {"mine": "gone.txt"}}, "lists.mine: there is no file gone.txt"),
    ],
    ids=["registration", "set", "no folder", "no image", "list", "file of a list"],
)
def test_what_is_wrong_with_the_data_is_said_before_anything_runs(
    tree: Path, tmp_path: Path, data: Any, says: str
) -> None:
    config = small(tmp_path, datasets={"mine": {"size": 16, "labels": [4], **data(tmp_path)}})
    said = snakemake(tree, "-n", "--configfile", str(config), fails=True)
    assert "The configuration cannot be used" in said and says in said
    assert "Traceback" not in said


def test_a_key_that_stands_twice_is_refused_though_snakemake_takes_the_last(tree: Path, tmp_path: Path) -> None:
    config = small(tmp_path, datasets={"mine": {"source": "phantom", "size": 16, "labels": [4]}})
    config.write_text(config.read_text() + "name: again\n")
    said = snakemake(tree, "-n", "--configfile", str(config), fails=True)
    assert "the key 'name' stands twice, in line " in said and "Traceback" not in said


ODD = "mein Projekt {1} [α] é日本 #%'&"


def test_own_data_in_a_folder_of_any_name_are_watched(tmp_path: Path) -> None:
    """The whole grid in such a folder; then what counts as a change of its images, and a date ahead of the clock."""
    folder = tmp_path / ODD
    folder.mkdir()
    copy_tree(folder)
    scans, rng = folder / "Bilder {2} [ü]", np.random.default_rng(0)
    scans.mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(scans / f"{index}.png")
    lines = [f"{index}.png,{index % 2},p{index}" for index in range(40)]
    (scans / "labels.csv").write_text("\n".join(["path,nodule,patient", *lines, ""]), encoding="utf-8")
    ids = folder / "list {3}.txt"
    ids.write_text("".join(f"{index}.png\n" for index in range(16)), encoding="utf-8")
    options = {"path": scans.name, "labels": ["nodule"], "group": "patient"}
    data = {"source": "own", "size": 16, "labels": ["list some"], "lists": {"some": str(ids)}, "options": options}
    small(folder, datasets={"scans": data}, training={"steps": 2, "batch_size": 8, "device": "cpu"})
    run, split = ("--configfile", "small.yaml"), "results/small/scans/labels-list-some/split-0.parquet"
    assert "(100%) done" in snakemake(folder, *run)
    for name in ("report.html", "scores.csv", "tables/classification.html", "tracking/synchronised.json"):
        assert (folder / "results/small" / name).is_file(), name

    for path in (*scans.iterdir(), ids):
        os.utime(path, (4e9, 4e9))
    assert "Nothing to be done" in snakemake(folder, *run, "-n"), "dates alone"
    ids.write_text("".join(f"{index}.png\n" for index in range(4, 20)), encoding="utf-8")
    said = snakemake(folder, *run, "-n")
    assert "rule split_dataset" in said and "rule join_parts" not in said
    was = (scans / "3.png").stat()
    Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(scans / "3.png")
    os.utime(scans / "3.png", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert f"scans: of 41 files 1 changed ({scans.name}/3.png) since it was last prepared" in snakemake(
        folder, split, *run
    )
    said = snakemake(folder, split, "-n", *run)
    assert "Nothing to be done" in said
