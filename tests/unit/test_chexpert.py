"""CheXpert, read from a small folder of the published layout."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdiff.config import ConfigError
from jointdiff.data.source import DataError, Facts, describe
from jointdiff.data.sources import chexpert
from jointdiff.data.sources._balanced import draw
from tests.properties import examples

HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.ALL]
GREY = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)


def row(path, **findings):
    view = "Frontal" if "frontal" in path else "Lateral"
    cells = {name.replace(" ", "_"): "" for name in chexpert.ALL} | findings
    return ",".join([path, "Male", "60", view, "AP", *map(str, cells.values())])


def path(part, patient, view="view1_frontal", study=1, root="CheXpert-v1.0-small/"):
    return f"{root}{part}/patient{patient:05d}/study{study}/{view}.jpg"


TRAIN = [
    row(path("train", 1), Edema=1.0, Atelectasis=-1.0, Cardiomegaly=0.0),
    row(path("train", 1, "view2_lateral"), Edema=1.0),
    row(path("train", 2), No_Finding=1.0),
]
VALID = [row(path("valid", 64541), Pleural_Effusion=1.0, Edema=0.0)]


def publish(folder, *, train=TRAIN, valid=VALID, test=None, header=HEADER, images=True):
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, format="PNG")  # without a loss, so that pixels can be compared
    tables = {"train.csv": train, "valid.csv": valid, **({"test_labels.csv": test} if test else {})}
    for name, rows in tables.items():
        (folder / name).write_text("\n".join([",".join(header), *rows, ""]))
        for line in rows if images else ():
            file = folder / line.split(",")[0].removeprefix("CheXpert-v1.0-small/").removeprefix("CheXpert-v1.0/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(stream.getvalue())
    return {"folder": str(folder)}


def samples(**options):
    return {s.sample_id: s for s in (load() for load in chexpert.read(None, size=16, **options))}


def test_pixels_labels_groups_and_splits(tmp_path):
    options = publish(tmp_path)
    source, chosen = describe(chexpert, options)
    found = samples(**chosen)
    assert list(found) == [
        "train/patient00001/study1/view1_frontal",
        "train/patient00002/study1/view1_frontal",
        "valid/patient64541/study1/view1_frontal",
    ]
    first, second, third = found.values()
    assert np.array_equal(first.image, GREY) and (first.group, first.split) == ("patient00001", "train")
    np.testing.assert_array_equal(first.labels, [np.nan, 0, 0, 1, 0])
    assert second.labels == [0.0] * 5 and third.labels == [0, 0, 0, 0, 1] and third.split == "test"
    assert source.labels.names == chexpert.COMPETITION and source.labels.kind == "multi_label"
    assert [path.name for path in source.inputs] == ["train.csv", "valid.csv", "train", "valid"]
    assert "valid.csv is the test part" in source.caveats[-1] and not source.files
    assert not source.augmentations.horizontal_flip and source.facts == Facts()


def test_all_views_and_all_findings(tmp_path):
    options = publish(tmp_path) | {"views": "all", "findings": "all"}
    source, _ = describe(chexpert, options)
    found = samples(**options)
    assert len(found) == 4 and {len(s.labels) for s in found.values()} == {14} == {len(source.labels.names)}
    assert found["train/patient00002/study1/view1_frontal"].labels[0] == 1


def test_the_test_set_moves_valid_to_validation(tmp_path):
    test = [row(path("test", 64741, root=""), Edema=1)]
    options = publish(tmp_path, test=test)
    source, _ = describe(chexpert, options)
    assert [s.split for s in samples(**options).values()] == ["train", "train", "validation", "test"]
    assert [path.name for path in source.inputs[-4:]] == ["test_labels.csv", "train", "valid", "test"]
    assert not any("valid.csv" in c for c in source.caveats)


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("ignore", "ignore", [np.nan, 0, np.nan, 1, np.nan]),
        ("zeros", "zeros", [0, 0, 0, 1, 0]),
        ("ones", "zeros", [1, 0, 0, 1, 0]),
        ("ones", "ignore", [1, 0, np.nan, 1, np.nan]),
        ("multi_class", "zeros", [0, 0, 0, 1, 0, 1, 0, 0, 0, 0]),
        ("multi_class", "ignore", [0, 0, np.nan, 1, np.nan, 1, 0, np.nan, 0, np.nan]),
    ],
)
def test_policies(tmp_path, uncertain, blank, expected):
    options = publish(tmp_path) | {"uncertain": uncertain, "blank": blank}
    source, _ = describe(chexpert, options)
    labels = next(iter(samples(**options).values())).labels
    np.testing.assert_array_equal(labels, expected)
    assert len(source.labels.names) == len(expected)
    if uncertain == "multi_class":
        assert source.labels.names[5] == "Atelectasis uncertain" and "auxiliary" in source.caveats[-1]


def test_facts_of_the_whole_set_only(tmp_path, monkeypatch):
    options = publish(tmp_path)
    monkeypatch.setattr(chexpert, "ROWS", len(TRAIN))
    facts = describe(chexpert, options)[0].facts
    assert facts == Facts(samples=191_229, splits={"train": 191_027, "test": 202})
    publish(tmp_path, test=[row(path("test", 64741))])
    facts = describe(chexpert, options | {"views": "all"})[0].facts
    assert (facts.samples, facts.groups) == (224_316, 65_240), "what the paper says of all"
    assert facts.splits == {"train": 223_414, "validation": 234, "test": 668}


# The balanced binary set


def binary_rows():
    rows = [row(path("train", n), Pleural_Effusion=1.0) for n in range(1, 13)]
    rows += [row(path("train", n), No_Finding=1.0) for n in range(13, 43)]
    excluded = [
        row(path("train", 50), Pleural_Effusion=-1.0),
        row(path("train", 51), Pleural_Effusion=-1.0, No_Finding=1.0),
        row(path("train", 52), Pleural_Effusion=1.0, No_Finding=1.0),
        row(path("train", 53), Edema=1.0),
        row(path("train", 1, study=2), Pleural_Effusion=1.0),
        row(path("train", 1, "view2_frontal"), Pleural_Effusion=1.0),
        row(path("train", 1, "view3_lateral"), Pleural_Effusion=1.0),
    ]
    return rows + excluded


def test_pleural_effusion_is_balanced_and_of_first_views(tmp_path):
    options = publish(tmp_path, train=binary_rows()) | {"findings": "pleural_effusion"}
    source, _ = describe(chexpert, options)
    assert source.labels.kind == "one_of_k" and source.labels.names == ("No Finding", "Pleural Effusion")
    found = samples(**options)
    assert np.sum([s.labels for s in found.values()], axis=0).tolist() == [12, 12]
    assert list(found) == list(samples(**options)), "drawn the same twice"
    assert all("/study1/view1_frontal" in name for name in found)
    assert {s.split for s in found.values()} == {None}
    assert all(s.group in name for name, s in found.items()) and len({s.group for s in found.values()}) == 24


def test_pleural_effusion_split_by_row(tmp_path):
    options = publish(tmp_path, train=binary_rows()) | {"findings": "pleural_effusion", "row_level": True}
    source, _ = describe(chexpert, options)
    assert "by row" in source.caveats[-1]
    splits = [s.split for s in samples(**options).values()]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [19, 2, 3]
    one_class = [line for line in binary_rows() if "patient0000" in line]
    publish(tmp_path, train=one_class)
    with pytest.raises(DataError, match=r"train\.csv has no image of 'No Finding'"):
        samples(**options)


@examples(60)
@given(classes=st.lists(st.integers(0, 1), min_size=2, max_size=80), row_level=st.booleans())
def test_draws_are_balanced_grouped_and_deterministic(classes, row_level):
    classes = [0, 1, *classes]
    given_rows = {
        "names": ("benign", "melanoma"),
        "ids": [f"i{n}" for n in range(len(classes))],
        "patients": [f"p{n // 3}" for n in range(len(classes))],
        "row_level": row_level,
        "table": "x.csv",
    }
    drawn = draw(classes, **given_rows)
    assert drawn == draw(classes, **given_rows)
    rows = [one.row for one in drawn]
    assert len(set(rows)) == len(rows) == 2 * min(classes.count(0), classes.count(1))
    assert sum(classes[row] for row in rows) == len(rows) // 2
    for one in drawn:
        assert one.group == (f"i{one.row}" if row_level else f"p{one.row // 3}")
        assert (one.split is not None) == row_level
    if row_level:
        order = ["train", "validation", "test"]
        places = [order.index(one.split) for one in drawn]
        assert places == sorted(places)
        assert abs(places.count(0) - 0.8 * len(rows)) < 1 and abs(places.count(2) - 0.1 * len(rows)) <= 1


# What is wrong is named


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertain": "maybe"}, "chexpert.options.uncertain: 'maybe' is none of ignore, zeros, ones, multi_class"),
        ({"blank": "ones"}, "options.blank: 'ones' is none of zeros, ignore"),
        ({"views": "lateral"}, "options.views: 'lateral' is none of frontal, all"),
        ({"findings": "five"}, "options.findings: 'five' is none of competition, all, pleural_effusion"),
        ({"findings": "pleural_effusion", "uncertain": "ones"}, "options.uncertain: .* leave this option away"),
        ({"row_level": True}, "options.row_level: only findings: pleural_effusion"),
        ({"row_level": 1}, "row_level: 1 is no bool"),
        ({"uncertian": "ones"}, "uncertian is no option of this data set: did you mean 'uncertain'"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        describe(chexpert, publish(tmp_path) | options)


def test_a_missing_folder_gives_the_steps(tmp_path):
    steps = r"stanfordmlgroup.*CheXpert-v1\.0-small.*train\.csv, valid\.csv, train/ and valid/.*options\.folder"
    for folder in ("", str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=rf"options\.folder: '{folder}' is no folder\. .*{steps}"):
            describe(chexpert, {"folder": folder})
    publish(tmp_path)
    (tmp_path / "valid.csv").unlink()
    with pytest.raises(ConfigError, match=rf"valid\.csv is absent\. .*{steps}"):
        describe(chexpert, {"folder": str(tmp_path)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": [h.replace("Edema", "Oedema") for h in HEADER]}, r"train\.csv has no column Edema"),
        ({"train": [row(path("train", 1), Edema=2.0)]}, r"train\.csv, line 2: Edema is '2\.0' instead of"),
        ({"train": [row(path("train", 1), Edema="nan")]}, r"line 2: Edema is 'nan' instead of"),
        ({"train": [row(path("train", 1), Edema="yes")]}, r"line 2: Edema is 'yes' instead of"),
        ({"train": [path("train", 1)]}, r"line 2 ends early"),
        ({"train": [row("CheXpert-v1.0/train/../../secret.jpg")]}, r"line 2: the path '.*secret\.jpg' is not like"),
        ({"train": [row("/train/patient00001/study1/view1_frontal.jpg")]}, r"line 2: the path '/train.* is not like"),
    ],
)
def test_bad_tables_are_named(tmp_path, changes, message):
    options = publish(tmp_path, images=False, **changes)
    with pytest.raises(DataError, match=message):
        list(chexpert.read(None, size=16, **options))


def test_absent_and_damaged_images_are_named(tmp_path):
    options = publish(tmp_path)
    image = tmp_path / "train/patient00001/study1/view1_frontal.jpg"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"patient00001/study1/view1_frontal\.jpg does not decode"):
        samples(**options)
    image.unlink()
    with pytest.raises(DataError, match=r"view1_frontal\.jpg is absent, but .*train\.csv, line 2 lists it"):
        samples(**options)
