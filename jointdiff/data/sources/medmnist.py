"""MedMNIST: twelve sets of small medical images, at 28, 64, 128 and 224 pixels a side (Yang et al. 2023).

Addresses, checksums, labels and sizes come from the table of the publisher's own package ``medmnist``.
"""

from __future__ import annotations

import ast
import difflib
import io
import math
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jointdiff.config import ConfigError
from jointdiff.data.archives import DAMAGE, REMEDY, ZipMembers, zip_members
from jointdiff.data.source import (
    MEDICAL,
    UNORIENTED,
    DataError,
    Facts,
    File,
    LabelSpec,
    NearDuplicates,
    Sample,
    Source,
)

BLOCK = 1 << 23  # bytes of pixels that are held at once
UNREADABLE = (*DAMAGE, SyntaxError, TypeError, tokenize.TokenError)  # what NumPy makes of a bad header
SPLITS: tuple[tuple[Literal["train", "validation", "test"], str], ...] = (
    ("train", "train"),
    ("validation", "val"),
    ("test", "test"),
)

# Tissue, cells and skin may lie at any angle. An ultrasound of the breast has a skin side, but neither left nor right.
# Elsewhere a flip would swap left and right: the side of the heart, the name of an organ, one eye for the other.
AUGMENTATIONS = dict.fromkeys(("pathmnist", "dermamnist", "bloodmnist", "tissuemnist"), UNORIENTED) | {
    "breastmnist": replace(MEDICAL, horizontal_flip=True)
}

# Images per class over all three parts, where they could be verified: of BreastMNIST and DermaMNIST they are those of
# the whole sets that the two are made of, BUSI (Al-Dhabyani et al. 2020) and HAM10000 (Tschandl et al. 2018); those of
# PneumoniaMNIST were counted in the published arrays.
POSITIVES: dict[str, tuple[int, ...]] = {
    "breastmnist": (210, 437 + 133),
    "dermamnist": (327, 514, 1_099, 115, 1_113, 6_705, 142),
    "pneumoniamnist": (1_583, 4_273),
}

# BUSI holds many images again under another name.
NEAR_DUPLICATES = {"breastmnist": NearDuplicates(join=True)}

NO_PATIENTS = "no patients are named: each image is its own group, so images of one patient may be in different roles"
CAVEATS = {
    "breastmnist": "its source, BUSI, holds many images again under another name; those that are found are one group",
    # Abhishek, Jain and Hamarneh, Scientific Data 12:196 (2025).
    "dermamnist": "images of one lesion are in both its training and its test part (Abhishek et al. 2025)",
    "retinamnist": "its grades are ordered; they are treated as classes that are not",
    "tissuemnist": "all its cells come from three specimens (Yang et al. 2023)",
}


@cache
def table() -> dict[str, Any]:
    """Return the entries of the publisher's table, by the names of the 2D sets.

    Raises:
        ConfigError: the package is missing, or has no such table.
    """
    spec = find_spec("medmnist")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("MedMNIST needs the Python package medmnist, which is not installed: pip install medmnist")
    path = Path(spec.submodule_search_locations[0]) / "info.py"
    # The table is read and not imported: the package imports torch, and info.py makes a folder in the user's home.
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        info = next(
            ast.literal_eval(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "INFO" for target in statement.targets)
        )
        return {name: entry for name, entry in info.items() if not name.endswith("3d")}
    except (OSError, SyntaxError, ValueError, StopIteration, AttributeError) as error:
        raise ConfigError(f"{path} has no table INFO that could be read: install medmnist 3.0 or later") from error


def describe(*, set: str = "pneumoniamnist", resolution: int = 28) -> Source:
    """Return one of the twelve sets at one resolution.

    Raises:
        ConfigError: there is no such set or resolution.
    """
    entry = _entry(set, resolution)
    suffix = "" if resolution == 28 else f"_{resolution}"
    names = _names(entry)
    counts: dict[str, int] = {split: int(entry["n_samples"][key]) for split, key in SPLITS}
    return Source(
        name=f"{set}{suffix}",
        title=f"{entry['python_class']} ({resolution} x {resolution})",
        labels=LabelSpec("multi_label" if _is_multi_label(entry) else "one_of_k", names),
        channels=int(entry["n_channels"]),
        licence=entry["license"],
        cite="Yang et al., Scientific Data 10:41 (2023)",
        files=(File(f"{set}{suffix}.npz", urls=(entry[f"url{suffix}"],), md5=entry[f"MD5{suffix}"]),),
        augmentations=AUGMENTATIONS.get(set, MEDICAL),
        facts=Facts(
            samples=sum(counts.values()),
            positives=dict(zip(names, POSITIVES[set], strict=True)) if set in POSITIVES else {},
            splits=counts,
        ),
        near_duplicates=NEAR_DUPLICATES.get(set, NearDuplicates()),
        options={"set": "pneumoniamnist", "resolution": 28},
        caveats=(NO_PATIENTS, *([CAVEATS[set]] if set in CAVEATS else [])),
    )


def read(raw: Path, *, size: int, set: str = "pneumoniamnist", resolution: int = 28) -> Iterator[Sample]:
    """Yield the images of the training, validation and test part in their published order, each a group of its own.

    The arrays are read block by block, so that memory does not grow with the set.

    Raises:
        ConfigError: there is no such set or resolution.
        DataError: the file is absent or damaged, or its arrays are not what the publisher describes.
    """
    source, entry = describe(set=set, resolution=resolution), _entry(set, resolution)
    shape = (resolution, resolution) if source.channels == 1 else (resolution, resolution, source.channels)
    with zip_members(raw / source.files[0].name) as members:
        for split, key in SPLITS:
            labels = _labels(members, f"{key}_labels", len(source.labels.names), multi=_is_multi_label(entry))
            index = 0
            for block in _blocks(members, f"{key}_images", shape, len(labels)):
                for image in block:
                    name = f"{key}-{index:06d}"
                    yield Sample(sample_id=name, image=image, labels=labels[index].tolist(), group=name, split=split)
                    index += 1


def _entry(set: str, resolution: int) -> Mapping[str, Any]:
    known = table()
    if set not in known:
        nearest = difflib.get_close_matches(set, known, n=1, cutoff=0.0)
        raise ConfigError(
            f"datasets.medmnist.options.set: {set!r} is no 2D set of MedMNIST: did you mean {nearest[0]!r}? "
            f"Known: {', '.join(known)}"
        )
    sizes = [28, *sorted(int(key.removeprefix("url_")) for key in known[set] if key.startswith("url_"))]
    if resolution not in sizes:
        raise ConfigError(
            f"datasets.medmnist.options.resolution: {resolution} is none of {', '.join(map(str, sizes))}, "
            f"at which {set} is published"
        )
    entry: Mapping[str, Any] = known[set]
    return entry


def _is_multi_label(entry: Mapping[str, Any]) -> bool:
    return str(entry["task"]).startswith("multi-label")


def _names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return short readable names of the classes, in the order of their numbers."""
    return tuple(_readable(entry["label"][key]) for key in sorted(entry["label"], key=int))


def _readable(name: str) -> str:
    name = re.sub(r"\(.*\)", "", name).strip().lower().replace(", ", " or ")
    name = re.sub(r"(.+)-(left|right)", r"\2 \1", name)
    if name.isdecimal():
        return f"grade {name}"  # of diabetic retinopathy
    return "pleural thickening" if name == "pleural" else name


def _labels(members: ZipMembers, key: str, kinds: int, *, multi: bool) -> np.ndarray:
    """Return the labels (N, K) in {0, 1} that an array (N, 1) of classes or (N, K) of findings holds."""
    content = io.BytesIO(members.read(f"{key}.npy"))
    try:
        values = np.lib.format.read_array(content, allow_pickle=False)
    except UNREADABLE as error:
        raise _wrong(members, key, f"cannot be read ({error})") from error
    if values.dtype.kind not in "ui":
        raise _wrong(members, key, f"has {values.dtype} instead of whole numbers")
    columns, highest = (kinds, 1) if multi else (1, kinds - 1)
    if values.shape != (len(values) if values.ndim else 0, columns):
        raise _wrong(members, key, f"has the shape {values.shape} instead of (images, {columns})")
    strange = values[(values < 0) | (values > highest)]
    if strange.size:
        raise _wrong(members, key, f"has the value {strange[0]}, which is not in 0 to {highest}")
    return values.astype(np.float64) if multi else np.eye(kinds)[values[:, 0]]


def _blocks(members: ZipMembers, key: str, shape: tuple[int, ...], count: int) -> Iterator[np.ndarray]:
    """Yield an array of ``count`` images uint8 of one shape, some at a time."""
    name = f"{key}.npy"
    if name not in members:
        raise _wrong(members, key, "is missing")
    try:
        with members.archive.open(members[name]) as stream:
            found, fortran, dtype = _header(stream)
            if dtype != np.uint8:
                raise _wrong(members, key, f"has {dtype} instead of uint8")
            if found[1:] != shape:
                raise _wrong(members, key, f"has the shape {found} instead of {('images', *shape)}")
            if found[0] != count:
                raise _wrong(members, key, f"has {found[0]} images for {count} labels")
            if members[name].file_size - stream.tell() != math.prod(found):
                raise _wrong(members, key, f"is cut off, or longer than its shape {found} says")
            # An array in Fortran's order has its images side by side, and can only be read as a whole.
            rows = max(1, count if fortran else BLOCK // math.prod(shape))
            for start in range(0, count, rows):
                part = (min(rows, count - start), *shape)
                pixels = np.frombuffer(_exactly(stream, math.prod(part)), dtype=np.uint8)
                yield pixels.reshape(part, order="F" if fortran else "C")
            stream.read(1)  # what is at its end has the checksum verified
    except DataError:
        raise
    except UNREADABLE as error:
        raise _wrong(members, key, f"is damaged ({error})") from error


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and type of an array whose file is open at its start."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version in ((2, 0), (3, 0)):  # they differ in how names of fields are written, which images have none of
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the npy format is unknown")


def _exactly(stream: Any, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) != count:
        raise EOFError("it ends early")
    return data


def _wrong(members: ZipMembers, key: str, what: str) -> DataError:
    return DataError(f"{members.path}: the array {key!r} {what}; {REMEDY}")


SOURCE = describe()
