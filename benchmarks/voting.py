"""A diffusion classifier's throughput: trials, conditions and images together, beside one call after another.

    uv run python benchmarks/voting.py results/default/phantom/labels-200/diffusion_classifier/seed-0

Both compute the same errors, which is checked. How many calls an answer needs is in the table *votes* of an experiment
(docs/systems.md).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff.batches import image_batches
from jointdiff.config import Voting
from jointdiff.data.store import open_store
from jointdiff.devices import pick_device
from jointdiff.models import load_model
from jointdiff.trials import hold_trials


def main() -> None:
    """Print calls a second of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, help="folder of a finished cell of a diffusion classifier")
    parser.add_argument("--store", type=Path, help="prepared data set (default: the only one of that name)")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = pick_device("auto")
    method: Any = load_model(options.cell / "model").to(device)
    store = open_store(options.store or next(Path("resources/prepared").glob(f"{method.data.name}-*")))
    (images,) = image_batches(store.images, np.arange(options.images), batch_size=options.images, device=device)
    seeds = np.arange(options.images)
    together = Voting(trials=options.trials, block=options.trials)
    alone = together.model_copy(update={"batch_size": 1, "block": 1})

    def in_turn() -> np.ndarray:
        each = [hold_trials(method, images[i : i + 1], seeds[i : i + 1], voting=alone) for i in range(len(images))]
        return np.concatenate([ballot.errors for ballot in each])

    def at_once() -> np.ndarray:
        return hold_trials(method, images, seeds, voting=together).errors

    np.testing.assert_allclose(in_turn(), at_once(), rtol=1e-3)
    seconds: dict[str, list[float]] = {"one after another": [], "together": []}
    for _ in range(options.repeats):
        for name, way in zip(seconds, (in_turn, at_once), strict=True):
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    calls = options.images * options.trials * method.task.conditions
    first = statistics.median(seconds["one after another"])
    print(f"{options.cell}: {calls} calls on {device}, {torch.get_num_threads()} thread(s)")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:>18}: {calls / middle:8.1f} calls/s ({min(values):.2f} to {max(values):.2f} s), "
              f"{first / middle:.1f} times")  # fmt: skip


if __name__ == "__main__":
    main()
