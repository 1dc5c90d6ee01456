"""A training that is told to end amid a workflow, and a second workflow in the same folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from jointdiff.config import RunSpec
from jointdiff.files import read_json
from jointdiff.training.loop import train
from tests.faults.folders import assert_same_training
from tests.workflow.flow import command, copy_tree, environment, small, snakemake

pytestmark = pytest.mark.workflow
CELL = "results/small/phantom/labels-40/supervised/seed-0"


def test_preempted_and_retried_beside_a_second_snakemake(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    training = {"steps": 3000, "batch_size": 8, "device": "cpu", "validate_every": 1000, "log_every": 100}
    config = str(small(tree, training=training, tracking={"enabled": False}))
    asked = [f"{CELL}/run.json", "--configfile", config]
    with (tree / "said").open("w") as said:
        first = subprocess.Popen(
            command(tree, *asked, "--retries", "1"), cwd=tree, env=environment(tree), stdout=said, stderr=said
        )
    try:
        metrics = _wait_for(
            lambda: next((path for path in tree.glob("state/*/metrics.jsonl") if path.stat().st_size), None)
        )
        second = snakemake(tree, *asked, fails=True)
        assert "cannot be locked" in second and "--unlock" in second
        python = next(
            child for child in psutil.Process(first.pid).children(recursive=True)
            if any("train_method.py" in word for word in child.cmdline()) and "python" in child.name()
        )  # fmt: skip
        assert not (metrics.parent / "checkpoint.safetensors").exists()
        began = time.monotonic()
        python.send_signal(signal.SIGTERM)
        _wait_for((metrics.parent / "checkpoint.safetensors").exists)
        assert time.monotonic() - began < 10.0
        assert first.wait(timeout=300) == 0, (tree / "said").read_text()[-5000:]
    finally:
        if first.poll() is None:
            os.kill(first.pid, signal.SIGINT)
            first.wait()
    text = (tree / "said").read_text()
    assert (
        "told to end, which it does after step" in text
        and "Trying to restart job" in text
        and "goes on after step" in text
    )
    run = RunSpec.model_validate(read_json(tree / CELL / "run.json")["spec"])
    store = next((tree / "resources/prepared").glob("phantom-*"))
    split = next((tree / "results/small/phantom/labels-40").glob("split*-0.parquet"))
    train(run, store=store, split=split, out=tmp_path / "whole", state=tmp_path / "state-whole")
    assert_same_training(tree / CELL, tmp_path / "whole")


def test_a_killed_snakemake_is_unlocked_and_goes_on(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    asked = [f"{CELL}/run.json", "--configfile", str(small(tree, tracking={"enabled": False}))]
    with (tree / "said").open("w") as said:
        killed = subprocess.Popen(command(tree, *asked), cwd=tree, env=environment(tree), stdout=said, stderr=said)
    _wait_for(lambda: (tree / "resources/raw").is_dir())
    # With all that it began, as by a power cut.
    for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert killed.wait() == -signal.SIGKILL
    assert "--unlock" in snakemake(tree, *asked, fails=True)
    snakemake(tree, *asked, "--unlock")
    snakemake(tree, *asked)
    assert read_json(tree / CELL / "run.json")["cost"]["steps"] == 6


def _wait_for(what: Callable[[], Any], seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
