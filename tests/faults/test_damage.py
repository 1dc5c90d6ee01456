"""Flipped bits and cut files: what is damaged is named, or made again, and never taken for whole."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import jointdiff.training.loop as loop
from jointdiff.data.source import DataError
from jointdiff.data.store import Store, open_store
from jointdiff.files import DamagedError, atomic_path, remove_leftovers
from jointdiff.models import load_model
from jointdiff.seeding import rng
from jointdiff.training.checkpoint import read_checkpoint
from jointdiff.training.loop import train
from tests.faults.folders import assert_same_training, flip
from tests.tiny import tiny_phantoms, tiny_run

Data = dict[str, Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


@pytest.fixture
def copied(data: Data, tmp_path: Path) -> Data:
    shutil.copytree(data["store"], tmp_path / "store")
    shutil.copy(data["split"], tmp_path / "split.parquet")
    return {"store": tmp_path / "store", "split": tmp_path / "split.parquet"}


def read_all(store: Store) -> None:
    _ = store.images, store.thumbnails, store.samples, store.near_duplicates, store._regions, store._masks


NAMES = ["images", "masks", "thumbnails"]
TABLES = ["samples", "regions", "near_duplicates"]


@pytest.mark.parametrize("name", [*(f"{n}.arrow" for n in NAMES), *(f"{n}.parquet" for n in TABLES), "dataset.json"])
def test_a_flipped_bit_of_a_store(copied: Data, name: str) -> None:
    read_all(open_store(copied["store"]))
    path = copied["store"] / name
    flip(path, path.stat().st_size // 2)
    with pytest.raises(
        DamagedError, match=rf"{name} is damaged, .* delete .*store so that the data set is prepared anew"
    ):
        read_all(open_store(copied["store"]))
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=copied["store"], capture_output=True).returncode == 1


def test_training_does_not_begin_with_damaged_images(copied: Data, tmp_path: Path) -> None:
    path = copied["store"] / "images.arrow"
    flip(path, path.stat().st_size // 2)
    with pytest.raises(DamagedError, match="images"):
        train(tiny_run("supervised", steps=2), **copied, out=tmp_path / "out", state=tmp_path / "state")
    assert not (tmp_path / "state").exists() and not (tmp_path / "out").exists()


def test_flipped_bits_of_a_split(copied: Data) -> None:
    store, whole = open_store(copied["store"]), copied["split"].read_bytes()
    before = store.split_rows(copied["split"])
    for place in range(4, len(whole), 97):
        copied["split"].write_bytes(whole)
        flip(copied["split"], place)
        try:
            after = store.split_rows(copied["split"])
        except (DataError, KeyError):
            continue
        assert all((after[role] == rows).all() for role, rows in before.items()), place  # of what says nothing


def test_a_flipped_bit_of_a_model(data: Data, tmp_path: Path) -> None:
    train(tiny_run("joint", steps=1), **data, out=tmp_path, state=tmp_path / "state")
    load_model(tmp_path / "model")
    for path in (tmp_path / "model").rglob("*.safetensors"):
        whole = path.read_bytes()
        flip(path, len(whole) - 5)
        with pytest.raises(DamagedError, match=rf"{path.name} is damaged, .*train this cell again"):
            load_model(tmp_path / "model")
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def interrupted(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training with a checkpoint of step 4 of 6, and what it comes to."""
    folder = tmp_path_factory.mktemp("interrupted")
    run = tiny_run("supervised", steps=6, validate_every=3, log_every=2, checkpoint_seconds=0.0)
    train(run, **data, out=folder / "whole", state=folder / "state-whole")

    real = loop.update_average

    def stop(*arguments: Any, step: int, **named: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt
        real(*arguments, step=step, **named)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "update_average", stop)
        train(run, **data, out=folder / "out", state=folder / "state")
    return {"run": run, "state": folder / "state", "whole": folder / "whole"}


@pytest.mark.parametrize("damage", ["head", "length", "middle", "end", "cut", "half", "empty", "metrics"])
def test_a_damaged_checkpoint_is_not_resumed(
    data: Data, interrupted: dict[str, Any], tmp_path: Path, caplog: Any, damage: str
) -> None:
    shutil.copytree(interrupted["state"], tmp_path / "state")
    path = tmp_path / "state/checkpoint.safetensors"
    size = path.stat().st_size
    if damage == "metrics":  # as a power cut may leave it; its lines stand in the checkpoint too
        (tmp_path / "state/metrics.jsonl").write_bytes(b"\0" * 100)
    elif damage in ("cut", "half", "empty"):
        os.truncate(path, {"cut": size - 1, "half": size // 2, "empty": 0}[damage])
    else:
        flip(path, {"head": 40, "length": 0, "middle": size // 2, "end": size - 1}[damage])
    train(interrupted["run"], **data, out=tmp_path / "out", state=tmp_path / "state")
    assert_same_training(tmp_path / "out", interrupted["whole"])
    said = "is damaged" in caplog.text and "the training starts anew" in caplog.text
    assert said == (damage != "metrics")


def test_no_flipped_bit_of_a_checkpoint_passes(data: Data, interrupted: dict[str, Any], tmp_path: Path) -> None:
    """Anywhere in the file, with the state untouched that was to be restored."""
    whole = (interrupted["state"] / "checkpoint.safetensors").read_bytes()
    path = tmp_path / "checkpoint.safetensors"
    head = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng(0, "head").integers(0, head, 40).tolist(), *rng(0, "body").integers(head, len(whole), 40).tolist()]
    path.write_bytes(whole)
    tensors, metadata = read_checkpoint(path)
    for place in places:
        path.write_bytes(whole)
        flip(path, place)
        try:
            other, said = read_checkpoint(path)
        except ValueError:
            continue
        # What is left is a space of the header.
        assert said == metadata and all(value.equal(other[name]) for name, value in tensors.items()), place


def test_state_of_other_code_is_left_with_a_word(
    data: Data, interrupted: dict[str, Any], tmp_path: Path, caplog: Any
) -> None:
    shutil.copytree(interrupted["state"], tmp_path / "state")
    train(interrupted["run"], **data, out=tmp_path / "out", state=tmp_path / "state", code_version="new")
    assert "written under other settings, code, images or split" in caplog.text
    assert_same_training(tmp_path / "out", interrupted["whole"])


def test_what_killed_processes_left_half_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f".model.{ended.pid}", f".run.{ended.pid}.json", f".other.{ended.pid}.json", ".run.x.json"):
        (tmp_path / name).mkdir() if name.startswith(".model") else (tmp_path / name).touch()
    with atomic_path(tmp_path / "run.json") as aside:
        aside.touch()
        for name in ("model", "run.json"):
            remove_leftovers(tmp_path / name)
        assert aside.exists(), "its writer is at work"
    assert {path.name for path in tmp_path.iterdir()} == {f".other.{ended.pid}.json", ".run.x.json", "run.json"}
