"""The ISIC sets, read from small archives of the published layout."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from jointdiff.data.source import DataError, Facts, describe
from jointdiff.data.sources import isic2018, isic2019, melanoma

PIXELS = {n: np.random.default_rng(n).integers(0, 256, (12, 16, 3), dtype=np.uint8) for n in range(40)}


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")  # without a loss, under a JPEG's name
    return stream.getvalue()


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/LICENSE.txt", "CC BY-NC 4.0")
        for name, content in files.items():
            archive.writestr(f"{path.stem}/{name}", content)


def truth(classes, rows):
    """A table of one-hot rows: image -> the place of its class."""
    lines = [",".join([image, *(f"{float(k == label)}" for k in range(len(classes)))]) for image, label in rows.items()]
    return "\n".join([",".join(["image", *classes]), *lines, ""])


def loaded(module, folder, **options):
    return {s.sample_id: s for s in (load() for load in list(module.read(folder, size=16, **options)))}


# ISIC 2018


PARTS = {
    "Training": {"ISIC_0000001": 0, "ISIC_0000002": 1, "ISIC_0000003": 1},
    "Validation": {"ISIC_0000004": 2},
    "Test": {"ISIC_0000005": 6},
}
LESIONS = (
    "image,lesion_id,diagnosis_confirm_type\nISIC_0000001,HAM_1,histo\nISIC_0000002,HAM_2,x\nISIC_0000003,HAM_2,x\n"
)


def publish_2018(folder, *, tables=None, lesions=LESIONS, images=None):
    for part, rows in PARTS.items():
        name = f"ISIC2018_Task3_{part}"
        files = {f"{image}.jpg": png(PIXELS[int(image[-1])]) for image in rows}
        zipped(folder / f"{name}_Input.zip", files | (images or {}) if part == "Training" else files)
        table = (tables or {}).get(part, truth(isic2018.CLASSES, rows))
        zipped(folder / f"{name}_GroundTruth.zip", {f"{name}_GroundTruth.csv": table})
    (folder / isic2018.LESIONS).write_text(lesions)


def test_isic2018_pixels_labels_lesions_and_parts(tmp_path):
    publish_2018(tmp_path)
    found = loaded(isic2018, tmp_path)
    assert list(found) == [f"ISIC_000000{n}" for n in range(1, 6)]
    for n, one in enumerate(found.values(), start=1):
        assert np.array_equal(one.image, PIXELS[n]) and not one.regions
    assert [int(np.argmax(s.labels)) for s in found.values()] == [0, 1, 1, 2, 6]
    assert all(sum(s.labels) == 1 for s in found.values())
    assert [s.group for s in found.values()] == ["HAM_1", "HAM_2", "HAM_2", "ISIC_0000004", "ISIC_0000005"]
    assert [s.split for s in found.values()] == ["train"] * 3 + ["validation", "test"]


def test_isic2018_masks_of_either_file(tmp_path):
    publish_2018(tmp_path)
    left, right = np.zeros((12, 16), dtype=np.uint8), np.zeros((12, 16), dtype=np.uint8)
    left[2:5, 3:6], right[6:9, 8:12] = 255, 255
    first = {"ISIC_0000001_segmentation.png": png(left), "ISIC_0000002_segmentation.png": png(left)}
    zipped(tmp_path / isic2018.MASKS[0], first)
    found = loaded(isic2018, tmp_path)
    (region,) = found["ISIC_0000002"].regions
    assert region.finding == "NV" and np.array_equal(region.mask, left > 0)
    assert not found["ISIC_0000003"].regions
    empty = np.zeros((12, 16), dtype=np.uint8)
    second = {"ISIC_0000002_segmentation.png": png(right), "ISIC_0000003_segmentation.png": png(empty)}
    zipped(tmp_path / isic2018.MASKS[1], second)
    found = loaded(isic2018, tmp_path)
    assert np.array_equal(found["ISIC_0000001"].regions[0].mask, left > 0)
    assert np.array_equal(found["ISIC_0000002"].regions[0].mask, right > 0), "the file that covers all comes first"
    assert not found["ISIC_0000003"].regions, "an empty mask is no region"


def test_isic2018_facts():
    source, _ = describe(isic2018)
    assert sum(isic2018.TRAINING.values()) == source.facts.splits["train"] == 10_015
    assert source.facts.samples == sum(source.facts.splits.values())
    assert source.augmentations.horizontal_flip and source.augmentations.vertical_flip
    optional = [file.name for file in source.files if file.optional]
    assert optional == list(isic2018.MASKS)
    for file in source.files[:7]:
        assert file.urls == (f"https://isic-challenge-data.s3.amazonaws.com/2018/{file.name}",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": {"Training": "image,MEL\nx,1\n"}}, r"Training_GroundTruth\.csv has no column NV, BCC"),
        ({"tables": {"Test": truth(isic2018.CLASSES, {"ISIC_0000005": 9})}}, r"Test_Gr.*line 2: .*5 is not of exactly"),
        ({"tables": {"Validation": truth(isic2018.CLASSES, {})}}, r"has no row of ISIC_0000004, which .*Validation"),
        (
            {"tables": {"Validation": truth(isic2018.CLASSES, {"ISIC_0000004": 1, "ISIC_0000009": 1})}},
            r"Validation_Input\.zip has no picture ISIC_0000009, which .*Validation_GroundTruth",
        ),
        ({"lesions": LESIONS.replace("HAM_1", "")}, r"LesionGroupings\.csv names no lesion of ISIC_0000001"),
        ({"lesions": "image,diagnosis\n"}, r"LesionGroupings\.csv has no column lesion_id"),
        ({"images": {"ISIC_0000001.jpg": b"no picture"}}, r"Training_Input\.zip: .*0000001\.jpg does not decode"),
        ({"images": {"ISIC_0000009.jpg": png(PIXELS[9])}}, r"has no row of ISIC_0000009"),
    ],
)
def test_isic2018_names_what_is_wrong(tmp_path, changes, message):
    publish_2018(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        loaded(isic2018, tmp_path)


def test_isic2018_other_damage(tmp_path, monkeypatch):
    publish_2018(tmp_path)
    monkeypatch.setattr(
        isic2018, "TRAINING", {**isic2018.TRAINING, "MEL": 3, "NV": 0} | dict.fromkeys(isic2018.CLASSES[2:], 0)
    )
    with pytest.raises(DataError, match=r"has \[1, 2, 0, 0, 0, 0, 0\] images per class"):
        loaded(isic2018, tmp_path)
    monkeypatch.undo()
    path = tmp_path / "ISIC2018_Task3_Test_GroundTruth.zip"
    zipped(path, {"a.csv": "", "b.csv": ""})
    with pytest.raises(DataError, match=r"Test_GroundTruth\.zip holds 2 tables instead of one"):
        loaded(isic2018, tmp_path)
    path = tmp_path / "ISIC2018_Task3_Training_Input.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"Training_Input\.zip is corrupt or truncated"):
        loaded(isic2018, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"Training_Input\.zip is absent"):
        loaded(isic2018, tmp_path)


# ISIC 2019


WITH_UNKNOWN = (*isic2019.CLASSES, "UNK")
METADATA = (
    "image,age_approx,anatom_site_general,lesion_id,sex\n"
    "ISIC_0000001,55.0,anterior torso,BCN_1,female\n"
    "ISIC_0000002_downsampled,55.0,,,male\n"
    "ISIC_0000003,,,BCN_1,\n"
)
TRAINING = {"ISIC_0000001": 0, "ISIC_0000002_downsampled": 7, "ISIC_0000003": 3}


def publish_2019(folder, *, metadata=METADATA, training=TRAINING, test=None):
    for part, rows in {"Training": training, "Test": test}.items():
        if rows is not None:
            pictures = {f"{image}.jpg": png(PIXELS[int(image[11])]) for image in rows}
            zipped(folder / f"ISIC_2019_{part}_Input.zip", pictures)
            (folder / f"ISIC_2019_{part}_GroundTruth.csv").write_text(truth(WITH_UNKNOWN, rows))
    (folder / "ISIC_2019_Training_Metadata.csv").write_text(metadata)


def test_isic2019_lesions_and_blank_ones(tmp_path):
    publish_2019(tmp_path)
    found = loaded(isic2019, tmp_path)
    assert list(found) == list(TRAINING)
    assert [s.group for s in found.values()] == ["BCN_1", "ISIC_0000002_downsampled", "BCN_1"]
    assert [int(np.argmax(s.labels)) for s in found.values()] == [0, 7, 3]
    assert {s.split for s in found.values()} == {None} and {len(s.labels) for s in found.values()} == {8}
    assert np.array_equal(found["ISIC_0000002_downsampled"].image, PIXELS[2])


def test_isic2019_official_test_without_unknown(tmp_path):
    publish_2019(tmp_path, test={"ISIC_0000004": 1, "ISIC_0000005": 8})
    found = loaded(isic2019, tmp_path, official_test=True)
    assert [s.split for s in found.values()] == ["train"] * 3 + ["test"]
    assert found["ISIC_0000004"].group == "ISIC_0000004"
    default, _ = describe(isic2019)
    official, _ = describe(isic2019, {"official_test": True})
    assert default.facts == Facts(samples=25_331, positives=isic2019.TRAINING)
    assert sum(isic2019.TRAINING.values()) == 25_331 and len(default.files) == 3
    assert [f.name for f in official.files[3:]] == ["ISIC_2019_Test_Input.zip", "ISIC_2019_Test_GroundTruth.csv"]
    assert "UNK" in official.caveats[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": METADATA.replace("ISIC_0000003", "ISIC_0000009")}, r"Metadata\.csv has no row of ISIC_0000003"),
        ({"metadata": "image\n"}, r"Metadata\.csv has no column lesion_id"),
        ({"training": {"ISIC_0000001": 8}}, r"ISIC_0000001 is of class UNK"),
    ],
)
def test_isic2019_names_what_is_wrong(tmp_path, changes, message):
    publish_2019(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        loaded(isic2019, tmp_path)


def test_isic2019_absent_table(tmp_path):
    publish_2019(tmp_path)
    with pytest.raises(DataError, match=r"ISIC_2019_Test_GroundTruth\.csv is absent"):
        loaded(isic2019, tmp_path, official_test=True)


# Melanoma


def melanoma_rows():
    """Thirty images of ten patients, five of them melanomas."""
    return [(f"ISIC_{n:07d}", f"IP_{n % 10}", str(int(n % 6 == 0))) for n in range(30)]


def publish_melanoma(folder, rows=None, *, header="image_name,patient_id,lesion_id,sex,target", images=None):
    rows = melanoma_rows() if rows is None else rows
    lines = [f"{image},{patient},IL_1,male,{target}" for image, patient, target in rows]
    (folder / melanoma.TABLE).write_text("\n".join([header, *lines, ""]))
    pictures = {f"{image}.jpg": png(PIXELS[int(image[-2:])]) for image, _, _ in rows} if images is None else images
    zipped(folder / melanoma.IMAGES, pictures)


def test_melanoma_is_balanced_and_grouped_by_patient(tmp_path):
    publish_melanoma(tmp_path)
    found = loaded(melanoma, tmp_path)
    assert np.sum([s.labels for s in found.values()], axis=0).tolist() == [5, 5]
    known = {image: (patient, int(target)) for image, patient, target in melanoma_rows()}
    for name, one in found.items():
        assert (one.group, int(np.argmax(one.labels))) == known[name] and one.split is None
        assert np.array_equal(one.image, PIXELS[int(name[-2:])])
    assert list(found) == list(loaded(melanoma, tmp_path)), "drawn the same twice"
    assert {name for name, (_, target) in known.items() if target} <= set(found), "every melanoma is in"


def test_melanoma_by_row_says_that_it_leaks(tmp_path):
    publish_melanoma(tmp_path)
    found = loaded(melanoma, tmp_path, row_level=True)
    assert [s.split for s in found.values()] == ["train"] * 8 + ["validation", "test"]
    assert all(s.group == name for name, s in found.items())
    leaking, _ = describe(melanoma, {"row_level": True})
    assert "LEAKS" in leaking.caveats[-1] and not any("LEAKS" in c for c in describe(melanoma)[0].caveats)
    assert leaking.facts.samples == 1_168


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [("ISIC_0000001", "IP_1", "")]}, r"_v2\.csv, line 2: the target '' is neither 0 nor 1"),
        ({"rows": [("ISIC_0000001", "", "1")]}, r"line 2: ISIC_0000001 has no patient_id"),
        ({"rows": [("ISIC_0000001", "IP_1", "1")]}, r"_v2\.csv has no image of 'benign'"),
        ({"header": "image_name,patient_id,a,b,c"}, r"_v2\.csv has no column target"),
        ({"images": {}}, r"Training_JPEG\.zip has no picture ISIC_\d+, which .*_v2\.csv lists"),
    ],
)
def test_melanoma_names_what_is_wrong(tmp_path, changes, message):
    publish_melanoma(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        loaded(melanoma, tmp_path)
