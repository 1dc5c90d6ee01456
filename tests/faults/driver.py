"""Train in forked children that are killed at random moments, until so many kills are done; a process of its own.

    python tests/faults/driver.py FOLDER METHOD KILLS

FOLDER holds a store and a split. Python and torch are loaded once, here, where nothing is ever computed. Each training
is killed and taken up again until it ends, then the next one begins in folders of its own. Half of the kills come at
a random moment; the other half as soon as a checkpoint is being written, after a random number of others.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from jointdiff.seeding import rng
from jointdiff.training.loop import train
from tests.tiny import tiny_run

STEPS = 24


def main(folder: Path, method: str, kills: int) -> None:
    """Print what was done as JSON."""
    run = tiny_run(method, steps=STEPS, validate_every=6, log_every=2, checkpoint_seconds=0.0)

    def start(name: str) -> int:
        child = os.fork()
        if child:
            return child
        try:
            sys.stderr = Path(folder, "stderr").open("a")  # noqa: SIM115 - until the child ends
            data = {"store": folder / "store", "split": folder / "split.parquet"}
            train(run, **data, out=folder / name, state=folder / f"{name}-state")
            Path(folder, "modules").write_text("\n".join(sys.modules))
            os._exit(0)
        finally:
            os._exit(1)

    for name in ("first", "whole"):
        began = time.monotonic()
        assert os.waitpid(start(name), 0)[1] == 0, (folder / "stderr").read_text()[-3000:]
        whole = time.monotonic() - began
        # What a training imports late takes seconds, which no further child is to spend.
        for module in (folder / "modules").read_text().splitlines():
            with suppress(Exception):
                import_module(module)
    done = amid = turn = 0
    ended: list[str] = []
    name = "0"
    while done < kills or name not in ended:
        child = start(name)
        if done < kills:
            draw = rng(0, "kills", method, turn)
            turn += 1
            if turn % 2:
                time.sleep(draw.uniform(0.0, whole))
            else:
                aside, wanted = folder / f"{name}-state" / f".checkpoint.{child}.safetensors", int(draw.integers(1, 5))
                seen, there = 0, False
                while seen < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    now = aside.exists()
                    seen, there = seen + (now and not there), now
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            done += 1
            amid += (folder / f"{name}-state" / f".checkpoint.{child}.safetensors").exists()
        else:
            assert status == 0, (folder / "stderr").read_text()[-3000:]
            ended.append(name)
            if done < kills:
                name = str(len(ended))
    print(json.dumps({"kills": done, "amid": amid, "ended": ended, "seconds": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
