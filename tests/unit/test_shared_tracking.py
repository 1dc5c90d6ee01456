"""Stores that many write to and servers that fail: every value arrives once, and trainings never notice."""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from safetensors.torch import load_file
from torch import equal

from jointdiff import cli, tracking
from jointdiff.files import write_json
from jointdiff.paths import cell
from jointdiff.tracking import Tracker, create_store, sync_experiment
from jointdiff.training.loop import train
from tests.tiny import tiny_phantoms, tiny_run
from tests.unit.tracked import MlflowServer, postgres, spec, wait_until, write_cell

pytestmark = pytest.mark.workflow

Rows = Callable[[str], list[tuple[Any, ...]]]

STEPS = 3000  # of the writers' trainings: 300 lines of two values for each of two splits
PASSWORD = "a-secret:of/ours"

WRITER = """
import json, sys
from pathlib import Path
from jointdiff import tracking
from jointdiff.config import RunSpec
given = json.loads(sys.argv[1])
tracking.LIVE_AFTER, tracking.LIVE_EVERY, tracking.watch_system = 0.0, 0.0, lambda *_: object()
cell, growing, run = Path(given["cell"]), Path(given["growing"]), RunSpec.model_validate(given["run"])
lines = (cell / "metrics.jsonl").read_text().splitlines(keepends=True)
for store, ends in ((given["grid"], [1.0]), (given["own"], [0.3, 0.6])):
    tracker = tracking.Tracker(store, run, code_version="abc")
    for end in ends:
        growing.write_text("".join(lines[: int(end * len(lines))]))
        tracker(growing)
        tracker.thread.join()
    assert not tracker.failed
print(json.dumps(tracking.sync_experiment(cell.parents[3], store=given["own"], strict=True)))
"""


def sqlite_rows(file: Path) -> Rows:
    def rows(query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(file) as database:
            return list(database.execute(query))

    return rows


def postgres_rows(address: str, passwords: Path) -> Rows:
    import psycopg2

    def rows(query: str) -> list[tuple[Any, ...]]:
        with psycopg2.connect(address, passfile=str(passwords)) as database, database.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    return rows


def values_of(metrics: Path) -> list[tuple[str, int, float]]:
    """Return the values of a metrics.jsonl: name, step and value, sorted."""
    values = []
    for line in metrics.read_text().splitlines():
        entry = json.loads(line)
        step, split = entry.pop("step"), entry.pop("split")
        values += [(f"{split}/{name}", step, value) for name, value in entry.items()]
    return sorted(values)


def trainings(rows: Rows) -> dict[tuple[str, str], str]:
    """Return the ids of the runs of trainings by experiment and seed; each is there once."""
    found = rows(
        "SELECT e.name, seed.value, r.run_uuid FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id "
        "JOIN tags kind ON kind.run_uuid = r.run_uuid AND kind.key = 'kind' AND kind.value = 'training' "
        "JOIN tags seed ON seed.run_uuid = r.run_uuid AND seed.key = 'seed' WHERE r.lifecycle_stage = 'active'"
    )
    ids = {(name, seed): run for name, seed, run in found}
    assert len(ids) == len(found), "a training has two runs"
    return ids


def curves(rows: Rows) -> dict[str, list[tuple[str, int, float]]]:
    """Return what the database itself holds of curves by run: name, step and value, sorted; a value twice is twice."""
    held = defaultdict(list)
    for run, name, step, value in rows("SELECT run_uuid, key, step, value FROM metrics"):
        if name.startswith(("train/", "validation/")):
            held[run].append((name, step, value))
    return {run: sorted(values) for run, values in held.items()}


def write_at_once(folder: Path, count: int, *, grid: dict[str, Any], **environment: str) -> None:
    """Let as many processes as told push at once: live to one experiment of all, live and whole to one of their own."""
    writers, stores = [], {}
    for seed in range(count):
        results = folder / f"made-{seed}"
        own = {**grid, "experiment": results.name}
        given = {
            "cell": str(write_cell(results, seed, steps=STEPS)),
            "run": spec(seed, experiment=results.name).model_dump(mode="json"),
            "growing": str(results / "growing.jsonl"),
            "grid": grid,
            "own": own,
        }
        stores[seed] = given
    started = time.monotonic()
    for given in stores.values():
        command = [sys.executable, "-c", WRITER, json.dumps(given)]
        writers.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
            )
        )
    said = [writer.communicate() for writer in writers]
    seconds = time.monotonic() - started
    assert [writer.returncode for writer in writers] == [0] * count, said
    for out, _ in said:
        assert json.loads(out) == {"enabled": True, "cells": 1, "pushed": 1, "complete": True}
    assert "a-secret" not in str(said)
    print(f"{count} writers: {seconds:.0f} s")


def assert_all_there_once(rows: Rows, artifacts: Path, folder: Path, *, count: int) -> None:
    runs, held = trainings(rows), curves(rows)
    params = defaultdict(dict)
    for run, name, value in rows("SELECT run_uuid, key, value FROM params"):
        params[run][name] = value
    models = [source for (source,) in rows("SELECT source_run_id FROM logged_models WHERE lifecycle_stage = 'active'")]
    assert set(runs) == {(name, str(seed)) for seed in range(count) for name in ("grid", f"made-{seed}")}
    lost = 0
    for (experiment, seed), run in runs.items():
        made = cell(folder / f"made-{seed}", "phantom", "50", "joint", int(seed))
        expected = values_of(made / "metrics.jsonl")
        lost += len(set(expected) - set(held[run]))
        assert held[run] == expected
        assert params[run]["seed"] == seed
        if experiment == "grid":
            continue
        assert params[run]["settings.width"] == "16"
        assert models.count(run) == 1
        stored = next(artifacts.rglob(f"{run}/artifacts"))
        for name in ("run.json", "metrics.jsonl", "generated.png"):
            assert (stored / name).read_bytes() == (made / name).read_bytes()
        pictures = [path.name.partition("+timestamp")[0] for path in stored.glob("images/*.png")]
        assert sorted(pictures) == ["images~generated+step+0", "images~training+step+20", "images~training+step+40"]
    assert len(models) == count
    names = [name for (name,) in rows("SELECT name FROM experiments") if name != "Default"]
    assert sorted(names) == sorted({name for name, _ in runs}), "an experiment is there twice"
    tags = rows("SELECT t.value FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid WHERE t.key = 'kind'")
    assert tags.count(("summary",)) == count + 1
    print(f"{sum(map(len, held.values())):,} values and {len(models)} models pushed, {lost} lost, none twice")


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_sixteen_processes_write_to_a_server_with_postgres(tmp_path: Path) -> None:
    with postgres(PASSWORD) as (address, passwords):
        server = MlflowServer(tmp_path, database=address, workers=2, PGPASSFILE=str(passwords))
        server.start()
        try:
            grid = create_store("grid", beside=tmp_path, uri=server.address)
            with_password = server.address.replace("//", f"//me:{quote(PASSWORD, safe='')}@")
            write_at_once(tmp_path / "results", 16, grid=grid, MLFLOW_TRACKING_URI=with_password)
            rows = postgres_rows(address, passwords)
            assert_all_there_once(rows, server.artifacts, tmp_path / "results", count=16)
            for table in ("params", "tags", "experiments", "experiment_tags", "logged_models", "runs"):
                assert not re.search("a-secret", str(rows(f"SELECT * FROM {table}")))
        finally:
            server.kill()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"a-secret" not in path.read_bytes(), path


@pytest.mark.timeout(600)
def test_eight_processes_write_to_one_sqlite_store(tmp_path: Path) -> None:
    grid = create_store("grid", beside=tmp_path)
    write_at_once(tmp_path / "results", 8, grid=grid)
    rows = sqlite_rows(tmp_path / "mlflow.db")
    assert_all_there_once(rows, tmp_path / "mlartifacts", tmp_path / "results", count=8)


# Faults


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that tests may kill; the next one starts it again."""
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(folder, database=f"sqlite:///{folder / 'mlflow.db'}")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


RUN = tiny_run("supervised", steps=8, validate_every=2, log_every=1)


@pytest.fixture(scope="module")
def untracked(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cell of the training that nobody watches."""
    folder = tmp_path_factory.mktemp("untracked")
    train(RUN, **data, out=folder / "cell", state=folder / "state", code_version="abc")
    return folder / "cell"


@pytest.mark.parametrize(
    "fault", ["down at the start", "killed in the middle", "hanging from the middle", "down at the end"]
)
def test_a_server_that_fails_changes_no_training_and_is_told_later(
    fault: str,
    server: MlflowServer,
    data: dict[str, Path],
    untracked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "LIVE_AFTER", 0.0)
    monkeypatch.setattr(tracking, "LIVE_EVERY", 0.0)
    monkeypatch.setattr(tracking, "watch_system", lambda *_: object())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    results = tmp_path / "results" / fault.replace(" ", "-")
    if fault == "down at the start":
        server.kill()
    else:
        server.start()
    store = create_store(results.name, beside=tmp_path, uri=server.address)
    write_json(results / "tracking" / "store.json", store)
    tracker, pushes = Tracker(store, RUN, code_version="abc"), []
    hanging = server.hanging() if fault == "hanging from the middle" else nullcontext()

    def track(metrics: Path) -> None:
        tracker(metrics)
        assert tracker.thread is not None
        pushes.append(tracker.failed)
        if len(pushes) > 1:
            return
        tracker.thread.join()
        assert tracker.failed == (fault == "down at the start")
        if fault == "hanging from the middle":
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            hanging.__enter__()
        elif fault == "killed in the middle":
            server.kill()

    folder = cell(results, "phantom", "20", "supervised", 0)
    with caplog.at_level(logging.WARNING, logger="jointdiff.tracking"):
        train(RUN, **data, out=folder, state=tmp_path / "state", code_version="abc", track=track)
    assert len(pushes) == 4
    assert tracker.thread is not None
    if fault == "hanging from the middle":
        assert tracker.thread.is_alive(), "the training waited for an answer"
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    else:
        tracker.thread.join()
        server.kill()
    assert (folder / "metrics.jsonl").read_bytes() == (untracked / "metrics.jsonl").read_bytes()
    for file in untracked.rglob("*.safetensors"):
        one, other = load_file(file), load_file(folder / file.relative_to(untracked))
        assert one.keys() == other.keys()
        assert all(equal(one[name], other[name]) for name in one)

    assert not sync_experiment(results, store=store)["complete"]
    assert cli.main(["track", "sync", str(results)]) == 1
    assert f"{results} at {server.address} (" in capsys.readouterr().err
    if fault == "hanging from the middle":
        hanging.__exit__(None, None, None)
    tracker.thread.join()
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")

    server.start()
    for pushed in (1, 0):
        assert cli.main(["track", "sync", str(results)]) == 0
        assert f"1 trainings, {pushed} of its runs pushed now" in capsys.readouterr().out
    rows = sqlite_rows(server.folder / "mlflow.db")
    run = trainings(rows)[results.name, "0"]
    assert curves(rows)[run] == values_of(folder / "metrics.jsonl")
    assert (next(server.artifacts.rglob(f"{run}/artifacts")) / "run.json").read_bytes() == (
        folder / "run.json"
    ).read_bytes()


def test_a_server_that_never_answers_keeps_no_finished_training_alive(server: MlflowServer) -> None:
    script = """
import json, sys
from pathlib import Path
from jointdiff import tracking
from jointdiff.config import RunSpec
tracking.LIVE_AFTER = 0.0
tracker = tracking.Tracker(json.loads(sys.argv[1]), RunSpec.model_validate_json(sys.argv[2]), code_version="")
tracker(Path("metrics.jsonl"))
sys.stdin.read()
assert tracker.thread.is_alive()
print("trained")
"""
    store = {"enabled": True, "experiment": "e", "uri": server.address}
    command = [sys.executable, "-c", script, json.dumps(store), RUN.model_dump_json()]
    environment = os.environ | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3600"}
    with server.hanging() as requests:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        training = subprocess.Popen(command, env=environment, **pipes)
        wait_until(lambda: bool(requests), process=training)
        assert training.communicate(timeout=120)[0] == "trained\n"
    assert training.returncode == 0
