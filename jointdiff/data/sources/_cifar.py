"""The record format of CIFAR's binary versions: bytes of labels, then a red, a green and a blue plane of 32 x 32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from jointdiff.data.archives import REMEDY, tar_stream
from jointdiff.data.source import DataError, Sample

PLANES = (3, 32, 32)
PIXELS = 3 * 32 * 32


def read_batches(
    path: Path,
    batches: Mapping[str, Literal["train", "test"]],
    *,
    kinds: tuple[int, ...],
    used: int,
) -> Iterator[Sample]:
    """Yield the images of the named files of a tar archive in the order of the names, each a group of its own.

    Args:
        path: the archive.
        batches: the split of each file.
        kinds: how many classes each of a record's bytes of labels tells apart.
        used: which of these bytes is the label.

    Raises:
        DataError: the archive is absent or damaged, a file is missing, cut off, or has a label that is none.
    """
    # All of it, some 180 MB: the archive's order need not be that of the names.
    found = {PurePosixPath(name).name: content for name, content in tar_stream(path)}
    for name in batches:
        if name not in found:
            raise DataError(f"{path} has no {name}: it is incomplete, or another version than the binary one; {REMEDY}")
    one_hot = np.eye(kinds[used])
    index = {"train": 0, "test": 0}
    for name, split in batches.items():
        for labels, image in _records(found.pop(name), where=f"{path}: {name}", kinds=kinds):
            sample_id = f"{split}-{index[split]:05d}"
            index[split] += 1
            yield Sample(
                sample_id=sample_id,
                image=image,
                labels=one_hot[labels[used]].tolist(),
                group=sample_id,
                split=split,
            )


def _records(content: bytes, *, where: str, kinds: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    length = len(kinds) + PIXELS
    if not content or len(content) % length:
        raise DataError(f"{where} has {len(content)} bytes, which are no whole records of {length}; {REMEDY}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
    strange = np.argwhere(records[:, : len(kinds)] >= kinds)
    if len(strange):
        row, column = strange[0]
        raise DataError(
            f"{where}: record {row} has the label {records[row, column]}, which is not in 0 to {kinds[column] - 1}; "
            f"{REMEDY}"
        )
    for record in records:
        yield record[: len(kinds)], record[len(kinds) :].reshape(PLANES).transpose(1, 2, 0)
