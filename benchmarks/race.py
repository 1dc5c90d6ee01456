"""How many calls a race of a diffusion classifier saves, and what it costs in accuracy, at several chances of error.

    uv run python benchmarks/race.py results/votes_medical_small/pneumonia/labels-all/diffusion_classifier/seed-0

Replays the recorded errors of a finished cell (``voting.stop: false``), so that every race sees the same trials as the
majority of all of them. Points are accuracy less that majority's, with the interval of the paired difference over
groups of images; beside it the share of answers that differ, which bounds it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from jointdiff.evaluate.bootstrap import percentile_interval, resample
from jointdiff.evaluate.classification import read_predictions
from jointdiff.evaluate.votes_file import read_votes
from jointdiff.evaluate.voting import Replay, fixed, replay


def main() -> None:
    """Print a line for the majority of all trials, and one for each race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, help="folder of a finished cell of a diffusion classifier")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.1, 0.05, 0.01, 0.001, 0.0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    votes, cell = read_votes(options.cell / "votes.parquet"), read_predictions(options.cell / "predictions.parquet")
    test = votes.role == "test"
    errors, trials = votes.errors[test], votes.errors.shape[1]
    row_of = {sample_id: row for row, sample_id in enumerate(cell.sample_ids)}
    rows = [row_of[sample_id] for sample_id in votes.sample_ids[test]]
    labels, groups = cell.labels[rows], cell.groups[rows]

    def right(answer: Replay) -> np.ndarray:  # (n,) share of an image's contests that are answered rightly
        if votes.kind == "one_of_k":
            return labels[np.arange(len(labels)), answer.winners[:, 0]].astype(np.float64)
        return (answer.winners == labels).mean(1)

    whole = fixed(errors, votes.contests, kind=votes.kind, rule="majority", trials=trials)
    print(f"{options.cell}: {len(errors)} images, {trials} trials of {errors.shape[2]} conditions; "
          f"accuracy of the majority {right(whole).mean():.3f}, {whole.calls.mean():.0f} calls an image")  # fmt: skip
    print("| error | block | accuracy | points (95 %) | answers that differ | calls an image | times fewer |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for error in options.errors:
        for block in options.blocks:
            answer = replay(errors, votes.contests, kind=votes.kind, trials=trials, error=error, block=block)
            gain = right(answer) - right(whole)
            draws = resample(lambda w, gain=gain: (gain @ w / w.sum(0))[None], groups, draws=10_000)
            low, high = (100 * bound for bound in percentile_interval(draws[0], 0.95))
            differ, calls = np.mean(answer.winners != whole.winners), answer.calls.mean()
            print(f"| {error:g} | {block} | {right(answer).mean():.3f} "
                  f"| {100 * gain.mean():+.2f} [{low:+.2f}, {high:+.2f}] | {differ:.2%} | {calls:.1f} "
                  f"| {whole.calls.mean() / calls:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
