"""What a user's data are likely to mean, from names of columns and what stands in them: options to be corrected."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from jointdiff.data.own.files import Files
from jointdiff.data.own.reading import Table, read_table
from jointdiff.data.own.tables import BLANK, CORNERS, SIDES, TABLES, TABS, VALUES, Options, top_tables

# Names of columns without case, spaces and marks.
KNOWN = {
    "file": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "dicom"),
    "group": (
        "patient",
        "patientid",
        "group",
        "subject",
        "subjectid",
        "lesion",
        "lesionid",
        "case",
        "caseid",
        "person",
    ),
    "split": ("split", "subset", "set", "partition", "fold"),
    "mask": ("mask", "maskpath", "maskfile", "segmentation"),
    "label": ("label", "labels", "class", "diagnosis", "dx", "target", "category", "finding", "grade", "y"),
}
NO_LABELS = ("id", "index", "age", "sex", "gender", "male", "female", "view", "date", "site", "hospital", "scanner", "")


def guess(path: Path) -> Options:
    """Guess the options of a folder, a zip or a table.

    Raises:
        ConfigError: there is nothing at this path.
        DataError: the zip or a table at its top cannot be read.
    """
    is_table = path.is_file() and path.suffix.lower() in (*TABLES, *TABS)
    options = Options(path=str(path.parent if is_table else path), table=path.name if is_table else "")
    files = Files(Path(options.path).expanduser())
    tops = list(dict.fromkeys([*top_tables(files), *([options.table] if is_table else [])]))
    tables = {name: read_table(files.read(name), name=files.name(name)) for name in tops}
    placed = [
        name for name, table in tables.items() if any(set(four) <= set(table.columns) for four in (CORNERS, SIDES))
    ]
    if not options.table:
        mains = [name for name in tops if name not in placed] or placed
        options = replace(options, table=mains[0] if len(mains) == 1 else "")
    if options.table not in tables:
        return options  # none or several, which `read_collection` complains of
    table = tables[options.table]
    boxes = options.table if options.table in placed else placed[0] if len(placed) == 1 else ""
    chosen = {key: _called(table, KNOWN[key]) for key in ("file", "group", "split", "mask")}
    chosen["file"] = chosen["file"] or _column_of_files(table, files) or "path"
    used = {*chosen.values(), *CORNERS, *SIDES, "finding"} if boxes == options.table else {*chosen.values()}
    labels = _label_columns(table, [column for column in table.columns if column not in used])
    return replace(options, boxes=boxes, labels=labels, **cast(dict[str, Any], chosen))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _called(table: Table, names: Sequence[str]) -> str:
    return next((column for name in names for column in table.columns if _plain(column) == name), "")


def _column_of_files(table: Table, files: Files) -> str | None:
    some = [cells for _, cells in table.rows[:100]]
    shares = {column: sum(files.find(cells[column]) is not None for cells in some) for column in table.columns}
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] else None


def _label_columns(table: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of 0 and 1, or else the one column of few words."""
    columns = [name for name in columns if _plain(name) not in NO_LABELS and not _plain(name).startswith("mask")]
    cells = {name: [row[name] for _, row in table.rows if row[name].lower() not in BLANK] for name in columns}
    for name in columns:
        if _plain(name) in KNOWN["label"] and cells[name]:
            return (name,)
    # One in twenty may be a slip, which the check then names.
    binary = [
        name for name, found in cells.items() if found and sum(x.lower() in VALUES for x in found) >= 0.95 * len(found)
    ]
    few = [name for name, found in cells.items() if 2 <= len(set(found)) <= min(50, len(found) / 2)]
    return tuple(binary) or (tuple(few) if len(few) == 1 else ())
