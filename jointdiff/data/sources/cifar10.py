"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in ten classes (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jointdiff.data.source import Augmentations, Facts, File, LabelSpec, Sample, Source
from jointdiff.data.sources._cifar import read_batches

ARCHIVE = "cifar-10-binary.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES: dict[str, Literal["train", "test"]] = {
    **{f"data_batch_{number}.bin": "train" for number in range(1, 6)},
    "test_batch.bin": "test",
}

# Address, checksum, format and counts: https://www.cs.toronto.edu/~kriz/cifar.html
SOURCE = Source(
    name="cifar10",
    title="CIFAR-10",
    labels=LabelSpec("one_of_k", CLASSES),
    channels=3,
    licence="none stated; the publisher asks to cite the technical report",
    cite="Krizhevsky, Learning multiple layers of features from tiny images, University of Toronto (2009)",
    files=(
        # The pixels without pickles.
        File(ARCHIVE, urls=(f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",), md5="c32a1d4ab5d03f1284b67883e8d87530"),
    ),
    augmentations=Augmentations(horizontal_flip=True),
    facts=Facts(
        samples=60_000,
        positives=dict.fromkeys(CLASSES, 6_000),
        splits={"train": 50_000, "test": 10_000},
    ),
    caveats=(
        # Journal of Imaging 6(6):41.
        "3.3 % of the test images have a near-duplicate among the training images (Barz and Denzler 2020)",
    ),
)


def read(raw: Path, *, size: int) -> Iterator[Sample]:
    """Yield the five training batches, then the test batch, each image a group of its own.

    Raises:
        DataError: the archive is absent or damaged, or a batch is.
    """
    return read_batches(raw / ARCHIVE, BATCHES, kinds=(len(CLASSES),), used=0)
