"""A table as text: CSV as spreadsheets and programs write it, or Parquet. What is not read of it is said."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from jointdiff.data.own.files import LARGEST
from jointdiff.data.own.problems import Problems
from jointdiff.data.source import DataError
from jointdiff.text import INVISIBLE, bare, composed, decode_text

SEPARATORS = (",", ";", "\t", "|")
CURLED = "“”„‟«»"
NAMELESS = r"|Unnamed: \d+(_level_\d+)?|__index_level_\d+__"  # what pandas calls a column without a name
Record = tuple[int, list[str]]  # number as a spreadsheet shows it, and cells


@dataclass(frozen=True)
class Table:
    """A table as text: nothing is converted, blanks are empty strings."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, str]], ...]  # number as a spreadsheet shows it, cells by column

    def missing(self, column: str) -> str:
        """Say that a column is absent, with the nearest name."""
        lower = {name.casefold(): name for name in self.columns}
        nearest = difflib.get_close_matches(column.casefold(), lower, n=1, cutoff=0.4)
        hint = f"did you mean {lower[nearest[0]]!r}? " if nearest else ""
        return f"{self.name} has no column {column!r}; {hint}It has: {', '.join(self.columns)}"


def read_table(data: bytes, *, name: str, problems: Problems | None = None) -> Table:
    """Read a CSV or Parquet table; columns without a name are left out.

    Args:
        data: content of the file. CSV is UTF-8, or UTF-16 with a byte order mark, and separated by commas, semicolons,
            tabs or bars.
        name: what the table is called in messages.
        problems: gets what is odd about the table, and what of it is not read.

    Raises:
        DataError: it is neither, has columns of one name, no rows, or rows of another length than its header.
    """
    problems = Problems() if problems is None else problems
    parquet = name.lower().endswith(".parquet")
    columns, rows = _parquet(data, name) if parquet else _csv(data, name, problems)
    columns = [composed(column.strip().strip(INVISIBLE).strip()) for column in columns]
    kept = [k for k, column in enumerate(columns) if not re.fullmatch(NAMELESS, column)]
    for k in sorted({*range(len(columns))} - {*kept}):
        _leave_out(k, [(number, row[k]) for number, row in rows], _short(name), problems)
    if len(kept) < len(columns):
        columns, rows = [columns[k] for k in kept], [(number, [row[k] for k in kept]) for number, row in rows]
    _check_names(columns, name, problems)
    repeated = {number for number, row in rows if len(columns) > 1 and row == columns}
    for number in sorted(repeated):
        problems.add("a row repeats the header", "Remove it", f"{_short(name)}, row {number}")
    rows = [(number, row) for number, row in rows if number not in repeated]
    if not rows:
        raise DataError(f"{name} has no rows; write one row per image below the header")
    return Table(name, tuple(columns), tuple((number, dict(zip(columns, row, strict=True))) for number, row in rows))


def _short(name: str) -> str:
    return PurePosixPath(name).name


def _leave_out(place: int, cells: Sequence[tuple[int, str]], name: str, problems: Problems) -> None:
    """Say that a column has no name and is not read."""
    at, texts = f"{name}, column {place + 1}", [text for _, text in cells]
    number, first = next(((number, text) for number, text in cells if text), (0, ""))
    if not first:
        problems.add("a column without a name is empty", "", at, severity="note")
    elif first in ("0", "1") and texts == [str(int(first) + k) for k in range(len(texts))]:
        problems.add("a column without a name numbers the rows and is not read", "", at, severity="note")
    else:
        remedy = "If it says something, give it a name in the first row"
        place_ = f"{at}, {first!r} in row {number}"
        problems.add("a column without a name is not read", remedy, place_, severity="warning")


def _check_names(columns: Sequence[str], name: str, problems: Problems) -> None:
    if not columns:
        raise DataError(f"{name}: no column has a name; its first row names the columns, every other an image")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name} has more than one column {twice[0]!r}; rename all but one")
    first: dict[str, str] = {}
    for column in columns:
        other = first.setdefault(re.sub(r"[\s_-]", "", bare(column)), column)
        if other is not column:
            remedy = "See that the options name those that are meant"
            problems.add("names of columns look alike", remedy, f"{other!r} and {column!r}", severity="warning")


def _csv(data: bytes, name: str, problems: Problems) -> tuple[list[str], list[Record]]:
    try:
        text = decode_text(data, name=name)
    except UnicodeError as error:
        raise DataError(str(error)) from None
    if "\0" in text:
        raise DataError(f"{name} is no text; save it as 'CSV UTF-8'")
    # A spreadsheet obeys this line and does not show it: the next one is its row 1.
    if said := re.match(r'"?sep=([,;\t|])"?[,;\t|]*(\r\n|\r|\n)', text, flags=re.IGNORECASE):
        text, marks = text[said.end() :], [said[1]]
    else:
        first = next((line for line in re.split(r"[\r\n]", text) if line.strip()), "")
        marks = [mark for mark in SEPARATORS if mark in first] or [","]
    tables: dict[str, list[Record]] = {}
    faults = []
    for mark in marks:
        try:
            tables[mark] = _records(text, mark, name)
        except DataError as error:
            faults.append(error)
    if not tables:
        raise faults[0]
    # One mark that separates every row into columns is the separator; of several, none is for sure.
    several = [mark for mark, records in tables.items() if sum(map(bool, records[0][1])) > 1] or list(tables)[:1]
    if len(several) > 1:
        raise DataError(
            f"{name}: its columns may be separated by {several[0]!r} or by {several[1]!r}; write the line "
            f"sep={several[0]} above its first row, or save it as 'CSV UTF-8' with commas"
        )
    (mark,) = several
    (_, columns), *rows = tables[mark]
    _say_oddities(rows, mark, _short(name), problems)
    return columns, rows


def _records(text: str, mark: str, name: str) -> list[Record]:
    """Return the rows of a CSV table that are not blank, the header first, each as long as it."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True)
    # A blank line is a row of a spreadsheet, too: it counts, and says nothing.
    try:
        records = [(number, [cell.strip() for cell in record]) for number, record in enumerate(reader, 1)]
    except csv.Error as error:
        raise DataError(f"{name} is no CSV table (line {reader.line_num}: {error}); save it as 'CSV UTF-8'") from None
    records = [(number, record) for number, record in records if any(record)]
    if not records:
        raise DataError(f"{name} is empty; its first row names the columns, every other an image")
    (top, columns), *rows = records
    if sum(map(bool, columns)) == 1 and rows and sum(map(bool, rows[0][1])) > 1:
        raise DataError(
            f"{name}, row {top}: {next(filter(None, columns))!r} stands alone above rows of several cells; the first "
            "row names the columns: remove titles and remarks above it"
        )
    width, named = len(columns), max(place for place, column in enumerate(columns, 1) if column)
    for number, row in rows:
        if any(row[width:]) or len(row) < named:
            raise DataError(
                f"{name}, row {number}: {len(row)} cells below {width} columns; "
                f"put a cell that has {mark!r} in it in straight double quotes"
            )
    return [(top, columns), *((number, (row + [""] * (width - len(row)))[:width]) for number, row in rows)]


def _say_oddities(rows: Sequence[Record], mark: str, name: str, problems: Problems) -> None:
    if mark != ",":
        problems.add(f"columns are separated by {mark!r}", "", name, severity="note")
    for number, row in rows:
        for cell in row:
            if cell[:1] in CURLED and cell and cell[-1] in CURLED:
                remedy = "They are part of the text; write straight ones, or none"
                at = f"{name}, row {number} {cell}"
                problems.add("typographic quotes are around a cell", remedy, at, severity="warning")
            elif mark != "," and "," in cell and re.fullmatch(r"[+-]?\d+,\d+", cell):
                at = f"{name}, row {number} {cell!r}"
                remedy = "It is text here; write numbers with a point"
                problems.add("a number has a decimal comma", remedy, at, severity="warning")


def _parquet(data: bytes, name: str) -> tuple[list[str], list[Record]]:
    import pyarrow as pa
    from pyarrow import parquet

    taken = 0
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        columns: list[list[str]] = [[] for _ in file.schema_arrow]
        for batch in file.iter_batches(batch_size=1000):  # a few bytes can stand for billions of rows
            for column, cells in zip(columns, batch.columns, strict=True):
                texts = [_text(cell) for cell in cells.to_pylist()]
                taken += len(texts) + sum(map(len, texts))
                if taken > LARGEST:
                    raise DataError(f"{name} unpacks to more than {LARGEST} letters and cells; divide it")
                column += texts
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} is no Parquet table ({' '.join(str(error).split())[:100]}); write it anew") from None
    rows = [(number, list(row)) for number, row in enumerate(zip(*columns, strict=True), 2)]
    return list(file.schema_arrow.names), rows


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # pandas makes 7.0 of 7 where a cell is blank
    return (cell.decode() if isinstance(cell, bytes) else str(cell)).strip()
