"""From a number in a table to the score rows, runs and files behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jointdiff.environment import UNKNOWN, to_text
from jointdiff.evaluate.scores import Row, split_protocol
from jointdiff.files import read_json
from jointdiff.paths import TAG, cell

FACTS = ("dataset", "labels", "method", "seed", "split", "metric", "finding", "value", "ci_low", "ci_high", "n")
MADE_BY = ("code_version", "config_digest", "run_id", "protocol")


def trace(table: Path | str, line: str, column: str | None = None) -> str:
    """Tell all that is known of the numbers of a table's line, or of one of its columns.

    Args:
        table: a file of a table in its folder beside the experiment's cells, whatever its format.
        line, column: names as the table's CSV writes them, or their unique beginnings; capitals do not matter.

    Raises:
        ValueError: there is no such table, line or column; the message names those that there are.
    """
    table = Path(table)
    known = read_json(_sources(table))
    name = _choose(line, (number["line"] for number in known["numbers"]), f"{table.name} has no line")
    numbers = [number for number in known["numbers"] if number["line"] == name]
    if column is not None:
        head = _choose(column, (number["column"] for number in numbers), f"{name!r} has no column")
        numbers = [number for number in numbers if number["column"] == head]
    told: list[str] = []
    runs: dict[str, list[Row]] = {}
    for number in numbers:
        rows = [known["rows"][i] for i in number["rows"]]
        if not rows and number["shown"] == "–" and column is None:
            continue  # nothing that could be asked for
        where = ", ".join(filter(None, (number["table"], number["section"], name, number["column"])))
        told += [f"{where}: {number['shown']}" + (f" ({number['note']})" if number["note"] else "")]
        told += _grid(rows) or ["  no score row is behind it"]
        told += [""]
        for row in rows:
            runs.setdefault(TAG.format(**row), []).append(row)
    for tag, rows in runs.items():
        told += [*_run(table, tag, rows), ""]
    return "\n".join(told).rstrip()


def _sources(table: Path) -> Path:
    """Return the file that says where a table's numbers come from."""
    if not table.parent.is_dir():
        raise ValueError(
            f"there is no folder {table.parent}: run the workflow first (uv run snakemake --cores all), or name a file "
            "such as results/default/tables/classification.csv"
        )
    found = table.parent / f"{table.stem}.json"
    if found.is_file():
        return found
    if there := sorted(path.stem for path in table.parent.glob("*.json")):
        raise ValueError(f"{table.parent} has no table {table.stem!r}; it has {', '.join(there)}")
    raise ValueError(f"{table.parent} does not say where its numbers come from; run the workflow again, which does")


def _choose(asked: str, names: Iterable[str], complaint: str) -> str:
    """Return the name that was meant."""
    names = list(dict.fromkeys(names))
    wanted = asked.strip().casefold()
    for matches in (
        [name for name in names if name.casefold() == wanted],
        [name for name in names if name.casefold().startswith(wanted)],
    ):
        if len(matches) == 1:
            return matches[0]
    begun = [name for name in names if name.casefold().startswith(wanted)]
    several = "; several begin so: " if begun else "; it has: "
    raise ValueError(f"{complaint} {asked!r}{several}{', '.join(map(repr, begun or names)) or 'none'}")


def _grid(rows: Sequence[Row]) -> list[str]:
    """Write rows in columns as wide as they need; their environments stand with their runs."""
    if not rows:
        return []
    shown = ({**row, "protocol": split_protocol(row["protocol"])[0]} for row in rows)
    lines = [FACTS + MADE_BY, *(tuple(_plain(row[name]) for name in FACTS + MADE_BY) for row in shown)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  " + "  ".join(f"{t:<{w}}" for t, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _run(table: Path, tag: str, rows: Sequence[Row]) -> Iterator[str]:
    """Say of a run where its files lie, what they and its scores were made from and with, and how MLflow knows it."""
    row = rows[0]
    where = (row["dataset"], row["labels"], row["method"], row["seed"])
    root = next((folder for folder in table.parents if cell(folder, *where).is_dir()), None)
    yield "run {run_id}: {method} on {dataset}, labels {labels}, seed {seed}".format(**row)
    if root is None:
        yield "  its folder is not there"
    else:
        yield f"  folder: {cell(root, *where)}"
        if (record := cell(root, *where) / "run.json").is_file():
            run = read_json(record)
            if run["run_id"] != row["run_id"]:
                yield f"  it holds another run by now, {run['run_id']}: the table is older"
            yield f"  spec: {record}; data digest: {run.get('data_digest', 'unknown')}"
            yield f"  trained with: {to_text(run.get('environment', UNKNOWN))}"
        logs = root.parent.parent / "logs" / root.name
        steps = sorted(log.parent.name for log in logs.glob(f"*/{tag}.log"))
        yield f"  logs: {logs}/STEP/{tag}.log of {', '.join(steps) or 'no step'}"
    for text in dict.fromkeys(split_protocol(row["protocol"])[1] for row in rows):
        yield f"  scores made with: {text or to_text(UNKNOWN)}"
    yield f"""  MLflow: search for tags.`jointdiff.run` = "{row["config_digest"]} {row["code_version"]}\""""
