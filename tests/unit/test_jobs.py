"""What a job settles before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jointdiff import jobs


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_step_never_imports_the_compiler_and_is_the_same() -> None:
    step = """
import sys, torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
net(torch.ones(2, 1, 8, 8)).square().mean().backward()
optimiser.step()
print(sum(p.detach().double().abs().sum().item() for p in net.parameters()))
"""
    spared = "from jointdiff.jobs import spare_compiler; spare_compiler()" + step
    untouched = "assert 'torch._dynamo.eval_frame' not in sys.modules"
    assert python(spared + untouched) == python(step)


def test_who_asks_for_the_compiler_gets_the_real_one() -> None:
    python(
        "from jointdiff.jobs import spare_compiler; spare_compiler(); import torch;"
        "from torch._dynamo import disable; print(torch.compile(lambda x: 2 * x, backend='eager')(torch.ones(1)));"
        "from torch._dynamo.utils import counters; print(torch._dynamo.eval_frame.OptimizedModule)"
    )


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
