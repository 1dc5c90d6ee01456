"""Score rows: every number with the columns that say what it was computed from. Light: pyarrow alone."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointdiff.arrow import read_parquet, to_table
from jointdiff.environment import UNKNOWN, environment, joined, read_environment, to_text
from jointdiff.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

# The columns of every score table, in this order.
COLUMNS: dict[str, str] = {
    "dataset": "string",
    "labels": "string",  # the budget's token: "50", "25-per-class", "0.1", "all"
    "method": "string",  # the variant's name
    "seed": "int64",
    "split": "string",
    "metric": "string",
    "finding": "string",  # a finding's name or "macro"
    "value": "float64",  # NaN where it could not be computed; the protocol then holds the reason
    "ci_low": "float64",
    "ci_high": "float64",
    "n": "int64",  # cases behind the value
    "protocol": "string",  # what else changes the value: "key=value; key=value"
    "code_version": "string",
    "config_digest": "string",
    "run_id": "string",
}
MACRO = "macro"
NOWHERE = (math.nan, math.nan)


@dataclass(frozen=True)
class Identity:
    """What a run's scores are filed under."""

    dataset: str
    labels: str
    method: str
    seed: int
    code_version: str
    config_digest: str
    run_id: str
    environment: str = field(default="", compare=False)  # with what the scores are made, which is not what they are

    @classmethod
    def from_run(cls, run: Mapping[str, Any], *, scored: Path | str | None = None) -> Identity:
        """Read it from the content of a run.json.

        ``scored`` is the file that is scored: who made it, and this process, then count among what made the scores.

        Raises:
            ValueError: a key is missing, with its name.
        """
        try:
            spec = run["spec"]
            made_with = run.get("environment", UNKNOWN)
            if scored is not None:
                made_with = joined(made_with, read_environment(scored), environment())
            return cls(
                dataset=spec["dataset"],
                labels=spec["labels"],
                method=spec["variant"],
                seed=int(spec["seed"]),
                code_version=run["code_version"],
                config_digest=run["config_digest"],
                run_id=run["run_id"],
                environment=to_text(made_with),
            )
        except KeyError as error:
            raise ValueError(f"run.json has no key {error}; delete its folder to train the cell again") from error


def score_row(
    identity: Identity,
    *,
    metric: str,
    value: float,
    finding: str = MACRO,
    split: str = "test",
    interval: tuple[float, float] = NOWHERE,
    n: int = 0,
    protocol: str = "",
) -> Row:
    """Return one row; ``interval`` is (low, high) and ``protocol`` comes from ``format_protocol``.

    The last fact of the row's protocol is the environment.
    """
    values = {
        **asdict(identity),
        "split": split,
        "metric": metric,
        "finding": finding,
        "value": float(value),
        "ci_low": float(interval[0]),
        "ci_high": float(interval[1]),
        "n": int(n),
        "protocol": "; ".join(filter(None, [protocol, format_protocol(environment=identity.environment or None)])),
    }
    return {column: values[column] for column in COLUMNS}


def format_protocol(**facts: Any) -> str:
    """Write facts as "key=value; key=value" in the order given; None is left out, floats keep 6 digits."""
    return "; ".join(f"{key}={_plain(value)}" for key, value in facts.items() if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return re.sub(r"\s+", " ", str(value).replace(";", ",")).strip()


def parse_protocol(protocol: str) -> dict[str, str]:
    """Read the facts of a protocol back, as text."""
    facts = (part.partition("=") for part in protocol.split("; ") if part)
    return {key: value for key, _, value in facts}


def split_protocol(protocol: str) -> tuple[str, str]:
    """Return a protocol without the environment that ends it, and that environment; either may be empty."""
    facts, _, made_with = f"; {protocol}".partition("; environment=")
    return facts.removeprefix("; "), made_with


def reason_of(row: Row) -> str:
    """Return why a row has no value, or an empty string where it has one."""
    if not math.isnan(row["value"]):
        return ""
    return parse_protocol(row["protocol"]).get("reason", "no value")


def budget_order(labels: str) -> tuple[int, float, str]:
    """Return a sort key for label budgets: counts, counts per class, fractions, lists, then all."""
    if labels == "all":
        return 4, math.inf, labels
    number = re.match(r"[\d.]+", labels)
    kind = 3 if not number else 2 if "." in labels else 1 if labels.endswith("per-class") else 0
    return kind, float(number.group()) if number else math.inf, labels


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Sort rows by what they are, never by how they came."""
    text = ("split", "metric", "finding", "protocol", "run_id", "code_version", "config_digest")
    return sorted(
        rows,
        key=lambda r: (r["dataset"], budget_order(r["labels"]), r["method"], r["seed"], *(r[name] for name in text)),
    )


def write_rows(rows: Sequence[Row], path: Path | str) -> None:
    """Write rows as parquet in the order given, whole or not at all."""
    import pyarrow.parquet as pq

    with atomic_path(path) as aside:
        pq.write_table(_table(rows), aside)


def read_rows(path: Path | str) -> list[Row]:
    """Read rows in their stored order.

    Raises:
        ValueError: the file is no table of score rows, with its name.
    """
    import pyarrow as pa

    try:
        table = read_parquet(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error}); delete it so that the step is run again") from error
    if missing := [column for column in COLUMNS if column not in table.column_names]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; delete it so that the scores are computed again")
    rows = table.select(list(COLUMNS)).to_pylist()
    for row in rows:  # a null is how other writers say NaN
        for column in ("value", "ci_low", "ci_high"):
            row[column] = math.nan if row[column] is None else row[column]
    return rows


def collect(paths: Iterable[Path | str], parquet: Path | str, csv_path: Path | str) -> list[Row]:
    """Join score tables into one parquet and one CSV file, sorted, and return the rows.

    Raises:
        ValueError: two rows claim to be the same number.
    """
    rows = sort_rows(row for path in paths for row in read_rows(path))
    for one, other in pairwise(rows):
        if _names(one) == _names(other):
            what = ", ".join(f"{column}={one[column]}" for column in ("dataset", "labels", "method", "seed", "metric"))
            raise ValueError(f"two score rows are the same number ({what}); delete the stale table among the inputs")
    write_rows(rows, parquet)
    write_csv(csv_path, list(COLUMNS), ([row[column] for column in COLUMNS] for row in rows))
    return rows


def _names(row: Row) -> list[Any]:
    """Return what a row is the number of: made again in another environment, it is still the same number."""
    named = {**row, "protocol": split_protocol(row["protocol"])[0]}
    return [named[column] for column in COLUMNS if column not in {"value", "ci_low", "ci_high", "n"}]


# With what a cell begins that a spreadsheet computes (OWASP, CSV injection), the wide letters of East Asia among them.
FORMULA = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(path: Path | str, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file: NaN and None are empty, and no text cell can act as a spreadsheet formula."""
    with atomic_path(path) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([_cell(name) for name in header])
        writer.writerows([_cell(value) for value in line] for line in lines)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        # The csv module leaves a lone \r unquoted, where readers see a new line and what follows begins a cell.
        value = value.replace("\r\n", "\n").replace("\r", "\n")
        return f"'{value}" if value.startswith(FORMULA) else value
    return value


def _table(rows: Sequence[Row]) -> pa.Table:
    import numpy as np

    held = {name: [row[name] for row in rows] for name in COLUMNS}
    return to_table(
        {name: held[name] if kind == "string" else np.array(held[name], kind) for name, kind in COLUMNS.items()}
    )
