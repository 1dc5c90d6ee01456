"""BUSI: breast ultrasound, normal or with a benign or malignant lesion and its mask (Al-Dhabyani et al. 2020)."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from jointdiff.data.images import decode_image
from jointdiff.data.masks import decode_mask
from jointdiff.data.source import (
    MEDICAL,
    DataError,
    Facts,
    File,
    LabelSpec,
    NearDuplicates,
    Region,
    Sample,
    Source,
)
from jointdiff.data.sources._tables import read_table

SOURCE = Source(
    name="busi",
    title="Breast ultrasound images (BUSI)",
    labels=LabelSpec("multi_label", ("lesion",)),
    channels=1,
    licence="CC BY 4.0",
    cite="Al-Dhabyani et al., Data in Brief 28:104863 (2020)",
    files=(
        File("Dataset_BUSI.zip", urls=("https://scholar.cu.edu.eg/Dataset_BUSI.zip",)),
        # A table (image, group) of near-identical images, beside those that read() finds.
        File("near_duplicates.csv", optional=True),
    ),
    augmentations=replace(MEDICAL, horizontal_flip=True),
    facts=Facts(samples=780, positives={"lesion": 647}),
    # No patient is named, and many images come again under another name, moved, cut or drawn on. More lenient than
    # elsewhere: looked at one by one, nearly all pairs down to here show one scene, and further down hardly any.
    near_duplicates=NearDuplicates(hamming=20, correlation=0.92, join=True),
    caveats=("no patients are named: groups are images found to be nearly identical, others of a patient may part",),
)

IMAGE = re.compile(r"(?P<name>(?P<kind>normal|benign|malignant) \(\d+\))\.png")


def read(raw: Path, *, size: int) -> Iterator[Callable[[], Sample]]:
    """Yield each image with the union of its masks; normal images have none. The zip is read in place."""
    path = raw / "Dataset_BUSI.zip"
    try:
        archive = zipfile.ZipFile(path)  # closed with the last function that reads from it
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged ({error}); remove it and download it again") from error
    members = {PurePosixPath(member).name: member for member in archive.namelist()}
    listed = _near_duplicates(raw / "near_duplicates.csv")
    matches = [match for match in map(IMAGE.fullmatch, members) if match]
    for match in sorted(matches, key=lambda match: _natural(match["name"])):
        yield partial(_load, archive, members, match, path=path, group=listed.get(match["name"], match["name"]))


def _load(archive: zipfile.ZipFile, members: dict[str, str], match: re.Match[str], *, path: Path, group: str) -> Sample:
    name, lesion = match["name"], match["kind"] != "normal"
    try:
        return Sample(
            sample_id=name,
            image=decode_image(archive.read(members[match[0]]), name=f"{path}: {members[match[0]]}"),
            labels=[float(lesion)],
            group=group,
            regions=_lesion(archive, members, name, path=path) if lesion else (),
        )
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and download it again") from error


def _lesion(archive: zipfile.ZipFile, members: dict[str, str], name: str, *, path: Path) -> list[Region]:
    """Merge ``name_mask.png``, ``name_mask_1.png``, ... into one region."""
    masks = {
        member: decode_mask(archive.read(member), name=f"{path}: {member}")
        for file, member in members.items()
        if re.fullmatch(re.escape(name) + r"_mask(_\d+)?\.png", file)
    }
    if not masks:
        raise DataError(f"{path}: {name} has no mask; the archive is incomplete: remove it and download it again")
    shapes = {mask.shape for mask in masks.values()}
    if len(shapes) > 1:
        raise DataError(f"{path}: the masks of {name} differ in size ({', '.join(masks)}); download it again")
    union = np.logical_or.reduce(list(masks.values()))
    return [Region("lesion", mask=union)] if union.any() else []


def _near_duplicates(path: Path) -> dict[str, str]:
    """Map the images of a table (image, group) to their groups."""
    if not path.is_file():
        return {}
    rows = read_table(path, columns=("image", "group"))
    return {row["image"]: f"near-duplicates {row['group']}" for _, row in rows}


def _natural(name: str) -> tuple[str, int]:
    kind, number = name.split(" ")
    return kind, int(number.strip("()"))
