"""CelebA: three tables and a zip archive, from small files of the published layout."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdiff.config import ConfigError
from jointdiff.data.source import DataError, describe
from jointdiff.data.sources import celeba
from tests.properties import examples

COUNT = 5


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=95)
    return stream.getvalue()


def name_of(index):
    return f"{index + 1:06d}.jpg"


def row(index, values):
    return f"{name_of(index)} " + " ".join(f"{value:2d}" for value in values)


def write(folder, *, labels=None, images=None, **changes):
    """Write the four files; a change is a function of a table's lines."""
    g = np.random.default_rng(0)
    if labels is None:
        labels = g.choice([-1, 1], (COUNT, 40))
    pictures = [g.integers(0, 256, (22, 18, 3), dtype=np.uint8) for _ in range(len(labels))]
    tables = {
        "attributes": [str(len(labels)), " ".join(celeba.NAMES), *(row(i, values) for i, values in enumerate(labels))],
        # In another order than the attributes.
        "people": [f"{name_of(i)} {2880 + i // 2}" for i in reversed(range(len(labels)))],
        "partition": [f"{name_of(i)} {min(i // 2, 2)}" for i in range(len(labels))],
    }
    for key, name in (("attributes", celeba.ATTRIBUTES), ("people", celeba.PEOPLE), ("partition", celeba.PARTITION)):
        lines = changes.get(key, lambda lines: lines)(tables[key])
        (folder / name).write_text("\n".join(lines) + "\n")
    members = {f"{celeba.FOLDER}/{name_of(i)}": jpeg(pixels) for i, pixels in enumerate(pictures)} | (images or {})
    with zipfile.ZipFile(folder / celeba.IMAGES, "w") as archive:
        archive.writestr(f"{celeba.FOLDER}/", "")
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return np.asarray(labels), members


def samples_of(folder, **options):
    return [loadable() for loadable in celeba.read(folder, size=32, **options)]


def test_facts_are_consistent():
    facts = celeba.SOURCE.facts
    assert sum(facts.splits.values()) == facts.samples == 202_599 and facts.groups == 10_177
    assert len(celeba.NAMES) == len(set(celeba.NAMES)) == 40 and celeba.SOURCE.resize == "centre_crop"
    assert celeba.SOURCE.labels.names == celeba.NAMES == tuple(sorted(celeba.NAMES))
    assert all(len(file.md5) == 32 and "drive.usercontent.google.com" in file.urls[0] for file in celeba.SOURCE.files)
    assert all(file.name in celeba.SOURCE.access for file in celeba.SOURCE.files)
    assert describe(celeba)[0] == celeba.SOURCE


def test_pixels_labels_splits_groups_and_order(tmp_path):
    labels, members = write(tmp_path)
    samples = samples_of(tmp_path)
    assert [sample.sample_id for sample in samples] == [name_of(i) for i in range(COUNT)]
    assert [sample.split for sample in samples] == ["train", "train", "validation", "validation", "test"]
    assert [sample.group for sample in samples] == ["2880", "2880", "2881", "2881", "2882"]
    assert np.array_equal([sample.labels for sample in samples], (labels + 1) / 2)
    for sample, content in zip(samples, members.values(), strict=True):
        assert np.array_equal(sample.image, np.asarray(Image.open(io.BytesIO(content))))
        assert sample.image.shape == (22, 18, 3)


@examples(20)
@given(
    labels=st.lists(st.lists(st.sampled_from([-1, 1]), min_size=40, max_size=40), min_size=1, max_size=4),
    chosen=st.lists(st.sampled_from(celeba.NAMES), unique=True, max_size=5),
)
def test_chosen_attributes_keep_their_order(tmp_path, labels, chosen):
    written, _ = write(tmp_path, labels=labels)
    source, options = describe(celeba, {"attributes": chosen})
    assert source.labels.names == (tuple(chosen) or celeba.NAMES)
    columns = [celeba.NAMES.index(name) for name in source.labels.names]
    samples = samples_of(tmp_path, **options)
    assert np.array_equal([sample.labels for sample in samples], (written[:, columns] + 1) / 2)


def test_functions_can_be_called_in_any_order_after_reading(tmp_path):
    write(tmp_path)
    loadables = list(celeba.read(tmp_path, size=32))
    backwards = [loadable() for loadable in reversed(loadables)]
    for one, other in zip(samples_of(tmp_path), reversed(backwards), strict=True):
        assert one.sample_id == other.sample_id and np.array_equal(one.image, other.image)


def put(line, text):
    return lambda lines: [text if number == line else old for number, old in enumerate(lines, start=1)]


def drop(line):
    return lambda lines: [old for number, old in enumerate(lines, start=1) if number != line]


ONES = " ".join(["1"] * 39)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": put(1, "6")}, r"list_attr_celeba\.txt, line 1: it announces '6' images, and 5 follow"),
        ({"attributes": put(1, "many")}, "line 1: it announces 'many' images"),
        ({"attributes": drop(7)}, "line 1: it announces '5' images, and 4 follow"),
        ({"attributes": lambda lines: []}, "line 1: it announces '' images, and 0 follow"),
        ({"attributes": put(2, "Smiling Male")}, "line 2: it does not name the 40 published attributes"),
        ({"attributes": put(4, f"000002.jpg {ONES} 0")}, "line 4: the value '0' is neither 1 nor -1"),
        ({"attributes": put(4, f"000002.jpg {ONES}")}, "line 4: it has 40 fields instead of 41"),
        ({"attributes": put(4, f"000001.jpg {ONES} 1")}, r"line 4: 000001\.jpg comes a second time"),
        ({"attributes": put(4, f"000009.jpg {ONES} 1")}, r"line 4: .*img_align_celeba\.zip has no img_.*/000009\.jpg"),
        ({"people": drop(1)}, r"list_attr_celeba\.txt, line 7: .*identity_CelebA\.txt has no line for 000005\.jpg"),
        ({"people": put(2, "000004.jpg")}, r"identity_CelebA\.txt, line 2: it has 1 fields instead of 2"),
        ({"partition": drop(3)}, r"line 5: .*list_eval_partition\.txt has no line for 000003\.jpg"),
        ({"partition": put(3, "000003.jpg 3")}, r"list_eval_partition\.txt, line 3: the part '3' is none of 0, 1, 2"),
        ({"images": {f"{celeba.FOLDER}/000002.jpg": None}}, r"line 4: .* has no img_align_celeba/000002\.jpg"),
        ({"images": {f"{celeba.FOLDER}/000002.jpg": b"none"}}, r"000002\.jpg does not decode as an image"),
    ],
)
def test_bad_files_are_named(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(DataError, match=f"{message}.*download (it|them) again"):
        samples_of(tmp_path)


@pytest.mark.parametrize("name", [celeba.ATTRIBUTES, celeba.PEOPLE, celeba.PARTITION, celeba.IMAGES])
def test_absent_and_damaged_files(tmp_path, name):
    write(tmp_path)
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe" + path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{name} .*download it again"):
        samples_of(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is absent"):
        samples_of(tmp_path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (["smiling"], "there is no attribute 'smiling': did you mean 'Smiling'"),
        ([3], "there is no attribute 3"),
        (["Male", "Male"], "names an attribute twice"),
        ("male", "there is no attribute 'male'"),
    ],
)
def test_unknown_attributes_are_named(attributes, message):
    with pytest.raises(ConfigError, match=message):
        describe(celeba, {"attributes": attributes})
