"""What a job costs before its own work begins: interpreter and imports, of each kind of job of the default experiment.

    uv run python benchmarks/fixed_costs.py --rounds 5

A fresh process imports what the adapter of a rule in workflow_scripts/ imports, at its top and in ``main``, as its text
says, and ends as jobs do; a training also imports what torch's optimisers do as the first one is made. Beside them the
bare interpreter, torch, and Snakemake: its version, and a run of the default experiment in which all is done already.
All take turns, after a first one that leaves bytecode, with one thread and the memory of the workflow's jobs.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml
from dry_run import ROOT, Measured, measured, snakemake

from jointdiff.jobs import keep_memory

ADAPTERS = ROOT / "workflow_scripts"
LATE = dict.fromkeys(("train_autoencoder", "train_method", "try_settings"), "torch._dynamo")  # by torch.optim


def program(adapter: str) -> str:
    """Return the imports of an adapter, those in its functions included."""
    tree = ast.parse((ADAPTERS / f"{adapter}.py").read_text(encoding="utf-8"))
    found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    late = [f"import {LATE[adapter]}"] if adapter in LATE else []
    return "\n".join([*found, *late, "from jointdiff.logs import leave", "leave()"])


def interpret(text: str) -> Measured:
    """Run a program as a job of the workflow would and measure it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["OMP_NUM_THREADS"] = "1"
    keep_memory(environment)
    return measured([sys.executable, "-c", text], environment=environment)


def in_turn(kinds: dict[str, Callable[[], Measured]], *, rounds: int) -> dict[str, list[Measured]]:
    """Measure each kind once a round; a first round does not count."""
    turns = [{name: kind() for name, kind in kinds.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in kinds}


def start_up(adapters: list[str], *, rounds: int = 3) -> dict[str, float]:
    """Return the seconds, as the median of some rounds, that a job of each adapter takes before its work begins.

    They are of the CPU, which a start-up keeps busy and others on the machine hardly lengthen.
    """
    taken = in_turn({name: partial(interpret, program(name)) for name in adapters}, rounds=rounds)
    return {name: statistics.median(one.cpu for one in each) for name, each in taken.items()}


def finish(folder: Path) -> dict[str, int]:
    """Leave all files of the default experiment, empty, as Snakemake's own; return the number of jobs by adapter."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    (folder / "grid.json").write_text(json.dumps(config), encoding="utf-8")
    counts = re.findall(r"^(\w+) +(\d+)$", snakemake(folder, "--dry-run", "--quiet", "rules").said, re.MULTILINE)
    for line in snakemake(folder, "--summary").said.splitlines():
        name, _, rest = line.partition("\t")
        if rest and name != "output_file":
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    snakemake(folder, "--touch", "--cores", "1", "--quiet")
    jobs = {rule: int(count) for rule, count in counts if (ADAPTERS / f"{rule}.py").is_file()}
    jobs["train_method"] += int(dict(counts).get("train_first", 0))  # the same rule with a priority of its own
    return jobs


def main() -> None:
    """Print a line for each kind of process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        jobs = finish(Path(name))
        kinds: dict[str, Callable[[], Measured]] = {
            "`python -c pass`": partial(interpret, "pass"),
            "`import torch`": partial(interpret, "import torch"),
            "`snakemake --version`": partial(snakemake, Path(name), "--version"),
            "`snakemake`, nothing to do": partial(snakemake, Path(name), "--cores", "2"),
            **{adapter: partial(interpret, program(adapter)) for adapter in jobs},
        }
        taken = in_turn(kinds, rounds=options.rounds)
    print(f"{options.rounds} rounds; jobs are those of config/config.yaml")
    print("| what | s, median (least to most) | CPU s | peak MiB | jobs | s of them all |\n|---|--:|--:|--:|--:|--:|")
    total = 0.0
    for name, each in taken.items():
        seconds = [one.seconds for one in each]
        middle = statistics.median(seconds)
        cpu, peak = (statistics.median(getattr(one, key) for one in each) for key in ("cpu", "peak"))
        total += (whole := middle * jobs.get(name, 0))
        spread = f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        of_all = f"{jobs[name]} | {whole:.1f}" if name in jobs else "|"
        print(f"| {name} | {spread} | {cpu:.2f} | {peak:.0f} | {of_all} |")
    print(f"| all | | | | {sum(jobs.values())} | {total:.1f} |")


if __name__ == "__main__":
    main()
