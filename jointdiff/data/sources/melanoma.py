"""Melanoma or benign, balanced: all melanomas of ISIC 2020 and as many benign lesions, after Favero et al. (2025).

What could be verified of their set: their public code (github.com/faverogian/diffusion-classifier, dataset/isic.py)
balances a table of the columns image_name and target, which is how ISIC 2020's is written, and cuts its rows into
80/10/10. Which table that was could not be: a folder train/train beside it is that of a public collection which adds
melanomas of earlier years ("melanoma-external-malignant-256"). Their set may thus hold more images than this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jointdiff.data.source import UNORIENTED, DataError, Facts, LabelSpec, Sample, Source
from jointdiff.data.sources._balanced import Drawn, draw
from jointdiff.data.sources._isic import LICENCE, Pictures, published
from jointdiff.data.sources._tables import read_table

CLASSES = ("benign", "melanoma")
TABLE, IMAGES = "ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_JPEG.zip"
MELANOMAS = 584  # of 33,126 images of 2,056 patients: Rotemberg et al.

SOURCE = Source(
    name="melanoma",
    title="Melanoma or benign, balanced (ISIC 2020)",
    labels=LabelSpec("one_of_k", CLASSES),
    channels=3,
    licence=LICENCE,
    cite="Rotemberg et al., Scientific Data 8:34 (2021); Favero et al., MIDL (2025), arXiv 2502.03687",
    files=(published(2020, IMAGES), published(2020, TABLE)),
    augmentations=UNORIENTED,
    facts=Facts(samples=2 * MELANOMAS, positives=dict.fromkeys(CLASSES, MELANOMAS)),
    options={"row_level": False},
    caveats=("drawn after the recipe of Favero et al. from ISIC 2020 alone: their own set may be larger",),
)


def describe(*, row_level: bool = False) -> Source:
    """Return the set to be split by patient, or as its authors split it, by row."""
    if not row_level:
        return SOURCE
    return replace(
        SOURCE,
        title=f"{SOURCE.title}, split by row",
        caveats=(*SOURCE.caveats, "LEAKS: split 80/10/10 by row, so images of one patient are in training and test"),
    )


def read(raw: Path, *, size: int, row_level: bool = False) -> Iterator[partial[Sample]]:
    """Yield a function for each drawn image that reads it from the zip.

    Raises:
        DataError: a file is absent or damaged, or the zip lacks an image of the table.
    """
    classes, ids, patients = [], [], []
    for where, row in read_table(raw / TABLE, columns=("image_name", "patient_id", "target")):
        if row["target"] not in ("0", "1"):
            raise DataError(f"{where}: the target {row['target']!r} is neither 0 nor 1; download the table again")
        if not row["patient_id"]:
            raise DataError(f"{where}: {row['image_name']} has no patient_id; download the table again")
        classes.append(int(row["target"]))
        ids.append(row["image_name"])
        patients.append(row["patient_id"])
    rows = draw(classes, names=CLASSES, ids=ids, patients=patients, row_level=row_level, table=str(raw / TABLE))
    pictures = Pictures(raw / IMAGES)
    pictures.hold((ids[drawn.row] for drawn in rows), table=str(raw / TABLE))
    for drawn in rows:
        yield partial(_load, pictures, ids[drawn.row], label=classes[drawn.row], drawn=drawn)


def _load(pictures: Pictures, image: str, *, label: int, drawn: Drawn) -> Sample:
    return Sample(
        sample_id=image,
        image=pictures.read(image),
        labels=np.eye(len(CLASSES))[label].tolist(),
        group=drawn.group,
        split=drawn.split,
    )
