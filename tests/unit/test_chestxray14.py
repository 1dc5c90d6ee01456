"""ChestX-ray14, read from small archives of the published layout and from a real subset."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdiff.config import ConfigError
from jointdiff.data.source import DataError, Facts, describe
from jointdiff.data.sources import chestxray14
from tests.properties import examples

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
GREY = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)


def png(pixels, mode=None):
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format="PNG")
    return stream.getvalue()


def row(image, findings, patient="1"):
    return f"{image},{findings},0,{patient},58,M,PA,2682,2749,0.143,0.143"


LABELS = [
    row("00000001_000.png", "Cardiomegaly"),
    row("00000001_001.png", "Mass|Infiltration|Pleural_Thickening"),
    row("00000002_000.png", "No Finding", "2"),
    row("00000003_000.png", "Hernia", "3"),
]
IMAGES = [
    {"00000001_000.png": png(GREY), "00000001_001.png": png(GREY, "RGBA")},
    {"00000002_000.png": png(GREY, "RGB"), "00000003_000.png": png(np.zeros((8, 32), dtype=np.uint8))},
]


def publish(
    folder,
    *,
    labels=LABELS,
    images=IMAGES,
    boxes=("00000001_001.png,Infiltrate,256,128,512,256",),
    train=("00000001_000.png", "00000001_001.png"),
    test=("00000002_000.png", "00000003_000.png"),
    header=HEADER,
    box_header=BOX_HEADER,
):
    def table(name, *lines):
        (folder / name).write_bytes("\r\n".join([*lines, ""]).encode())

    table("Data_Entry_2017_v2020.csv", header, *labels)
    table("BBox_List_2017.csv", box_header, *boxes)
    table("train_val_list.txt", *train)
    table("test_list.txt", *test)
    for number, members in enumerate(images, start=1):
        with tarfile.open(folder / f"images_{number:03d}.tar.gz", "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(f"images/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def samples(folder, **options):
    return {s.sample_id: s for s in (load() for load in chestxray14.read(folder, size=16, **options))}


def test_pixels_labels_groups_splits_and_boxes(tmp_path):
    publish(tmp_path)
    found = samples(tmp_path, archives=2)
    assert list(found) == ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png"]
    for name in ("00000001_000.png", "00000001_001.png", "00000002_000.png"):
        assert np.array_equal(found[name].image, GREY), "grey, of however many channels"
    names = chestxray14.FINDINGS
    positive = {key: {names[k] for k in np.flatnonzero(one.labels)} for key, one in found.items()}
    assert positive["00000001_001.png"] == {"Mass", "Infiltration", "Pleural Thickening"}
    assert positive["00000001_000.png"] == {"Cardiomegaly"} and not positive["00000002_000.png"]
    assert [s.group for s in found.values()] == ["1", "1", "2", "3"]
    assert [s.split for s in found.values()] == ["train", "train", "test", "test"]
    (region,) = found["00000001_001.png"].regions
    assert region.finding == "Infiltration" and region.box == (4, 2, 12, 6)  # 1,024 pixels are 16 here


def test_shards_are_the_archives_and_together_the_whole(tmp_path):
    publish(tmp_path)
    names = chestxray14.shards(tmp_path, archives=2)
    assert names == ["images_001.tar.gz", "images_002.tar.gz"]
    parts = [samples(tmp_path, archives=2, shard=name) for name in names]
    assert [list(part) for part in parts] == [
        ["00000001_000.png", "00000001_001.png"],
        ["00000002_000.png", "00000003_000.png"],
    ]
    assert len(samples(tmp_path, archives=1)) == 2, "rows without an image are ignored in a subset"


def test_functions_keep_only_the_bytes_of_their_image(tmp_path):
    publish(tmp_path)
    later = list(chestxray14.read(tmp_path, size=16, archives=2))
    (tmp_path / "images_001.tar.gz").unlink()
    assert np.array_equal(later[0]().image, GREY)


def test_facts_are_those_of_all_archives():
    source, options = describe(chestxray14)
    assert options == {"archives": 12} and source.facts.samples == 112_120
    assert [len(file.urls) for file in source.files] == [1] * 12 + [0] * 4
    assert "nihcc.app.box.com" in source.access and not source.augmentations.horizontal_flip
    subset, _ = describe(chestxray14, {"archives": 2})
    assert subset.facts == Facts() and len(subset.files) == 6 and "2 of 12" in subset.caveats[-1]
    for count in (0, 13):
        with pytest.raises(ConfigError, match=rf"archives: {count} is not in 1 to 12"):
            describe(chestxray14, {"archives": count})


@examples(40)
@given(
    x=st.floats(-3, 1000),
    y=st.floats(-3, 1000),
    w=st.floats(4, 1100),
    h=st.floats(4, 1100),
    width=st.integers(4, 64),
    height=st.integers(4, 64),
)
def test_boxes_scale_with_the_image_and_stay_inside(tmp_path, x, y, w, h, width, height):
    image = {"00000003_000.png": png(np.zeros((height, width), dtype=np.uint8))}
    publish(tmp_path, images=[image], boxes=[f"00000003_000.png,Hernia,{x},{y},{w},{h}"])
    x0, y0, x1, y1 = samples(tmp_path, archives=1)["00000003_000.png"].regions[0].box
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    expected = np.clip([x, y, x + w, y + h], 0, 1024) * [width, height, width, height] / 1024
    np.testing.assert_allclose((x0, y0, x1, y1), expected, atol=1e-9)


def test_a_box_of_a_finding_that_is_not_listed_is_left_out(tmp_path):
    publish(tmp_path, boxes=["00000001_000.png,Mass,0,0,100,100", "00000001_000.png,Cardiomegaly,0,0,100,100"])
    assert [region.finding for region in samples(tmp_path, archives=2)["00000001_000.png"].regions] == ["Cardiomegaly"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": HEADER.replace("Patient ID", "Patient")}, r"Data_Entry_2017_v2020\.csv has no column Patient ID"),
        ({"labels": [row("a.png", "Mass|Measles")]}, r"v2020\.csv, line 2: 'Measles' is none of the 14 findings"),
        ({"labels": [row("a.png", "")]}, r"line 2: '' is none of the 14 findings"),
        ({"labels": [row("a.png", "No Finding|Mass")]}, r"line 2: 'No Finding' stands beside 'Mass'"),
        ({"labels": [row("a.png", "Mass")] * 2}, r"line 3: a\.png has a row already"),
        ({"labels": [row("a.png", "Mass", "")]}, r"line 2: a\.png has no Patient ID"),
        ({"labels": ["a.png,Mass"]}, r"line 2 ends early"),
        ({"labels": LABELS[1:]}, r"images_001\.tar\.gz: images/00000001_000\.png has no row in Data_Entry"),
        ({"train": ["00000001_001.png"]}, r"00000001_000\.png is neither in train_val_list\.txt nor in test_list"),
        (
            {"test": ["00000001_000.png", "00000003_000.png"]},
            r"test_list\.txt: 00000001_000\.png is in train_val_list\.txt too",
        ),
        ({"box_header": "Image Index,Finding Label,x,y,w,h"}, r"BBox_List_2017\.csv does not begin with"),
        ({"boxes": ["00000001_000.png,Mass,1,2,3"]}, r"BBox_List_2017\.csv, line 2: .* is no image, finding"),
        ({"boxes": ["00000001_000.png,Mass,1,2,3,wide"]}, r"line 2: .*wide' is no image, finding"),
        ({"boxes": ["00000001_000.png,Measles,1,2,3,4"]}, r"line 2: 'Measles' is none of"),
        ({"boxes": ["00000001_000.png,Mass,1030,2,30,40"]}, r"line 2: the box x=1030, .* covers nothing"),
        ({"boxes": ["00000001_000.png,Mass,10,2,0,40"]}, r"line 2: .* covers nothing of an image of 1024 x 1024"),
        ({"boxes": ["00000001_000.png,Mass,nan,2,1,40"]}, r"line 2: .* covers nothing"),
        ({"images": [{"00000001_000.png": png(GREY)[:60]}]}, r"images_001\.tar\.gz: .*000\.png does not decode"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, message):
    publish(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        samples(tmp_path, archives=1)


def publish_all(folder, **changes):
    publish(folder, images=[*IMAGES, *([{}] * 10)], **changes)


def test_with_all_archives_tables_and_images_must_match(tmp_path):
    publish_all(tmp_path)
    assert len(samples(tmp_path)) == 4
    more = [*LABELS, row("00000004_000.png", "Mass", "4")]
    publish_all(tmp_path, labels=more, test=("00000002_000.png", "00000003_000.png", "00000004_000.png"))
    with pytest.raises(DataError, match=r"lists 00000004_000\.png and 0 more images that no archive holds"):
        samples(tmp_path)
    publish_all(tmp_path, test=("00000002_000.png", "00000003_000.png", "00000004_000.png"))
    with pytest.raises(DataError, match=r"has no row of 00000004_000\.png, which test_list\.txt lists"):
        samples(tmp_path)
    publish_all(tmp_path, boxes=["00000009_000.png,Mass,1,2,3,4"])
    with pytest.raises(DataError, match=r"line 2: 00000009_000\.png has no row"):
        samples(tmp_path)


def test_truncated_archive_and_absent_files(tmp_path):
    publish(tmp_path)
    path = tmp_path / "images_001.tar.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"images_001\.tar\.gz is corrupt or truncated"):
        samples(tmp_path, archives=1)
    path.unlink()
    with pytest.raises(DataError, match=r"images_001\.tar\.gz is absent"):
        samples(tmp_path, archives=1)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"test_list\.txt is absent\. .*nihcc\.app\.box\.com.* mirror"):
        samples(tmp_path, archives=1)


def test_real_subset(mirror):
    raw = mirror / "chestxray14"
    if not (raw / "images_001.tar.gz").is_file():
        pytest.skip(f"{mirror} has no chestxray14")
    found = samples(raw, archives=1)
    assert len(found) == 1_000 and len({s.group for s in found.values()}) == 264
    regions = [(s, region) for s in found.values() for region in s.regions]
    assert len(regions) == 9 and {s.split for s, _ in regions} == {"test"}
    for sample, region in regions:
        assert sample.labels[chestxray14.FINDINGS.index(region.finding)] == 1
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 < x1 <= sample.image.shape[1] and 0 <= y0 < y1 <= sample.image.shape[0]
    patients = {split: {s.group for s in found.values() if s.split == split} for split in ("train", "test")}
    assert not patients["train"] & patients["test"]
