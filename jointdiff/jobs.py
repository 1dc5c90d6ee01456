"""What a job of the workflow gets of its machine, settled before torch is imported: memory and a GPU. Light."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import MutableMapping
from itertools import count
from pathlib import Path
from typing import TextIO

# What a training step frees, the next one needs again. By default glibc gives a large block back to the system and gets
# it anew, zeroed, in pages of 4 KiB, which can take a third of the time of a step (benchmarks/allocation.py).
ALLOCATION = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26}

_held: list[TextIO] = []  # open locks: the system releases them when the process ends, however it ends


def keep_memory(environment: MutableMapping[str, str]) -> None:
    """Let processes of an environment keep the memory that they free, in large pages.

    glibc reads it as a process starts (hugetlb from 2.35 on), other allocators ignore it. What the user has set stays.
    """
    environment.setdefault(
        "GLIBC_TUNABLES", ":".join(f"glibc.malloc.{key}={value}" for key, value in ALLOCATION.items())
    )


def count_gpus() -> int:
    """Count the NVIDIA GPUs of this machine."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def reserve_gpu(wanted: int) -> None:
    """Let torch see one GPU that no other job of this machine holds, or one that the fewest hold.

    Nothing is done where none is wanted, or where a cluster has chosen already (CUDA_VISIBLE_DEVICES).
    """
    if not wanted or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    gpus = count_gpus()
    # The first place on every GPU is taken before the second on any.
    for place in count() if gpus else ():
        for index in range(gpus):
            name = f"jointdiff-{os.getuid()}-gpu-{index}-{place}.lock"
            lock = Path(tempfile.gettempdir(), name).open("w")  # noqa: SIM115 - held until the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            _held.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
            return
