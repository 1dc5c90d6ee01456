"""How much of a run was training and evaluation, and how much went to start-up, other steps, Snakemake and waiting.

    /usr/bin/time -f %e uv run snakemake --cores 2      # prints the wall-clock seconds
    uv run python benchmarks/share_of_work.py results/default --wall SECONDS --cores 2

Snakemake's own measurements say how long each job of training and evaluation took; work is that without its start-up,
interpreter and imports, which benchmarks/fixed_costs.py measures here and now. All else that the cores could have done
in that time is overhead: start-up, downloads and preparing, tables, figures, report, MLflow, Snakemake, idle cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fixed_costs import start_up

WORK = (
    "train_autoencoder",
    "encode_latents",
    "try_settings",
    "train_method",
    "classify_images",
    "classify_by_votes",
    "generate_images",
    "explain_findings",
    "score_classification",
    "score_votes",
    "score_generation",
    "score_localisation",
)


def seconds_of(results: Path) -> dict[str, list[float]]:
    """Return the seconds of each finished job of training and evaluation, by rule."""
    found: dict[str, list[float]] = {}
    for rule in WORK:
        for path in (results / "benchmarks" / rule).glob("*.jsonl"):
            last = path.read_text(encoding="utf-8").splitlines()[-1]  # a job that ran again has several
            found.setdefault(rule, []).append(json.loads(last)["s"])
    return found


def main() -> None:
    """Print a line for each rule, and one for the overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a finished run, such as results/default")
    parser.add_argument("--wall", type=float, required=True, help="seconds that the run took")
    parser.add_argument("--cores", type=int, required=True, help="cores that it was given")
    options = parser.parse_args()
    jobs = seconds_of(options.results)
    if not jobs:
        parser.error(f"{options.results} holds no measured job: run the experiment first")
    before, offered, work = start_up(list(jobs)), options.wall * options.cores, 0.0
    print("| rule | jobs | s | of which start-up | work, share of the cores' time |\n|---|--:|--:|--:|--:|")
    for rule, seconds in jobs.items():
        waited = sum(min(one, before[rule]) for one in seconds)
        work += sum(seconds) - waited
        share = (sum(seconds) - waited) / offered
        print(f"| {rule} | {len(seconds)} | {sum(seconds):.1f} | {waited:.1f} | {share:.1%} |")
    print(f"| overhead | | {offered - work:.1f} | | {1 - work / offered:.1%} |")


if __name__ == "__main__":
    main()
