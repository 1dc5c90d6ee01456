"""Fashion-MNIST: 70,000 pictures of clothes in ten classes (Xiao et al. 2017)."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from jointdiff.data.source import Augmentations, DataError, Facts, File, LabelSpec, Sample, Source

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PUBLISHER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def _file(name: str, md5: str) -> File:
    return File(name, urls=(PUBLISHER + name,), md5=md5)


SOURCE = Source(
    name="fashion_mnist",
    title="Fashion-MNIST",
    labels=LabelSpec("one_of_k", CLASSES),
    channels=1,
    licence="MIT",
    cite="Xiao, Rasul and Vollgraf, arXiv 1708.07747 (2017)",
    files=(
        _file("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        _file("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        _file("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        _file("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    augmentations=Augmentations(horizontal_flip=True),
    facts=Facts(samples=70_000, positives=dict.fromkeys(CLASSES, 7_000)),
)


def read(raw: Path, *, size: int) -> Iterator[Sample]:
    """Yield the training images, then the test images, each a group of its own.

    Up to 36 pixels a side the 28 x 28 pixels stay as they are, within a black margin.
    """
    margin = max(size - 28, 0) if size <= 36 else 0
    edges = (margin // 2, margin - margin // 2)
    one_hot = np.eye(len(CLASSES))
    parts: tuple[tuple[Literal["train", "test"], str], ...] = (("train", "train"), ("test", "t10k"))
    for split, prefix in parts:
        images = read_idx(raw / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte.gz")
        if images.shape != (len(labels), 28, 28):
            raise DataError(
                f"{raw}: {prefix} has images of shape {images.shape} for {len(labels)} labels; download it again"
            )
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{split}-{index:05d}"
            yield Sample(
                sample_id=name,
                image=np.pad(image, (edges, edges)) if margin else image,
                labels=one_hot[label].tolist(),
                group=name,
                split=split,
            )


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes.

    Raises:
        DataError: the file is damaged or ends early.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and download it again") from error
    # Two zero bytes, the type (8: bytes), the number of dimensions, and each dimension as a big-endian integer.
    dimensions = data[3] if len(data) > 3 and data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data[4 : 4 + 4 * dimensions], dtype=">u4").astype(int).tolist()
    start = 4 + 4 * dimensions
    if not dimensions or len(shape) != dimensions or len(data) - start != math.prod(shape):
        raise DataError(f"{path} is no whole IDX file of bytes; remove it and download it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
