"""kill -9 at random moments, also while a checkpoint is written: nothing is lost and nothing half is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.folders import assert_same_training
from tests.tiny import tiny_phantoms

KILLS = int(os.environ.get("JOINTDIFF_KILLS", "10"))  # for each method


@pytest.mark.parametrize("method", ["joint", "fixmatch"])
def test_a_training_killed_again_and_again_ends_as_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    tiny_phantoms(tmp_path, labelled=12, validation=8, unlabelled=16, test=12)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.driver", str(tmp_path), method, str(KILLS)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=600, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    print(method, said)
    assert said["kills"] == KILLS
    assert said["amid"] > 0, "no kill met a checkpoint that was being written"
    for name in said["ended"]:
        assert_same_training(tmp_path / name, tmp_path / "whole")
        assert not list((tmp_path / f"{name}-state").iterdir()), "what kills left half is gone as well"
