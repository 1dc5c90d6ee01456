"""What the texts of label, group and split columns mean: decided once per text, and said where it is not plain.

A text that may mean several things is an error until an option says which: ``unknown``, ``classes``, ``alike_classes``,
``alike_groups`` and their kind.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from jointdiff.data.own.problems import Problems
from jointdiff.data.own.spelling import Names, alike, canonical, rounded, told_apart

if TYPE_CHECKING:
    from jointdiff.data.own.tables import Options, Table

Kind = Literal["one_of_k", "multi_label"]
Split = Literal["train", "validation", "test"]
Places = Mapping[str, Sequence[int]]  # each text of a column, in order, and its rows

UNKNOWN = float("nan")
MOST = 2000  # classes that are taken from a column; more are free text, or names of images


def _forms(*words: str) -> frozenset[str]:
    return frozenset(map(canonical, words))


# What pandas reads as missing, but for "None"; other errors of spreadsheets; and words that mean nothing else.
BLANK = _forms(
    *("", "nan", "-nan", "na", "n/a", "n.a.", "n.a", "null", "nat", "<na>", "<nan>", "<null>", "#n/a", "#na"),
    *("#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "#null!", "#value!", "#ref!", "#div/0!", "#name?"),
    *("#num!", ".", "(blank)", "not available", "unlabelled", "unlabeled"),
)
# What may mean unknown, uncertain or a class (a patient) of that name: it is asked.
DOUBTFUL = _forms(
    *("none", "unknown", "unk", "not known", "unsure", "uncertain", "unclear", "undefined", "undetermined"),
    *("unspecified", "not specified", "unassigned", "missing", "no data", "nil", "tbd", "pending", "not assessed"),
    *("not reported", "not applicable"),
)
NOBODY = DOUBTFUL | _forms("anonymous", "anonymised", "anonymized", "anon", "no id", "no name", "unnamed")
YES, NO = _forms("1", "true", "yes"), _forms("0", "false", "no")
MORE_YES, MORE_NO = _forms("y", "t", "pos", "positive", "present", "+"), _forms("n", "f", "neg", "negative", "absent")
VALUES = {**dict.fromkeys(YES | MORE_YES, 1.0), **dict.fromkeys(NO | MORE_NO, 0.0)}
NO_FINDING = _forms("no finding", "no findings", "no abnormality", "no abnormalities", "normal", "negative", "healthy")
SPLITS: dict[str, Split] = {
    **dict.fromkeys(_forms("train", "training", "train set", "training set", "trn", "tr"), "train"),
    **dict.fromkeys(
        _forms("validation", "valid", "val", "dev", "development", "validation set", "val set", "va", "vl"),
        "validation",
    ),
    **dict.fromkeys(_forms("test", "testing", "test set", "tst", "te"), "test"),
}


def is_blank(text: str) -> bool:
    """Say whether a cell holds nothing: it is empty, or a word that can mean nothing else."""
    return canonical(text) in BLANK


def is_doubtful(text: str, others: Collection[str] = ()) -> bool:
    """Say whether a label may mean unknown: a word, marks alone, a negative number, or nines far above the others."""
    form = canonical(text)
    if form in BLANK or form in VALUES:
        return False
    if form in DOUBTFUL or not any(letter.isalnum() for letter in form) or re.fullmatch(r"-\d+(\.\d+)?", form):
        return True
    if set(form) != {"9"}:
        return False
    numbers = [
        int(other) for other in map(canonical, others) if re.fullmatch(r"\d{1,9}", other) and set(other) != {"9"}
    ]
    return bool(numbers) and int(form) > max(numbers) + 1


def column_places(table: Table, column: str) -> dict[str, list[int]]:
    """Map each text of a column to its rows."""
    found: dict[str, list[int]] = {}
    for number, cells in table.rows:
        found.setdefault(cells[column], []).append(number)
    return found


def said(text: str, numbers: Sequence[int]) -> str:
    """Name a text and its first rows."""
    return f"{text!r} in {_rows(numbers)}"


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:3])) + (f" and {len(numbers) - 3:,} more" if len(numbers) > 3 else "")
    return f"row{'s' * (len(numbers) > 1)} {shown}"


@dataclass(frozen=True)
class Labels:
    """What is predicted, and the labels that each text of a label column stands for."""

    kind: Kind
    names: tuple[str, ...]
    values: Mapping[str, Mapping[str, tuple[float, ...] | None]]  # by column and text; None: the text is an error

    def of(self, cells: Mapping[str, str]) -> tuple[float, ...] | None:
        """Return an image's labels (0, 1 or NaN, one for each name), or None where a text is an error."""
        if not self.values:
            return (UNKNOWN,) * len(self.names)
        found = [values[cells[column]] for column, values in self.values.items()]
        return None if None in found else tuple(chain.from_iterable(part for part in found if part))


def read_labels(options: Options, table: Table, problems: Problems) -> Labels:
    """Decide what is predicted, and what every text of the label columns means."""
    kind: Kind = "one_of_k" if options.task == "one_of_k" else "multi_label"
    if not options.labels or any(column not in table.columns for column in options.labels):
        return Labels(kind, options.labels, {})
    for found in alike(options.labels):
        problems.add("names of findings look alike", "Rename or remove one", ", ".join(found), severity="warning")
    columns = {column: column_places(table, column) for column in options.labels}
    if len(columns) == 1:
        ((column, places),) = columns.items()
        reader = _Column(column, places, options, problems)
        if options.separator:
            return reader.findings()
        if kind == "one_of_k" or (options.task == "auto" and (options.classes or reader.has_classes())):
            return reader.classes()
    elif options.separator:
        problems.add("separator wants one label column", "Name one in labels, or remove separator")
    values = {column: _Column(column, places, options, problems).binary() for column, places in columns.items()}
    return Labels(kind, options.labels, values)


class _Column:
    """A label column: its texts by what they mean, told from those that mean unlabelled and those that may."""

    def __init__(self, name: str, places: Places, options: Options, problems: Problems) -> None:
        self.name, self.options, self.problems = name, options, problems
        self.declared = Names(options.classes)
        self.unknown = set(map(canonical, options.unknown))
        self.nothing = {*NO_FINDING, *map(canonical, options.no_finding)} - set(map(canonical, options.classes))
        self.unlabelled = {text: rows for text, rows in places.items() if self._is_unlabelled(text)}
        others = [text for text in places if text not in self.unlabelled]
        self.asked = {text: places[text] for text in others if self._is_doubtful(text, others)}
        self.known = {text: places[text] for text in others if text not in self.asked}

    def _is_unlabelled(self, text: str) -> bool:
        return self.declared.find(text) is None and (canonical(text) in self.unknown or is_blank(text))

    def _is_doubtful(self, text: str, others: Collection[str]) -> bool:
        meant = self.declared.find(text) is not None or (self.options.separator and canonical(text) in self.nothing)
        return not meant and is_doubtful(text, others)

    def has_classes(self) -> bool:
        """Say whether the texts are classes rather than 0 and 1, of which one in twenty may be a slip."""
        forms = {canonical(text) for text in self.known}
        if forms <= set(VALUES) and max(len(forms & (YES | MORE_YES)), len(forms & (NO | MORE_NO))) > 1:
            return False  # "yes" beside "y" are no two classes
        count = sum(map(len, self.known.values()))
        return sum(len(rows) for text, rows in self.known.items() if canonical(text) not in YES | NO) > count / 20

    def binary(self) -> dict[str, tuple[float, ...] | None]:
        """Map each text to 0, 1 or NaN."""
        single = "; list all classes in classes and set task to one_of_k if it is one" * (len(self.options.labels) == 1)
        self._tell(f"write 1 or 0 if it means that{single}")
        values: dict[str, tuple[float, ...] | None] = {}
        for text, rows in self.known.items():
            value = VALUES.get(canonical(text))
            values[text] = None if value is None else (value,)
            if value is None:
                remedy = "Write 1 or 0, or leave it blank where it is unknown"
                for row in rows:
                    place = f"row {row} {self.name} {text!r}"
                    self.problems.add("a label is neither 0 nor 1 nor blank", remedy, place)
            elif canonical(text) in MORE_YES | MORE_NO:
                place = f"{self.name} {said(text, rows)} as {value:g}"
                self.problems.add("words are read as 1 or 0", "", place, severity="note")
        return {**values, **dict.fromkeys(self.unlabelled, (UNKNOWN,)), **dict.fromkeys(self.asked)}

    def classes(self) -> Labels:
        """Take each text as the name of a class, of which an image has one."""
        self._tell("list all classes in classes if it is one")
        if not self.options.classes and len(self.known) > min(MOST, max(20, sum(map(len, self.known.values())) / 2)):
            what = f"the column {self.name!r} holds {len(self.known):,} texts, too many for classes"
            self.problems.add(what, "Choose another column in labels, or list the classes in classes")
            return Labels("one_of_k", (), {})
        meant = self._named(self.known)
        names = self.options.classes or _in_order(meant.values())
        if len(names) < 2:
            self.problems.add(f"the column {self.name!r} holds fewer than two classes", "Label images of at least two")
        mark = None if self.options.classes else find_separator(self.known)
        if mark:
            remedy = f"Set separator: {json.dumps(mark)} to have findings instead, or list such classes in classes"
            place = next(said(text, rows) for text, rows in self.known.items() if mark in text)
            self.problems.add("several findings in a cell count as one class", remedy, place, severity="warning")
        vectors = {name: tuple(float(name == other) for other in names) for name in names}
        values: dict[str, tuple[float, ...] | None] = {text: vectors[name] for text, name in meant.items()}
        unlabelled = dict.fromkeys(self.unlabelled, (UNKNOWN,) * len(names))
        errors = dict.fromkeys([*self.known, *self.asked])
        return Labels("one_of_k", names, {self.name: errors | values | unlabelled})

    def findings(self) -> Labels:
        """Take each text as the names of findings with a separator between them."""
        parts = {text: _parts(text, self.options.separator) for text in self.known}
        tokens: dict[str, list[int]] = {}
        for text, found in parts.items():
            for token in found:
                tokens.setdefault(token, []).extend(self.known[text])
        none = {token for token in tokens if canonical(token) in self.nothing}
        # In a cell of its own or beside findings, a word for unknown means the same.
        within = {token: rows for token, rows in tokens.items() if token not in none and self._is_unlabelled(token)}
        others = tokens.keys() - within.keys()
        self.asked |= {token: tokens[token] for token in tokens if token in others and self._is_doubtful(token, others)}
        self.unlabelled |= {token: rows for token, rows in within.items() if token not in self.unlabelled}
        self._tell("to no_finding if it means that there is none; list all findings in classes if it is one")
        named = {token: rows for token, rows in tokens.items() if token in others - none and token not in self.asked}
        meant = self._named(named)
        names = self.options.classes or _in_order(meant.values())
        if not names:
            self.problems.add(f"the column {self.name!r} holds no finding", "Choose another column, or list classes")
        for token in sorted(none):
            place = said(token, tokens[token])
            self.problems.add("a text means none of the findings", "", place, severity="note")
        values: dict[str, tuple[float, ...] | None] = {}
        for text, found in parts.items():
            values[text] = None
            if none & set(found) and not none >= set(found):
                place = said(text, self.known[text])
                self.problems.add("a cell says both that there is a finding and that there is none", "Decide", place)
            elif all(token in meant or token in none or token in within for token in found):
                absent = UNKNOWN if within.keys() & set(found) else 0.0
                present = {meant[token] for token in found if token in meant}
                values[text] = tuple(1.0 if name in present else absent for name in names)
        unlabelled = dict.fromkeys(self.unlabelled, (UNKNOWN,) * len(names))
        return Labels("multi_label", names, {self.name: values | unlabelled | dict.fromkeys(self.asked)})

    def _tell(self, otherwise: str) -> None:
        """Note which texts are unlabelled; ask of those that may be."""
        for text, rows in self.unlabelled.items():
            if text:
                place = f"{self.name} {said(text, rows)}"
                self.problems.add("a text is read as unlabelled", "", place, severity="note")
        for text, rows in self.asked.items():
            place = f"{self.name} {said(text, rows)}"
            remedy = f"Add it to the option unknown if it means unlabelled; {otherwise}"
            self.problems.add("a label may mean unknown", remedy, place)

    def _named(self, places: Places) -> dict[str, str]:
        """Map each text to the class that it means; those that mean none of the declared ones are errors."""
        how = self.options.alike_classes
        if not self.options.classes:
            return _joined("classes", places, how, self.problems)
        meant = {}
        mark = find_separator(places)
        remedy = "Correct it or add it to classes"
        remedy += f"; for findings set separator: {json.dumps(mark)}" if mark else ""
        for text, rows in places.items():
            name = text if text in self.declared.names else None if how == "keep" else self.declared.find(text)
            if name is None:
                for row in rows:
                    self.problems.add(
                        f"a class is none of {', '.join(self.options.classes)}",
                        remedy,
                        f"row {row} {text!r}{self.declared.hint(text)}",
                    )
                continue
            if name != text:
                place = f"{said(text, rows)} as {name!r}"
                self.problems.add("a class is written in another way", "", place, severity="note")
            meant[text] = name
        return meant


def _parts(text: str, separator: str) -> list[str]:
    if listed := re.fullmatch(r"\[(.*)\]", text):  # as Python writes a list of texts
        return list(dict.fromkeys(part.strip(" '\"") for part in listed[1].split(separator) if part.strip(" '\"")))
    return list(dict.fromkeys(part.strip() for part in text.split(separator) if part.strip()))


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=_natural))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort "grade 2" before "grade 10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _joined(what: Literal["classes", "groups"], places: Places, how: str, problems: Problems) -> dict[str, str]:
    """Map each text to the spelling that stands for it, or itself where alike ones are kept.

    Of several, that is the most frequent one without invisible letters.
    """
    meant = {text: text for text in places}
    for found in alike(places):
        place = ", ".join(f"{shown} in {_rows(places[text])}" for text, shown in told_apart(found).items())
        best = max(found, key=lambda text: (text.isprintable(), len(places[text])))
        option = f"alike_{what}"
        if how == "ask":
            apart = "one patient may be in training and test" if what == "groups" else "each counts by itself"
            remedy = f"Set {option} to join if they are one, or to keep if they are not; kept apart, {apart}"
            problems.add(f"{what} look alike", remedy, place)
        elif how == "keep":
            problems.add(f"{what} that look alike are kept apart", "", place, severity="warning")
            continue
        else:
            problems.add(f"{what} that look alike are joined", "", f"{place} as {best!r}", severity="note")
        meant |= dict.fromkeys(found, best)
    return meant


BARS = ("|", "｜", ";", "；", "\n")  # hardly ever part of a name
SEPARATORS = (*BARS, "、", ",", " / ", " + ", " & ", "/", "+")


def find_separator(texts: Collection[str]) -> str | None:
    """Return what separates findings in cells, or None.

    A bar, a semicolon or a new line does wherever it stands. A comma, a stroke or a plus may belong to the name of a
    class: each part must come in several cells, and half of them alone.
    """
    for mark in SEPARATORS:
        cells = [_parts(text, mark) for text in texts]
        parts = {part for cell in cells if len(cell) > 1 for part in cell}
        times = Counter(part for cell in cells for part in cell)
        alone = parts & {cell[0] for cell in cells if len(cell) == 1}
        if parts and (mark in BARS or (2 * len(alone) >= len(parts) and all(times[part] > 1 for part in parts))):
            return mark
    return None


def read_groups(options: Options, table: Table, problems: Problems) -> Mapping[str, str]:
    """Map each text of the group column to its group; "" where it names none."""
    if options.group not in table.columns or not options.group:
        return {}
    places = column_places(table, options.group)
    unknown, known = set(map(canonical, options.unknown_groups)), set(map(canonical, options.known_groups))
    groups: dict[str, str] = {}
    for text, rows in places.items():
        if canonical(text) in known or not (is_blank(text) or canonical(text) in unknown):
            continue
        groups[text] = ""
        remedy = "Fill them in; until then each of these images is a group of its own"
        for row in rows:
            problems.add("a group is blank", remedy, f"row {row}" + f" {text!r}" * bool(text), severity="warning")
    rest = {text: rows for text, rows in places.items() if text not in groups}
    counts: Counter[str] = Counter()
    for text, rows in rest.items():
        counts[canonical(text)] += len(rows)
    for text in [text for text in rest if canonical(text) not in known and _may_be_nobody(canonical(text), counts)]:
        remedy = "Add it to unknown_groups if it names nobody: each image is its own group then; or to known_groups"
        problems.add("a group may stand for unknown", remedy, said(text, rest[text]))
        groups[text] = text
        del rest[text]
    for text in rounded(rest):
        remedy = "Digits may be lost, so that several are one: format the column as text and save it anew"
        problems.add("a group is a rounded number", remedy, said(text, rest[text]), severity="warning")
    return groups | _joined("groups", rest, options.alike_groups, problems)


def _may_be_nobody(form: str, counts: Counter[str]) -> bool:
    """Say whether a group is none: a word, marks or a negative number of several rows; 0 or nines of too many."""
    rows = counts[form]
    if form in NOBODY or not any(letter.isalnum() for letter in form) or re.fullmatch(r"-\d+", form):
        return rows > 1
    if form != "0" and set(form) != {"9"}:
        return False
    # A patient may be called 0 or 99, but hardly one with many more images than the others.
    return rows >= 5 and rows * (len(counts) - 1) > 4 * (counts.total() - rows)


def read_splits(options: Options, table: Table, problems: Problems) -> Mapping[str, Split | None]:
    """Map each text of the split column to what it means."""
    if options.split not in table.columns or not options.split:
        return {}
    places = column_places(table, options.split)
    splits: dict[str, Split | None] = {text: split_of(text) for text in places}
    unclear = [text for text, split in splits.items() if split is None and not is_blank(text)]
    if unclear and not any(splits.values()) and all(re.fullmatch(r"(fold)?\d+", canonical(x)) for x in unclear):
        remedy = 'They say nothing of training and test: set split: "" and folds: 5 beside labels, or write words'
        where = "; ".join(said(text, places[text]) for text in unclear)
        problems.add("the split column holds numbers, perhaps of folds", remedy, where)
        return splits
    for text in unclear:
        for row in places[text]:
            remedy = "Correct it or leave it blank"
            problems.add("a split is none of train, validation, test", remedy, f"row {row} {text!r}")
    return splits


def split_of(text: str) -> Split | None:
    """Return the part that a word names, or None."""
    return SPLITS.get(canonical(text).rstrip("."))
