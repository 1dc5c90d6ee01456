"""SIGTERM and SIGUSR1: a training ends at its next step with its state kept, and goes on as if it had not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointdiff.training.loop as loop
from jointdiff.config import RunSpec
from jointdiff.registry import load_method
from jointdiff.training.loop import TrainingDivergedError, train
from jointdiff.training.preemption import EXIT_CODE, PreemptedError
from tests.conftest import ROOT
from tests.faults.folders import assert_same_training
from tests.tiny import tiny_phantoms, tiny_run

Data = dict[str, Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


def spec(method: str, **training: Any) -> RunSpec:
    """A training whose log windows, validations and the time of its checkpoints never meet."""
    return tiny_run(
        method, **{"steps": 8, "validate_every": 4, "log_every": 3, "checkpoint_seconds": 3600.0, **training}
    )


def tell(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *, step: int) -> None:
    """Send this process a signal amid a step, counted from 1."""
    real = loop.update_average

    def update(*arguments: Any, step: int, **named: Any) -> None:
        if step == stop:
            os.kill(os.getpid(), number)
        real(*arguments, step=step, **named)

    stop = step
    monkeypatch.setattr(loop, "update_average", update)


@pytest.mark.parametrize("method", ["joint", "fixmatch"])
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 3), (signal.SIGTERM, 5)])
def test_told_to_end_it_keeps_all_and_goes_on(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, method: str, number: Any, step: int
) -> None:
    run = spec(method)
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(PreemptedError) as ended:
        tell(patched, number, step=step)
        train(run, **data, out=tmp_path / "told", state=tmp_path / "state")
    assert ended.value.code == EXIT_CODE == 75
    assert f"told to end, which it does after step {step}" in caplog.text
    assert signal.getsignal(number) == before
    assert not (tmp_path / "told").exists()
    train(run, **data, out=tmp_path / "told", state=tmp_path / "state")
    assert_same_training(tmp_path / "told", tmp_path / "whole")
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("validation", [1, 2])
def test_a_validation_is_given_up_and_done_again(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: int
) -> None:
    run = spec("supervised", batch_size=1)  # two batches of four images validate
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    cls = load_method(run.method)
    real, calls = cls.validate, []

    def validate(self: Any, batches: Any, labels: Any) -> Any:
        calls.append(1)
        if len(calls) == validation:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches, labels)

    with monkeypatch.context() as patched, pytest.raises(PreemptedError):
        patched.setattr(cls, "validate", validate)
        train(run, **data, out=tmp_path / "told", state=tmp_path / "state")
    lines = [json.loads(line) for line in (tmp_path / "state/metrics.jsonl").read_text().splitlines()]
    assert sum(line["split"] == "validation" for line in lines) == validation - 1
    train(run, **data, out=tmp_path / "told", state=tmp_path / "state")
    assert_same_training(tmp_path / "told", tmp_path / "whole")


def test_a_loss_that_is_no_number_is_not_kept(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a checkpoint is due nor where the process is told to end; the last good one is named."""
    run = spec("supervised", log_every=2, checkpoint_seconds=0.0)
    real = load_method(run.method).losses

    def losses(self: Any, batch: Any, *others: Any) -> Any:
        terms = real(self, batch, *others)
        return {name: value * np.nan for name, value in terms.items()} if batch.step == 4 else terms

    says = (
        r"loss, .* not finite within the steps 5 to 5; the last good checkpoint is .*checkpoint.safetensors, of step 4"
    )
    with monkeypatch.context() as patched, pytest.raises(TrainingDivergedError, match=says):
        patched.setattr(load_method(run.method), "losses", losses)
        tell(patched, signal.SIGTERM, step=5)
        train(run, **data, out=tmp_path / "told", state=tmp_path / "state")
    train(run, **data, out=tmp_path / "told", state=tmp_path / "state")
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    assert_same_training(tmp_path / "told", tmp_path / "whole")


SEVERAL = """
import os, signal, sys
import jointdiff.training.loop as loop
from jointdiff.config import RunSpec
from jointdiff.processes import launch

real = loop.update_average
def update(*arguments, step, **named):
    if step == 3 and os.environ["RANK"] == "1" and {tell}:
        os.kill(os.getpid(), signal.SIGTERM)
    real(*arguments, step=step, **named)
loop.update_average = update
launch(loop.train, RunSpec.model_validate_json({run!r}), store={store!r}, split={split!r}, out={out!r}, state={state!r},
       processes=2)
"""


def test_of_several_processes_all_end_after_the_same_step(data: Data, tmp_path: Path) -> None:
    run = spec("supervised", micro_batches=2)

    def several(name: str, tell: bool) -> int:
        names = {"store": str(data["store"]), "split": str(data["split"]), "run": run.model_dump_json(), "tell": tell}
        script = SEVERAL.format(**names, out=str(tmp_path / name), state=str(tmp_path / f"state-{name}"))
        return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=300).returncode

    assert several("told", tell=True) == EXIT_CODE
    assert (tmp_path / "state-told/checkpoint.safetensors").is_file()
    assert several("told", tell=False) == 0
    assert several("whole", tell=False) == 0
    assert_same_training(tmp_path / "told", tmp_path / "whole")
