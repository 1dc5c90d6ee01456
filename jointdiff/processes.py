"""Several processes that do one job: on the GPUs of a host, of several hosts, or on a CPU. accelerate joins them.

A job is begun in as many processes as it is to have, by ``launch`` on one host or by ``torchrun`` on several; each of
them runs the same code. Outside of such a job there is one process, and everything here is as if it were not there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from jointdiff.jobs import GROUP, group_around

Item = TypeVar("Item")
Result = TypeVar("Result")

_launched = False  # whether ``launch`` began this process

PATIENCE = timedelta(hours=2)  # that processes have with one another: one of them validates while the others wait


class WorkerError(ValueError):
    """One of the processes of a job met something that a user can mend."""


def launch(work: Callable[..., None], *arguments: Any, processes: int, **named: Any) -> None:
    """Run ``work`` with its arguments in so many processes of this host, in this one where that is enough.

    They are forked, so CUDA must not have been used. With GPUs each takes one of those that are visible.

    Raises:
        WorkerError: ``work`` raised a ValueError or an OSError in one of them; the others are ended.
        SystemExit: one ended so, as a preempted training does, with its code.
    """
    work = partial(work, *arguments, **named)
    if processes <= 1:
        work()
        return
    with TemporaryDirectory() as notes, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        group = torch.multiprocessing.start_processes(
            _begin, args=(work, processes, port, notes), nprocs=processes, join=False, start_method="fork"
        )
        assert group is not None

        def pass_on(number: int, frame: object) -> None:
            for process in group.processes:
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            while not group.join():
                pass
        except torch.multiprocessing.ProcessExitedException as error:
            said = sorted(Path(notes).iterdir())
            if said:
                raise WorkerError(said[0].read_text(encoding="utf-8")) from error
            if error.exit_code > 0:
                sys.exit(error.exit_code)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _begin(index: int, work: Callable[[], None], processes: int, port: int, notes: str) -> None:
    global _launched
    _launched = True
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    for number in (signal.SIGTERM, signal.SIGUSR1):  # what the job sets up for itself, not what its parent had
        signal.signal(number, signal.SIG_DFL)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the process it was forked from
    try:
        work()
    except (ValueError, OSError) as error:
        Path(notes, f"{index:03d}").write_text(str(error), encoding="utf-8")
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join_group(device: torch.device) -> PartialState:
    """Join the processes of this job and return which one this is, and on which ``device`` of the kind it computes.

    Raises:
        ValueError: the environment calls this process one of several, which neither ``launch`` nor torchrun began.
    """
    if not _launched and "TORCHELASTIC_RUN_ID" not in os.environ and (found := group_around(os.environ)):
        raise ValueError(
            f"{', '.join(found)} in the environment says that this process is one of several, but torchrun did not "
            f"begin it, so it might wait for the others forever: begin it with torchrun, or `unset {' '.join(GROUP)}`"
        )
    return PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def leads() -> bool:
    """Say whether this process, of those that joined, is the one that writes files and shows progress."""
    return PartialState().is_main_process


def share_out(work: Callable[[Item], Result], items: Sequence[Item], *, device: torch.device) -> list[Result]:
    """Return ``work`` of every item, in order and in every process, each of which does a part of them.

    An item is done whole by one process, so that results do not depend on how many there are.
    """
    group = join_group(device)
    own = [work(item) for item in items[group.process_index :: group.num_processes]]
    if group.num_processes == 1:
        return own
    everyones = gather_object([own])
    return [everyones[place % group.num_processes][place // group.num_processes] for place in range(len(items))]
