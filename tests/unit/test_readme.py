"""The README's examples, run word for word: a new data set and a new method, each as one file."""

import csv
import importlib
import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff import registry
from jointdiff.cli import main
from jointdiff.config import RunSpec, Training, load_experiment
from jointdiff.data.download import download
from jointdiff.data.prepare import prepare
from jointdiff.data.splits import draw_split
from jointdiff.data.store import open_store, write_table
from jointdiff.models import load_model
from jointdiff.training.loop import train

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def example(path: str) -> str:
    """Return the code block under a file's name."""
    found = re.search(rf"`{re.escape(path)}`\n\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no example called {path}"
    return found[1]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Let each package find its modules in a folder of the test as well, as if the files were put in place."""
    for path in ("jointdiff/data/sources/my_scans.py", "baselines/entropy_minimisation.py"):
        package = importlib.import_module(str(Path(path).parent).replace("/", "."))
        folder = tmp_path / Path(path).parent
        folder.mkdir(parents=True)
        (folder / Path(path).name).write_text(example(path))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(package.__spec__, "submodule_search_locations", package.__path__)
    registry._modules.cache_clear()
    yield
    registry._modules.cache_clear()
    for module in ("jointdiff.data.sources.my_scans", "baselines.entropy_minimisation"):
        sys.modules.pop(module, None)


def scans() -> bytes:
    """Zip 40 images of 20 patients; a bright square is a fracture."""
    rng, table, packed = np.random.default_rng(0), io.StringIO(), io.BytesIO()
    rows = csv.writer(table)
    rows.writerow(["file", "fracture", "patient"])
    with zipfile.ZipFile(packed, "w") as archive:
        for index in range(40):
            image = rng.integers(0, 120, (20, 24), dtype=np.uint8)
            if index % 2:
                image[5:9, 5:9] = 255
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            archive.writestr(f"{index}.png", stream.getvalue())
            rows.writerow([f"{index}.png", index % 2, index // 2])
        archive.writestr("table.csv", table.getvalue())
    return packed.getvalue()


def test_a_data_set_and_a_method_are_one_file_each(packages, tmp_path):
    assert "my_scans" in registry.sources()
    assert "entropy_minimisation" in registry.methods()

    (tmp_path / "mirror/my_scans").mkdir(parents=True)
    (tmp_path / "mirror/my_scans/my_scans.zip").write_bytes(scans())
    source = registry.load_source("my_scans").SOURCE
    download(source, tmp_path / "raw", mirror=str(tmp_path / "mirror"))
    prepare("my_scans", tmp_path / "raw", tmp_path / "store", size=16)
    store = open_store(tmp_path / "store")
    assert store.images.shape == (40, 16, 16, 1)
    assert store.labels.sum() == 20

    split = draw_split(store, budget="16", seed=0, validation=0.25, test=0.25)
    write_table({name: split[name].to_numpy() for name in split}, tmp_path / "split.parquet")
    run = RunSpec(
        experiment="readme",
        dataset="my_scans",
        size=16,
        labels="16",
        variant="entropy_minimisation",
        method="entropy_minimisation",
        seed=0,
        settings={"depth": 10, "width": 1, "weight": 0.2},
        training=Training(steps=3, batch_size=4, device="cpu"),
    )
    paths = {"store": tmp_path / "store", "split": tmp_path / "split.parquet", "state": tmp_path / "state"}
    train(run, **paths, out=tmp_path / "cell")
    model = load_model(tmp_path / "cell/model")
    assert model.settings.weight == 0.2
    text = (tmp_path / "cell/metrics.jsonl").read_text()
    assert '"entropy"' in text


def test_own_images_take_a_table_and_two_commands(tmp_path, monkeypatch, capsys):
    """The folder, table and commands of the README, with enough rows, and what the workflow makes of the result."""
    table = re.search(r"`scans/labels.csv`\n\n```csv\n(.*?)```", README, re.DOTALL)[1]
    commands = re.findall(r"uv run jointdiff (data \w+ scans)\b", README)
    assert commands == ["data check scans", "data init scans"]
    header, *rows = table.splitlines()
    rows += [f"images/{index:04d}.png,{index % 2},p{index // 2:02d}" for index in range(4, 60)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans/images").mkdir(parents=True)
    (tmp_path / "scans/labels.csv").write_text("\n".join([header, *rows]))
    g = np.random.default_rng(0)
    for row in rows:
        pixels = g.integers(0, 120, (40, 48), dtype=np.uint8)
        pixels[5:9, 5:9] = 255 * (row.split(",")[1] == "1")
        Image.fromarray(pixels).save(tmp_path / "scans" / row.split(",")[0])

    for command in commands:
        assert main(command.split()) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "fracture  29 positive, 29 negative, 1 unlabelled" in said and "wrote scans.yaml" in said
    assert main(["data", "check", "scans.yaml"]) == 0

    experiment = load_experiment("scans.yaml")
    data = experiment.datasets["scans"]
    prepare(data.source, tmp_path, tmp_path / "store", size=data.size, options=data.options)
    store = open_store(tmp_path / "store")
    assert store.images.shape == (59, data.size, data.size, 1) and len(set(store.groups)) == 29
    assert np.isnan(store.labels[2]).all()
    for budget in data.labels:
        split = draw_split(store, budget=budget, seed=0, validation=data.validation, test=data.test)
        assert set(split.role) == {"labelled", "unlabelled", "validation", "test"}
