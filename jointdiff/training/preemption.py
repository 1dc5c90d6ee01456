"""What a training does when its machine is wanted back: it keeps its state at the next step and ends.

Slurm sends SIGTERM before it takes the machine of a job, or any signal at a time of choice (`--signal=USR1@60`); a
scheduler of spot machines sends SIGTERM too.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
log = logging.getLogger(__name__)
Item = TypeVar("Item")
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not 0, so that Snakemake's `retries` and Slurm begin the job again


class PreemptedError(SystemExit):
    """The training was told to end and has kept its state; the process ends with ``EXIT_CODE``."""

    def __init__(self, label: str, step: int) -> None:
        super().__init__(EXIT_CODE)
        log.warning("%s: told to end, which it does after step %d; the same command goes on from there", label, step)


class Interrupted(Exception):  # noqa: N818 - a way out, no error
    """What was under way is given up, to be done again."""


class Preemption:
    """Hear, while the block runs, whether this process or another one of its job is told to end.

    Signals are heard in the main thread alone: elsewhere they do what they did before.
    """

    def __init__(self, *, processes: int = 1) -> None:
        # All processes must end after the same step. A group of its own on the CPU lets them agree at every step
        # without waiting for what their GPUs are still to do.
        self.group: Any = distributed.new_group(backend="gloo") if processes > 1 else None
        self.heard: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.group is not None and kind is None:
            distributed.destroy_process_group(self.group)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = signal.Signals(number)

    def asked(self) -> bool:
        """Say whether to end now; all processes are to ask after each step, and hear the same."""
        if self.group is None:
            return self.heard is not None
        flag = torch.tensor(0 if self.heard is None else int(self.heard))
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.group)
        if flag:
            self.heard = signal.Signals(int(flag))
        return self.heard is not None

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Hand on items one by one, as long as this process is not told to end.

        Raises:
            Interrupted: it is.
        """
        for item in items:
            if self.heard is not None:
                raise Interrupted
            yield item
