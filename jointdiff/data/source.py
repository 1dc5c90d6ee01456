"""The contract of a data set: where its files are, what its labels mean, how it is read. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


class DataError(ValueError):
    """Data that is absent, damaged or not what it should be, with the file and the way out in its message."""


@dataclass(frozen=True)
class LabelSpec:
    """What is to be predicted: exactly one of K classes, or any of K findings."""

    kind: Literal["one_of_k", "multi_label"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Augmentations:
    """Changes of an image that keep its labels true."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    max_shift: float = 0.0625  # share of the side


@dataclass(frozen=True)
class File:
    """One published file."""

    name: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    md5: str | None = None  # where the publisher gives no better
    optional: bool = False  # used when the mirror or the publisher has it


@dataclass(frozen=True)
class Facts:
    """Published numbers, asserted after the whole set is prepared."""

    samples: int | None = None
    positives: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A data set's published facts."""

    name: str
    title: str
    labels: LabelSpec
    channels: int
    licence: str
    cite: str
    files: tuple[File, ...] = ()
    augmentations: Augmentations = Augmentations()
    resize: Literal["pad", "centre_crop"] = "pad"
    facts: Facts = Facts()
    options: Mapping[str, Any] = field(default_factory=dict)  # what read() accepts beside the folder, with defaults


@dataclass(frozen=True)
class Region:
    """Where a finding is: a mask (H, W) of bool, or a box (x0, y0, x1, y1) in pixels with x1, y1 exclusive."""

    finding: str
    mask: np.ndarray | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Sample:
    """One image as published."""

    sample_id: str
    image: np.ndarray  # uint8 (H, W) or (H, W, C)
    labels: Sequence[float]  # K values in {0, 1}, or NaN where unknown; one-hot for one-of-K
    group: str  # patient, lesion or near-duplicate group: never split across roles
    split: Literal["train", "validation", "test"] | None = None  # the publisher's, where one exists
    regions: Sequence[Region] = ()


@dataclass(frozen=True)
class DataInfo:
    """What a prepared data set is: the content of dataset.json, and all a method needs to be built."""

    name: str
    title: str
    labels: LabelSpec
    channels: int
    size: int  # side in pixels
    augmentations: Augmentations
    samples: int
    digest: str  # sha256 over images and tables
    has_regions: bool
    cite: str = ""
    licence: str = ""
