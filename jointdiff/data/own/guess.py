"""What a user's data are likely to mean, from names of columns and what stands in them: options to be corrected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from jointdiff.data.own.files import Files
from jointdiff.data.own.meaning import (
    NO,
    YES,
    column_places,
    find_separator,
    is_blank,
    is_doubtful,
    split_of,
)
from jointdiff.data.own.reading import Table, read_table
from jointdiff.data.own.spelling import canonical
from jointdiff.data.own.tables import CORNERS, SIDES, TABLES, TABS, Collection, Options, top_tables

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
        "personid",
        "pid",
        "mrn",
    ),
    "split": ("split", "subset", "set", "partition", "fold"),
    "mask": ("mask", "maskpath", "maskfile", "segmentation"),
    "label": (
        *("label", "labels", "class", "diagnosis", "dx", "target", "category", "finding", "grade", "y"),
        *("findings", "findinglabels", "diagnoses"),
    ),
}
NO_LABELS = (
    "id",
    "index",
    "level0",
    "age",
    "sex",
    "gender",
    "male",
    "female",
    "view",
    "date",
    "site",
    "hospital",
    "scanner",
)


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
    chosen = {key: next(iter(named_like(table, key)), "") for key in ("file", "group", "mask")}
    chosen["split"] = next((column for column in named_like(table, "split") if has_splits(table, column)), "")
    chosen["file"] = chosen["file"] or _column_of_files(table, files) or "path"
    used = {*chosen.values(), *CORNERS, *SIDES, "finding"} if boxes == options.table else {*chosen.values()}
    labels = _label_columns(table, [column for column in table.columns if column not in used])
    separator = ""
    if len(labels) == 1 and not _binary(table, labels[0]):
        separator = find_separator(column_places(table, labels[0])) or ""
    return replace(options, boxes=boxes, labels=labels, separator=separator, **cast(Any, chosen))


def evidence(collection: Collection) -> Iterator[str]:
    """Say of each option that ``guess`` chose what speaks for it."""
    options, table = collection.options, collection.table
    for key in ("file", "group", "split", "mask", "label"):
        for column in options.labels if key == "label" else [getattr(options, key)]:
            if column not in table.columns or not column:
                continue
            places = column_places(table, column)
            texts = ", ".join(map(repr, list(places)[:3])) + ", ..." * (len(places) > 3)
            why = "its name" if _plain(column) in KNOWN[key] else "what stands in it"
            shown = f"{len(places):,} texts in {len(table.rows):,} rows, {texts}"
            yield f"{key + ('s' if key == 'label' else ''):<9} {column!r}, by {why}: {shown}"
    if options.separator:
        yield f"separator {options.separator!r}: it stands between texts of {options.labels[0]!r}"


def named_like(table: Table, key: str) -> list[str]:
    """Return the columns whose names are usual for a group, a split or the like."""
    return [column for name in KNOWN[key] for column in table.columns if _plain(column) == name]


def has_splits(table: Table, column: str) -> bool:
    """Say whether a column holds words for training, validation or test."""
    return any(map(split_of, column_places(table, column)))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", canonical(name))


def _column_of_files(table: Table, files: Files) -> str | None:
    some = [cells for _, cells in table.rows[:100]]
    shares = {column: sum(files.find(cells[column]) is not None for cells in some) for column in table.columns}
    best = max(shares, key=shares.__getitem__, default="")
    return best if shares.get(best) else None


def _label_columns(table: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of 0 and 1, or else the one column of few words."""
    columns = [name for name in columns if _plain(name) not in NO_LABELS and not _plain(name).startswith("mask")]
    cells = {name: _known(table, name) for name in columns}
    for name in columns:
        if _plain(name) in KNOWN["label"] and cells[name]:
            return (name,)
    binary = [name for name in columns if _binary(table, name)]
    few = [name for name, found in cells.items() if 2 <= len(found) <= min(50, sum(found.values()) / 2)]
    return tuple(binary) or (tuple(few) if len(few) == 1 else ())


def _known(table: Table, column: str) -> dict[str, int]:
    """Count the texts of a column but those that mean unlabelled, or may."""
    places = column_places(table, column)
    return {text: len(rows) for text, rows in places.items() if not is_blank(text) and not is_doubtful(text, places)}


def _binary(table: Table, column: str) -> bool:
    """Say whether a column holds 0 and 1; one in twenty may be a slip, which the check then names."""
    known = _known(table, column)
    count = sum(known.values())
    return count > 0 and sum(rows for text, rows in known.items() if canonical(text) in YES | NO) >= 0.95 * count
