"""The contract of a data set: where its files are, what its labels mean, how it is read. Light: imports no torch.

A data set is one module of ``jointdiff.data.sources`` with

- ``SOURCE``, a ``Source``: its facts with the default options;
- ``read(raw, *, size, **options)``: an iterator of ``Sample`` or of functions that load one. Functions are called in
  other threads, and only for the images a process is to prepare, so that what is costly, decoding, belongs into them;
  they are called later than they are yielded, so that an archive they read from must not be closed by ``read``;
- ``describe(**options)``, where the facts depend on the options: the ``Source`` that these make;
- ``shards(raw, **options)``, where files can be read one without the other: their names. ``read`` then takes one as
  ``shard``, and a cluster reads them in parallel. None stands for all files at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from jointdiff.complaints import ConfigError
from jointdiff.complaints import DataError as DataError  # of the contract, too
from jointdiff.values import as_name, fitted


@dataclass(frozen=True)
class LabelSpec:
    """What is to be predicted: exactly one of K classes, or any of K findings."""

    kind: Literal["one_of_k", "multi_label"]
    names: tuple[str, ...]


Photometric = Literal["identity", "autocontrast", "brightness", "contrast", "gamma", "posterise", "sharpness"]
PHOTOMETRIC: tuple[Photometric, ...] = get_args(Photometric)


@dataclass(frozen=True)
class Augmentations:
    """Changes of an image that keep its labels true, by default those of natural images.

    A strong view draws three operations, with repetition, of the photometric ones that are named, rotation, and shear
    and translation along either axis. One whose bound is 0 is not among them.

    Raises:
        ConfigError: an operation is unknown, none is named, or a bound is none.
    """

    # Of every view.
    horizontal_flip: bool = False
    vertical_flip: bool = False
    max_shift: float = 0.0625  # share of the side
    # Of strong views. The bounds are those of one operation.
    photometric: tuple[Photometric, ...] = PHOTOMETRIC
    max_rotation: float = 30.0  # degrees, either way
    max_shear: float = 0.3  # tangent of the angle, either way
    max_translation: float = 0.15  # share of the side, either way
    max_cutout: float = 0.5  # side of the square that is greyed out, as a share of the image's; 0: none is

    def __post_init__(self) -> None:
        """Check names and bounds."""
        if not self.photometric:
            raise ConfigError("augmentations.photometric names no operation: name at least 'identity'")
        for name in self.photometric:
            if name not in PHOTOMETRIC:
                nearest = difflib.get_close_matches(name, PHOTOMETRIC, n=1, cutoff=0.0)
                raise ConfigError(
                    f"augmentations.photometric: there is no {name!r}: did you mean {nearest[0]!r}? "
                    f"Known: {', '.join(PHOTOMETRIC)}"
                )
        bounds = {"max_shift": 0.5, "max_rotation": 180, "max_shear": 1, "max_translation": 0.5, "max_cutout": 1}
        for key, limit in bounds.items():
            if not 0 <= getattr(self, key) <= limit:
                raise ConfigError(f"augmentations.{key}: {getattr(self, key)} is not in 0 to {limit}")


# For images whose label may hang on a few pixels and on how things lie.
MEDICAL = Augmentations(
    # Posterising takes the grey levels in which a faint finding differs, sharpness at its lower end blurs it away (of
    # blur and crops: Sowrirajan et al. 2021, arXiv 2010.05352). Those that are left keep the order of grey levels.
    photometric=("identity", "autocontrast", "brightness", "contrast", "gamma"),
    max_rotation=10.0,  # as Sowrirajan et al.
    max_shear=0.0,  # it changes proportions, which decide: the heart's width, a lesion that is taller than wide
    max_translation=0.1,  # as Zhang et al. 2020 (ConVIRT, arXiv 2010.00747): findings at the margin stay in view
    # A square of side c hides the middle of a finding in up to c^2 of the views, with sides drawn from 0 to m in m^2/3:
    # 1 in 75 here, 1 in 12 with half of the side.
    max_cutout=0.2,
)
# Skin and tissue, which have no upright side: a lesion or a cell may lie at any angle.
UNORIENTED = replace(MEDICAL, horizontal_flip=True, vertical_flip=True, max_rotation=180.0)
POLICIES = {"medical": MEDICAL, "natural": Augmentations()}  # as a user names them for images of their own


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
    groups: int | None = None  # patients, lesions, people
    positives: Mapping[str, int] = field(default_factory=dict)  # images per class or finding
    splits: Mapping[str, int] = field(default_factory=dict)  # images of the publisher's train, validation and test


@dataclass(frozen=True)
class NearDuplicates:
    """From when on two images of a set count as nearly identical; see ``jointdiff.data.duplicates``."""

    hamming: int = 4  # bits in which two perceptual hashes may differ
    correlation: float = 0.995  # of thumbnails, at least
    join: bool = False  # whether such images become one group; needed where no patient is known


@dataclass(frozen=True)
class Source:
    """A data set's published facts."""

    name: str  # of its folder in a mirror and among the raw files: sources of one name have the same files
    title: str
    labels: LabelSpec
    channels: int
    licence: str
    cite: str
    files: tuple[File, ...] = ()
    augmentations: Augmentations = Augmentations()
    resize: Literal["pad", "centre_crop"] = "pad"
    facts: Facts = Facts()
    near_duplicates: NearDuplicates = NearDuplicates()
    options: Mapping[str, Any] = field(default_factory=dict)  # what read() accepts beside the folder, with defaults
    access: str = ""  # what a person must do before the files can be had: register, accept, unpack
    # The user's own files, which no download brings, and folders of them: when they change, so does the set.
    inputs: tuple[Path, ...] = ()
    caveats: tuple[str, ...] = ()  # what a reader of its numbers must know, shown beside them


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
    # For adaptation: labels and validation are from the source alone, test images from the target alone.
    domain: Literal["source", "target"] | None = None


Loadable = Sample | Callable[[], Sample]  # what read() yields: a sample, or a function that loads one


def load(loadable: Loadable) -> Sample:
    """Return the sample itself."""
    return loadable if isinstance(loadable, Sample) else loadable()


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
    resize: Literal["pad", "centre_crop"] = "pad"
    cite: str = ""
    licence: str = ""
    caveats: tuple[str, ...] = ()


def describe(module: ModuleType, options: Mapping[str, Any] | None = None) -> tuple[Source, dict[str, Any]]:
    """Return a module's data set as these options make it, and all of its options.

    Raises:
        ConfigError: an option is unknown or of a wrong type, or the data set refuses its value.
    """
    source: Source = module.SOURCE
    name = getattr(module, "__name__", source.name).rpartition(".")[2]
    given = fit_options(source, options or {}, where=f"datasets.{name}.options")
    chosen = {**source.options, **given}
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}
    return (module.describe(**chosen) if hasattr(module, "describe") else source), chosen


def fit_options(source: Source, options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return options as a data set takes them: a number for a text that is one, a list for a single name.

    ``where`` says where they stand.

    Raises:
        ConfigError: an option is unknown or of a wrong type.
    """
    return {key: _fitted(source, key, value, at=f"{where}.{key}") for key, value in options.items()}


KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array"}  # of JSON Schema


def _fitted(source: Source, key: str, value: Any, *, at: str) -> Any:
    if key not in source.options:
        nearest = difflib.get_close_matches(key, source.options, n=1, cutoff=0.0)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "it has none"
        raise ConfigError(f"{at} is no option of this data set: {hint}")
    default = source.options[key]
    kind = type(default)
    if kind is str or (kind is tuple and not isinstance(value, list | tuple)):
        try:
            value = as_name(value)
        except ValueError as error:
            raise ConfigError(f"{at}: {error}") from None
        return value if kind is str else [value]
    value = fitted(value, [KINDS[kind]])
    kinds: Any = {tuple: list | tuple, float: float | int}.get(kind, kind)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        wanted = "list" if kind is tuple else kind.__name__
        raise ConfigError(f"{at}: {value!r} is no {wanted}; the default is {default!r}")
    return value
