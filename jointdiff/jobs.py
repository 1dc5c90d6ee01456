"""What a job of the workflow settles before torch is imported: its GPU, and that nothing is compiled. Light."""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

_held: list[TextIO] = []  # open locks: the system releases them when the process ends, however it ends


def prepare_torch(*, gpus: int) -> None:
    """Reserve a GPU where one is wanted and spare this process the import of torch's compiler."""
    reserve_gpu(gpus)
    spare_compiler()


def spare_compiler() -> None:
    """Put a stand-in before torch's compiler, whose import takes 4.5 s of every job that builds an optimiser.

    torch imports it only to mark functions as not to be compiled, and nothing is compiled here. Whatever else is asked
    of the stand-in imports the real compiler, so that ``torch.compile`` still works.
    """
    sys.modules.setdefault("torch._dynamo", _NoCompiler("torch._dynamo"))


class _NoCompiler(ModuleType):
    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        return fn if fn is not None else lambda decorated: decorated

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        # `from torch._dynamo import disable` asks for __path__ as well; only the import of a submodule needs it.
        submodule = name == "__path__" and sys._getframe(1).f_code.co_name == "_find_and_load_unlocked"
        if name.startswith("__") and not submodule:
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def count_gpus() -> int:
    """Count the NVIDIA GPUs of this machine."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def reserve_gpu(wanted: int) -> None:
    """Let torch see one GPU that no other job of this machine holds, or one of them where all are held.

    Nothing is done where none is wanted, or where a cluster has chosen already (CUDA_VISIBLE_DEVICES).
    """
    if not wanted or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    gpus = count_gpus()
    for index in range(gpus):
        lock = Path(tempfile.gettempdir(), f"jointdiff-{os.getuid()}-gpu-{index}.lock").open("w")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
        return
    if gpus:  # more jobs than GPUs were asked for: share
        os.environ["CUDA_VISIBLE_DEVICES"] = str(os.getpid() % gpus)
