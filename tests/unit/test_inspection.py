"""Everything that can be wrong with a user's own images, found before anything runs."""

import re
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdiff.config import ConfigError, parse_experiment
from jointdiff.data.own.inspection import check_command, guess, inspect
from jointdiff.data.own.starter import init_command, starter_config
from jointdiff.data.own.tables import Options
from jointdiff.data.source import DataError, describe
from jointdiff.data.sources import own
from tests.properties import examples
from tests.unit.test_images import dicom, encode
from tests.unit.test_own import place, text

COUNT = 12


def scene(index, shape=(40, 48)):
    coarse = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))


PICTURES = {f"{index}.png": encode(scene(index)) for index in range(COUNT)}
HEAD = ["path", "ill", "patient"]
ROWS = [[f"{index}.png", index % 2, f"p{index // 2}"] for index in range(COUNT)]
WHOLE = {"table": "labels.csv", "labels": ("ill",), "group": "patient"}


def rows(*changes, head=HEAD, more=()):
    """Return a table of twelve images with some cells changed: (index of the image, column, value)."""
    body = [[*row, *[""] * (len(head) - len(HEAD))] for row in ROWS]
    for index, column, value in changes:
        body[index][head.index(column)] = value
    return text(head, *body, *more)


def column(name, *values):
    """Return the table with one more column."""
    return text([*HEAD, name], *[[*row, value] for row, value in zip(ROWS, values, strict=True)])


def reported(folder, files, **options):
    place(folder, {**PICTURES, "labels.csv": rows(), **files})
    return inspect(Options(path=str(folder), **{**WHOLE, **options}))


def found(report, severity):
    return [str(problem) for problem in report.problems if problem.severity == severity]


def test_good_data_have_no_problems(tmp_path):
    report = reported(tmp_path, {})
    assert report.ok and not report.problems, report.text()
    assert report.counts == {"ill": (6, 6, 0)}
    shown = report.text()
    for line in ("12 PNG 8 bits grey", "48 x 40 pixels", "6 positive, 6 negative", "6 by patient", "drawn per seed"):
        assert line in shown
    assert "ready to run" in shown


LAST = COUNT + 2  # row of a spreadsheet below the last image
MASK = np.zeros((40, 48), dtype=np.uint8)
MASK[3:9, 4:8] = 255
TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter to the right


def boxes(*body, head=("path", "finding", "x0", "y0", "x1", "y1")):
    return {"boxes.csv": text(head, *body)}


def masks(**files):
    """Return a table with a mask for the images 1 (ill) and 2 (not), and the files."""
    named = {1: "m1.png", 2: "m2.png"}
    table = column(
        "mask", *[named.get(index, "") if named.get(index, "")[:2] in files else "" for index in range(COUNT)]
    )
    return {"labels.csv": table, **{f"{name}.png": content for name, content in files.items() if content}}


WITH = {"boxes": "boxes.csv"}
MASKED = {"mask": "mask"}


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        # The table
        ({"labels.csv": b""}, {}, r"labels\.csv is empty; its first row names the columns"),
        ({"labels.csv": b"path,ill,patient\n"}, {}, r"labels\.csv has no rows; write one row per image"),
        ({"labels.csv": rows().replace(b",", b";").replace(b"path;ill", b"path;ill,")}, {}, r"has no column 'ill'"),
        ({"labels.csv": rows((3, "patient", "Mü")).decode().encode("latin-1")}, {}, r"row 5: this is no UTF-8; save"),
        ({"labels.csv": rows().replace(b"ill,patient", b"ill,ill")}, {}, r"has more than one column 'ill'; rename"),
        ({"labels.csv": rows(more=[["a.png", 1]])}, {}, rf"row {LAST}: 2 cells below 3 columns; put a cell that has"),
        ({"labels.csv": b'path,ill,patient\n"0.png,1,a\n'}, {}, r"is no CSV table \(.*\); save it as 'CSV UTF-8'"),
        ({"labels.csv": b"PK\x03\x04\0\0"}, {}, r"labels\.csv is no text; save it as 'CSV UTF-8'"),
        ({"labels.parquet": b"PAR1 not"}, {"table": "labels.parquet"}, r"labels\.parquet is no Parquet table \("),
        ({}, {"file": "paths"}, r"the option file names a column that is not there: .*did you mean 'path'\?"),
        ({}, {"labels": ("il",)}, r"the option labels names a column .* did you mean 'ill'\? It has: path, ill"),
        ({}, {"group": "Patient_ID"}, r"the option group names a column .* did you mean 'patient'\?"),
        ({}, {"mask": "mask"}, r"the option mask names a column that is not there"),
        ({}, {"labels": ()}, r"no label columns are chosen\. Set labels; the table has: path, ill, patient"),
        # Paths
        ({"labels.csv": rows((2, "path", ""))}, {}, r"the path of an image is blank: row 4\. Fill it in"),
        ({"labels.csv": rows(more=[["1.png", 1, "a"]])}, {}, rf"named twice: row {LAST} '1\.png', first in row 3\."),
        ({"labels.csv": rows((2, "path", "../2.png"))}, {}, r"a path leaves the folder: row 4 '\.\./2\.png'"),
        (
            {"labels.csv": rows((2, "path", "2.PNG"))},
            {},
            r"the image is not in .*: row 4 '2\.PNG' \(did you mean '2\.png'",
        ),
        ({"labels.csv": rows((2, "path", "2"))}, {}, r"row 4 '2' \(did you mean '2\.png'\?\)"),
        ({"labels.csv": rows((2, "path", "scans/2.png"))}, {}, r"row 4 'scans/2\.png' \(did you mean '2\.png'\?\)"),
        ({"labels.csv": rows((2, "path", "x.png"))}, {}, r"row 4 'x\.png'\. Correct the path, add the file or remove"),
        # Labels
        (
            {"labels.csv": rows((1, "ill", "maybe"))},
            {"task": "multi_label"},
            r"neither 0 nor 1 nor blank: row 3 ill 'maybe'",
        ),
        (
            {"labels.csv": rows((1, "ill", "-1"))},
            {"task": "multi_label"},
            r"a label may mean unknown: ill '-1' in row 3\. Add it to the option unknown if it means unlabelled",
        ),
        (
            {"labels.csv": column("kind", *["good", "bad"] * 5, "god", "bad")},
            {"labels": ("kind",), "classes": ("good", "bad")},
            r"a class is none of good, bad: row 12 'god' \(did you mean 'good'\?\)",
        ),
        ({"labels.csv": column("kind", *["good"] * 12)}, {"labels": ("kind",)}, r"'kind' holds fewer than two classes"),
        (
            {"labels.csv": column("b", *[1] * 12)},
            {"labels": ("ill", "b")},
            r"a finding has no negative image: 'b'\. Write 0",
        ),
        ({"labels.csv": column("b", *[0] * 12)}, {"labels": ("ill", "b")}, r"a finding has no positive image: 'b'\."),
        ({"labels.csv": column("b", *[""] * 12)}, {"labels": ("b",)}, r"no image has a label\. Fill in labels"),
        # Splits
        (
            {"labels.csv": column("s", *["train"] * 10, "tets", "test")},
            {"split": "s", "group": ""},
            r"a split is none of train, validation, test: row 12 'tets'",
        ),
        (
            {"labels.csv": column("s", *["train"] * 5, *["test"] * 7)},
            {"split": "s"},
            r"a group crosses the splits: 'p2': train in row 6, test in row 7\. Put all its images into one",
        ),
        # Images
        ({"1.png": b""}, {}, r"an image cannot be used: row 3: 1\.png does not decode as an image: it is empty"),
        ({"1.png": b"text"}, {}, r"row 3: 1\.png .*its format is none of PNG, JPEG, TIFF, DICOM"),
        ({"1.png": PICTURES["1.png"][:300]}, {}, r"row 3: 1\.png does not decode as an image \(.*the file is damaged"),
        ({"1.png": dicom(None)}, {}, r"row 3: 1\.png is a DICOM file without pixels"),
        (
            {"1.png": encode(np.ones((9, 9), np.float32), "TIFF")},
            {"window": "full"},
            r"row 3: 1\.png holds numbers without a",
        ),
        # Boxes
        (
            boxes(["1.png", "ill", 0, 0, 49, 9]),
            WITH,
            r"leaves its image: row 3 '1\.png' is 48 x 40, the box 0, 0, 49, 9",
        ),
        (boxes(["1.png", "ill", 9, 0, 2, 9]), WITH, r"a box is empty or inverted: boxes\.csv row 2 9, 0, 2, 9"),
        (boxes(["1.png", "ill", "1,5", 0, 2, 9]), WITH, r"a box has no numbers: boxes\.csv row 2 1,5, 0, 2, 9"),
        (boxes(["1.png", "ill", "nan", 0, 2, 9]), WITH, r"a box is empty or inverted: boxes\.csv row 2"),
        (boxes(["1.png", "il", 1, 0, 2, 9]), WITH, r"a box is of none of ill: boxes\.csv row 2 'il'"),
        (boxes(["2.png", "ill", 1, 0, 2, 9]), WITH, r"a finding that its image does not have: boxes\.csv row 2 'ill'"),
        (boxes(["2.png", "", 1, 0, 2, 9]), WITH, r"does not say of which finding it is: boxes\.csv row 2"),
        (boxes(["x.png", "ill", 1, 0, 2, 9]), WITH, r"in an image without a valid row: boxes\.csv row 2 'x\.png'"),
        (
            boxes(["1.png"], head=["path"]),
            WITH,
            r"the table of boxes lacks columns: .* It needs x0, y0, x1, y1 \(or x, y",
        ),
        # Masks
        (masks(m1=None), MASKED, r"the mask is not in .*: row 3 'm1\.png'"),
        (masks(m1=b"none"), MASKED, r"a mask cannot be used: row 3: m1\.png does not decode"),
        (
            masks(m1=encode(MASK[:9])),
            MASKED,
            r"a mask cannot be used: row 3: m1\.png is 48 x 9 pixels, its image 48 x 40; draw it on the image's own",
        ),
        (masks(m2=encode(MASK)), MASKED, r"a mask shows what the image does not have: row 4 'm2\.png'"),
    ],
)
def test_errors(tmp_path, files, options, message):
    report = reported(tmp_path, files, **options)
    assert not report.ok
    errors = "\n".join(found(report, "error"))
    assert re.search(message, errors), errors
    assert "mend the errors" in report.text()


GREY = scene(1)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)
DEEP = {f"{index}.png": encode(scene(index).astype(np.uint16) * 16) for index in range(COUNT)}


@pytest.mark.parametrize(
    ("severity", "files", "options", "message"),
    [
        ("warning", {"1.png": encode(np.full((40, 48), 7, np.uint8))}, {}, r"an image is blank: row 3 '1\.png'"),
        (
            "warning",
            {"1.png": encode(scene(1, (12, 40)))},
            {},
            r"fewer than 16 pixels a side: row 3 '1\.png' is 40 x 12",
        ),
        (
            "warning",
            {"1.png": encode(COLOUR)},
            {},
            r"some images are colour among others: row 3 '1\.png'\. All become grey",
        ),
        (
            "warning",
            {"1.png": PICTURES["7.png"]},
            {},
            r"identical images are in different groups: rows 3 and 9\. Give them",
        ),
        ("warning", {"1.png": PICTURES["8.png"]}, {}, r"identical images have different labels: rows 3 and 10"),
        (
            "warning",
            {"1.png": encode(np.clip(scene(7) * 0.9 + 9, 0, 255).astype(np.uint8))},
            {},
            r"nearly identical images are in different groups: rows 3 and 9\. .*join_near_duplicates",
        ),
        (
            "warning",
            {"1.png": PICTURES["11.png"], "labels.csv": column("s", *["train"] * 6, *["test"] * 6)},
            {"split": "s"},
            r"identical images are in different splits: rows 3 and 13",
        ),
        ("warning", {"labels.csv": rows((3, "patient", ""))}, {}, r"a group is blank: row 5\. Fill them in"),
        ("warning", {}, {"group": ""}, r"no group column is set"),
        (
            "warning",
            {"labels.csv": column("k", "a", *["b", "c"] * 5, "b")},
            {"labels": ("k",)},
            r"a class has a single image: 'a' in row 2",
        ),
        (
            "warning",
            {"labels.csv": column("k", "a", "a", *["b", "c"] * 5)},
            {"labels": ("k",)},
            r"a class has too few groups for the splits: 'a' is in 1 group\.",
        ),
        (
            "warning",
            {"labels.csv": column("s", *["train"] * 10, "test", "")},
            {"split": "s"},
            r"a finding is absent from a split: 'ill' in test",
        ),
        (
            "warning",
            masks(m1=encode(MASK * 0)),
            MASKED,
            r"a mask is empty though the finding is there: row 3 'm1\.png'",
        ),
        (
            "warning",
            masks(m1=encode(MASK // 3 + (MASK // 5) * (np.arange(48) > 5))),
            MASKED,
            r"a mask has more than two values: row 3 'm1\.png' holds 0, 85, 136: all but 0 count\. .*mask_values",
        ),
        (
            "warning",
            masks(m1=encode(255 - MASK)),
            MASKED,
            r"a mask marks the border and most of its image: row 3 'm1\.png'\. Is it inverted\?",
        ),
        (
            "warning",
            {**masks(m1=encode(MASK.T)), "1.png": encode(scene(1).T, exif=TURNED)},
            MASKED,
            r"an image and its mask have different EXIF orientations: row 3 'm1\.png': 6 and 1",
        ),
        (
            "warning",
            {name: encode(scene(index) // 16 * 16) for index, name in enumerate(PICTURES)},
            {},
            r"the images use few grey levels: 16 values from 0 to 240 of 255",
        ),
        (
            "warning",
            {name: encode(scene(index) // 8) for index, name in enumerate(PICTURES)},
            {},
            r"the images are nearly black: 32 values from 0 to 31 of 255",
        ),
        (
            "note",
            {"1.png": dicom(scene(1).astype(np.uint16), bits=12, WindowCenter=[99, 50], WindowWidth=[100, 9])},
            {},
            r"a DICOM file names several windows, and the first is used: row 3 '1\.png'\. Set window to a range",
        ),
        ("note", {"more/x.png": PICTURES["1.png"]}, {}, r"an image is in no row: more/x\.png\. It is not used"),
        ("note", {"1.png": PICTURES["0.png"]}, {}, r"an image is there twice: rows 2 and 3"),
        ("note", {"1.png": encode(scene(1, (40, 130)))}, {}, r"shapes of images differ widely: 1\.20 to 3\.25"),
        ("note", {}, {"channels": 3}, r"no image has colour\. Set channels to 1"),
        (
            "warning",
            {name: encode(np.roll(COLOUR, 9 * index, 1)) for index, name in enumerate(PICTURES)},
            {},
            r"all images are in colour and are made grey",
        ),
        ("note", DEEP, {}, r"deep images are stretched one by one: 12 images\. Set window to 0\.\.4095"),
        (
            "note",
            {"labels.csv": column("well", *[1 - index % 2 for index in range(COUNT)])},
            {"labels": ("ill", "well")},
            r"every image has exactly one finding\. .*set task to one_of_k",
        ),
    ],
)
def test_warnings_and_notes(tmp_path, severity, files, options, message):
    report = reported(tmp_path, files, **options)
    told = "\n".join(found(report, severity))
    assert re.search(message, told), report.text()
    assert report.ok and "ready to run" in report.text()


def test_everything_at_once_with_its_rows(tmp_path):
    table = rows(
        (0, "ill", "perhaps"),
        (2, "path", "nowhere.png"),
        (4, "ill", "2"),
        (5, "path", "6.png"),
        head=[*HEAD, "x0", "y0", "x1", "y1"],
    ).replace(b"8.png,0,p4,,,,", b"8.png,0,p4,1,1,4,4")
    report = reported(
        tmp_path,
        {"labels.csv": b"\xef\xbb\xbf" + table, "9.png": b"", "10.png": b"no image"},
        task="multi_label",
        boxes="labels.csv",
    )
    places = {problem.what: problem.places for problem in report.problems if problem.severity == "error"}
    assert places == {
        "a label is neither 0 nor 1 nor blank": ("row 2 ill 'perhaps'", "row 6 ill '2'"),
        f"the image is not in {tmp_path}": ("row 4 'nowhere.png'",),
        "an image is named twice": ("row 8 '6.png', first in row 7",),
        "a box does not say of which finding it is": ("row 10",),
        "an image cannot be used": (
            "row 11: 9.png does not decode as an image: it is empty (0 bytes); replace it or download it again",
            "row 12: 10.png does not decode as an image: its format is none of PNG, JPEG, TIFF, DICOM, or its kind of "
            "pixels is unknown; convert it to PNG, or, where it should be an image of these, download it again",
        ),
    }
    assert "5 kinds of errors" in report.text()


def test_ten_thousand_mistakes_are_one_problem(tmp_path):
    table = text(HEAD, *[[f"{index}.jpeg", 1, ""] for index in range(100, 10100)])
    report = reported(tmp_path, {"labels.csv": table})
    (error,) = [line for line in found(report, "error") if "is not in" in line]
    assert re.search(r"\(10,000 times\): row 2 '100\.jpeg'; .*row 6 '104\.jpeg'; and 9,995 more\.", error)
    assert len(report.text()) < 4000


def test_rows_are_numbered_as_in_a_spreadsheet(tmp_path):
    table = b'path,ill,patient\n\n0.png,1,"a\nb"\n\n1.png,0,b\n2.png,x,c\n'
    (error,) = reported(tmp_path, {"labels.csv": table}, task="multi_label").problems[:1]
    assert error.places == ("row 6 ill 'x'",)


# Archives


def archive(path, files):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def test_a_good_zip(tmp_path):
    report = inspect(archive(tmp_path / "scans.zip", {"labels.csv": rows(), **PICTURES}))
    assert report.ok and report.options == Options(path=str(tmp_path / "scans.zip"), **WHOLE)


def test_bad_zips(tmp_path):
    whole = archive(tmp_path / "scans.zip", {"labels.csv": rows(), **PICTURES}).read_bytes()

    def told(content):
        (tmp_path / "bad.zip").write_bytes(content)
        report = inspect(tmp_path / "bad.zip")
        assert not report.ok
        return str(report.problems[0])

    assert "bad.zip is corrupt or truncated" in told(whole[:-30])
    assert "would be written outside its folder" in told(
        archive(tmp_path / "evil.zip", {"../../evil.png": b"x"}).read_bytes()
    )
    # The bit that says encrypted, in the central directory.
    place_ = whole.index(b"PK\x01\x02") + 8
    assert "is encrypted; unpack it" in told(whole[:place_] + b"\x01" + whole[place_ + 1 :])
    # A member that is damaged inside a whole archive.
    start = whole.index(PICTURES["3.png"])
    damaged = told(whole[: start + 60] + b"????" + whole[start + 64 :])
    assert "an image cannot be used: row 5: bad.zip is corrupt or truncated" in damaged.replace(f"{tmp_path}/", "")


# Any bytes


@examples(120)
@given(st.binary(max_size=200) | st.text(alphabet='path,ill10.png\n";\t ', max_size=200).map(str.encode), st.booleans())
def test_no_table_makes_it_fail(tmp_path_factory, content, parquet):
    folder = tmp_path_factory.getbasetemp() / "any"
    name = "labels.parquet" if parquet else "labels.csv"
    place(folder, {"1.png": PICTURES["1.png"], name: content})
    for options in (Options(path=str(folder), table=name, labels=("ill",)), None):
        report = inspect(options or folder / name)
        assert report.text()
        assert not report.ok or report.looks


# Guesses, the starter and the commands


def test_guesses(tmp_path):
    table = text(
        ["Age", "Image_Path", "Nodule", "Effusion", "Patient ID", "Subset", "mask_file", "comment"],
        *[
            [40 + index, f"{index}.png", index % 2, "", f"p{index}", "train", "", f"words {index}"]
            for index in range(COUNT)
        ],
    )
    place(tmp_path, {**PICTURES, "all.csv": table})
    assert guess(tmp_path) == Options(
        path=str(tmp_path),
        table="all.csv",
        file="Image_Path",
        labels=("Nodule",),
        group="Patient ID",
        split="Subset",
        mask="mask_file",
    )
    place(tmp_path, {"boxes.csv": text(["Image_Path", "x0", "y0", "x1", "y1"]) + b"1.png,1,1,2,2\n"})
    assert guess(tmp_path).boxes == "boxes.csv" and guess(tmp_path).table == "all.csv"
    (tmp_path / "boxes.csv").unlink()
    kinds = text(["scan", "diagnosis", "ward"], *[[f"{index}.png", "ab"[index % 2], index] for index in range(COUNT)])
    place(tmp_path, {"all.csv": kinds})
    assert guess(tmp_path / "all.csv") == Options(
        path=str(tmp_path), table="all.csv", file="scan", labels=("diagnosis",)
    )


def starting(folder):
    import yaml

    return yaml.safe_load(starter_config(folder))


@pytest.mark.parametrize("regions", [False, True])
def test_a_starter_is_a_valid_experiment(tmp_path, regions):
    above = tmp_path / 'mein "Projekt" {1} [α] é日本 #%\'& : %s 😀'  # what YAML and templates may trip over
    folder = place(above / "our scans (1)", {**PICTURES, "labels.csv": rows()})
    if regions:
        place(folder, boxes(["1.png", "ill", 1, 1, 9, 9]))
    config = starting(folder)
    experiment = parse_experiment(config)
    data = experiment.datasets["our_scans_1"]
    assert experiment.name == "our_scans_1" and data.source == "own" and data.size == 32 and data.labels == ["all"]
    assert set(experiment.methods) == {"joint", "fully_supervised", "supervised", "fixmatch", "random"}
    assert bool(experiment.methods["joint"].explain) == regions
    source, chosen = describe(own, data.options)
    assert source.labels.names == ("ill",) and chosen["group"] == "patient"
    assert inspect(Options(**chosen)).ok
    assert len([load() for load in own.read(size=32, **chosen)]) == COUNT


def test_a_starter_says_what_it_found(tmp_path):
    many = {f"{index}.png": encode(np.roll(COLOUR, index, axis=1)) for index in range(160)}
    table = text(["path", "kind"], *[[name, ["good", "mild", "severe"][index % 3]] for index, name in enumerate(many)])
    place(tmp_path / "busi", {**many, "t.csv": table})
    data = starting(tmp_path / "busi")["datasets"]["busi"]
    assert data["labels"] == [50] and data["options"]["channels"] == 3
    assert data["options"]["classes"] == ["good", "mild", "severe"] and data["options"]["task"] == "one_of_k"
    assert data["options"]["join_near_duplicates"], "no patient is known"
    place(tmp_path / "busi", {"t.csv": text(["path", "kind"], *[[name, "none"] for name in many])})
    assert "kinds of errors must be mended first" in starter_config(tmp_path / "busi")


def test_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = place(tmp_path / "scans", {**PICTURES, "labels.csv": rows()})
    assert check_command(folder) == 0 and "jointdiff data init" in capsys.readouterr().out
    assert init_command(folder) == 0 and "wrote scans.yaml" in capsys.readouterr().out
    assert check_command(tmp_path / "scans.yaml") == 0 and "datasets.scans: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"scans\.yaml exists already"):
        init_command(folder)
    place(folder, {"1.png": b""})
    assert check_command(tmp_path / "scans.yaml") == check_command(folder / "labels.csv") == 1
    assert "1.png does not decode" in capsys.readouterr().out
    assert check_command(tmp_path / "absent") == 1
    with pytest.raises(DataError, match="there is no folder or zip"):
        starter_config(tmp_path / "absent")
    text_ = (tmp_path / "scans.yaml").read_text().replace("window:", "windo:")
    (tmp_path / "bad.yaml").write_text(text_)
    with pytest.raises(ConfigError, match=r"windo.*did you mean 'window'"):
        check_command(tmp_path / "bad.yaml")
