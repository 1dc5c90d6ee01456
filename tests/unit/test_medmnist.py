"""MedMNIST: the publisher's table, and arrays read block by block, from small files of the published layout."""

import io
import subprocess
import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.config import ConfigError
from jointdiff.data.source import MEDICAL, DataError, describe
from jointdiff.data.sources import medmnist
from tests.properties import examples

SETS = sorted(medmnist.table())


def arrays(*, counts=(5, 2, 3), shape=(28, 28), classes=2, columns=1, seed=0):
    g = np.random.default_rng(seed)
    content = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        content[f"{part}_images"] = g.integers(0, 256, (count, *shape), dtype=np.uint8)
        content[f"{part}_labels"] = g.integers(0, classes, (count, columns), dtype=np.uint8)
    return content


def write(folder, content, name="pneumoniamnist"):
    np.savez_compressed(folder / f"{name}.npz", **content)


def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def replace_member(folder, member, data, name="pneumoniamnist"):
    """Write the file again with other bytes, or none, in place of one member."""
    path = folder / f"{name}.npz"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[f"{member}.npy"] = data
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in members.items():
            if value is not None:
                archive.writestr(key, value)


# What the table says


def test_the_table_is_read_without_importing_its_package():
    code = (
        "import sys; from jointdiff.data.sources import medmnist; "
        "sys.exit(bool({'torch', 'medmnist', 'scipy', 'PIL', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_are_twelve_sets():
    assert len(SETS) == 12 and {"chestmnist", "organsmnist", "tissuemnist"} < set(SETS)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("resolution", [28, 64, 128, 224])
def test_facts_are_consistent(name, resolution):
    source, options = describe(medmnist, {"set": name, "resolution": resolution})
    assert options == {"set": name, "resolution": resolution}
    assert source.name == (name if resolution == 28 else f"{name}_{resolution}")
    (file,) = source.files
    assert file.name == f"{source.name}.npz" and len(file.md5) == 32 and file.urls[0].startswith("https://zenodo.org/")
    assert f"/{file.name}" in file.urls[0]
    assert sum(source.facts.splits.values()) == source.facts.samples
    assert set(source.facts.splits) == {"train", "validation", "test"}
    assert source.facts.positives == {} or sum(source.facts.positives.values()) == source.facts.samples
    assert len(set(source.labels.names)) == len(source.labels.names) >= 2
    assert all(name == name.strip() and "," not in name and "(" not in name for name in source.labels.names)
    assert source.options == medmnist.SOURCE.options
    assert any("own group" in caveat for caveat in source.caveats)


def test_names_are_readable():
    def names(name):
        return describe(medmnist, {"set": name})[0].labels.names

    assert names("organamnist")[:4] == ("bladder", "left femur", "right femur", "heart")
    assert names("breastmnist") == ("malignant", "normal or benign")
    assert names("bloodmnist")[3] == "immature granulocytes"
    assert names("retinamnist")[4] == "grade 4"
    assert names("chestmnist")[12] == "pleural thickening"


def test_one_set_has_several_findings_and_flips_keep_the_label_true():
    kinds = {name: describe(medmnist, {"set": name})[0] for name in SETS}
    assert [name for name in SETS if kinds[name].labels.kind == "multi_label"] == ["chestmnist"]
    assert len(kinds["chestmnist"].labels.names) == 14
    flipped = {name for name in SETS if kinds[name].augmentations.horizontal_flip}
    assert flipped == {"bloodmnist", "breastmnist", "dermamnist", "pathmnist", "tissuemnist"}
    assert not kinds["breastmnist"].augmentations.vertical_flip
    turned = {name for name in SETS if kinds[name].augmentations.max_rotation > MEDICAL.max_rotation}
    assert turned == flipped - {"breastmnist"}
    assert all(kinds[name].augmentations.max_cutout == MEDICAL.max_cutout for name in SETS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": "pneumonia"}, r"datasets\.medmnist\.options\.set: 'pneumonia'.*did you mean 'pneumoniamnist'"),
        ({"set": "organmnist3d"}, "is no 2D set"),
        ({"resolution": 32}, r"resolution: 32 is none of 28, 64, 128, 224"),
        ({"resolution": "64px"}, "is no int"),
        ({"sets": "pathmnist"}, "did you mean 'set'"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        describe(medmnist, options)


@pytest.fixture
def fresh_table():
    medmnist.table.cache_clear()
    yield
    medmnist.table.cache_clear()


def test_a_missing_package_is_named(monkeypatch, fresh_table):
    monkeypatch.setattr(medmnist, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package medmnist, which is not installed: pip install medmnist"):
        medmnist.describe()


@pytest.mark.parametrize("text", [None, "INFO = open('x')\n", "OTHER = {}\n", "INFO = {\n", "INFO = 3\n"])
def test_another_package_of_that_name_is_named(monkeypatch, fresh_table, tmp_path, text):
    if text is not None:
        (tmp_path / "info.py").write_text(text)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(medmnist, "find_spec", lambda name: spec)
    with pytest.raises(ConfigError, match=r"info\.py has no table INFO.*install medmnist 3"):
        medmnist.describe()


# What is read


def test_pixels_labels_splits_and_order(tmp_path):
    content = arrays()
    write(tmp_path, content)
    samples = list(medmnist.read(tmp_path, size=32))
    assert Counter(sample.split for sample in samples) == {"train": 5, "validation": 2, "test": 3}
    assert [sample.sample_id for sample in samples[4:8]] == ["train-000004", "val-000000", "val-000001", "test-000000"]
    assert all(sample.group == sample.sample_id for sample in samples)
    for key, start, stop in (("train", 0, 5), ("val", 5, 7), ("test", 7, 10)):
        assert np.array_equal(np.stack([sample.image for sample in samples[start:stop]]), content[f"{key}_images"])
        assert [sample.labels for sample in samples[start:stop]] == np.eye(2)[content[f"{key}_labels"][:, 0]].tolist()


def test_colours_and_resolution(tmp_path):
    content = arrays(shape=(64, 64, 3), classes=9)
    write(tmp_path, content, "pathmnist_64")
    samples = list(medmnist.read(tmp_path, size=64, set="pathmnist", resolution=64))
    assert np.array_equal(samples[0].image, content["train_images"][0]) and samples[0].image.shape == (64, 64, 3)
    assert len(samples[0].labels) == 9


def test_several_findings(tmp_path):
    content = arrays(columns=14)
    write(tmp_path, content, "chestmnist")
    samples = list(medmnist.read(tmp_path, size=28, set="chestmnist"))
    assert np.array_equal([sample.labels for sample in samples[:5]], content["train_labels"])


@examples(25)
@given(
    counts=st.tuples(*[st.integers(0, 7)] * 3),
    block=st.integers(1, 4000),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    fortran=st.booleans(),
    labels=st.sampled_from(["u1", "<i8", ">i4", "<u8"]),
    seed=st.integers(0, 99),
)
def test_any_block_size_order_and_version_gives_the_same(tmp_path, counts, block, version, fortran, labels, seed):
    content = arrays(counts=counts, seed=seed)
    write(tmp_path, content)
    for key, array in content.items():
        array = array.astype(labels) if "labels" in key else np.asarray(array, order="F" if fortran else "C")
        replace_member(tmp_path, key, npy(array, version))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medmnist, "BLOCK", block)
        samples = list(medmnist.read(tmp_path, size=28))
    assert len(samples) == sum(counts)
    parts = [content[f"{key}_images"] for key in ("train", "val", "test")]
    assert np.array_equal([sample.image for sample in samples], np.concatenate(parts)) or not samples
    truth = np.concatenate([content[f"{key}_labels"] for key in ("train", "val", "test")])[:, 0]
    assert [int(np.argmax(sample.labels)) for sample in samples] == truth.tolist()


def test_memory_does_not_grow_with_the_set(tmp_path):
    import tracemalloc

    count = 2_000  # of 100 MB at 224 pixels
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (count, 224, 224)})
    with zipfile.ZipFile(tmp_path / "pneumoniamnist_224.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train_images.npy", "w") as out:
            out.write(stream.getvalue())
            for _ in range(count):
                out.write(bytes(224 * 224))
        archive.writestr("train_labels.npy", npy(np.zeros((count, 1), dtype=np.uint8)))
        for part in ("val", "test"):
            archive.writestr(f"{part}_images.npy", npy(np.zeros((1, 224, 224), dtype=np.uint8)))
            archive.writestr(f"{part}_labels.npy", npy(np.zeros((1, 1), dtype=np.uint8)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in medmnist.read(tmp_path, size=28, resolution=224)) == count + 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6


# Bad input, each one message


def cut_header(array, count):
    """An array whose header announces more than follows."""
    return npy(array)[:-count]


IMAGES, LABELS = np.zeros((5, 28, 28), dtype=np.uint8), np.zeros((5, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("val_images", None, "the array 'val_images' is missing"),
        ("val_labels", None, r"has no member 'val_labels\.npy'"),
        ("train_images", npy(IMAGES.astype(np.float32)), "'train_images' has float32 instead of uint8"),
        ("train_images", npy(IMAGES[:, :14]), r"'train_images' has the shape \(5, 14, 28\) instead of"),
        ("train_images", npy(IMAGES[..., None]), r"'train_images' has the shape \(5, 28, 28, 1\) instead of"),
        ("train_images", npy(np.array(0, dtype=np.uint8)), r"'train_images' has the shape \(\) instead of"),
        ("train_images", npy(IMAGES[:4]), "'train_images' has 4 images for 5 labels"),
        ("train_images", cut_header(IMAGES, 100), "'train_images' is cut off, or longer than its shape"),
        ("train_images", npy(IMAGES) + b"more", "'train_images' is cut off, or longer than its shape"),
        ("train_images", b"no array", "'train_images' is damaged"),
        ("train_images", b"\x93NUMPY\x07\x00" + bytes(20), "version .* is unknown"),
        ("train_images", b"", "'train_images' is damaged"),
        ("test_labels", npy(np.zeros((3, 1), dtype=np.float64)), "'test_labels' has float64 instead of whole numbers"),
        ("test_labels", npy(np.zeros((3, 2), dtype=np.uint8)), r"'test_labels' has the shape \(3, 2\) instead of"),
        ("test_labels", npy(np.zeros(3, dtype=np.uint8)), r"'test_labels' has the shape \(3,\) instead of"),
        ("test_labels", npy(np.array(1, dtype=np.uint8)), r"'test_labels' has the shape \(\) instead of"),
        (
            "test_labels",
            npy(np.full((3, 1), 2, dtype=np.uint8)),
            "has the value 2, which is not in 0 to 1",
        ),
        ("test_labels", npy(np.full((3, 1), -1)), "'test_labels' has the value -1"),
        ("test_labels", cut_header(LABELS, 2), "'test_labels' cannot be read"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, member, data, message):
    write(tmp_path, arrays())
    replace_member(tmp_path, member, data)
    with pytest.raises(DataError, match=rf"pneumoniamnist\.npz.*{message}.*download it again"):
        list(medmnist.read(tmp_path, size=28))


@pytest.mark.parametrize(
    ("key", "message"),
    [("train_images", "has object instead of uint8"), ("train_labels", "cannot be read .*allow_pickle=False")],
)
def test_object_arrays_are_refused_and_not_unpickled(tmp_path, key, message):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    content = arrays()
    content[key] = np.array([Trap()] * 5, dtype=object)
    write(tmp_path, content)
    with pytest.raises(DataError, match=f"the array '{key}' {message}"):
        list(medmnist.read(tmp_path, size=28))


def test_absent_and_truncated_files(tmp_path):
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz is absent"):
        list(medmnist.read(tmp_path, size=28))
    write(tmp_path, arrays())
    path = tmp_path / "pneumoniamnist.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz is corrupt or truncated.*download it again"):
        list(medmnist.read(tmp_path, size=28))


@examples(150)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), stored=st.booleans())
def test_a_changed_byte_is_noticed_or_harmless(tmp_path, place, byte, stored):
    content = arrays(counts=(2, 1, 1))
    (np.savez if stored else np.savez_compressed)(tmp_path / "pneumoniamnist.npz", **content)
    whole = [sample.image for sample in medmnist.read(tmp_path, size=28)]
    path = tmp_path / "pneumoniamnist.npz"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= byte
    path.write_bytes(data)
    try:
        read = [sample.image for sample in medmnist.read(tmp_path, size=28)]
    except DataError as error:
        assert "pneumoniamnist.npz" in str(error)
    else:
        assert np.array_equal(read, whole)


@pytest.mark.mirror
def test_the_published_arrays(mirror):
    folder = mirror / "pneumoniamnist"
    if not (folder / "pneumoniamnist.npz").is_file():
        pytest.skip("the mirror has no pneumoniamnist/pneumoniamnist.npz")
    samples = list(medmnist.read(folder, size=28))
    facts, names = medmnist.SOURCE.facts, medmnist.SOURCE.labels.names
    assert len(samples) == facts.samples and Counter(sample.split for sample in samples) == facts.splits
    assert dict(zip(names, np.sum([sample.labels for sample in samples], axis=0), strict=True)) == facts.positives
    with np.load(folder / "pneumoniamnist.npz") as arrays:
        assert np.array_equal([sample.image for sample in samples[-624:]], arrays["test_images"])
