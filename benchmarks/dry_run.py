"""What a dry run takes against the number of cells, and what every job pays for reading the workflow again.

    uv run python benchmarks/dry_run.py --cells 10 100 1000 --repeat 3

A cell is one training of (data set, label budget, method, seed). The grids hold ten methods on phantoms, of which one
also draws images and one votes, and ever more budgets and seeds. Each run is a process of its own in a fresh folder:

- ``fresh``: nothing is there;
- ``trained``: all stores, splits and trainings are there, with Snakemake's records of the code and parameters that made
  them, so that it compares each with today's;
- ``job``: what Snakemake does in one cluster job before and after its script: read the workflow, plan the job, run
  nothing (``--touch``).

CPU seconds are those of the process and its children, which a busy machine does not inflate as it does the others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
METHODS: dict[str, dict[str, Any]] = {
    "fully_supervised": {"method": "supervised", "labels": "all"},
    "joint": {"generate": True, "explain": ["counterfactual"]},
    "diffusion_classifier": {},
    "supervised": {"explain": ["grad_cam"]},
    **{name: {} for name in ("fixmatch", "flexmatch", "freematch", "mean_teacher", "mixmatch", "random")},
}
BUDGETS = (25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600)
TRAIN = ("train_first", "train_method")


@dataclass(frozen=True)
class Measured:
    """One process: its seconds, CPU seconds with children, peak resident MiB of the largest process, and its words."""

    seconds: float
    cpu: float
    peak: float
    said: str


def grid(cells: int) -> dict[str, Any]:
    """Return a configuration of exactly so many cells: of each seed, nine methods per budget and the ceiling."""
    per_budget = len(METHODS) - 1
    seeds, budgets = next(
        ((s, b) for s in (10, 5, 2, 1) for b in range(1, len(BUDGETS) + 1) if s * (per_budget * b + 1) == cells),
        (0, 0),
    )
    if not seeds:
        known = sorted({s * (per_budget * b + 1) for s in (10, 5, 2, 1) for b in range(1, len(BUDGETS) + 1)})
        raise SystemExit(f"no grid here has {cells} cells; these sizes are possible: {', '.join(map(str, known))}")
    return {
        "name": "grid",
        "seeds": list(range(seeds)),
        "datasets": {"phantom": {"size": 32, "labels": list(BUDGETS[:budgets])}},
        "methods": METHODS,
    }


def measured(command: list[str], *, folder: Path = ROOT, environment: dict[str, str] | None = None) -> Measured:
    """Run a command in a folder to its end and measure it."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        said.seek(0)
        text = said.read()
    if status:
        raise SystemExit(f"{' '.join(command[:4])} failed: {text[-4000:]}")
    return Measured(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text)


def snakemake(folder: Path, *arguments: str) -> Measured:
    """Run Snakemake in a folder to its end and measure it."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "grid.json"]
    unset = ("MLFLOW_", "JOINTDIFF_", "PYTHONDONTWRITEBYTECODE")  # jobs keep bytecode, see rules/common.smk
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
    return measured([*command, *arguments], folder=folder, environment=environment)


def finish_trainings(folder: Path, config: dict[str, Any]) -> None:
    """Leave what all trainings leave, as empty files that Snakemake takes for its own."""
    for dataset in config["datasets"]:
        results = folder / "results" / config["name"]
        wanted = [results / "tracking/store.json", folder / f"resources/raw/{dataset}/downloads.json"]
        for budget in [*config["datasets"][dataset]["labels"], "all"]:
            for seed in config["seeds"]:
                split = results / dataset / f"labels-{budget}"
                wanted.append(split / f"split-{seed}.parquet")
                for name, entry in config["methods"].items():
                    if (entry.get("labels") == "all") == (budget == "all"):
                        cell = split / name / f"seed-{seed}"
                        measured = f"benchmarks/train_method/{dataset}-{budget}-{name}-{seed}.jsonl"
                        wanted += [cell / "metrics.jsonl", cell / "run.json", results / measured]
                        (cell / "model").mkdir(parents=True)
        (folder / f"resources/prepared/{dataset}-{config['datasets'][dataset]['size']}").mkdir(parents=True)
        for path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    snakemake(folder, "--cores", "1", "--quiet", "--touch", "--until", *TRAIN)


def measure(kind: str, cells: int, *, repeat: int) -> tuple[int, list[Measured]]:
    """Return the number of planned jobs and what planning them took, so many times."""
    config = grid(cells)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.json").write_text(json.dumps(config), encoding="utf-8")
        if kind != "fresh":
            finish_trainings(folder, config)
        if kind == "job":
            target = f"train_method:dataset=phantom,labels={BUDGETS[0]},method=fixmatch,seed=0"
            how = ("--mode", "subprocess", "--nolock", "--ignore-incomplete", "--touch", "--force", "--cores", "1")
            command = (*how, "--target-jobs", target, "--allowed-rules", *TRAIN)
            return 1, [snakemake(folder, *command) for _ in range(repeat)]
        runs = [snakemake(folder, "--dry-run", "--quiet") for _ in range(repeat)]
        # Once more for the counts, which --quiet keeps to itself.
        counts = snakemake(folder, "--dry-run", "--quiet", "rules").said
        found = re.search(r"^total\s+(\d+)", counts, re.MULTILINE)
        assert found, counts[-2000:]
        return int(found[1]), runs


def main() -> None:
    """Print one row per kind and number of cells, and the slope of CPU seconds over cells in a log-log plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--kinds", nargs="+", choices=["fresh", "trained", "job"], default=["fresh", "trained", "job"])
    parser.add_argument("--repeat", type=int, default=3, help="medians of so many")
    options = parser.parse_args()
    print("| kind | cells | jobs | s | CPU s | peak MiB |\n|---|--:|--:|--:|--:|--:|", flush=True)
    for kind in options.kinds:
        points = []
        for cells in options.cells:
            jobs, runs = measure(kind, cells, repeat=options.repeat)
            seconds, cpu, peak = (
                statistics.median(getattr(run, name) for run in runs) for name in ("seconds", "cpu", "peak")
            )
            points.append((math.log(cells), math.log(cpu)))
            print(f"| {kind} | {cells:,} | {jobs:,} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} |", flush=True)
        if len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            print(f"\n{kind}: CPU seconds grow as cells to the {(y1 - y0) / (x1 - x0):.2f} at the end\n", flush=True)


if __name__ == "__main__":
    main()
