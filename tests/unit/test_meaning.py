"""What the texts of a user's table mean: ids and names that look alike, words for unknown, findings in one cell."""

import re
import tempfile
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.config import ConfigError
from jointdiff.data.own.inspection import inspect
from jointdiff.data.own.meaning import find_separator, split_of
from jointdiff.data.own.spelling import alike, canonical, misspelt, rounded
from jointdiff.data.own.starter import starter_config
from jointdiff.data.own.tables import Options, read_collection
from jointdiff.data.source import DataError, describe
from jointdiff.data.sources import own
from tests.properties import examples
from tests.unit.test_inspection import encode, scene
from tests.unit.test_own import place, text

SAME = [
    ("00007", "7", "7.0", "7,0", " 7\u00a0", "７", "\u0667", '="007"', "'007", "7\u200b"),
    ("P007", "p7", "P 7", "P_7", "P-07", "P\u20117", "\u04207", "P\u00ad7", "\ufeffP7"),
    ("100000", "1E+05", "1e+05", "100000.00"),
    ("123457000000", "1.23457E+11", "1,23457E+11"),
    ("Größe", "Gro\u0308ße", "GRÖSSE", "größe "),
    ("No Finding", "no_finding", "NO-FINDING", "No  Finding", "No\tFinding"),
    ("Barrett's", "barrett’s"),
    ("a / b", "a/b"),
    ("-1", "-1.0", "\u22121", "\u20131"),
    ("2024-01-05", "2024-1-5", "2024 01 05"),
]
# Each is another than all others.
DIFFERENT = (
    *("1 1", "11", "1.1", "1.10", "1.01", "1.2.840.1", "1.2.840.10", "-1", "1", "1e5", "10", "100"),
    *("A", "A+", "A-", "grade 1", "grade -1", "P1", "P11", "P1 1", "P1.0"),
)


def test_what_is_alike_and_what_is_not():
    for texts in SAME:
        assert len({canonical(text) for text in texts}) == 1, {text: canonical(text) for text in texts}
    different = [*DIFFERENT, *(texts[0] for texts in SAME if texts[0] not in DIFFERENT)]
    assert len({canonical(text) for text in different if text != "-1"}) == len({*different} - {"-1"})
    assert alike(["b", "a", "B ", "c", "a"]) == [("b", "B ")]


@examples(200)
@given(st.text(st.characters(codec="utf-8"), max_size=8), st.sampled_from(["NFC", "NFD"]))
def test_the_unicode_form_never_counts(text_, form):
    assert canonical(unicodedata.normalize(form, text_)) == canonical(text_)


# Ids as people and spreadsheets write them

WORDS = ("", "P", "Müller", "Weiß", "Site ", "αβγ")
DIGITS = ("0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩")
SEPARATED = st.sampled_from(["-", " ", "_", "–", "\u00a0"])
NUMBERS = st.integers(1, 120).filter(lambda number: set(str(number)) != {"9"})  # nines may stand for unknown


@st.composite
def patients(draw):
    """Draw what a patient is called: a word, a number and perhaps a second one; 1.1 and 1.10 are two."""
    behind = st.one_of(st.just(""), NUMBERS.map("-{}".format), st.from_regex(r"\.[0-9]{0,2}[1-9]0?", fullmatch=True))
    return draw(st.sampled_from(WORDS)), draw(NUMBERS), draw(behind)


@st.composite
def spelt(draw, patient):
    """Write the name of a patient in some way."""
    word, number, behind = patient
    word = draw(st.sampled_from([word, word.upper(), word.lower(), word.strip()]))
    between = draw(st.sampled_from(["", " ", "-", "_"])) if word.strip() else ""
    digits = str.maketrans(DIGITS[0], draw(st.sampled_from(DIGITS)))
    zeros = st.sampled_from(["", "0", "000"])
    if behind.startswith("-"):
        behind = draw(SEPARATED) + draw(zeros) + behind[1:]
    elif not word and not behind:
        behind = draw(st.sampled_from(["", ".0", ".00"]))
    written = unicodedata.normalize(
        draw(st.sampled_from(["NFC", "NFD"])), f"{word.strip()}{between}{draw(zeros)}{number}{behind}".translate(digits)
    )
    at = draw(st.integers(0, len(written)))
    return written[:at] + draw(st.sampled_from(["", "", "\u200b", "\u00ad", "\x07"])) + written[at:]


@st.composite
def columns(draw):
    """Draw a few patients, and the ids that stand in the rows, some of them in several spellings."""
    chosen = draw(st.lists(patients(), min_size=1, max_size=4, unique_by=lambda p: (p[0].strip(), *p[1:])))
    rows = draw(st.lists(st.sampled_from(chosen), min_size=1, max_size=8))
    return rows, [draw(spelt(patient)) for patient in rows]


def parted(keys):
    """Return which rows stand together, by their keys."""
    together = defaultdict(set)
    for index, key in enumerate(keys):
        together[key].add(index)
    return set(map(frozenset, together.values()))


@examples(150)
@given(columns())
def test_no_two_patients_are_joined_and_none_parts_in_silence(column):
    people, ids = column
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{index}.png": b"" for index in range(len(ids))}
        rows = [[name, index % 2, id_] for index, (name, id_) in enumerate(zip(files, ids, strict=True))]
        place(Path(folder), {**files, "t.csv": text(["path", "ill", "patient"], *rows)})
        read = {
            how: read_collection(Options(path=folder, labels=("ill",), group="patient", alike_groups=how))
            for how in ("ask", "join", "keep")
        }
    several = len(set(zip(people, map(str.strip, ids), strict=True))) > len(set(people))
    for how, severity in (("ask", "error"), ("join", "note"), ("keep", "warning")):
        assert several == any(
            "look alike" in problem.what and problem.severity == severity for problem in read[how].problems
        ), how
    assert parted(row.group for row in read["join"].rows) == parted(people)
    assert parted(row.group for row in read["keep"].rows) == parted(map(str.strip, ids))
    if not several:
        assert parted(row.group for row in read["ask"].require().rows) == parted(people)


# Whole tables


def table(folder, head, *rows, images=False):
    """Write a table of images, of which the first columns are path and patient; three rows and a patient each."""
    body = [[f"{index}.png", f"p{index // 3}", *row] for index, row in enumerate(rows)]
    files = {row[0]: encode(scene(index)) if images else b"" for index, row in enumerate(body)}
    return place(folder, {**files, "t.csv": text(["path", "patient", *head], *body)})


def read(folder, **options):
    return read_collection(Options(path=str(folder), **{"group": "patient", **options}))


def cycle(*values, count=18):
    return [(values[index % len(values)],) for index in range(count)]


def counts(collection):
    """Map each name to its positive, negative and unlabelled images."""
    columns = list(zip(*(row.labels for row in collection.rows), strict=True))
    return {
        name: (column.count(1), column.count(0), sum(value != value for value in column))
        for name, column in zip(collection.names, columns, strict=True)
    }


def told(collection, severity):
    return "\n".join(str(problem) for problem in collection.problems if problem.severity == severity)


BINARY = {"x": (6, 6, 0)}


@pytest.mark.parametrize(
    ("values", "options", "kind", "expected", "severity", "message"),
    [
        # Words for 0 and 1, however they are written
        (["Yes", "y", "NO", "n"], {}, "multi_label", {"x": (10, 8, 0)}, "note", "words are read as 1 or 0"),
        (["１", "1.0", "0", "0,0"], {}, "multi_label", {"x": (10, 8, 0)}, None, ""),
        (["TRUE", " true", "False"], {}, "multi_label", {"x": (12, 6, 0)}, None, ""),
        (["positive", "negative"], {}, "one_of_k", {"negative": (9, 9, 0), "positive": (9, 9, 0)}, None, ""),
        (
            ["pos", "+", "neg"],
            {"task": "multi label"},
            "multi_label",
            {"x": (12, 6, 0)},
            "note",
            "'\\+' in rows 3.* as 1",
        ),
        # What is surely unlabelled
        (["0", "1", "#N/A"], {}, "multi_label", {"x": (6, 6, 6)}, "note", "read as unlabelled: x '#N/A' in rows 4, 7"),
        (["0", "1", "n.a."], {}, "multi_label", {"x": (6, 6, 6)}, "note", "read as unlabelled"),
        (["a", "b", "<NA>"], {}, "one_of_k", {"a": (6, 6, 6), "b": (6, 6, 6)}, "note", "read as unlabelled"),
        # What may be: asked
        *(
            (["0", "1", code], {}, "multi_label", BINARY, "error", rf"may mean unknown: x '{shown}' in rows 4, 7")
            for code, shown in {
                **{word: word for word in ("-1", "-1.0", "Unknown", "None", "-", "9", "99", "not known")},
                "?": r"\?",
            }.items()
        ),
        (["a", "b", "None"], {}, "one_of_k", {"a": (6, 6, 0), "b": (6, 6, 0)}, "error", "may mean unknown: x 'None'"),
        (["0", "1", "-1"], {"unknown": [-1]}, "multi_label", {"x": (6, 6, 6)}, "note", "unlabelled: x '-1'"),
        (["0", "1", "-1"], {"unknown": ["-1.0"]}, "multi_label", {"x": (6, 6, 6)}, "note", "unlabelled: x '-1'"),
        (
            ["0", "1", "-1"],
            {"classes": [-1, 0, 1]},
            "one_of_k",
            dict.fromkeys(("-1", "0", "1"), (6, 12, 0)),
            None,
            "",
        ),
        (["7", "8", "9"], {}, "one_of_k", dict.fromkeys("789", (6, 12, 0)), None, ""),
        # Classes that look alike
        (
            ["Mild", "mild\u200b", "bad"],
            {},
            "one_of_k",
            None,
            "error",
            r"classes look alike: 'Mild' .*'mild\\u200b' in",
        ),
        (["1", "1.0", "2"], {}, "one_of_k", None, "error", "classes look alike: '1' in .*, '1.0' in"),
        (["é", "e\u0301", "o"], {}, "one_of_k", None, "error", r"'\\xe9' in rows .*, 'e\\u0301' in rows"),
        (
            ["Mild", "mild ", "bad", "MILD", "Mild"],
            {"alike_classes": "join"},
            "one_of_k",
            {"Mild": (14, 4, 0), "bad": (4, 14, 0)},
            "note",
            "that look alike are joined.* as 'Mild'",
        ),
        (
            ["Mild\u200b", "mild", "bad", "Mild\u200b"],
            {"alike_classes": "join"},
            "one_of_k",
            {"bad": (4, 14, 0), "mild": (14, 4, 0)},
            "note",
            "as 'mild'",
        ),
        (
            ["Mild", "mild", "bad"],
            {"alike_classes": "keep"},
            "one_of_k",
            dict.fromkeys(("Mild", "bad", "mild"), (6, 12, 0)),
            "warning",
            "that look alike are kept apart: 'Mild' in",
        ),
        (
            ["Mild", "mild ", "bad"],
            {"classes": ("bad", "mild")},
            "one_of_k",
            {"bad": (6, 12, 0), "mild": (12, 6, 0)},
            "note",
            "a class is written in another way: 'Mild' in rows 2, 5, 8 and 3 more as 'mild'",
        ),
        (["Mild", "mild"], {"classes": ("bad", "mild"), "alike_classes": "keep"}, "one_of_k", None, "error", "none of"),
        (["Mild", "MILD"], {"classes": ("mild", "milD")}, "one_of_k", None, "error", "a class is none of mild, milD"),
        # Several findings in a cell
        (
            ["a1|b1", "b1", "No Finding"],
            {"separator": "|"},
            "multi_label",
            {"a1": (6, 12, 0), "b1": (12, 6, 0)},
            "note",
            "means none of the findings: 'No Finding' in rows 4",
        ),
        (
            ["['a1', 'b1']", "['b1']", "['normal']", ""],
            {"separator": ","},
            "multi_label",
            {"a1": (5, 9, 4), "b1": (10, 4, 4)},
            "note",
            "none of the findings: 'normal'",
        ),
        (
            ["A1; b1", "unknown; a1", "nix"],
            {"separator": ";", "unknown": ["unknown"], "no_finding": ["nix"], "alike_classes": "join"},
            "multi_label",
            {"A1": (12, 6, 0), "b1": (6, 6, 6)},
            "note",
            "joined",
        ),
        (
            ["a1|b1", "normal|No finding"],
            {"separator": "|"},
            "multi_label",
            {"a1": (9, 9, 0), "b1": (9, 9, 0)},
            "note",
            "means none",
        ),
        (["a1|b1", "b1|normal"], {"separator": "|"}, "multi_label", None, "error", "both that there is a finding and"),
        (["a1|b1", "?|a1"], {"separator": "|"}, "multi_label", None, "error", r"may mean unknown: x '\?' in rows 3"),
        (["a1|b1", "none"], {"separator": "|"}, "multi_label", None, "error", "to no_finding if it means that"),
        (["a1|b1", "c1"], {"separator": "|", "classes": ("a1", "b1")}, "multi_label", None, "error", "'c1'"),
        (["a1|b1", "b1", "a1"], {}, "one_of_k", None, "warning", r'count as one class: .* Set separator: "\|"'),
        (["a1|b1", "b1"], {"classes": ("a1", "b1")}, "one_of_k", None, "error", r'for findings set separator: "\|"'),
        (["a1, b1", "c1"], {}, "one_of_k", {"a1, b1": (9, 9, 0), "c1": (9, 9, 0)}, None, ""),
        # No classes at all
        (
            [f"words {index}" for index in range(21)],
            {},
            "one_of_k",
            None,
            "error",
            "holds 21 texts, too many for classes",
        ),
    ],
)
def test_labels(tmp_path, values, options, kind, expected, severity, message):
    folder = table(tmp_path, ["x"], *cycle(*values, count=max(18, len(values))))
    collection = read(folder, labels=("x",), **options)
    assert collection.kind == kind
    if expected is not None:
        assert counts(collection) == expected
    if severity is None:
        assert not list(collection.problems)
    else:
        assert re.search(message, told(collection, severity)), list(map(str, collection.problems))
        assert bool(collection.problems.errors) == (severity == "error")


@pytest.mark.parametrize(
    ("ids", "options", "groups", "severity", "message"),
    [
        (["00007", "7", "8"], {}, None, "error", "groups look alike: '00007' in rows 2, 5, 8 and 3 more, '7' in"),
        (["00007", "7", "8"], {"alike_groups": "join"}, 2, "note", "are joined: '00007' in .* as '00007'"),
        (["00007", "7", "8"], {"alike_groups": "Keep"}, 3, "warning", "are kept apart: '00007' in"),
        (["1.23457E+11", "12"], {}, 2, "warning", r"a group is a rounded number: '1\.23457E\+11' in"),
        (["1234567890123450000", "1234567890123460000"], {}, 2, "warning", "a group is a rounded number"),
        (["1234567890123456789", "1234567890123456780"], {}, 2, None, ""),
        (["unknown", "Unknown", "a", "b"], {}, None, "error", "may stand for unknown.*'unknown' in .*'Unknown' in"),
        (["-1", "1", "2"], {}, None, "error", "a group may stand for unknown: '-1' in rows 2, 5"),
        (["0", "0", "0", *map(str, range(11, 20))], {}, None, "error", "a group may stand for unknown: '0' in"),
        (["0", "0", "0", *map(str, range(11, 20))], {"known_groups": [0]}, 10, None, ""),
        (["none", "a", "b"], {"unknown_groups": ["None"]}, 8, "warning", "a group is blank.*row 2 'none'"),
        (["0", "1", "2"], {}, 3, None, ""),
        (["#N/A", "a", "b"], {}, 8, "warning", "a group is blank.*row 2 '#N/A'"),
    ],
)
def test_groups(tmp_path, ids, options, groups, severity, message):
    folder = table(tmp_path, ["x", "id"], *[(index % 2, *row) for index, row in enumerate(cycle(*ids))])
    collection = read(folder, labels=("x",), **{"group": "id", **options})
    assert groups is None or len({row.group for row in collection.rows}) == groups
    assert bool(collection.problems.errors) == (severity == "error")
    if severity is None:
        assert not list(collection.problems)
    else:
        assert re.search(message, told(collection, severity)), list(map(str, collection.problems))
    if severity == "warning":
        chosen = {"path": str(folder), "labels": ("x",), "group": "id", **options}
        assert len(own.describe(**chosen).caveats) == 1, "tables of results say it, too"


def test_splits(tmp_path):
    words = {"Train ": "train", "TRAINING": "train", "tr": "train", "val.": "validation", "Dev": "validation"}
    assert {word: split_of(word) for word in words} == words and split_of("Test set") == "test"
    assert split_of("eval") is split_of("unknown") is split_of("0") is None
    folder = table(tmp_path, ["x", "s"], *[(index % 2, index // 3 % 5) for index in range(15)])
    message = r'numbers, perhaps of folds: .0. in rows 2, 3, 4; .* set split: "" and folds: 5'
    assert re.search(message, told(read(folder, labels=("x",), split="s"), "error"))


def test_a_column_without_a_name_is_nothing(tmp_path):
    rows = [("train" if index < 9 else "test", index % 2, index % 2) for index in range(18)]
    report = inspect(table(tmp_path, ["", "Unnamed: 0", "ill"], *rows, images=True))
    assert report.ok and report.options.labels == ("ill",), report.text()
    assert report.options.split == report.options.mask == "" and report.options.group == "patient"
    assert not any(row.split or row.masks for row in report.collection.rows)
    assert "a column without a name is not read" in report.text()
    assert all(row.group == row.file for row in read(tmp_path, labels=("ill",), group="").rows)
    assert inspect(table(tmp_path, ["Диагноз"], *cycle(0, 1), images=True)).options.labels == ("Диагноз",)


def test_names_of_findings_in_masks_and_boxes(tmp_path):
    folder = table(tmp_path, ["Nodule", "mask:nodule", "mask:other"], *[(1, "0.png", "")] * 3, (0, "", ""))
    place(folder, {"b.csv": text(["path", "finding", "x", "y", "width", "height"], ["0.png", "NODULE ", 1, 1, 2, 2])})
    collection = read(folder, labels=("nodule",), table="t.csv", mask="mask", boxes="b.csv")
    assert "labels 'nodule' as 'Nodule'" in told(collection, "note")
    assert collection.names == ("Nodule",) and collection.rows[0].boxes == [("Nodule", (1, 1, 3, 3))]
    assert [row.masks for row in collection.rows] == [(("Nodule", "0.png"),)] * 3 + [()]
    assert "a column of masks is of none of Nodule: 'mask:other'" in told(collection, "error")


def test_options_as_people_write_them(tmp_path):
    folder = table(tmp_path, ["2024"], *cycle(0, 1))
    given = {"path": str(folder), "labels": [2024], "task": "Multi-Label", "channels": "3", "resize": "Centre_Crop"}
    source, chosen = describe(own, {**given, "group": "Patient ", "window": "Full"})
    assert source.channels == 3 and source.resize == "centre_crop" and source.labels.names == ("2024",)
    assert Options(**chosen).window == "full" and source.caveats == ()
    for options, message in (
        ({"alike_groups": "merge"}, "alike_groups: 'merge' is none of ask, join, keep"),
        ({"classes": [True, False]}, "classes: YAML reads a value here as true, where text is wanted"),
        ({"separator": "|", "task": "one_of_k"}, "separator: it makes findings"),
        ({"unknown": ["-1"], "classes": ["-1.0", "0"]}, "unknown: '-1' stands in classes, too"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe(own, {**given, **options})


def test_what_separates_findings():
    assert find_separator(["a|b", "c"]) == "|" and find_separator(["a\nb"]) == "\n"
    assert find_separator(["mass, edema", "mass", "edema"]) == ","
    assert find_separator(["mass + edema", "mass", "edema"]) == " + "
    assert find_separator(["['mass', 'edema']", "['mass']", "['edema']"]) == ","
    assert find_separator(["carcinoma, ductal", "carcinoma, lobular", "benign"]) is None
    assert find_separator(["and/or", "other"]) is None
    assert find_separator(["ER+", "ER-"]) is None


def test_slips_and_rounded_numbers():
    pairs = {("benign", "bengin"), ("malignant", "malignnt"), ("small nodule", "small noduel")}
    assert {pair for both in pairs for pair in misspelt(both)} == pairs
    assert not list(misspelt(["grade 1", "grade 2", "type a", "type b", "stage ii", "stage iii", "left", "lung"]))
    assert rounded(["1.23457E+11", "1.5E+01", "12", "e+5"]) == ["1.23457E+11"]


@pytest.mark.parametrize(
    ("head", "rows", "options", "message"),
    [
        (
            ["x", "patient_id"],
            [(i % 2, f"p{i}") for i in range(12)],
            {"group": "patient_id"},
            "each group of 'patient_id' has",
        ),
        (["x", "case"], [(i % 2, f"p{i > 8}") for i in range(12)], {"group": "case"}, "'pFalse' has 9 of 12"),
        (["x"], [(i % 2,) for i in range(12)], {"group": ""}, "no group column is set.*the table has 'patient'"),
        (
            ["x", "lesion"],
            [(i % 2, i) for i in range(12)],
            {"group": "lesion"},
            "'patient' joins groups of 'lesion' 4 times",
        ),
        (
            ["x", "fold"],
            [(i % 2, i // 3) for i in range(12)],
            {},
            "like a split is not used: 'fold': '0', '1', .*set folds",
        ),
        (["x", "split"], [(i % 2, "train") for i in range(12)], {}, "like a split is not used: .*Set split to it"),
        (["x"], [("abcd"[i // 3],) for i in range(12)], {}, "each class is one group"),
        (
            ["x"],
            [("bengin" if i == 3 else ["benign", "bad"][i % 2],) for i in range(12)],
            {},
            "'bengin' of 1 images and 'benign'",
        ),
    ],
)
def test_odd_evidence_is_a_warning(tmp_path, head, rows, options, message):
    folder = table(tmp_path, head, *rows, images=True)
    report = inspect(Options(path=str(folder), **{"labels": ("x",), "group": "patient", **options}))
    warnings = "\n".join(str(problem) for problem in report.problems if problem.severity == "warning")
    assert report.ok and re.search(message, warnings), report.text()


def test_guesses_carry_their_evidence_and_are_asked(tmp_path):
    folder = table(
        tmp_path, ["Finding Labels", "fold"], *[(*row, 1) for row in cycle("Mass|Hernia", "none", "Mass")], images=True
    )
    report = inspect(folder)
    assert report.options.separator == "|" and report.options.split == "" and not report.ok
    for line in (
        "group     'patient', by its name: 6 texts in 18 rows, 'p0', 'p1', 'p2', ...",
        "labels    'Finding Labels', by its name: 3 texts",
        "separator '|': it stands between",
    ):
        assert f"guessed   {line}" in report.text() and f"# Guessed: {line}" in starter_config(folder)
    written = starter_config(folder)
    assert 'separator: "|" #' in written and "no_finding: [] #" in written and "alike_groups" not in written


def test_a_run_stops_until_the_user_has_chosen(tmp_path):
    folder = table(tmp_path, ["x"], *cycle("Mild", "mild", "bad"), images=True)
    written = starter_config(folder)
    assert 'alike_classes: "ask" #' in written and "classes: [] #" in written
    with pytest.raises(DataError, match="classes look alike"):
        own.describe(path=str(folder), labels=("x",), group="patient")
    kept = own.describe(path=str(folder), labels=("x",), group="patient", alike_classes="keep")
    assert kept.caveats == ("classes that look alike are kept apart.",) and len(kept.labels.names) == 3


def test_a_class_may_not_be_called_as_the_mean_of_all_is(tmp_path):
    folder = table(tmp_path, ["kind"], *cycle("macro", "micro"))
    assert "a class or finding is called 'macro'" in told(read(folder, labels=("kind",), task="one_of_k"), "error")
