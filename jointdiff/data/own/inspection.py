"""Look through a user's own images before anything runs: all that is wrong at once, and what there is."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np

from jointdiff.config import ConfigError, load_experiment
from jointdiff.data.duplicates import distinct_near_pairs, thumbnail
from jointdiff.data.images import open_picture
from jointdiff.data.masks import Mask, open_mask
from jointdiff.data.own.guess import evidence, guess, has_splits, named_like
from jointdiff.data.own.meaning import column_places, is_blank
from jointdiff.data.own.problems import Problem, Problems, Severity
from jointdiff.data.own.spelling import misspelt
from jointdiff.data.own.tables import Collection, Options, Row, read_collection
from jointdiff.data.picture import Picture
from jointdiff.data.source import DataError, NearDuplicates, describe
from jointdiff.progress import Progress

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".dcm", ".dicom")
SMALL = 16  # pixels a side, below which little is to be seen
FEW_LEVELS = 16  # values of 256, up to which a set of images has lost most of what it showed
DARK = 63  # of 255: images whose values all lie below use a quarter of their range
Finding = tuple[str, str, str, Severity]  # what, remedy, place, severity


@dataclass(frozen=True)
class Look:
    """What one image turned out to be; nothing of it where it does not decode."""

    row: Row
    problems: list[Finding]
    format: str = ""
    bits: int = 8
    width: int = 0
    height: int = 0
    colour: bool = False
    top: float = 0.0  # largest value
    used: np.ndarray | None = None  # (256,) bool: which values it has once it is brought to 8 bits
    blank: bool = False
    digest: str = ""
    thumb: np.ndarray | None = None


@dataclass(frozen=True)
class Report:
    """What was found."""

    options: Options
    problems: tuple[Problem, ...]
    collection: Collection | None = None  # None where nothing could be read
    looks: tuple[Look, ...] = field(default=(), repr=False)  # of the images that decode
    guessed: tuple[str, ...] = ()  # what speaks for each option, where they are guesses

    @property
    def ok(self) -> bool:
        """Whether nothing stands against a run."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Map each finding or class to its positive, negative and unlabelled images."""
        if self.collection is None:
            return {}
        columns = zip(*(row.labels for row in self.collection.rows), strict=True)
        return {
            name: (column.count(1.0), column.count(0.0), len(column) - column.count(1.0) - column.count(0.0))
            for name, column in zip(self.collection.names, columns, strict=False)
        }

    def text(self) -> str:
        """Return all of it for a terminal."""
        lines = [f"{self.options.path}"]
        if self.collection is not None:
            lines += self._facts(self.collection)
        lines += [""] * bool(self.problems) + [f"{problem.severity:<8} {problem}" for problem in self.problems]
        counted = Counter(problem.severity for problem in self.problems)
        kinds = [
            f"{count} kind{'s' * (count > 1)} of {severity}s"
            for severity in ("error", "warning", "note")
            if (count := counted[severity])
        ]
        verdict = "ready to run" if self.ok else "mend the errors"
        return "\n".join([*lines, "", f"{', '.join(kinds) or 'no problems'}: {verdict}"])

    def _facts(self, collection: Collection) -> Iterator[str]:
        rows, looks = collection.rows, self.looks
        yield f"table     {collection.table.name}, {len(collection.table.rows):,} rows, {len(rows):,} of them valid"
        if looks:
            formats = Counter(f"{look.format} {look.bits} bits {'colour' if look.colour else 'grey'}" for look in looks)
            yield "images    " + ", ".join(f"{count:,} {kind}" for kind, count in formats.most_common(5))
            sides = np.array([(look.width, look.height) for look in looks])
            (w0, h0), (w1, h1) = sides.min(axis=0), sides.max(axis=0)
            yield f"sizes     {w0} x {h0}" + (f" to {w1} x {h1}" if (w0, h0) != (w1, h1) else "") + " pixels"
        yield f"task      {collection.kind}"
        width = max((len(name) for name in self.counts), default=0)
        for name, (positive, negative, unknown) in self.counts.items():
            yield f"          {name:<{width}}  {positive:,} positive, {negative:,} negative, {unknown:,} unlabelled"
        groups = len({row.group for row in rows})
        yield f"groups    {groups:,}" + (f" by {self.options.group}" if self.options.group else ", one per image")
        splits = Counter(row.split for row in rows if row.split)
        yield "splits    " + (", ".join(f"{count:,} {name}" for name, count in splits.items()) or "drawn per seed")
        masks = sum(finding is not None for row in rows for finding, _ in row.masks)
        yield f"regions   {masks:,} masks, {sum(len(row.boxes) for row in rows):,} boxes"
        yield from (f"guessed   {line}" for line in self.guessed)


def inspect(data: Options | Path | str, *, images: int | None = None) -> Report:
    """Find everything that is wrong with a user's images, table, labels, groups, boxes and masks.

    Args:
        data: the options, or a folder, zip or table whose options are guessed.
        images: decode only so many, evenly spread (default: all).
    """
    guesses = not isinstance(data, Options)
    options = Options(path=str(data)) if guesses else cast(Options, data)
    try:
        options = guess(Path(options.path)) if guesses else options
        collection = read_collection(options)
    except (ConfigError, DataError) as error:
        return Report(options, (Problem("error", str(error), "", ()),))
    problems = collection.problems
    rows = collection.rows
    if images is not None and images < len(rows):
        rows = tuple(rows[index] for index in np.linspace(0, len(rows) - 1, images).astype(int))
    looks = []
    with (
        Progress(f"check {options.path}", total=len(rows), unit="images") as progress,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,  # decoders work outside Python's lock
    ):
        for look in pool.map(lambda row: _look(collection, row), rows):
            for what, remedy, place, severity in look.problems:
                problems.add(what, remedy, place, severity=severity)
            looks += [look] if look.format else []
            progress.advance()
    _judge_labels(collection, problems)
    _judge_groups(collection, problems)
    _judge_images(options, looks, problems)
    _judge_copies(looks, problems, joined=options.join_near_duplicates)
    _judge_rest(collection, problems)
    guessed = tuple(evidence(collection)) if guesses else ()
    return Report(options, tuple(problems), collection, tuple(looks), guessed)


def _look(collection: Collection, row: Row) -> Look:
    """Decode what a row names, and keep only what is small."""
    from PIL import Image

    files, found = collection.files, cast(list[Finding], [])
    at = f"row {row.number} {row.file!r}"

    def told(error: DataError) -> str:
        return f"row {row.number}: {str(error).removeprefix(files.name('x')[:-1])}"

    try:
        data, name = files.read(row.file), files.name(row.file)
        picture = open_picture(data, name=name)
        values = picture.values
        colour = picture.channels == 3 and not (values == values[:, :, :1]).all()
        pixels = picture.to_bytes(name=name, mode="RGB" if colour else "L", window=collection.options.window)
    except DataError as error:
        return Look(row, [("an image cannot be used", "Mend the file or remove the row", told(error), "error")])
    height, width = pixels.shape[:2]
    if collection.options.window == "auto":
        found += [(what, remedy, at, "note") for what, remedy in picture.remarks]
    for _, box in row.boxes:
        if not (box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height):
            place = f"{at} is {width} x {height}, the box {', '.join(f'{end:g}' for end in box)}"
            found.append(("a box leaves its image", "Give it in pixels of the file, x0, y0, x1, y1", place, "error"))
    for finding, file in row.masks:
        try:
            opened = open_mask(files.read(file), name=files.name(file), values=collection.options.mask_values)
            mask = opened.on(picture, name=files.name(file))
        except DataError as error:
            found.append(("a mask cannot be used", "Mend the file or blank its cell", told(error), "error"))
            continue
        found += _doubts(opened, mask, picture, place=f"row {row.number} {file!r}")
        if finding is None and mask.any():
            place = f"row {row.number} {file!r}"
            found.append(
                ("a mask shows what the image does not have", "Set the label or blank the cell", place, "error")
            )
        elif finding is not None and not mask.any():
            place = f"row {row.number} {file!r}"
            found.append(("a mask is empty though the finding is there", "Draw it or blank its cell", place, "warning"))
    return Look(
        row,
        found,
        format=picture.format,
        bits=picture.bits,
        width=width,
        height=height,
        colour=colour,
        top=float(np.nanmax(values)) if values.dtype.kind != "f" or np.isfinite(values).any() else 0.0,
        used=np.reshape(Image.fromarray(pixels).histogram(), (-1, 256)).sum(axis=0) > 0,
        blank=bool((pixels == pixels.reshape(-1, *pixels.shape[2:])[0]).all()),
        digest=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
        thumb=thumbnail(pixels),
    )


def _doubts(opened: Mask, mask: np.ndarray, picture: Picture, *, place: str) -> Iterator[Finding]:
    """Say what speaks against the reading of a mask."""
    if opened.doubt:
        remedy = "Name the values of the finding in mask_values"
        yield "a mask has more than two values", remedy, f"{place} holds {opened.doubt}", "warning"
    if opened.orientation != picture.orientation:
        remedy = "See that they lie on each other, or save both without one"
        what = "an image and its mask have different EXIF orientations"
        yield what, remedy, f"{place}: {picture.orientation} and {opened.orientation}", "warning"
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if border.all() and 2 * mask.sum() > mask.size:
        remedy = "Is it inverted? The finding is what is not black"
        yield "a mask marks the border and most of its image", remedy, place, "warning"


def _judge_labels(collection: Collection, problems: Problems) -> None:
    rows = [row for row in collection.rows if any(value == value for value in row.labels)]
    if not collection.options.labels or not collection.rows:
        return
    if not rows:
        problems.add("no image has a label", "Fill in labels; blank means unlabelled")
        return
    what = "class" if collection.kind == "one_of_k" else "finding"
    for k, name in enumerate(collection.names):
        having = [row for row in rows if row.labels[k] == 1]
        groups = {row.group for row in having}
        if not having:
            problems.add(f"a {what} has no positive image", "Remove it from the options or label some", repr(name))
        elif all(row.labels[k] != 0 for row in rows):
            problems.add(f"a {what} has no negative image", "Write 0 where it is absent; blank is unknown", repr(name))
        elif len(having) == 1:
            place = f"{name!r} in row {having[0].number}"
            problems.add(f"a {what} has a single image", "Add more or merge it with another", place, severity="warning")
        elif len(groups) < 3:
            place = f"{name!r} is in {len(groups)} group" + "s" * (len(groups) > 1)
            remedy = "Training, validation and test each want one"
            problems.add(f"a {what} has too few groups for the splits", remedy, place, severity="warning")
        for split in sorted({row.split for row in collection.rows if row.split}):
            if having and not any(row.split == split for row in having):
                remedy = "Its scores will be gaps"
                place = f"{name!r} in {split}"
                problems.add(f"a {what} is absent from a split", remedy, place, severity="warning")
    for pair in misspelt(collection.names):
        counts = [sum(row.labels[collection.names.index(name)] == 1 for row in rows) for name in pair]
        place = " and ".join(f"{name!r} of {count:,} images" for name, count in zip(pair, counts, strict=True))
        problems.add(f"names of a {what} differ by a letter", "Correct a slip", place, severity="warning")
    if collection.kind == "one_of_k":
        pairs = {(row.labels, row.group) for row in rows}
        if len({labels for labels, _ in pairs}) == len({group for _, group in pairs}) == len(pairs) < len(rows):
            remedy = "A class can be told by its patient: see that labels and group name the right columns"
            problems.add("each class is one group", remedy, severity="warning")
    if collection.kind == "multi_label" and len(collection.names) > 1 and all(sum(row.labels) == 1 for row in rows):
        problems.add(
            "every image has exactly one finding", "If they exclude each other, set task to one_of_k", severity="note"
        )


def _judge_groups(collection: Collection, problems: Problems) -> None:
    """Warn of a group column that hardly holds patients, and of columns like groups or splits that are not used."""
    options, table, rows = collection.options, collection.table, collection.rows
    counts = Counter(row.group for row in rows)
    if options.group and len(rows) > 3:
        ((largest, count),) = counts.most_common(1)
        if count == 1:
            remedy = "Several images of one patient would part: see that it is the patient and not the image"
            problems.add(f"each group of {options.group!r} has one image", remedy, severity="warning")
        elif 2 * count > len(rows):
            place = f"{largest!r} has {count:,} of {len(rows):,}"
            remedy = "Groups never part, so that splits will be uneven: see that it is one patient"
            problems.add("a group has more than half of the images", remedy, place, severity="warning")
    group_of = {row.number: row.group for row in rows}
    for column in named_like(table, "group") if options.group else ():
        texts = [numbers for text, numbers in column_places(table, column).items() if not is_blank(text)]
        parts = sum(len({group_of[number] for number in numbers if number in group_of}) > 1 for numbers in texts)
        if column != options.group and parts:
            place = f"{column!r} joins groups of {options.group!r} {parts:,} times"
            remedy = "Set group to it if it is the patient"
            problems.add("a column named like a group is not used", remedy, place, severity="warning")
    for column in named_like(table, "split") if not options.split else ():
        place = f"{column!r}: " + ", ".join(map(repr, list(column_places(table, column))[:5]))
        words = has_splits(table, column)
        remedy = "Set split to it" if words else "Where it holds folds, set folds beside labels; a split wants words"
        problems.add("a column named like a split is not used", remedy, place, severity="warning")
    if not options.group:
        found = ", ".join(map(repr, named_like(table, "group")))
        remedy = "Name the column of the patient, or images of one patient may part"
        remedy += f"; the table has {found}" * bool(found)
        problems.add("no group column is set", remedy, severity="warning")


def _judge_images(options: Options, looks: Sequence[Look], problems: Problems) -> None:
    for look in looks:
        at = f"row {look.row.number} {look.row.file!r}"
        if look.blank:
            problems.add("an image is blank", "Remove it, or widen the window", at, severity="warning")
        if min(look.width, look.height) < SMALL:
            place = f"{at} is {look.width} x {look.height}"
            problems.add(
                f"an image has fewer than {SMALL} pixels a side", "Use the original", place, severity="warning"
            )
    coloured = [look for look in looks if look.colour]
    if 0 < len(coloured) < len(looks):
        few, name = min(
            (coloured, "colour"), ([x for x in looks if not x.colour], "grey"), key=lambda pair: len(pair[0])
        )
        remedy = f"All become {'grey' if options.channels == 1 else 'colour'}; see that no class differs by it alone"
        for look in few:
            place = f"row {look.row.number} {look.row.file!r}"
            problems.add(f"some images are {name} among others", remedy, place, severity="warning")
    elif coloured and options.channels == 1:
        problems.add("all images are in colour and are made grey", "Set channels to 3 to keep it", severity="warning")
    elif looks and not coloured and options.channels == 3:
        problems.add("no image has colour", "Set channels to 1", severity="note")
    flat = [look.used for look in looks if look.used is not None and not look.blank]
    if flat:
        values = np.flatnonzero(np.logical_or.reduce(flat))
        place = f"{len(values)} values from {values[0]} to {values[-1]} of 255"
        if len(values) <= FEW_LEVELS:
            remedy = "Are these masks, or images that lost their depth?"
            problems.add("the images use few grey levels", remedy, place, severity="warning")
        elif values[-1] <= DARK:
            problems.add("the images are nearly black", "Save them over the whole range", place, severity="warning")
    ratios = [look.width / look.height for look in looks]
    if ratios and max(ratios) > 2 * min(ratios):
        place = f"{min(ratios):.2f} to {max(ratios):.2f} (width by height)"
        problems.add("shapes of images differ widely", "They get margins (resize: pad)", place, severity="note")
    deep = [look for look in looks if look.bits > 8 and look.format != "DICOM" and not look.colour]
    if deep and options.window == "auto":
        top = 2 ** int(np.ceil(np.log2(max(max(look.top for look in deep), 1) + 1))) - 1
        remedy = f"Set window to 0..{top} where values mean the same in all images"
        problems.add("deep images are stretched one by one", remedy, f"{len(deep):,} images", severity="note")


def _judge_copies(looks: Sequence[Look], problems: Problems, *, joined: bool) -> None:
    """Note images that are there more than once, or nearly."""
    seen = [look for look in looks if not look.blank]
    first: dict[str, Look] = {}
    for look in seen:
        other = first.setdefault(look.digest, look)
        if other is look:
            continue
        place = f"rows {other.row.number} and {look.row.number}"
        if str(other.row.labels) != str(look.row.labels):
            problems.add("identical images have different labels", "Decide which is right", place, severity="warning")
        _note_copy("identical", other, look, problems, joined=joined)
    if len(seen) > 1:
        near, digests = NearDuplicates(), np.array([look.digest for look in seen])
        thumbs = np.stack([cast(np.ndarray, look.thumb) for look in seen])
        for one, two in distinct_near_pairs(digests, thumbs, hamming=near.hamming, correlation=near.correlation):
            _note_copy("nearly identical", seen[one], seen[two], problems, joined=joined)


def _note_copy(how: str, one: Look, two: Look, problems: Problems, *, joined: bool) -> None:
    place = f"rows {one.row.number} and {two.row.number}"
    if one.row.split and two.row.split and one.row.split != two.row.split:
        problems.add(f"{how} images are in different splits", "Put them into one", place, severity="warning")
    elif one.row.group != two.row.group and not joined:
        remedy = "Give them one group, or set join_near_duplicates to true"
        problems.add(f"{how} images are in different groups", remedy, place, severity="warning")
    elif how == "identical":
        problems.add("an image is there twice", "Remove one unless it is meant", place, severity="note")


def _judge_rest(collection: Collection, problems: Problems) -> None:
    options, named = collection.options, set()
    for _, cells in collection.table.rows:
        for column, cell in cells.items():
            if column == options.file or (options.mask and column.partition(":")[0] == options.mask):
                named.add(collection.files.find(cell))
    for name in collection.files:
        if name.lower().endswith(IMAGES) and name not in named:
            problems.add(
                "an image is in no row", "It is not used; add a row with blank labels to use it", name, severity="note"
            )


# Guesses, which `jointdiff data init` writes out for the user to correct


def check_command(path: Path) -> int:
    """Print the report on a folder, a zip, a table, or the own data sets of a configuration; 0 where all is well.

    Raises:
        ConfigError: the configuration has a mistake, or no data set of the user's own.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        report = inspect(path)
        print(report.text())
        if report.ok:
            print(f"`jointdiff data init {path}` writes a configuration with these options")
        return int(not report.ok)
    from jointdiff.data.sources import own

    experiment = load_experiment(path)
    mine = {name: data for name, data in experiment.datasets.items() if (data.source or name) == "own"}
    if not mine:
        raise ConfigError(f"{path}: none of its data sets has `source: own`")
    facts = cast(ModuleType, SimpleNamespace(SOURCE=own.SOURCE))  # types of options are checked, data are not read yet
    reports = [inspect(Options(**describe(facts, data.options)[1])) for data in mine.values()]
    for name, report in zip(mine, reports, strict=True):
        print(f"datasets.{name}: {report.text()}\n")
    return int(not all(report.ok for report in reports))
