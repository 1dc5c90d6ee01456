"""SVHN: digits of house numbers, cropped to 32 x 32 pixels (Netzer et al. 2011)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from jointdiff.data.archives import REMEDY
from jointdiff.data.source import DataError, Facts, File, LabelSpec, Sample, Source

DIGITS = tuple(str(digit) for digit in range(10))

# Images per digit, 0 first: of train_32x32.mat and test_32x32.mat. They add up to the published 73,257 and 26,032.
TRAIN = (4_948, 13_861, 10_585, 8_497, 7_458, 6_882, 5_727, 5_595, 5_045, 4_659)
TEST = (1_744, 5_099, 4_149, 2_882, 2_523, 2_384, 1_977, 2_019, 1_660, 1_595)
EXTRA = 531_131


def _file(part: str, md5: str) -> File:
    name = f"{part}_32x32.mat"
    return File(name, urls=(f"http://ufldl.stanford.edu/housenumbers/{name}",), md5=md5)


# Addresses and counts: http://ufldl.stanford.edu/housenumbers/; checksums: torchvision.datasets.SVHN.
SOURCE = Source(
    name="svhn",
    title="SVHN, cropped digits",
    labels=LabelSpec("one_of_k", DIGITS),
    channels=3,
    licence="non-commercial use only",
    cite="Netzer et al., NIPS Workshop on Deep Learning and Unsupervised Feature Learning (2011)",
    files=(
        _file("train", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        _file("test", "eb5a983be6a315427106f1b164d9cef3"),
    ),
    # No flips: a mirrored digit is none, or another.
    facts=Facts(
        samples=sum(TRAIN) + sum(TEST),
        positives={digit: train + test for digit, train, test in zip(DIGITS, TRAIN, TEST, strict=True)},
        splits={"train": sum(TRAIN), "test": sum(TEST)},
    ),
    options={"extra": False},
    caveats=("the photographs are not named: digits of one house number may be in different roles",),
)


def describe(*, extra: bool = False) -> Source:
    """Return the data set, with the 531,131 additional images for training if ``extra``."""
    if not extra:
        return SOURCE
    train = sum(TRAIN) + EXTRA
    return replace(
        SOURCE,
        title=f"{SOURCE.title}, with the additional ones",
        files=(*SOURCE.files, _file("extra", "a93ce644f1a588dc4d68dda5feec44a7")),
        facts=Facts(samples=train + sum(TEST), splits={"train": train, "test": sum(TEST)}),
        caveats=(*SOURCE.caveats, "the additional images are less difficult than the others, as the publisher says"),
    )


def read(raw: Path, *, size: int, extra: bool = False) -> Iterator[Sample]:
    """Yield the training images, then the test images, then the additional ones, each a group of its own.

    One file at a time is held in memory: 0.2 GB, and 1.6 GB of the additional images.

    Raises:
        DataError: a file is absent or damaged, or has other arrays than published.
    """
    parts: list[tuple[str, Literal["train", "test"]]] = [("train", "train"), ("test", "test")]
    one_hot = np.eye(len(DIGITS))
    for part, split in [*parts, ("extra", "train")] if extra else parts:
        images, digits = _load(raw / f"{part}_32x32.mat")
        for index, digit in enumerate(digits):
            name = f"{part}-{index:06d}"
            yield Sample(
                sample_id=name,
                image=np.ascontiguousarray(images[:, :, :, index]),
                labels=one_hot[digit].tolist(),
                group=name,
                split=split,
            )


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (32, 32, 3, N) and digits (N,) of a MATLAB file."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path} is absent; download it")
    # It reads numbers, text and structures and runs no code of the file; but it is not made for hostile bytes, so that
    # the checksum, verified at the download, is what stands before it.
    try:
        content = loadmat(path, variable_names=("X", "y"))
    except Exception as error:  # of damaged bytes SciPy makes anything, up to an UnboundLocalError
        raise DataError(f"{path} is damaged ({str(error) or type(error).__name__}); {REMEDY}") from error
    for key in ("X", "y"):
        if key not in content:
            raise DataError(f"{path} has no variable {key!r}: it is not the published file; {REMEDY}")
    images, labels = content["X"], content["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(
            f"{path}: the variable 'X' is {images.dtype} of shape {images.shape} instead of uint8 "
            f"(32, 32, 3, images); {REMEDY}"
        )
    count = images.shape[3]
    if labels.dtype.kind not in "ui" or labels.shape != (count, 1):
        raise DataError(
            f"{path}: the variable 'y' is {labels.dtype} of shape {labels.shape} instead of whole numbers "
            f"({count}, 1); {REMEDY}"
        )
    strange = np.flatnonzero((labels < 1) | (labels > 10))
    if len(strange):
        raise DataError(
            f"{path}: the variable 'y' has {labels[strange[0], 0]} in row {strange[0]}, which is not in 1 to 10; "
            f"{REMEDY}"
        )
    return images, labels[:, 0].astype(np.int64) % 10  # 10 stands for the digit 0
