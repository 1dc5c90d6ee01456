"""A full or read-only disk while images are prepared, state is kept and results are written; a real small disk."""

from __future__ import annotations

import os
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jointdiff.data.prepare import prepare
from jointdiff.data.store import open_store
from jointdiff.files import WriteError, atomic_path
from jointdiff.logs import to_rule_log
from jointdiff.training.loop import train
from tests.faults.folders import assert_same_training
from tests.tiny import tiny_phantoms, tiny_run

Data = dict[str, Path]
OPTIONS = {"patients": 24, "images_per_patient": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


class Disk:
    """A disk in memory whose size and mode can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount("size=16m", "-t", "tmpfs", "tmpfs")

    def _mount(self, options: str, *what: str) -> None:
        done = subprocess.run(["mount", "-o", options, *what, str(self.folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here, which takes root: {done.stderr.strip()}")

    def fill(self, but: int = 0) -> None:
        """Leave so many bytes of room."""
        with (self.folder / "filler").open("wb") as file:
            room = os.statvfs(self.folder)
            file.write(bytes(max(0, room.f_bavail * room.f_bsize - but)))

    def make_room(self) -> None:
        (self.folder / "filler").unlink()

    def allow(self, writing: bool) -> None:
        self._mount("remount,rw" if writing else "remount,ro")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = Disk(folder)
    yield made
    subprocess.run(["umount", str(folder)], check=True)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_preparing(disk: Disk, tmp_path: Path) -> None:
    def work() -> None:
        prepare("phantom", tmp_path, disk.folder / "store", size=16, options=OPTIONS)

    disk.fill(but=40_000)
    with pytest.raises(WriteError, match=r"cannot be written: its disk is full; make room, then give the same command"):
        work()
    assert not (disk.folder / "store").exists()
    disk.make_room()
    work()
    assert open_store(disk.folder / "store").images.shape == (48, 16, 16, 1)
    assert visible(disk.folder) == {"store"}


def test_a_checkpoint(disk: Disk, data: Data, tmp_path: Path) -> None:
    run = tiny_run("supervised", steps=6, validate_every=3, log_every=2, checkpoint_seconds=0.0)
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    state = disk.folder / "state"
    says = r"state/checkpoint\.safetensors cannot be written: its disk is full; make room"
    with pytest.raises(WriteError, match=says):  # the second, in whose place the first stays
        train(run, **data, out=tmp_path / "out", state=state, track=lambda metrics: disk.fill(but=20_000))
    assert visible(state) == {"checkpoint.safetensors", "metrics.jsonl"}
    disk.make_room()
    train(run, **data, out=tmp_path / "out", state=state)
    assert_same_training(tmp_path / "out", tmp_path / "whole")


def test_the_curves_of_a_training(disk: Disk, data: Data, tmp_path: Path) -> None:
    run = tiny_run("supervised", steps=6, validate_every=3, log_every=1, checkpoint_seconds=3600.0)
    says = r"state/metrics\.jsonl cannot be written: its disk is full"
    with pytest.raises(WriteError, match=says):
        train(
            run,
            **data,
            out=tmp_path / "out",
            state=disk.folder / "state",
            track=lambda metrics: _to_the_brim(disk, metrics),
        )
    disk.make_room()
    train(run, **data, out=tmp_path / "out", state=disk.folder / "state")
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    assert_same_training(tmp_path / "out", tmp_path / "whole")


def _to_the_brim(disk: Disk, metrics: Path) -> None:
    size = os.statvfs(metrics).f_bsize
    with metrics.open("a") as lines:  # up to the end of its last page
        lines.write("\n" * (-metrics.stat().st_size % size))
    disk.fill()


@pytest.mark.parametrize("method", ["joint", "supervised"])
def test_results(disk: Disk, data: Data, tmp_path: Path, method: str) -> None:
    run = tiny_run(method, steps=4, validate_every=2, log_every=2, checkpoint_seconds=0.0)
    disk.fill(but=20_000)
    with pytest.raises(WriteError, match=r"out/model cannot be written: its disk is full; make room"):
        train(run, **data, out=disk.folder / "out", state=tmp_path / "state")
    assert not visible(disk.folder / "out")
    disk.make_room()
    train(run, **data, out=disk.folder / "out", state=tmp_path / "state")
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    assert_same_training(disk.folder / "out", tmp_path / "whole")


def test_a_disk_that_is_read_only(disk: Disk, data: Data, tmp_path: Path) -> None:
    run = tiny_run("supervised", steps=4, validate_every=2, log_every=2)
    disk.allow(writing=False)
    for work in (
        lambda: prepare("phantom", tmp_path, disk.folder / "store", size=16, options=OPTIONS),
        lambda: train(run, **data, out=disk.folder / "out", state=tmp_path / "state"),
    ):
        with pytest.raises(OSError, match=r"disk/\.?(out|store).* its disk is mounted read-only; make it writable"):
            work()
    disk.allow(writing=True)
    train(run, **data, out=disk.folder / "out", state=tmp_path / "state")
    assert visible(disk.folder / "out") == {"model", "metrics.jsonl", "run.json"}


@pytest.mark.parametrize("full", [True, False])
def test_a_log_that_cannot_be_written_hides_no_message(disk: Disk, capsys: Any, full: bool) -> None:
    disk.fill() if full else disk.allow(writing=False)
    rule = types.SimpleNamespace(rule="a_rule", log=[str(disk.folder / "logs/a.log")], output=[])
    with pytest.raises(SystemExit) as ended, to_rule_log(rule):
        print("something said")
        raise ValueError("a mistake")
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "something said" in said.out and "a_rule stopped: a mistake" in said.err


def test_what_the_block_reads_is_not_blamed_on_what_it_writes(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="secret"), atomic_path(tmp_path / "out/a"):
        raise PermissionError(13, "Permission denied", "/etc/secret")
