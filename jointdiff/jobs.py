"""What a job of the workflow gets of its machine, settled before torch is imported: memory and a GPU. Light."""

from __future__ import annotations

import fcntl
import getpass
import os
import subprocess
import tempfile
from collections.abc import Mapping, MutableMapping
from itertools import count
from pathlib import Path
from typing import TextIO

# What a training step frees, the next one needs again. By default glibc gives a large block back to the system and gets
# it anew, zeroed, in pages of 4 KiB, which can take a third of the time of a step (benchmarks/allocation.py).
ALLOCATION = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26}

# What torchrun, MPI and job schedulers tell each of the processes that they begin; accelerate waits for the others.
GROUP = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
)

_held: list[TextIO] = []  # open locks: the system releases them when the process ends, however it ends


def keep_memory(environment: MutableMapping[str, str]) -> None:
    """Let processes of an environment keep the memory that they free, in large pages.

    glibc reads it as a process starts (hugetlb from 2.35 on), other allocators ignore it. What the user has set stays.
    """
    environment.setdefault(
        "GLIBC_TUNABLES", ":".join(f"glibc.malloc.{key}={value}" for key, value in ALLOCATION.items())
    )


def group_around(environment: Mapping[str, str]) -> list[str]:
    """List the variables of an environment that call its process one of several, with their values."""
    return [f"{name}={environment[name]}" for name in GROUP if environment.get(name)]


def settle(environment: MutableMapping[str, str]) -> str | None:
    """Change in an environment what notebooks, containers and job schedulers leave there; return what to tell people.

    Commands and the workflow start their processes themselves, and would wait for hours for those of a job scheduler.
    """
    environment["MPLBACKEND"] = "Agg"  # figures are files; importing matplotlib fails where a notebook's is not there
    environment["PYTHONUTF8"] = "1"  # of the processes that this one starts: names of files are UTF-8 in any locale
    try:
        getpass.getuser()
    except (KeyError, OSError):  # Snakemake and torch ask for the name, which a container's user may not have
        environment["USER"] = f"uid-{os.getuid()}"
    found = group_around(environment)
    for name in GROUP:
        environment.pop(name, None)
    if not found:
        return None
    return f"{', '.join(found)} of a job scheduler or launcher is passed over: processes are started as settings say"


def count_gpus() -> int:
    """Count the NVIDIA GPUs of this machine."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def reserve_gpus(wanted: int) -> int:
    """Let torch see as many GPUs of this machine, those that the fewest other jobs hold, and return how many it sees.

    So several small trainings share a GPU evenly where the profile lets more jobs run than there are GPUs. Nothing is
    done where none is wanted, or where a cluster has chosen already (CUDA_VISIBLE_DEVICES).
    """
    if not wanted:
        return 0
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return min(wanted, len([gpu for gpu in given.split(",") if gpu]))
    gpus = count_gpus()
    wanted, chosen = min(wanted, gpus), set[int]()
    for place in count():  # of the jobs that share a GPU: all GPUs get a first one, then all a second
        for gpu in range(gpus):
            if len(chosen) < wanted and gpu not in chosen and _lock(f"gpu-{gpu}-{place}"):
                chosen.add(gpu)
        if len(chosen) == wanted:
            break
    if chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, sorted(chosen)))
    return wanted


def _lock(name: str) -> bool:
    """Take a lock of this machine and user until the process ends, unless another process has it."""
    lock = Path(tempfile.gettempdir(), f"jointdiff-{os.getuid()}-{name}.lock").open("w")  # noqa: SIM115 - held on
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return False
    _held.append(lock)
    return True
