"""ISIC 2019: dermoscopy of skin lesions in eight classes, from three clinics (HAM10000, BCN_20000, MSK)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from jointdiff.data.source import UNORIENTED, DataError, Facts, LabelSpec, Sample, Source
from jointdiff.data.sources._isic import LICENCE, Pictures, ground_truth, published
from jointdiff.data.sources._tables import read_table

# Images per class of the training part.
TRAINING = {
    "MEL": 4_522,
    "NV": 12_875,
    "BCC": 3_323,
    "AK": 867,
    "BKL": 2_624,
    "DF": 239,
    "VASC": 253,
    "SCC": 628,
}
CLASSES = tuple(TRAINING)
UNKNOWN = "UNK"  # "none of the others": in the test part alone, and left out here

SOURCE = Source(
    name="isic2019",
    title="ISIC 2019",
    labels=LabelSpec("one_of_k", CLASSES),
    channels=3,
    licence=LICENCE,
    cite=(
        "Tschandl et al., Scientific Data 5:180161 (2018); Codella et al., arXiv 1710.05006 (2017); "
        "Combalia et al., arXiv 1908.02288 (2019)"
    ),
    files=tuple(
        published(2019, f"ISIC_2019_Training_{name}") for name in ("Input.zip", "GroundTruth.csv", "Metadata.csv")
    ),
    augmentations=UNORIENTED,
    facts=Facts(samples=25_331, positives=TRAINING),
    options={"official_test": False},
    caveats=("images without a published lesion are groups of their own; some may show the same lesion",),
)


def describe(*, official_test: bool = False) -> Source:
    """Return the training part alone, to be split by lesion, or with the official test part."""
    if not official_test:
        return SOURCE
    return replace(
        SOURCE,
        title=f"{SOURCE.title}, official test",
        files=(
            *SOURCE.files,
            *(published(2019, f"ISIC_2019_Test_{name}") for name in ("Input.zip", "GroundTruth.csv")),
        ),
        facts=Facts(splits={"train": 25_331}),
        caveats=(
            *SOURCE.caveats,
            f"test images of the class {UNKNOWN}, which training does not have, are left out",
            "which lesions the test images show is not published: each is its own group",
        ),
    )


def read(raw: Path, *, size: int, official_test: bool = False) -> Iterator[partial[Sample]]:
    """Yield a function for each image that reads it from its zip.

    Raises:
        DataError: a file is absent or damaged, or pictures and tables do not fit one another.
    """
    metadata = raw / "ISIC_2019_Training_Metadata.csv"
    lesions = {row["image"]: row["lesion_id"] for _, row in read_table(metadata, columns=("image", "lesion_id"))}
    parts: tuple[tuple[Literal["train", "test"], str], ...] = (("train", "Training"), ("test", "Test"))
    for split, part in parts[: 2 if official_test else 1]:
        table = raw / f"ISIC_2019_{part}_GroundTruth.csv"
        if not table.is_file():
            raise DataError(f"{table} is absent; download it, or put it there")
        truth = ground_truth(table.read_bytes(), name=str(table), classes=(*CLASSES, UNKNOWN))
        pictures = Pictures(raw / f"ISIC_2019_{part}_Input.zip")
        pictures.hold(truth, table=str(table))
        pictures.only(truth, table=str(table))
        for image, label in truth.items():
            if split == "train" and image not in lesions:
                raise DataError(f"{metadata} has no row of {image}, which {table} lists; download both again")
            if label == len(CLASSES):
                if split == "train":
                    raise DataError(f"{table}: {image} is of class {UNKNOWN}, which training does not have")
                continue
            yield partial(
                _load,
                pictures,
                image,
                label=label,
                # Names keep their suffix "_downsampled" everywhere, and need no care.
                group=(lesions[image] if split == "train" else "") or image,
                split=split if official_test else None,
            )


def _load(pictures: Pictures, image: str, *, label: int, group: str, split: Literal["train", "test"] | None) -> Sample:
    return Sample(
        sample_id=image,
        image=pictures.read(image),
        labels=np.eye(len(CLASSES))[label].tolist(),
        group=group,
        split=split,
    )
