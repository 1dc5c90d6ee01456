"""CIFAR-10 and CIFAR-100: records of the binary versions, from small archives of the published layout."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.config import ConfigError
from jointdiff.data.source import DataError, describe
from jointdiff.data.sources import cifar10, cifar100
from tests.properties import examples


def records(labels, images):
    """Encode as published: the labels of an image, then its red, green and blue plane."""
    return b"".join(
        bytes(label) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for label, image in zip(labels, images, strict=True)
    )


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            if content is not None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_cifar10(folder, **changes):
    """Six batches of two images, the archive's order not that of the names."""
    images = pictures(12)
    names = [*cifar10.BATCHES]
    files = {
        f"cifar-10-batches-bin/{name}": records([[number], [9 - number]], images[2 * number : 2 * number + 2])
        for number, name in enumerate(names)
    }
    files = dict(reversed(files.items())) | {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    write(folder / cifar10.ARCHIVE, files | {f"cifar-10-batches-bin/{key}": value for key, value in changes.items()})
    return images


def write_cifar100(folder, labels=((19, 0), (3, 99), (0, 50)), **changes):
    images = pictures(len(labels))
    files = {"train.bin": records(labels[:-1], images[:-1]), "test.bin": records(labels[-1:], images[-1:]), **changes}
    write(folder / cifar100.ARCHIVE, {f"cifar-100-binary/{key}": value for key, value in files.items()})
    return images


def test_facts_are_consistent():
    sources = [cifar10.SOURCE, *(describe(cifar100, {"labels": labels})[0] for labels in ("fine", "coarse"))]
    assert [len(source.labels.names) for source in sources] == [10, 100, 20]
    for source in sources:
        assert sum(source.facts.splits.values()) == sum(source.facts.positives.values()) == source.facts.samples
        assert set(source.facts.positives) == set(source.labels.names)
        assert "Barz and Denzler" in source.caveats[0]
    assert list(cifar100.FINE) == sorted(cifar100.FINE) and list(cifar100.COARSE) == sorted(cifar100.COARSE)
    assert describe(cifar100)[0] == cifar100.SOURCE


def test_cifar10_pixels_labels_splits_and_order(tmp_path):
    images = write_cifar10(tmp_path)
    samples = list(cifar10.read(tmp_path, size=32))
    assert np.array_equal([sample.image for sample in samples], images)
    assert [sample.split for sample in samples] == ["train"] * 10 + ["test"] * 2
    assert [int(np.argmax(sample.labels)) for sample in samples] == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    assert [sample.sample_id for sample in samples[8:]] == ["train-00008", "train-00009", "test-00000", "test-00001"]
    assert all(sample.group == sample.sample_id and sum(sample.labels) == 1 for sample in samples)


@pytest.mark.parametrize(("labels", "expected"), [("fine", [0, 99, 50]), ("coarse", [19, 3, 0])])
def test_cifar100_has_two_kinds_of_labels(tmp_path, labels, expected):
    images = write_cifar100(tmp_path)
    samples = list(cifar100.read(tmp_path, size=32, labels=labels))
    assert np.array_equal([sample.image for sample in samples], images)
    assert [int(np.argmax(sample.labels)) for sample in samples] == expected
    assert {len(sample.labels) for sample in samples} == {len(cifar100.NAMES[labels])}
    assert [sample.split for sample in samples] == ["train", "train", "test"]


@examples(20)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 99)), min_size=2, max_size=12))
def test_any_records_come_back(tmp_path, labels):
    images = write_cifar100(tmp_path, tuple(labels))
    for used, kind in enumerate(("coarse", "fine")):
        samples = list(cifar100.read(tmp_path, size=32, labels=kind))
        assert [int(np.argmax(sample.labels)) for sample in samples] == [label[used] for label in labels]
        assert np.array_equal([sample.image for sample in samples], images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_batch_3.bin": None}, r"has no data_batch_3\.bin"),
        ({"data_batch_3.bin": b""}, r"data_batch_3\.bin has 0 bytes, which are no whole records of 3073"),
        ({"test_batch.bin": bytes(3073 + 3072)}, r"test_batch\.bin has 6145 bytes"),
        ({"test_batch.bin": bytes(3073) + b"\x0a" + bytes(3072)}, "record 1 has the label 10, which is not in 0 to 9"),
    ],
)
def test_bad_cifar10_batches_are_named(tmp_path, changes, message):
    write_cifar10(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"cifar-10-binary\.tar\.gz.*{message}.*download it again"):
        list(cifar10.read(tmp_path, size=32))


@pytest.mark.parametrize(
    ("label", "message"),
    [((20, 3), "label 20, which is not in 0 to 19"), ((3, 100), "label 100, which is not in 0 to 99")],
)
def test_bad_cifar100_labels_are_named(tmp_path, label, message):
    write_cifar100(tmp_path, ((0, 0), label))
    with pytest.raises(DataError, match=rf"test\.bin: record 0 has the {message}"):
        list(cifar100.read(tmp_path, size=32, labels="fine"))


def test_absent_truncated_and_other_archives(tmp_path):
    path = tmp_path / cifar10.ARCHIVE
    with pytest.raises(DataError, match="is absent"):
        list(cifar10.read(tmp_path, size=32))
    write_cifar10(tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz is corrupt or truncated"):
        list(cifar10.read(tmp_path, size=32))
    path.write_bytes(gzip.compress(b"no tar archive"))
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        list(cifar10.read(tmp_path, size=32))


def test_a_pickled_version_is_refused(tmp_path):
    write(tmp_path / cifar10.ARCHIVE, {"cifar-10-batches-py/data_batch_1": b"\x80\x04."})
    with pytest.raises(DataError, match=r"has no data_batch_1\.bin.*another version than the binary one"):
        list(cifar10.read(tmp_path, size=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "superclass"}, "'superclass' is neither 'fine' nor 'coarse'"),
        ({"labels": False}, "reads a value here as false, where text is wanted; put it in quotes"),
        ({"label": "fine"}, "did you mean 'labels'"),
    ],
)
def test_unknown_options_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        describe(cifar100, options)
    with pytest.raises(ConfigError, match="'all' is neither"):
        cifar100.read(tmp_path, size=32, labels="all")
