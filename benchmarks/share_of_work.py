"""How much of a run was training and evaluation, and how much went to imports, Snakemake and waiting.

    /usr/bin/time -f %e uv run snakemake --cores 2      # prints the wall-clock seconds
    uv run python benchmarks/share_of_work.py results/default --wall SECONDS --cores 2

Work is what the jobs timed of themselves, without their start-up: training from ``run.json``, predictions, images and
counterfactuals from their own files. All else that the cores could have done in that time is overhead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def seconds_of(cell: Path) -> dict[str, float]:
    """Return the seconds of work of one cell by kind."""
    work = {"train": json.loads((cell / "run.json").read_text())["cost"]["train_seconds"]}
    predictions = pq.read_table(cell / "predictions.parquet")
    cost = json.loads(predictions.schema.metadata[b"cost"])
    work["classify"] = cost["ms_per_image"] * len(predictions) / 1000
    for file, kind, count in [("generated", "sample", "images"), ("explanations", "counterfactual", "sample")]:
        path = cell / f"{file}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                each = json.loads(str(stored["cost"])).get(f"ms_per_{kind}", 0.0)
                work[kind] = each * len(stored[count]) / 1000
    return work


def main() -> None:
    """Print a table of work by kind and the share of overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a finished run, such as results/default")
    parser.add_argument("--wall", type=float, required=True, help="seconds that the run took")
    parser.add_argument("--cores", type=int, required=True, help="cores that it was given")
    options = parser.parse_args()
    total: dict[str, float] = {}
    for run in sorted(options.results.glob("*/labels-*/*/seed-*/run.json")):
        for kind, seconds in seconds_of(run.parent).items():
            total[kind] = total.get(kind, 0.0) + seconds
    offered = options.wall * options.cores
    for kind, seconds in total.items():
        print(f"{kind:>15} {seconds:8.1f} s  {seconds / offered:6.1%}")
    print(f"{'overhead':>15} {offered - sum(total.values()):8.1f} s  {1 - sum(total.values()) / offered:6.1%}")


if __name__ == "__main__":
    main()
