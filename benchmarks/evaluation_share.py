"""What evaluation took beside training, per method and as a share of the run, from what Snakemake measured of each job.

    uv run python benchmarks/evaluation_share.py results/default

Seconds are those of whole jobs, imports included, summed over budgets and seeds; each job ran on one core.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from jointdiff.files import read_json
from jointdiff.paths import find_cells

STEPS = {  # of a cell, in their order; each by the rules whose measurements it sums
    "train": ("train_method",),
    "classify": ("classify_images", "classify_by_votes"),
    "generate": ("generate_images",),
    "explain": ("explain_findings",),
    "score": ("score_classification", "score_votes", "score_generation", "score_localisation"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a finished experiment")
    results = parser.parse_args().results
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    models: dict[str, int] = defaultdict(int)
    for cell in find_cells(results):
        spec = read_json(cell / "run.json")["spec"]
        models[spec["variant"]] += 1
        for step, rules in STEPS.items():
            for rule in rules:
                name = f"{spec['dataset']}-{spec['labels']}-{spec['variant']}-{spec['seed']}.jsonl"
                measured = results / "benchmarks" / rule / name
                if measured.is_file():
                    last = measured.read_text(encoding="utf-8").splitlines()[-1]
                    seconds[spec["variant"]][step] += json.loads(last)["s"]
    if not models:
        parser.error(f"{results} holds no finished cell: run the experiment first")
    total = sum(sum(steps.values()) for steps in seconds.values())
    print(
        "| method | models | " + " | ".join(f"{step}, s each" for step in STEPS) + " | evaluation, share of the run |"
    )
    print("|---|--:|" + "--:|" * (len(STEPS) + 1))
    for method, count in models.items():
        steps = seconds[method]
        evaluation = sum(value for step, value in steps.items() if step != "train")
        each = " | ".join(f"{steps[step] / count:.1f}" for step in STEPS)
        print(f"| {method} | {count} | {each} | {evaluation / total:.1%} |")
    trained = sum(steps["train"] for steps in seconds.values())
    print(f"\nOf {total:.0f} s in the jobs of {sum(models.values())} models, {1 - trained / total:.1%} are evaluation.")


if __name__ == "__main__":
    main()
