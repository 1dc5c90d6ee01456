"""The trials of all searches as one table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jointdiff.evaluate.scores import write_csv
from jointdiff.files import read_json

CELL = ("dataset", "labels", "method", "seed")


def collect_trials(choices: Iterable[Path | str], out: Path | str) -> None:
    """Write a line for every trial of every search: its settings, how it validated, and whether it was chosen."""
    searches = [read_json(path) for path in choices]
    names = dict.fromkeys(name for search in searches for name in search["settings"])
    lines = [
        [
            *(trial[key] for key in (*CELL, "trial")),
            *(trial["settings"].get(name) for name in names),
            *(trial["cost"].get(key) for key in ("steps", "best_step")),
            trial["best_validation"],
            int(trial["trial"] == search["chosen"]),
        ]
        for search in searches
        for trial in search["trials"]
    ]
    write_csv(out, [*CELL, "trial", *names, "steps", "best_step", "best_validation", "chosen"], lines)
