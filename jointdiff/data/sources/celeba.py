"""CelebA: 202,599 aligned faces of 10,177 people with 40 attributes (Liu et al. 2015)."""

from __future__ import annotations

import difflib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from jointdiff.config import ConfigError
from jointdiff.data.archives import ZipMembers, zip_members
from jointdiff.data.images import decode_image
from jointdiff.data.source import Augmentations, DataError, Facts, File, LabelSpec, Sample, Source

IMAGES, FOLDER = "img_align_celeba.zip", "img_align_celeba"
ATTRIBUTES, PEOPLE, PARTITION = "list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"

# As in the head of list_attr_celeba.txt.
# fmt: off
NAMES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips",
    "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin",
    "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open",
    "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline",
    "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on
Split = Literal["train", "validation", "test"]
SPLITS: dict[str, Split] = {"0": "train", "1": "validation", "2": "test"}


def _file(name: str, key: str, md5: str) -> File:
    address = f"https://drive.usercontent.google.com/download?id={key}&export=download&confirm=t"
    return File(name, urls=(address,), md5=md5)


# Counts: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; keys and checksums: torchvision.datasets.CelebA.
SOURCE = Source(
    name="celeba",
    title="CelebA",
    labels=LabelSpec("multi_label", NAMES),
    channels=3,
    licence="non-commercial research only; the images are not the publisher's property",
    cite="Liu, Luo, Wang and Tang, Deep learning face attributes in the wild, ICCV (2015)",
    files=(
        _file(IMAGES, "0B7EVK8r0v71pZjFTYXZWM3FlRnM", "00d2c5bc6d35e252742224ab0c1e8fcb"),
        _file(ATTRIBUTES, "0B7EVK8r0v71pblRyaVFSWGxPY0U", "75e246fa4810816ffd6ee81facbd244c"),
        _file(PEOPLE, "1_ee_0u7vcNLOfNLegJRHmolfH5ICW-XS", "32bd1bd63d3c78cd57e08160ec5ed1e2"),
        _file(PARTITION, "0B7EVK8r0v71pY0NSMzRuSXJEVkk", "d32c9cbf5e040fd4025c592c306e6668"),
    ),
    augmentations=Augmentations(horizontal_flip=True),
    resize="centre_crop",  # 178 x 218 pixels with the face in the middle
    facts=Facts(
        samples=202_599,
        groups=10_177,
        splits={"train": 162_770, "validation": 19_867, "test": 19_962},
    ),
    options={"attributes": ()},
    access=(
        "Google Drive refuses the files for some hours after many people asked for them. If it does, open "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html in a browser, accept the agreement, save "
        f"{IMAGES}, {ATTRIBUTES}, {PEOPLE} and {PARTITION}, and put the four into the folder celeba of the mirror "
        "that the configuration names"
    ),
    caveats=(
        "attributes such as Attractive, Big_Nose and Young are judgements of those who labelled, not measurements",
        "the images were collected from the Internet and are not the publisher's property",
    ),
)


def describe(*, attributes: tuple[str, ...] = ()) -> Source:
    """Return the data set with the named attributes, or with all where none is named.

    Raises:
        ConfigError: an attribute is unknown or named twice.
    """
    for name in attributes:
        if name not in NAMES:
            nearest = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.0)
            raise ConfigError(
                f"datasets.celeba.options.attributes: there is no attribute {name!r}: did you mean {nearest[0]!r}?"
            )
    if len(set(attributes)) < len(attributes):
        raise ConfigError(f"datasets.celeba.options.attributes: {list(attributes)} names an attribute twice")
    return replace(SOURCE, labels=LabelSpec("multi_label", tuple(attributes) or NAMES))


def read(raw: Path, *, size: int, attributes: tuple[str, ...] = ()) -> Iterator[partial[Sample]]:
    """Yield a function for each face, in the order of the attributes' table, that decodes it. The zip is read in place.

    Raises:
        ConfigError: an attribute is unknown or named twice.
        DataError: a file is absent or damaged, or tables and images do not fit one another.
    """
    chosen = describe(attributes=attributes).labels.names
    labels = _attributes(raw / ATTRIBUTES, chosen)
    people = {name: person for _, name, person in _pairs(raw / PEOPLE)}
    splits = _splits(raw / PARTITION)
    members = zip_members(raw / IMAGES)  # closed with the last function that reads from it
    for line, name in enumerate(labels, start=3):
        if f"{FOLDER}/{name}" not in members:
            raise DataError(
                f"{raw / ATTRIBUTES}, line {line}: {raw / IMAGES} has no {FOLDER}/{name}; remove the two files and "
                "download them again"
            )
        for table, known in ((PEOPLE, people), (PARTITION, splits)):
            if name not in known:
                raise DataError(
                    f"{raw / ATTRIBUTES}, line {line}: {raw / table} has no line for {name}; remove the two files "
                    "and download them again"
                )
    for name, values in labels.items():
        yield partial(_load, members, name, values, group=people[name], split=splits[name])


def _load(members: ZipMembers, name: str, values: bytes, *, group: str, split: Split) -> Sample:
    member = f"{FOLDER}/{name}"
    image = decode_image(members.read(member), name=f"{members.path}: {member}", mode="RGB")
    return Sample(sample_id=name, image=image, labels=[float(value) for value in values], group=group, split=split)


def _attributes(path: Path, chosen: tuple[str, ...]) -> dict[str, bytes]:
    """Return a byte, 0 or 1, for each chosen attribute of each image."""
    lines = _lines(path)
    count = lines[0].strip() if lines else ""
    if not count.isdecimal() or int(count) != len(lines) - 2:
        raise _wrong(path, 1, f"it announces {count!r} images, and {max(len(lines) - 2, 0)} follow")
    names = lines[1].split()
    if sorted(names) != sorted(NAMES):
        raise _wrong(path, 2, "it does not name the 40 published attributes")
    columns = [names.index(name) + 1 for name in chosen]
    labels: dict[str, bytes] = {}
    for number, line in enumerate(lines[2:], start=3):
        fields = line.split()
        if len(fields) != 1 + len(names):
            raise _wrong(path, number, f"it has {len(fields)} fields instead of {1 + len(names)}")
        strange = set(fields[1:]) - {"-1", "1"}
        if strange:
            raise _wrong(path, number, f"the value {min(strange)!r} is neither 1 nor -1")
        if fields[0] in labels:
            raise _wrong(path, number, f"{fields[0]} comes a second time")
        labels[fields[0]] = bytes(fields[column] == "1" for column in columns)
    return labels


def _splits(path: Path) -> dict[str, Split]:
    splits = {}
    for number, name, value in _pairs(path):
        if value not in SPLITS:
            raise _wrong(path, number, f"the part {value!r} is none of {', '.join(SPLITS)}")
        splits[name] = SPLITS[value]
    return splits


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield number, image and value of each line."""
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if len(fields) != 2:
            raise _wrong(path, number, f"it has {len(fields)} fields instead of 2")
        yield number, fields[0], fields[1]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().removeprefix(BOM_UTF8).decode("ascii").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path} is absent; download it. {SOURCE.access}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text; remove it and download it again") from error


def _wrong(path: Path, line: int, what: str) -> DataError:
    return DataError(f"{path}, line {line}: {what}; remove it and download it again")
