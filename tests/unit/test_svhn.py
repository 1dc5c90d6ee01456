"""SVHN: MATLAB files of the published layout, written by the test."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from jointdiff.config import ConfigError
from jointdiff.data.source import DataError, describe
from jointdiff.data.sources import svhn
from tests.properties import examples


def write(folder, part, labels, *, compress=True, **changes):
    images = np.random.default_rng(len(labels)).integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
    content = {"X": images, "y": np.array(labels, dtype=np.uint8).reshape(-1, 1), **changes}
    savemat(
        folder / f"{part}_32x32.mat",
        {key: value for key, value in content.items() if value is not None},
        do_compression=compress,
    )
    return np.moveaxis(images, 3, 0)


def test_facts_are_consistent():
    for extra, samples in ((False, 99_289), (True, 630_420)):
        source, _ = describe(svhn, {"extra": extra})
        assert source.facts.samples == samples == sum(source.facts.splits.values())
        assert len(source.files) == 2 + extra and all(len(file.md5) == 32 for file in source.files)
        assert source.name == "svhn" and source.options == {"extra": False}
        assert not source.augmentations.horizontal_flip and not source.augmentations.vertical_flip
    assert svhn.SOURCE.facts.splits == {"train": 73_257, "test": 26_032}
    assert sum(svhn.SOURCE.facts.positives.values()) == 99_289


@examples(20)
@given(
    train=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    test=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    compress=st.booleans(),
)
def test_pixels_labels_splits_and_order(tmp_path, train, test, compress):
    images = [write(tmp_path, "train", train, compress=compress), write(tmp_path, "test", test, compress=compress)]
    samples = list(svhn.read(tmp_path, size=32))
    assert np.array_equal([sample.image for sample in samples], np.concatenate(images))
    assert [int(np.argmax(sample.labels)) for sample in samples] == [label % 10 for label in train + test]
    assert [sample.split for sample in samples] == ["train"] * len(train) + ["test"] * len(test)
    assert samples[len(train)].sample_id == samples[len(train)].group == "test-000000"
    assert len({sample.group for sample in samples}) == len(samples)


def test_ten_is_the_digit_zero(tmp_path):
    write(tmp_path, "train", [10, 1])
    write(tmp_path, "test", [9])
    assert [sample.labels.index(1.0) for sample in svhn.read(tmp_path, size=32)] == [0, 1, 9]


def test_additional_images_are_for_training(tmp_path):
    write(tmp_path, "train", [1])
    write(tmp_path, "test", [2, 3])
    images = write(tmp_path, "extra", [4, 5, 6])
    samples = list(svhn.read(tmp_path, size=32, extra=True))
    assert Counter(sample.split for sample in samples) == {"train": 4, "test": 2}
    assert np.array_equal(samples[3].image, images[0]) and samples[3].sample_id == "extra-000000"
    assert len(list(svhn.read(tmp_path, size=32))) == 3


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([1, 11], {}, "'y' has 11 in row 1, which is not in 1 to 10"),
        ([0, 1], {}, "'y' has 0 in row 0"),
        ([1, 2], {"y": None}, "has no variable 'y'"),
        ([1, 2], {"X": None}, "has no variable 'X'"),
        ([1, 2], {"X": np.zeros((32, 32, 3, 2))}, r"'X' is float64 of shape \(32, 32, 3, 2\)"),
        ([1, 2], {"X": np.zeros((28, 28, 3, 2), dtype=np.uint8)}, r"'X' is uint8 of shape \(28, 28, 3, 2\)"),
        (
            [1, 2],
            {"X": np.zeros((32, 32, 3, 3), dtype=np.uint8)},
            r"'y' is uint8 of shape \(2, 1\)",
        ),
        ([1, 2], {"X": np.array([{"a": 1}], dtype=object)}, "'X' is object"),
        ([1, 2], {"y": np.array([[1.5], [2]])}, "'y' is float64"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, labels, changes, message):
    write(tmp_path, "train", labels, **changes)
    with pytest.raises(DataError, match=rf"train_32x32\.mat.*{message}.*download it again"):
        list(svhn.read(tmp_path, size=32))


def test_absent_truncated_and_other_files(tmp_path):
    path = tmp_path / "train_32x32.mat"
    with pytest.raises(DataError, match=r"train_32x32\.mat is absent"):
        list(svhn.read(tmp_path, size=32))
    write(tmp_path, "train", [1, 2, 3])
    whole = path.read_bytes()
    others = (whole[: len(whole) // 2], whole[:60], b"", b"<html>not found</html>" * 20, b"\x80\x04]." * 99)
    for content in others:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train_32x32\.mat .*download it again"):
            list(svhn.read(tmp_path, size=32))


def test_unknown_options_are_named():
    with pytest.raises(ConfigError, match="'perhaps' is no bool"):
        describe(svhn, {"extra": "perhaps"})
    with pytest.raises(ConfigError, match="did you mean 'extra'"):
        describe(svhn, {"extras": True})
