"""The user's own images and the table that names them: found, read and checked row by row. No image is decoded here.

``read_collection`` serves the reader and the inspection alike, so that they never disagree about what a table says.
Rows are numbered as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jointdiff.config import ConfigError
from jointdiff.data.images import parse_window
from jointdiff.data.own.files import LARGEST, Files, read_bounded
from jointdiff.data.own.problems import Problems
from jointdiff.data.source import POLICIES, DataError

Split = Literal["train", "validation", "test"]
Box = tuple[float, float, float, float]

TABLES = (".csv", ".parquet")
VALUES = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
BLANK = ("", "nan", "na", "n/a", "null")
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
CORNERS, SIDES = ("x0", "y0", "x1", "y1"), ("x", "y", "width", "height")


@dataclass(frozen=True)
class Options:
    """What a user says about the data; each is a key under ``options`` of a data set with ``source: own``."""

    path: str = ""  # folder or zip of the images; a relative one starts where the command runs
    table: str = ""  # CSV or Parquet, in there or anywhere; by default the only one at the top of it
    file: str = "path"  # its column with each image's file, relative to the folder or zip
    labels: tuple[str, ...] = ()  # its columns of 0 and 1, one per finding; or one column with a class's name
    classes: tuple[str, ...] = ()  # names and order of the classes; by default those in the table, sorted
    task: str = "auto"  # multi_label or one_of_k; auto: one_of_k for a single column of more than 0, 1 and rare slips
    group: str = ""  # its column of what must never part: the patient
    split: str = ""  # its column of train, validation or test
    mask: str = ""  # its column with mask files; "mask:nodule" beside it is that of the finding nodule
    boxes: str = ""  # the table with x0, y0, x1, y1 (or x, y, width, height) of findings; may be the same table
    channels: int = 1  # 1: grey, 3: colour
    window: str = "auto"  # of deep images, see jointdiff.data.images: auto, full or a range such as -1000..400
    resize: str = "pad"  # pad: all of the image between margins; centre_crop: no margins, ends cut off
    horizontal_flip: bool = False  # whether the mirror image has the same labels
    vertical_flip: bool = False
    augmentation: str = "medical"  # of strong views: medical, gentle, so that small findings stay in view; natural
    join_near_duplicates: bool = False  # whether nearly identical images become one group
    title: str = ""  # shown in tables; by default the name of the folder
    licence: str = "not stated"
    cite: str = "unpublished"

    def __post_init__(self) -> None:
        """Check what can be checked without the data.

        Raises:
            ConfigError: a value is none of those that are possible.
        """
        known: dict[str, tuple[Any, ...]] = {
            "task": ("auto", "multi_label", "one_of_k"),
            "channels": (1, 3),
            "resize": ("pad", "centre_crop"),
            "augmentation": tuple(POLICIES),
        }
        for key, values in known.items():
            if (value := getattr(self, key)) not in values:
                raise ConfigError(f"{key}: {value!r} is none of {', '.join(map(str, values))}")
        parse_window(self.window)
        for key in ("labels", "classes"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ConfigError(f"{key}: a name stands there twice")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Map every option to its default."""
        return {option.name: option.default for option in fields(cls)}


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


def read_table(data: bytes, *, name: str) -> Table:
    """Read a CSV (UTF-8, commas) or Parquet table.

    Raises:
        DataError: it is neither, has columns of one name, no rows, or rows of another length than its header.
    """
    if name.lower().endswith(".parquet"):
        columns, rows = _parquet(data, name)
    else:
        columns, rows = _csv(data, name)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name} has more than one column {twice[0]!r}; rename all but one")
    if not rows:
        raise DataError(f"{name} has no rows; write one row per image below the header")
    return Table(name, tuple(columns), tuple((number, dict(zip(columns, row, strict=True))) for number, row in rows))


def _csv(data: bytes, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        text = data.decode("utf-8-sig")  # spreadsheets begin with a byte order mark
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, row {row}: this is no UTF-8; save it as 'CSV UTF-8'") from None
    if "\0" in text:
        raise DataError(f"{name} is no text; save it as 'CSV UTF-8'")
    # A blank line is a row of a spreadsheet, too: it counts, and says nothing.
    try:
        records = [
            (number, [cell.strip() for cell in record])
            for number, record in enumerate(csv.reader(io.StringIO(text), strict=True), 1)
        ]
    except csv.Error as error:
        raise DataError(f"{name} is no CSV table ({error}); save it as 'CSV UTF-8'") from None
    records = [(number, record) for number, record in records if any(record)]
    if not records:
        raise DataError(f"{name} is empty; its first row names the columns, every other an image")
    columns = records[0][1]
    if len(columns) == 1 and (other := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        raise DataError(f"{name}: its columns are separated by {other!r}; save it with commas")
    for number, record in records[1:]:
        if len(record) != len(columns):
            raise DataError(
                f"{name}, row {number}: {len(record)} cells below {len(columns)} columns; "
                "put a cell that has a comma in it in double quotes"
            )
    return columns, records[1:]


def _parquet(data: bytes, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    import pyarrow as pa
    from pyarrow import parquet

    taken = 0
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        columns: list[list[str]] = [[] for _ in file.schema_arrow]
        for batch in file.iter_batches(batch_size=1000):  # a few bytes can stand for billions of rows
            for column, cells in zip(columns, batch.columns, strict=True):
                texts = ["" if cell is None else str(cell).strip() for cell in cells.to_pylist()]
                taken += len(texts) + sum(map(len, texts))
                if taken > LARGEST:
                    raise DataError(f"{name} unpacks to more than {LARGEST} letters and cells; divide it")
                column += texts
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} is no Parquet table ({' '.join(str(error).split())[:100]}); write it anew") from None
    # pandas makes 7.0 of 7 where a cell is blank.
    columns = [[re.sub(r"^(-?\d+)\.0$", r"\1", cell) for cell in column] for column in columns]
    rows = [(number, list(row)) for number, row in enumerate(zip(*columns, strict=True), 2)]
    return list(file.schema_arrow.names), rows


@dataclass(frozen=True)
class Row:
    """What the table says about one image."""

    number: int
    file: str
    labels: tuple[float, ...]  # 0, 1 or NaN
    group: str
    split: Split | None
    masks: tuple[tuple[str | None, str], ...] = ()  # finding and file; None: no finding is present
    boxes: list[tuple[str, Box]] = field(default_factory=list)


@dataclass(frozen=True)
class Collection:
    """The user's data as the table tells it, with all that is wrong with it."""

    options: Options
    files: Files
    table: Table
    inputs: tuple[Path, ...]  # files on which everything depends, images in a folder aside
    kind: Literal["one_of_k", "multi_label"]
    names: tuple[str, ...]
    rows: tuple[Row, ...]  # those without errors of their own
    problems: Problems

    @property
    def named(self) -> list[str]:
        """The images and masks that the rows name, each once."""
        named = (name for row in self.rows for name in (row.file, *(file for _, file in row.masks)))
        return list(dict.fromkeys(named))

    def require(self) -> Collection:
        """Return it if nothing is wrong.

        Raises:
            DataError: the first problem, and how to see the others.
        """
        errors = self.problems.errors
        if errors:
            more = f"{len(errors) - 1} more kinds of errors: " if len(errors) > 1 else ""
            raise DataError(f"{self.table.name}: {errors[0]} ({more}`jointdiff data check CONFIG.yaml` shows all)")
        return self


def find_table(options: Options, files: Files) -> tuple[str, bytes, Path | None]:
    """Return name, content and, where it is a file of its own, place of the table.

    Raises:
        ConfigError: there is none, or several and none is chosen.
    """
    if options.table:
        return _find("table", options.table, files)
    found = [name for name in files if "/" not in name and name.lower().endswith(TABLES)]
    if len(found) != 1:
        listed = f"it has {len(found)} ({', '.join(found)}), so that `table` must name one" if found else "it has none"
        raise ConfigError(f"table: {files.path} should have one .csv or .parquet at its top; {listed}")
    return _find("table", found[0], files)


def _find(key: str, name: str, files: Files) -> tuple[str, bytes, Path | None]:
    if name in files:
        return files.name(name), files.read(name), files.path / name if files.path.is_dir() else None
    path = Path(name).expanduser()
    if not path.is_file():
        nearest = files.nearest(name)
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        raise ConfigError(f"{key}: there is no {name} in {files.path}, nor is it a file elsewhere{hint}")
    return str(path), read_bounded(path), path


def read_collection(options: Options) -> Collection:
    """Read the table and everything in it that needs no pixels.

    Raises:
        ConfigError: an option names what is not there.
        DataError: the zip or the table cannot be read at all.
    """
    if not options.path:
        raise ConfigError(
            "path: name the folder or zip of your images; `jointdiff data init PATH` writes a configuration"
        )
    files = Files(Path(options.path).expanduser())
    name, content, place = find_table(options, files)
    table = read_table(content, name=name)
    inputs = [path for path in (place, None if files.path.is_dir() else files.path) if path]
    problems = Problems()
    named = [("file", options.file), *(("labels", label) for label in options.labels)]
    named += [(key, getattr(options, key)) for key in ("group", "split") if getattr(options, key)]
    if options.mask and not any(column.startswith(f"{options.mask}:") for column in table.columns):
        named.append(("mask", options.mask))
    if not options.labels:
        problems.add("no label columns are chosen", f"Set labels; the table has: {', '.join(table.columns)}")
    absent = [(key, column) for key, column in named if column not in table.columns]
    for key, column in absent:
        problems.add(f"the option {key} names a column that is not there", "Correct the name", table.missing(column))
    kind, names = _task(options, table, problems)
    rows: tuple[Row, ...] = ()
    if options.file in table.columns:
        reader = _Rows(options, files, table, kind, names, problems)
        rows = reader.rows()
        if options.boxes:
            name, content, place = _find("boxes", options.boxes, files)
            inputs += [place] if place else []
            same = name == table.name
            _read_boxes(table if same else read_table(content, name=name), rows, options, names, problems, same=same)
    return Collection(options, files, table, tuple(inputs), kind, names, rows, problems)


def _task(
    options: Options, table: Table, problems: Problems
) -> tuple[Literal["one_of_k", "multi_label"], tuple[str, ...]]:
    """Return what is to be predicted, and its names in order."""
    columns = [column for column in options.labels if column in table.columns]
    single = options.labels[0] if len(options.labels) == 1 and columns else None
    known = [row[single] for _, row in table.rows if row[single].lower() not in BLANK] if single else []
    one = options.task == "one_of_k"
    if options.task == "auto":
        # Where less than one in twenty is neither 0 nor 1, it is a slip and no class.
        one = bool(single and options.classes) or sum(value.lower() not in VALUES for value in known) > len(known) / 20
    if not one:
        return "multi_label", tuple(options.labels)
    if not single:
        return "one_of_k", tuple(options.labels)
    names = options.classes or tuple(sorted(set(known), key=_natural))
    if len(names) < 2:
        problems.add(f"the column {single!r} holds fewer than two classes", "Label images of at least two")
    return "one_of_k", names


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort "grade 2" before "grade 10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


class _Rows:
    """Turns cells into rows; every mistake becomes a problem with its row number."""

    def __init__(
        self, options: Options, files: Files, table: Table, kind: str, names: Sequence[str], problems: Problems
    ) -> None:
        self.options, self.files, self.table, self.problems = options, files, table, problems
        self.kind, self.names = kind, names
        self.seen: dict[str, int] = {}

    def rows(self) -> tuple[Row, ...]:
        rows = tuple(row for number, cells in self.table.rows if (row := self._row(number, cells)))
        parts: dict[str, dict[str, int]] = {}
        for row in rows:
            if row.split:
                parts.setdefault(row.group, {}).setdefault(row.split, row.number)
        for group, found in parts.items():
            if len(found) > 1:
                where = ", ".join(f"{split} in row {number}" for split, number in found.items())
                self.problems.add(
                    "a group crosses the splits", "Put all its images into one split", f"{group!r}: {where}"
                )
        return rows

    def _row(self, number: int, cells: Mapping[str, str]) -> Row | None:
        file = self._file(number, cells[self.options.file], "image")
        if file in self.seen:
            remedy = "Keep one row per image; boxes may stand in a table of their own"
            self.problems.add(
                "an image is named twice", remedy, f"row {number} {file!r}, first in row {self.seen[file]}"
            )
            return None
        labels, split = self._labels(number, cells), self._split(number, cells)
        if file is None or labels is None:
            return None
        self.seen[file] = number
        group = cells.get(self.options.group, "")
        if self.options.group in cells and group.lower() in BLANK:
            remedy = "Fill them in; until then each of these images is a group of its own"
            self.problems.add("a group is blank", remedy, f"row {number}", severity="warning")
            group = ""
        masks = tuple(self._masks(number, cells, labels))
        return Row(number, file, labels, group or file, split, masks)

    def _file(self, number: int, text: str, what: str) -> str | None:
        """Return a file's path inside the folder or zip."""
        pure = PurePosixPath(text.replace("\\", "/"))
        at = f"row {number} {text!r}"
        if text == "":
            self.problems.add(f"the path of an {what} is blank", "Fill it in or remove the row", f"row {number}")
        elif pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
            self.problems.add("a path leaves the folder", f"Write paths relative to {self.files.path}", at)
        elif str(pure) not in self.files:
            nearest = self.files.nearest(str(pure))
            hint = f" (did you mean {nearest!r}?)" if nearest else ""
            self.problems.add(
                f"the {what} is not in {self.files.path}", "Correct the path, add the file or remove the row", at + hint
            )
        else:
            return str(pure)
        return None

    def _labels(self, number: int, cells: Mapping[str, str]) -> tuple[float, ...] | None:
        chosen = self.options.labels
        if not chosen or any(column not in cells for column in chosen):
            return tuple(float("nan") for _ in self.names)
        if self.kind == "one_of_k" and len(chosen) == 1:
            value = cells[chosen[0]]
            if value.lower() in BLANK:
                return tuple(float("nan") for _ in self.names)
            if value not in self.names:
                nearest = difflib.get_close_matches(value, self.names, n=1)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                self.problems.add(
                    f"a class is none of {', '.join(self.names)}",
                    "Correct it or add it to classes",
                    f"row {number} {value!r}{hint}",
                )
                return None
            return tuple(float(value == name) for name in self.names)
        values = []
        for column in chosen:
            text = cells[column].lower()
            if text not in VALUES and text not in BLANK:
                remedy = "Write 1 or 0, or leave it blank where it is unknown"
                self.problems.add(
                    "a label is neither 0 nor 1 nor blank", remedy, f"row {number} {column} {cells[column]!r}"
                )
                return None
            values.append(VALUES.get(text, float("nan")))
        known = [value for value in values if value == value]
        if self.kind == "one_of_k" and known and (len(known) < len(values) or sum(known) != 1):
            remedy = "Set exactly one of its columns to 1 and the others to 0, or all blank; or set task to multi_label"
            self.problems.add("an image has not exactly one class", remedy, f"row {number}")
            return None
        return tuple(values)

    def _split(self, number: int, cells: Mapping[str, str]) -> Split | None:
        text = cells.get(self.options.split, "").lower()
        if text and text not in SPLITS and text not in BLANK:
            self.problems.add(
                "a split is none of train, validation, test", "Correct it or leave it blank", f"row {number} {text!r}"
            )
        return SPLITS.get(text)

    def _masks(
        self, number: int, cells: Mapping[str, str], labels: Sequence[float]
    ) -> Iterator[tuple[str | None, str]]:
        """Yield which finding a mask shows, and its file."""
        if not self.options.mask:
            return
        present = [name for name, value in zip(self.names, labels, strict=True) if value == 1]
        for column in [self.options.mask, *(f"{self.options.mask}:{name}" for name in self.names)]:
            text, finding = cells.get(column, ""), column.removeprefix(self.options.mask)[1:]
            if text.lower() in BLANK or not (file := self._file(number, text, "mask")):
                continue
            if not finding and len(present) > 1:
                self.problems.add(
                    "a mask may show any of several findings", f"Use columns {column}:NAME", f"row {number}"
                )
            elif finding and finding not in present:
                yield None, file
            else:
                yield finding or (present[0] if present else None), file


def _read_boxes(
    table: Table, rows: Sequence[Row], options: Options, names: Sequence[str], problems: Problems, *, same: bool
) -> None:
    """Add to the rows of images the boxes of a table, which may be the same one."""
    by_file = {row.file: row for row in rows}
    key = next((column for column in (options.file, "path") if column in table.columns), None)
    corners = next((group for group in (CORNERS, SIDES) if set(group) <= set(table.columns)), None)
    if key is None or corners is None:
        needed = options.file if key is None else f"{', '.join(CORNERS)} (or {', '.join(SIDES)})"
        problems.add(
            "the table of boxes lacks columns", f"It needs {needed}", f"{table.name} has {', '.join(table.columns)}"
        )
        return
    where = "" if same else f"{PurePosixPath(table.name).name} "
    for number, cells in table.rows:
        at = f"{where}row {number}"
        texts = [cells[column] for column in corners]
        if all(text.lower() in BLANK for text in texts):
            continue
        row = by_file.get(str(PurePosixPath(cells[key].replace("\\", "/"))))
        if row is None:
            if not same:
                problems.add(
                    "a box is in an image without a valid row", "Correct its path or remove it", f"{at} {cells[key]!r}"
                )
            continue
        present = [name for name, value in zip(names, row.labels, strict=True) if value == 1]
        finding = cells.get("finding", "") or (present[0] if len(present) == 1 else "")
        try:
            a, b, c, d = map(float, texts)
        except ValueError:
            problems.add("a box has no numbers", "Write pixels, with a point for decimals", f"{at} {', '.join(texts)}")
            continue
        box = (a, b, c, d) if corners == CORNERS else (a, b, a + c, b + d)
        if not (box[0] < box[2] and box[1] < box[3]):
            problems.add(
                "a box is empty or inverted", "Write x0 < x1 and y0 < y1, y from the top", f"{at} {', '.join(texts)}"
            )
        elif not finding:
            problems.add("a box does not say of which finding it is", "Fill in the column finding", at)
        elif finding not in names:
            problems.add(f"a box is of none of {', '.join(names)}", "Correct its finding", f"{at} {finding!r}")
        elif finding not in present:
            problems.add(
                "a box is of a finding that its image does not have",
                "Set the label to 1 or remove the box",
                f"{at} {finding!r}",
            )
        else:
            row.boxes.append((finding, box))
