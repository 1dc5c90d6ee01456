"""With what the numbers of a table were made: named in its caption and marked in its lines where that differs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from jointdiff.environment import NAMES, from_text
from jointdiff.evaluate.scores import Row, split_protocol
from jointdiff.report.layout import Line, Table, base_caption, placed

Values = Mapping[str, Sequence[str]]  # of each name of a record, all values that there are

MOST = 3  # values that are named one by one


def environments_of(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Return all values of each name in the records of rows that have a number."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if not math.isnan(row["value"]):
            for name, value in from_text(split_protocol(row["protocol"])[1]).items():
                found.setdefault(name, set()).add(value)
    return {name: sorted(found[name]) for name in NAMES if name in found}


def mark_environments(tables: Iterable[Table]) -> list[Table]:
    """Return tables whose lines say with what they were made, as far as numbers of one metric differ in that.

    A table that goes on over several pages is one table. A package that only some methods import is no difference. A
    line whose numbers agree is marked as a whole, of others each number; one whose seeds differ names all.
    """
    marked: list[Table] = []
    for _, pages in groupby(tables, key=base_caption):
        whole = list(pages)
        differing = _differing(whole)
        marked += [_marked(page, differing) for page in whole]
    return marked


def _differing(pages: Iterable[Table]) -> dict[str, list[str]]:
    """Return the values of each name of a record that has several among the rows of one metric."""
    rows: dict[str, list[Row]] = {}
    for table in pages:
        for section in table.sections:
            for line in section.lines:
                for cell, column in placed(line, table.columns):
                    rows.setdefault(column.metric, []).extend(cell.summary.rows)
    found: dict[str, list[str]] = {}
    for of_metric in rows.values():
        for name, values in environments_of(of_metric).items():
            if len(values) > 1:
                found[name] = sorted({*found.get(name, ()), *values})
    return {name: found[name] for name in NAMES if name in found}


def _marked(table: Table, differing: Values) -> Table:
    if not differing:
        return table
    sections = tuple(
        replace(section, lines=tuple(_marked_line(line, differing) for line in section.lines))
        for section in table.sections
    )
    said = f"Not all was made with the same versions and machines, as the notes say: {tell(differing)}."
    return replace(table, caption=f"{table.caption} {said}", sections=sections)


def _marked_line(line: Line, differing: Values) -> Line:
    said = []
    for cell in line.cells:
        own = environments_of(cell.summary.rows)
        said.append(tell({name: own[name] for name in differing if name in own}))
    if len(set(filter(None, said))) == 1:
        return replace(line, note=_with(line.note, next(filter(None, said))))
    cells = (replace(cell, note=_with(cell.note, text)) for cell, text in zip(line.cells, said, strict=True))
    return replace(line, cells=tuple(cells))


def _with(note: str, text: str) -> str:
    return "; ".join(filter(None, [note, text and f"made with {text}"]))


def tell(values: Values) -> str:
    """Write values in a line: "torch 2.14.1 / 2.15.0, 5 values of commit"."""
    return ", ".join(
        f"{name} {' / '.join(found)}" if len(found) <= MOST else f"{len(found)} values of {name}"
        for name, found in values.items()
    )
