"""What a sample and a whole set must be; what is not ends in one message."""

from __future__ import annotations

import math

import numpy as np

from jointdiff.data.source import DataError, Sample, Source


def check_sample(source: Source, sample: Sample) -> tuple[int, int, np.ndarray]:
    """Return height, width and labels (K,) of a sample that keeps the contract.

    Raises:
        DataError: it does not; the message names the sample and what is wrong with it.
    """

    def wrong(what: str) -> DataError:
        return DataError(f"{source.name}, sample {sample.sample_id!r}: {what}")

    image = sample.image
    if not sample.group:
        raise wrong("it has no group; use its own id where nothing ties it to others")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise wrong(f"the image is {kind} instead of uint8 (H, W) or (H, W, C)")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels != source.channels:
        raise wrong(f"the image has {channels} channels instead of {source.channels}; convert it in read()")
    height, width = image.shape[:2]

    names = source.labels.names
    values = np.asarray(sample.labels, dtype=np.float32)
    if values.shape != (len(names),):
        raise wrong(f"it has labels of shape {values.shape} instead of {len(names)} ({', '.join(names)})")
    if not (np.isnan(values) | (values == 0) | (values == 1)).all():
        raise wrong(f"its labels {values.tolist()} are not all 0, 1 or NaN")
    if source.labels.kind == "one_of_k" and not np.isnan(values).all() and values.sum() != 1:
        raise wrong(f"its labels {values.tolist()} are not one-hot, as one_of_k asks")
    if sample.split not in (None, "train", "validation", "test"):
        raise wrong(f"its split {sample.split!r} is none of train, validation and test")
    if sample.domain not in (None, "source", "target"):
        raise wrong(f"its domain {sample.domain!r} is neither source nor target")

    for region in sample.regions:
        if region.finding not in names:
            raise wrong(f"a region names the finding {region.finding!r}, which is none of {', '.join(names)}")
        if region.mask is None and region.box is None:
            raise wrong(f"a region of {region.finding!r} has neither mask nor box")
        if region.mask is not None:
            if region.mask.shape != (height, width):
                raise wrong(
                    f"the mask of {region.finding!r} is {_size(region.mask.shape)} pixels, its image "
                    f"{_size((height, width))}: one of the two files is wrong; remove it and download it again"
                )
            if region.mask.dtype != bool or not region.mask.any():
                raise wrong(f"the mask of {region.finding!r} is empty or not bool; leave an empty region away")
        if region.box is not None:
            x0, y0, x1, y1 = region.box
            if not (all(map(math.isfinite, region.box)) and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise wrong(
                    f"the box {region.box} of {region.finding!r} is not inside its image of {width} x {height} pixels"
                )
    return height, width, values


def check_facts(source: Source, labels: np.ndarray, *, groups: np.ndarray, splits: np.ndarray) -> None:
    """Hold what was read, labels (N, K), groups (N,) and splits (N,), against the published numbers.

    Raises:
        DataError: a number differs: files are missing or of another release.
    """
    facts, names = source.facts, source.labels.names
    found = {"samples": (len(labels), facts.samples), "groups": (len(np.unique(groups)), facts.groups)}
    found |= {
        f"positives of {name}": (int(np.nansum(labels[:, names.index(name)])), count)
        for name, count in facts.positives.items()
    }
    found |= {f"{split} images": (int((splits == split).sum()), count) for split, count in facts.splits.items()}
    for what, (here, published) in found.items():
        if published is not None and here != published:
            raise DataError(
                f"{source.name}: {here} {what} were read where {published} are published: the raw files are "
                "incomplete or of another release; remove them and download them again"
            )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[1::-1])
