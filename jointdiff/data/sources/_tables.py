"""Published tables, read row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from jointdiff.data.source import DataError


def read_table(path: Path, *, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row of a CSV file stands, for messages, and its cells by column.

    Raises:
        DataError: the file is absent or is no such table.
    """
    if not path.is_file():
        raise DataError(f"{path} is absent; download it, or put it there")
    yield from parse_table(path.read_bytes(), name=str(path), columns=columns)


def parse_table(content: bytes, *, name: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Do what ``read_table`` does with a file's content; ``name`` says which file.

    Raises:
        DataError: a column is missing, a row ends early, or the bytes are no text.
    """
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        missing = [column for column in columns if column not in (rows.fieldnames or ())]
        if missing:
            raise DataError(
                f"{name} has no column {', '.join(missing)}, only {', '.join(rows.fieldnames or ['none'])}: "
                "it is another file or release; remove it and download it again"
            )
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if any(row[column] is None for column in columns):
                raise DataError(f"{where} ends early: the file is truncated; remove it and download it again")
            yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} is no table ({error}); remove it and download it again") from error
