"""The user's own images and the table that names them: found, read and checked row by row. No image is decoded here.

``read_collection`` serves the reader and the inspection alike, so that they never disagree about what a table says.
Rows are numbered as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from jointdiff.config import ConfigError
from jointdiff.data.masks import parse_mask_values
from jointdiff.data.own.files import Files, read_bounded
from jointdiff.data.own.meaning import Kind, Labels, Split, is_blank, read_groups, read_labels, read_splits
from jointdiff.data.own.problems import Problems
from jointdiff.data.own.reading import Table, read_table
from jointdiff.data.own.spelling import Names
from jointdiff.data.picture import parse_window
from jointdiff.data.source import POLICIES, DataError
from jointdiff.values import as_name

Box = tuple[float, float, float, float]

TABLES, TABS = (".csv", ".parquet"), (".tsv", ".tab")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".txt", ".csv.gz", ".csv.zip")
MACRO = "macro"  # in rows of scores, the mean of all findings
ALIKE = ("ask", "join", "keep")
CORNERS, SIDES = ("x0", "y0", "x1", "y1"), ("x", "y", "width", "height")


@dataclass(frozen=True)
class Options:
    """What a user says about the data; each is a key under ``options`` of a data set with ``source: own``."""

    path: str = ""  # folder or zip of the images; a relative one starts where the command runs
    table: str = ""  # CSV or Parquet, in there or anywhere; by default the only one at the top of it
    file: str = "path"  # its column with each image's file, relative to the folder or zip
    labels: tuple[str, ...] = ()  # its columns of 0 and 1, one per finding; or one column with a class's name
    classes: tuple[str, ...] = ()  # names and order of the classes; by default those in the table, sorted
    unknown: tuple[str, ...] = ()  # texts in them that mean unlabelled, such as "-1"; a blank does anyway
    separator: str = ""  # between findings in one cell of the one label column, such as "|"
    no_finding: tuple[str, ...] = ()  # texts that mean none of these findings, beside "No Finding" and its like
    alike_classes: str = "ask"  # of classes that differ by case, blanks, 1 and 1.0: ask (an error), join or keep
    task: str = "auto"  # multi_label or one_of_k; auto: one_of_k for a single column of more than 0, 1 and rare slips
    group: str = ""  # its column of what must never part: the patient
    alike_groups: str = "ask"  # of groups that differ by case, blanks, zeros in front: ask (an error), join or keep
    unknown_groups: tuple[str, ...] = ()  # texts that name no patient; each such image is a group of its own
    known_groups: tuple[str, ...] = ()  # texts that look like that, such as "0", and name one
    split: str = ""  # its column of train, validation or test
    mask: str = ""  # its column with mask files; "mask:nodule" beside it is that of the finding nodule
    mask_values: str = "auto"  # of masks: which values are the finding, such as "1, 3"; see jointdiff.data.masks
    boxes: str = ""  # the table with x0, y0, x1, y1 (or x, y, width, height) of findings; may be the same table
    channels: int = 1  # 1: grey, 3: colour
    window: str = "auto"  # of deep images, see jointdiff.data.picture: auto, full or a range such as -1000..400
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
        for key in (option.name for option in fields(self) if isinstance(option.default, tuple)):
            try:
                object.__setattr__(self, key, tuple(map(as_name, getattr(self, key))))
            except ValueError as error:
                raise ConfigError(f"{key}: {error}") from None
        known: dict[str, tuple[Any, ...]] = {
            "task": ("auto", "multi_label", "one_of_k"),
            "channels": (1, 3),
            "resize": ("pad", "centre_crop"),
            "augmentation": tuple(POLICIES),
            "alike_classes": ALIKE,
            "alike_groups": ALIKE,
        }
        for key, values in known.items():
            texts = {str(value): value for value in values}
            meant = Names(texts).find(str(getattr(self, key)))
            if meant is None:
                raise ConfigError(f"{key}: {getattr(self, key)!r} is none of {', '.join(texts)}")
            object.__setattr__(self, key, texts[meant])
        object.__setattr__(self, "window", Names(("auto", "full")).find(self.window) or self.window)
        parse_window(self.window)
        parse_mask_values(self.mask_values)
        for key in ("labels", "classes"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ConfigError(f"{key}: a name stands there twice")
        if self.separator and self.task == "one_of_k":
            raise ConfigError("separator: it makes findings, of which an image has several; task: one_of_k has one")
        for one, two in (("unknown", "classes"), ("unknown", "no_finding"), ("unknown_groups", "known_groups")):
            if both := [text for text in getattr(self, one) if Names(getattr(self, two)).find(text) is not None]:
                raise ConfigError(f"{one}: {both[0]!r} stands in {two}, too; remove it from one")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Map every option to its default."""
        return {option.name: option.default for option in fields(cls)}


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
    kind: Kind
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
    found = top_tables(files)
    if len(found) != 1:
        others = [name for name in files if "/" not in name and name.lower().endswith(SPREADSHEETS)]
        saved = f"; save {others[0]} as 'CSV UTF-8'" if others else ""
        many = f"it has {len(found)} ({', '.join(found)}), so that `table` must name one"
        listed = many if found else f"it has none{saved}"
        raise ConfigError(f"table: {files.path} should have one .csv or .parquet at its top; {listed}")
    return _find("table", found[0], files)


def top_tables(files: Files) -> list[str]:
    """List the tables that lie at the top of a folder or zip: CSV and Parquet, or else tab-separated ones."""
    tops = [name for name in files if "/" not in name]
    return [name for name in tops if name.lower().endswith(TABLES)] or [
        name for name in tops if name.lower().endswith(TABS)
    ]


def _find(key: str, name: str, files: Files) -> tuple[str, bytes, Path | None]:
    if found := files.find(name):
        return files.name(found), files.read(found), files.path / found if files.path.is_dir() else None
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
    files, problems = Files(Path(options.path).expanduser()), Problems()
    for folder in files.unlisted:
        problems.add("a folder cannot be listed", "Make it readable if it is needed", folder, severity="warning")
    name, content, place = find_table(options, files)
    table = read_table(content, name=name, problems=problems)
    inputs = [path for path in (place, None if files.path.is_dir() else files.path) if path]
    options = _columns_meant(options, table, problems)
    named = [("file", options.file), *(("labels", label) for label in options.labels)]
    named += [(key, getattr(options, key)) for key in ("group", "split") if getattr(options, key)]
    if options.mask and not _mask_columns(options, table):
        named.append(("mask", options.mask))
    if not options.labels:
        problems.add("no label columns are chosen", f"Set labels; the table has: {', '.join(table.columns)}")
    absent = [(key, column) for key, column in named if column not in table.columns]
    for key, column in absent:
        problems.add(f"the option {key} names a column that is not there", "Correct the name", table.missing(column))
    labels = read_labels(options, table, problems)
    if MACRO in labels.names:
        remedy = "Name it otherwise: in tables of results this is the mean of all"
        problems.add(f"a class or finding is called {MACRO!r}", remedy)
    rows: tuple[Row, ...] = ()
    if options.file in table.columns:
        reader = _Rows(options, files, table, labels, problems)
        rows = reader.rows()
        if options.boxes:
            name, content, place = _find("boxes", options.boxes, files)
            inputs += [place] if place else []
            same = name == table.name
            placed = table if same else read_table(content, name=name, problems=problems)
            _read_boxes(placed, rows, options, files, labels.names, problems, same=same)
    return Collection(options, files, table, tuple(inputs), labels.kind, labels.names, rows, problems)


def _columns_meant(options: Options, table: Table, problems: Problems) -> Options:
    """Return the options with the table's own spelling of its columns."""
    columns = Names(table.columns)

    def meant(key: str, column: str) -> str:
        found = columns.find(column) if column else None
        if found is None or found == column:
            return column
        problems.add("a column is written in another way", "", f"{key} {column!r} as {found!r}", severity="note")
        return found

    single = {key: meant(key, getattr(options, key)) for key in ("file", "group", "split", "mask")}
    return replace(options, labels=tuple(meant("labels", column) for column in options.labels), **cast(Any, single))


def _mask_columns(options: Options, table: Table) -> dict[str, str]:
    """Map each column of the masks of one finding to what names the finding."""
    parts = {column: column.partition(":") for column in table.columns if options.mask}
    return {column: finding.strip() for column, (mask, _, finding) in parts.items() if finding and mask == options.mask}


class _Rows:
    """Turns cells into rows; every mistake becomes a problem with its row number."""

    def __init__(self, options: Options, files: Files, table: Table, labels: Labels, problems: Problems) -> None:
        self.options, self.files, self.table, self.problems = options, files, table, problems
        self.labels, names = labels, Names(labels.names)
        self.groups, self.splits = read_groups(options, table, problems), read_splits(options, table, problems)
        self.seen: dict[str, int] = {}
        findings = {column: names.find(text) for column, text in _mask_columns(options, table).items()}
        for column in [column for column, finding in findings.items() if finding is None]:
            what = f"a column of masks is of none of {', '.join(labels.names)}"
            problems.add(what, "Rename or remove it", f"{column!r}{names.hint(column)}")
        self.masks: dict[str, str | None] = (
            {options.mask: None} if options.mask and options.mask in table.columns else {}
        )
        self.masks |= {column: name for name in labels.names for column, found in findings.items() if found == name}

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
        labels = self._labels(number, cells)
        if file is None or labels is None:
            return None
        self.seen[file] = number
        group = self.groups[cells[self.options.group]] if self.groups else ""
        split = self.splits[cells[self.options.split]] if self.splits else None
        masks = tuple(self._masks(number, cells, labels))
        return Row(number, file, labels, group or file, split, masks)

    def _file(self, number: int, text: str, what: str) -> str | None:
        """Return a file's path inside the folder or zip."""
        if found := self.files.find(text):
            return found
        pure = PurePosixPath(text.replace("\\", "/"))
        at = f"row {number} {text!r}"
        if text == "":
            self.problems.add(f"the path of an {what} is blank", "Fill it in or remove the row", f"row {number}")
        elif pure.is_absolute() or ".." in pure.parts or ":" in "".join(pure.parts[:1]):
            self.problems.add("a path leaves the folder", f"Write paths relative to {self.files.path}", at)
        else:
            nearest = self.files.nearest(text)
            hint = f" (did you mean {nearest!r}?)" if nearest else ""
            self.problems.add(
                f"the {what} is not in {self.files.path}", "Correct the path, add the file or remove the row", at + hint
            )
        return None

    def _labels(self, number: int, cells: Mapping[str, str]) -> tuple[float, ...] | None:
        labels = self.labels.of(cells)
        if labels is not None and self.labels.kind == "one_of_k" and len(self.options.labels) > 1:
            known = [value for value in labels if value == value]
            if known and (len(known) < len(labels) or sum(known) != 1):
                remedy = (
                    "Set exactly one of its columns to 1 and the others to 0, or all blank; or set task to multi_label"
                )
                self.problems.add("an image has not exactly one class", remedy, f"row {number}")
                return None
        return labels

    def _masks(
        self, number: int, cells: Mapping[str, str], labels: Sequence[float]
    ) -> Iterator[tuple[str | None, str]]:
        """Yield which finding a mask shows, and its file."""
        present = [name for name, value in zip(self.labels.names, labels, strict=True) if value == 1]
        for column, finding in self.masks.items():
            text = cells[column]
            if is_blank(text) or not (file := self._file(number, text, "mask")):
                continue
            if finding is None and len(present) > 1:
                self.problems.add(
                    "a mask may show any of several findings", f"Use columns {column}:NAME", f"row {number}"
                )
            elif finding is not None and finding not in present:
                yield None, file
            else:
                yield finding or (present[0] if present else None), file


def _read_boxes(
    table: Table,
    rows: Sequence[Row],
    options: Options,
    files: Files,
    names: Sequence[str],
    problems: Problems,
    *,
    same: bool,
) -> None:
    """Add to the rows of images the boxes of a table, which may be the same one."""
    by_file, meant = {row.file: row for row in rows}, Names(names)
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
        if all(map(is_blank, texts)):
            continue
        row = by_file.get(files.find(cells[key]) or "")
        if row is None:
            if not same:
                problems.add(
                    "a box is in an image without a valid row", "Correct its path or remove it", f"{at} {cells[key]!r}"
                )
            continue
        present = [name for name, value in zip(names, row.labels, strict=True) if value == 1]
        text = cells.get("finding", "")
        finding = meant.find(text) if not is_blank(text) else present[0] if len(present) == 1 else ""
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
        elif finding == "":
            problems.add("a box does not say of which finding it is", "Fill in the column finding", at)
        elif finding is None:
            place = f"{at} {text!r}{meant.hint(text)}"
            problems.add(f"a box is of none of {', '.join(names)}", "Correct its finding", place)
        elif finding not in present:
            problems.add(
                "a box is of a finding that its image does not have",
                "Set the label to 1 or remove the box",
                f"{at} {finding!r}",
            )
        else:
            row.boxes.append((finding, box))
