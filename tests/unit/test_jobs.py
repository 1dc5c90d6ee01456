"""Which GPU a job gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jointdiff import jobs


def test_jobs_hold_different_gpus_and_share_when_there_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A'\necho 'GPU 1: B'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    reserve = "import os, time; from jointdiff.jobs import reserve_gpu; reserve_gpu(1);"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    environment = {**{k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}, **environment}
    code = reserve + "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(3)
    ]
    chosen = [job.stdout.readline().strip() for job in running if job.stdout]
    for job in running:
        job.communicate("\n")
    assert set(chosen) == {"0", "1"}


def test_a_choice_of_the_cluster_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    jobs.reserve_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
