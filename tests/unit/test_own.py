"""The user's own images: what the reader makes of a folder or a zip and its table."""

import csv
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdiff.config import ConfigError
from jointdiff.data.own.tables import read_table
from jointdiff.data.source import MEDICAL, Augmentations, DataError, LabelSpec, Region, describe
from jointdiff.data.sources import own
from tests.properties import examples


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def image(index):
    return np.random.default_rng(index).integers(0, 256, (20, 30), dtype=np.uint8)


def text(*rows):
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def place(folder: Path, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pictures(count=4):
    return {f"images/{index}.png": png(image(index)) for index in range(count)}


HEAD = ("path", "nodule", "effusion", "patient", "split", "mask", "x0", "y0", "x1", "y1")


@pytest.fixture
def scans(tmp_path):
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:5, 3:9] = 255
    table = text(
        HEAD,
        ("images/0.png", 1, 0, "a", "Train", "mask.png", "", "", "", ""),
        ("images\\1.png", "0", "", "a", "training", "", "", "", "", ""),
        (),
        ("./images/2.png", "True", "1.0", "b", "val", "", "1", "2", "3.5", "4"),
        ("images/3.png", "", "", "", "test", "", "", "", "", ""),
    )
    return place(tmp_path / "scans", {**pictures(), "mask.png": png(mask), "labels.csv": table})


MULTI = {"labels": ("nodule", "effusion"), "group": "patient", "split": "split"}


def samples(path, **options):
    return [load() for load in own.read(size=16, path=str(path), **options)]


def test_a_folder_is_read(scans):
    read = samples(scans, mask="mask", **MULTI)
    assert [sample.sample_id for sample in read] == [f"images/{index}.png" for index in range(4)]
    for index, sample in enumerate(read):
        assert np.array_equal(sample.image, image(index))
    nan = float("nan")
    np.testing.assert_array_equal([sample.labels for sample in read], [[1, 0], [0, nan], [1, 1], [nan, nan]])
    assert [sample.group for sample in read] == ["a", "a", "b", "images/3.png"]
    assert [sample.split for sample in read] == ["train", "train", "validation", "test"]
    (region,) = read[0].regions
    assert region.finding == "nodule" and region.mask.sum() == 18 and region.mask[2:5, 3:9].all()
    assert not any(sample.regions for sample in read[1:])


@pytest.mark.parametrize("top", ["", "scans/"])
def test_a_zip_is_read_as_its_folder_is(scans, tmp_path, top):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for file in sorted(scans.rglob("*.*")):
            archive.write(file, f"{top}{file.relative_to(scans)}")
        archive.writestr("__MACOSX/._0.png", b"what a Mac adds")
    one, two = samples(scans, mask="mask", **MULTI), samples(tmp_path / "scans.zip", mask="mask", **MULTI)
    for a, b in zip(one, two, strict=True):
        assert (a.sample_id, a.group, a.split) == (b.sample_id, b.group, b.split)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels, equal_nan=True)


def test_a_table_beside_a_zip_and_in_parquet(scans, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for index in range(3):
            archive.writestr(f"images/{index}.png", png(image(index)))
    columns = {"name": ["0.png", "1.png", "2.png"], "ill": [1.0, None, 0.0], "patient": [7, 7, 8]}
    parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
    options = {"table": str(tmp_path / "labels.parquet"), "file": "name", "labels": ("ill",), "group": "patient"}
    read = samples(tmp_path / "images.zip", **options)
    np.testing.assert_array_equal([sample.labels for sample in read], [[1], [np.nan], [0]])
    assert [sample.group for sample in read] == ["7", "7", "8"]
    source = own.describe(path=str(tmp_path / "images.zip"), **options)
    assert source.inputs == (tmp_path / "labels.parquet", tmp_path / "images.zip")


def test_boxes_in_the_table_and_beside_it(scans):
    one = {"labels": ("nodule",)}
    read = samples(scans, boxes="labels.csv", **one)
    assert [list(sample.regions) for sample in read] == [[], [], [Region("nodule", box=(1, 2, 3.5, 4))], []]
    place(
        scans,
        {
            "boxes.csv": text(
                ("path", "finding", "x", "y", "width", "height"),
                ("images/2.png", "effusion", 1, 2, 3, 4),
                ("images/2.png", "nodule", 0, 0, 30, 20),
                ("images/0.png", "", 5, 5, 1, 1),
            )
        },
    )
    read = samples(scans, table="labels.csv", boxes="boxes.csv", **MULTI)
    assert read[2].regions == [Region("effusion", box=(1, 2, 4, 6)), Region("nodule", box=(0, 0, 30, 20))]
    assert read[0].regions == [Region("nodule", box=(5, 5, 6, 6))], "of its only finding"


def test_masks_of_several_findings(scans):
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[0, 0] = 1
    table = text(
        ("path", "a", "b", "mask", "mask:a", "mask:b"),
        ("images/0.png", 1, 1, "", "mask.png", "one.png"),
        ("images/1.png", 0, 0, "none.png", "", ""),
    )
    place(scans, {"labels.csv": table, "one.png": png(mask), "none.png": png(mask * 0)})
    read = samples(scans, labels=("a", "b"), mask="mask")
    assert [(region.finding, int(region.mask.sum())) for region in read[0].regions] == [("a", 18), ("b", 1)]
    assert not read[1].regions, "nothing is there, and the mask says so"
    place(scans, {"none.png": png(mask)})
    with pytest.raises(DataError, match=r"none\.png shows a finding that row 3 does not have"):
        samples(scans, labels=("a", "b"), mask="mask")
    place(scans, {"one.png": png(mask[:9])})
    with pytest.raises(DataError, match=r"one\.png is 30 x 9 pixels, its image 30 x 20"):
        samples(scans, labels=("a", "b"), mask="mask")


@pytest.mark.parametrize(
    ("values", "options", "spec"),
    [
        (("1", "0", "", "yes"), {}, LabelSpec("multi_label", ("y",))),
        (("b", "a", "", "b"), {}, LabelSpec("one_of_k", ("a", "b"))),
        (("2", "10", "0", "1"), {}, LabelSpec("one_of_k", ("0", "1", "2", "10"))),
        (("1", "0", "", "1"), {"task": "one_of_k"}, LabelSpec("one_of_k", ("0", "1"))),
        (("b", "a", "", "b"), {"classes": ("b", "a", "c")}, LabelSpec("one_of_k", ("b", "a", "c"))),
    ],
)
def test_what_is_predicted(tmp_path, values, options, spec):
    rows = [(f"images/{index}.png", value) for index, value in enumerate(values)]
    place(tmp_path, {**pictures(), "t.csv": text(("path", "y"), *rows)})
    assert own.describe(path=str(tmp_path), labels=("y",), **options).labels == spec
    for sample, value in zip(samples(tmp_path, labels=("y",), **options), values, strict=True):
        if value == "":
            assert np.isnan(sample.labels).all() and len(sample.labels) == len(spec.names)
        elif spec.kind == "one_of_k":
            assert [name for name, here in zip(spec.names, sample.labels, strict=True) if here] == [value]


def test_columns_of_exclusive_classes(tmp_path):
    table = text(("path", "a", "b"), ("images/0.png", 1, 0), ("images/1.png", 0, 1), ("images/2.png", "", ""))
    place(tmp_path, {**pictures(), "t.csv": table})
    options = {"path": str(tmp_path), "labels": ("a", "b"), "task": "one_of_k"}
    assert own.describe(**options).labels == LabelSpec("one_of_k", ("a", "b"))
    place(tmp_path, {"t.csv": text(("path", "a", "b"), ("images/0.png", 1, 1), ("images/1.png", 0, ""))})
    with pytest.raises(DataError, match=r"an image has not exactly one class \(2 times\): row 2; row 3\. Set exactly"):
        own.describe(**options)


def test_colour_and_window(tmp_path):
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    colour = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    place(tmp_path, {"a.png": png(deep), "b.png": png(colour)})
    place(tmp_path, {"t.csv": text(("path", "y"), ("a.png", 1), ("b.png", 0))})
    a, b = samples(tmp_path, labels=("y",), channels=3, window="0..4080")
    assert np.array_equal(b.image, colour)
    assert np.array_equal(a.image[:, :, 0], np.arange(256).reshape(16, 16))


def test_the_description(scans):
    options = {
        "path": str(scans),
        "labels": ["nodule", "effusion"],
        "horizontal_flip": True,
        "join_near_duplicates": True,
        "resize": "centre_crop",
        "title": "Scans of ours",
    }
    source, chosen = describe(own, options)
    assert source.name == "own" and source.title == "Scans of ours" and source.resize == "centre_crop"
    assert source.augmentations == replace(MEDICAL, horizontal_flip=True)
    natural, _ = describe(own, {**options, "augmentation": "natural"})
    assert natural.augmentations == Augmentations(horizontal_flip=True)
    assert source.near_duplicates.join and source.inputs[0] == scans / "labels.csv"
    assert {path.relative_to(scans).as_posix() for path in source.inputs[1:]} == set(pictures())
    assert source.caveats == (
        "No group column is set: images of one patient may part, unless they are nearly identical.",
    )
    assert own.describe(**{**chosen, "group": "patient", "title": ""}).caveats == ("a group is blank.",)
    assert own.describe(**{**chosen, "title": ""}).title == "scans"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path: name the folder or zip of your images; `jointdiff data init PATH`"),
        ({"path": "/nowhere/at/all"}, "path: there is no folder or zip /nowhere/at/all; a relative one starts at"),
        ({"task": "guess"}, "task: 'guess' is none of auto, multi_label, one_of_k"),
        ({"channels": 2}, "channels: 2 is none of 1, 3"),
        ({"resize": "stretch"}, "resize: 'stretch' is none of pad, centre_crop"),
        ({"augmentation": "gentle"}, "augmentation: 'gentle' is none of medical, natural"),
        ({"window": "lung"}, "window: 'lung' is neither auto nor full"),
        ({"labels": ("a", "a")}, "labels: a name stands there twice"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        own.describe(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "label.csv"}, r"table: there is no label\.csv in .*scans, nor is it a file elsewhere"),
        ({"table": "Labels.csv"}, r"there is no Labels\.csv .*; did you mean 'labels\.csv'\?"),
        ({"boxes": "boxes.csv"}, r"boxes: there is no boxes\.csv"),
    ],
)
def test_tables_that_are_absent(scans, options, message):
    with pytest.raises(ConfigError, match=message):
        own.describe(path=str(scans), labels=("nodule",), **options)


def test_no_table_several_tables_and_no_archive(scans):
    place(scans, {"more.csv": b"a\n1\n"})
    with pytest.raises(ConfigError, match=r"it has 2 \(labels\.csv, more\.csv\), so that `table` must name one"):
        own.describe(path=str(scans), labels=("nodule",))
    with pytest.raises(ConfigError, match=r"should have one \.csv or \.parquet at its top; it has none"):
        own.describe(path=str(scans / "images"), labels=("nodule",))
    with pytest.raises(ConfigError, match=r"labels\.csv is neither a folder nor a \.zip"):
        own.describe(path=str(scans / "labels.csv"))


def test_one_message_counts_the_others(scans):
    with pytest.raises(DataError, match=r"labels names a column.*did you mean 'nodule'.*\(1 more kinds of errors: `"):
        own.describe(path=str(scans), labels=("nodul",), file="path", split="nodule")


def test_paths_never_leave_the_folder(scans, tmp_path):
    place(tmp_path, {"secret.png": png(image(9))})
    for path in ("../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png", "C:\\secret.png"):
        place(scans, {"labels.csv": text(("path", "y"), (path, 1))})
        with pytest.raises(DataError, match="a path leaves the folder: row 2"):
            samples(scans, labels=("y",))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=9)


@examples(60)
@given(st.lists(NAMES, min_size=1, max_size=4), st.integers(1, 5), st.booleans())
def test_tables_come_back_with_their_row_numbers(columns, rows, bom):
    columns = [f"{index}{name.strip()}" for index, name in enumerate(columns)]
    cells = [[f"{row}.{column}" for column in range(len(columns))] for row in range(rows)]
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        return
    table = read_table((b"\xef\xbb\xbf" if bom else b"") + text(columns, *cells), name="t.csv")
    assert table.columns == tuple(columns)
    assert [number for number, _ in table.rows] == list(range(2, rows + 2))
    assert [list(row.values()) for _, row in table.rows] == cells
