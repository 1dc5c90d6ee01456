"""What a job gets of its machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jointdiff import jobs

AGAIN = """
import resource
import numpy as np
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(50_000_000, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_memory_that_was_freed_is_had_again_without_the_system() -> None:
    kept = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    plain = subprocess.run([sys.executable, "-c", AGAIN], env=kept, capture_output=True, text=True, check=True)
    jobs.keep_memory(kept)
    again = subprocess.run([sys.executable, "-c", AGAIN], env=kept, capture_output=True, text=True, check=True)
    assert int(again.stdout) < 100 < int(plain.stdout)


def test_an_allocator_that_the_user_has_set_up_stays_so() -> None:
    environment = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    jobs.keep_memory(environment)
    assert environment == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}


def test_jobs_hold_different_gpus_and_share_when_there_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A'\necho 'GPU 1: B'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    reserve = "import os, time; from jointdiff.jobs import reserve_gpus; reserve_gpus(1);"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    environment = {**{k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}, **environment}
    code = reserve + "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(5)
    ]
    chosen = [job.stdout.readline().strip() for job in running if job.stdout]
    for job in running:
        job.communicate("\n")
    assert sorted(chosen)[:2] == ["0", "0"] and sorted(chosen)[-2:] == ["1", "1"], "as many on each, but for one"


def test_a_choice_of_the_cluster_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    jobs.reserve_gpus(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
