"""What checkpoints cost of the time of a training, and what checksums cost where they are written and checked.

    uv run python benchmarks/checkpoint_share.py [--method joint]

A cell of config/config.yaml is trained for some steps with a checkpoint at every log line, and the seconds inside
`save_checkpoint` are held against the time of all else in the same run: the share at `training.checkpoint_seconds` is
one writing per so many seconds. The loop writes more rarely where that would be above 2 %.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jointdiff.training.loop as loop
from jointdiff.config import load_experiment
from jointdiff.data.prepare import prepare
from jointdiff.data.splits import split_dataset
from jointdiff.files import sha256


def main() -> None:
    """Print one line for the checkpoints and one for checksums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config/config.yaml")
    parser.add_argument("--method", default="joint")
    parser.add_argument("--labels", default="200")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    experiment = load_experiment(options.config)
    run = experiment.run("phantom", options.labels, options.method, experiment.seeds[0])
    due = run.training.checkpoint_seconds
    changes = {"steps": options.steps, "log_every": 5, "validate_every": options.steps, "checkpoint_seconds": 0.0}
    run = run.model_copy(update={"training": run.training.model_copy(update=changes)})

    spent: list[tuple[float, float, int]] = []
    real = loop.save_checkpoint

    def timed(path: Path, *arguments: Any, **named: Any) -> None:
        began, busy = time.monotonic(), time.process_time()
        real(path, *arguments, **named)
        spent.append((time.monotonic() - began, time.process_time() - busy, path.stat().st_size))

    loop.save_checkpoint = timed
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder, data = Path(name), experiment.datasets["phantom"]
        prepare("phantom", folder, folder / "store", size=data.size, options=data.options)
        split_dataset(
            folder / "store", out=folder / "split.parquet", budget=options.labels, seed=0, lists={},
            validation=data.validation, test=data.test,
        )  # fmt: skip
        began, busy = time.monotonic(), time.process_time()
        loop.train(run, store=folder / "store", split=folder / "split.parquet", out=folder / "out", state=folder / "s")
        wall, cpu = time.monotonic() - began, time.process_time() - busy
        count, saving, working, size = (
            len(spent), sum(s[0] for s in spent), sum(s[1] for s in spent), spent[-1][2] / 2**20
        )  # fmt: skip
        each = saving / count
        print(
            f"{options.method}, {size:.1f} MiB a checkpoint: {1000 * each:.0f} ms each "
            f"({1000 * working / count:.0f} ms of CPU); every {due:g} s that is "
            f"{100 * each / (due + each):.2f} % of the time"
        )
        print(f"the run: {count} of them took {saving:.2f} of {wall:.2f} s ({working:.2f} of {cpu:.2f} s of CPU)")
        path = folder / "big"
        path.write_bytes(os.urandom(1 << 20) * 256)
        began = time.process_time()
        sha256(path)
        print(f"SHA-256 of a file in memory: {256 / (time.process_time() - began):.0f} MiB per second of CPU")


if __name__ == "__main__":
    main()
