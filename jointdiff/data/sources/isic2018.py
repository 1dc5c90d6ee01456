"""ISIC 2018, task 3 (HAM10000): dermoscopy of pigmented skin lesions in seven classes (Tschandl et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from jointdiff.data.source import UNORIENTED, DataError, Facts, File, LabelSpec, Region, Sample, Source
from jointdiff.data.sources._isic import LICENCE, Pictures, ground_truth, published, zipped_table
from jointdiff.data.sources._tables import read_table

# Images per class of the training part; the challenge publishes these, and no such counts of the other two parts.
TRAINING = {"MEL": 1_113, "NV": 6_705, "BCC": 514, "AKIEC": 327, "BKL": 1_099, "DF": 115, "VASC": 142}
CLASSES = tuple(TRAINING)
PARTS: tuple[tuple[Literal["train", "validation", "test"], str], ...] = (
    ("train", "Training"),
    ("validation", "Validation"),
    ("test", "Test"),
)
LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"
# Masks of the lesions, the better one last: task 1's cover few of these images, Tschandl's all 10,015 of training.
MASKS = ("ISIC2018_Task1_Training_GroundTruth.zip", "HAM10000_segmentations_lesion_tschandl.zip")

SOURCE = Source(
    name="isic2018",
    title="ISIC 2018 task 3 (HAM10000)",
    labels=LabelSpec("one_of_k", CLASSES),
    channels=3,
    licence=LICENCE,
    cite="Tschandl, Rosendahl and Kittler, Scientific Data 5:180161 (2018); Codella et al., arXiv 1902.03368 (2019)",
    files=(
        *(
            published(2018, f"ISIC2018_Task3_{part}_{kind}.zip")
            for _, part in PARTS
            for kind in ("Input", "GroundTruth")
        ),
        published(2018, LESIONS),
        File(MASKS[0], urls=published(2018, MASKS[0]).urls, optional=True),
        File(MASKS[1], optional=True),
    ),
    augmentations=UNORIENTED,
    # 7,470 lesions (Tschandl et al.), and every other image is its own group.
    facts=Facts(
        samples=10_015 + 193 + 1_512,
        groups=7_470 + 193 + 1_512,
        splits={"train": 10_015, "validation": 193, "test": 1_512},
    ),
    access=(
        f"Optional: {MASKS[1]}, the lesion masks of all training images, is downloaded by hand from Harvard Dataverse "
        "(https://doi.org/10.7910/DVN/DBW86T) and put into the folder isic2018 of the mirror"
    ),
    caveats=("which lesions the official validation and test images show is not published: each is its own group",),
)


def read(raw: Path, *, size: int) -> Iterator[partial[Sample]]:
    """Yield a function for each image of the three official parts that reads it from its zip.

    Raises:
        DataError: a file is absent or damaged, or pictures and tables do not fit one another.
    """
    lesions = {row["image"]: row["lesion_id"] for _, row in read_table(raw / LESIONS, columns=("image", "lesion_id"))}
    masks = [Pictures(raw / name, suffix="_segmentation.png") for name in MASKS if (raw / name).is_file()]
    for split, part in PARTS:
        table, content = zipped_table(raw / f"ISIC2018_Task3_{part}_GroundTruth.zip")
        truth = ground_truth(content, name=table, classes=CLASSES)
        if split == "train":
            _check(truth, lesions, table=table)
        pictures = Pictures(raw / f"ISIC2018_Task3_{part}_Input.zip")
        pictures.hold(truth, table=table)
        pictures.only(truth, table=table)
        for image, label in truth.items():
            group = lesions[image] if split == "train" else image
            mask = next((archive for archive in reversed(masks) if image in archive), None)
            yield partial(_load, pictures, image, label=label, group=group, split=split, masks=mask)


def _load(
    pictures: Pictures,
    image: str,
    *,
    label: int,
    group: str,
    split: Literal["train", "validation", "test"],
    masks: Pictures | None,
) -> Sample:
    mask = masks.read(image, mode="L") > 127 if masks else np.zeros(0, dtype=bool)
    return Sample(
        sample_id=image,
        image=pictures.read(image),
        labels=np.eye(len(CLASSES))[label].tolist(),
        group=group,
        split=split,
        regions=[Region(CLASSES[label], mask=mask)] if mask.any() else (),
    )


def _check(truth: dict[str, int], lesions: dict[str, str], *, table: str) -> None:
    """Refuse images of no lesion and, where the training part is whole, class counts of another release."""
    for image in truth:
        if not lesions.get(image):
            raise DataError(f"{LESIONS} names no lesion of {image}, which {table} lists; download both again")
    counts = [list(truth.values()).count(k) for k in range(len(CLASSES))]
    if len(truth) == sum(TRAINING.values()) and counts != list(TRAINING.values()):
        raise DataError(f"{table} has {counts} images per class where {TRAINING} are published; download it again")
