"""Two small trainings side by side on two cores, against one after the other with one thread and with two.

    uv run python benchmarks/side_by_side.py --methods joint supervised

Each training is a process, as a job of the workflow is: a method as the default experiment has it, for some steps, on
images of noise of the same size. Seconds are from the start of the first process to the end of the last; the three ways
take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {  # threads of each training, and how many run at once
    "side by side, one thread each": (1, 2),
    "one after the other, one thread": (1, 1),
    "one after the other, two threads": (2, 1),
}


def train_one(folder: Path, method: str, seed: int, steps: int) -> None:
    """Be one training."""
    from jointdiff.config import load_experiment
    from jointdiff.training.loop import train

    run = load_experiment("config/config.yaml").run("phantom", "200", method, seed)
    run = run.model_copy(update={"training": run.training.model_copy(update={"steps": steps})})
    with tempfile.TemporaryDirectory() as name:
        train(run, store=folder / "store", split=folder / "split.parquet", out=Path(name, "out"), state=Path(name, "s"))


def take(folder: Path, method: str, steps: int, *, threads: int, at_once: int) -> float:
    """Return the seconds of two trainings."""
    from jointdiff.jobs import keep_memory

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    keep_memory(environment)
    command = [sys.executable, __file__, f"--one={folder}", "--methods", method, f"--steps={steps}"]
    started = time.perf_counter()
    for first in range(0, 2, at_once):
        group = [
            subprocess.Popen([*command, f"--seed={seed}"], env=environment, stderr=subprocess.DEVNULL)
            for seed in range(first, first + at_once)
        ]
        ended = [process.wait() for process in group]
        if any(ended):
            raise SystemExit(f"a training of {method} failed: {' '.join(command)} --seed=0 says why")
    return time.perf_counter() - started


def main() -> None:
    """Print a line for each method and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["joint", "supervised"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        train_one(options.one, options.methods[0], options.seed, options.steps)
        return
    from loading import made_store

    from jointdiff.data.splits import split_dataset

    print(f"two trainings of {options.steps} steps on {os.cpu_count()} cores, {options.rounds} rounds")
    print("| method | way | s, median (least to most) | times as long as side by side |\n|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_store(folder, options.images, 32)
        split_dataset(
            folder / "store", out=folder / "split.parquet", budget="200", seed=0, lists={}, validation=0.2, test=0.25
        )
        for method in options.methods:
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way, (threads, at_once) in WAYS.items():
                    seconds[way].append(take(folder, method, options.steps, threads=threads, at_once=at_once))
            first = statistics.median(next(iter(seconds.values())))
            for way, each in seconds.items():
                middle = statistics.median(each)
                spread = f"{middle:.1f} ({min(each):.1f} to {max(each):.1f})"
                print(f"| {method} | {way} | {spread} | {middle / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
