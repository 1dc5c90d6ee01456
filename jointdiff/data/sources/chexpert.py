"""CheXpert: chest radiographs with labels of a report labeller that may be uncertain (Irvin et al. 2019).

The data need registration, so the user names the folder that holds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from jointdiff.config import ConfigError
from jointdiff.data.images import decode_image
from jointdiff.data.source import MEDICAL, DataError, Facts, LabelSpec, Sample, Source
from jointdiff.data.sources._balanced import draw
from jointdiff.data.sources._tables import read_table

ALL = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
BINARY = ("No Finding", "Pleural Effusion")
CHOICES = {
    "findings": ("competition", "all", "pleural_effusion"),
    "views": ("frontal", "all"),
    "uncertain": ("ignore", "zeros", "ones", "multi_class"),
    "blank": ("zeros", "ignore"),
}
UNKNOWN = float("nan")
# Paths begin with CheXpert-v1.0/ or CheXpert-v1.0-small/, those of the test set with test/. What does not look like
# this is refused, so that no path leads out of the folder.
PATH = re.compile(
    r"(?:CheXpert-v1\.0[\w-]*/)?"
    r"(?P<file>(?:train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<view>view\d+_(?:frontal|lateral)))\.jpg"
)

# Images of the training, validation and test part. 223,414 + 234 + 668 are the 224,316 of the paper; frontal ones of
# the first two as counted by Zhang et al., Radiology: AI (2024); 150 of the last are lateral.
# The parts have 64,540, 200 and 500 patients: the paper's 65,240.
IMAGES = {"frontal": (191_027, 202, 518), "all": (223_414, 234, 668)}
PATIENTS = (64_540, 200, 500)
ROWS = 223_414  # of a whole train.csv

SOURCE = Source(
    name="chexpert",
    title="CheXpert",
    labels=LabelSpec("multi_label", COMPETITION),
    channels=1,
    licence="Stanford University Dataset Research Use Agreement: registration, no redistribution",
    cite="Irvin et al., AAAI 33:590-597 (2019)",
    augmentations=MEDICAL,  # no flips: they would move the heart to the other side
    options={
        "folder": "",
        "findings": "competition",
        "views": "frontal",
        "uncertain": "ignore",
        "blank": "zeros",
        "row_level": False,
    },
    access=(
        "CheXpert needs registration: (1) register at https://stanfordmlgroup.github.io/competitions/chexpert/, which "
        "leads to Stanford AIMI, and accept the agreement; (2) download CheXpert-v1.0-small or CheXpert-v1.0; "
        "(3) unpack it, so that one folder holds train.csv, valid.csv, train/ and valid/; (4) set "
        "datasets.chexpert.options.folder to that folder. (5) If you have the test set "
        "(https://aimi.stanford.edu/datasets/chexlocalize), put its test_labels.csv and test/ into the same folder"
    ),
    caveats=("training labels are mined from reports by a program, those of validation and test are radiologists'",),
)


def describe(
    *,
    folder: str = "",
    findings: str = "competition",
    views: str = "frontal",
    uncertain: str = "ignore",
    blank: str = "zeros",
    row_level: bool = False,
) -> Source:
    """Return the data set in ``folder`` that the options make.

    Args:
        folder: where train.csv, valid.csv and the images are.
        findings: the five of the "competition", "all" 14, or "pleural_effusion" against No Finding, balanced.
        views: "frontal" or "all".
        uncertain: what an uncertain mention is: "ignore" (unknown), "zeros" (absent), "ones" (present), or
            "multi_class": an output of its own, "<finding> uncertain", beside that of the finding, which is absent.
            CheXpert's U-MultiClass has one softmax over three outcomes; here these are two sigmoids.
        blank: what no mention is: "zeros" (absent), as in the paper, or "ignore" (unknown).
        row_level: with "pleural_effusion", whether rows are split 80/10/10 as by Favero et al.

    Raises:
        ConfigError: an option's value is refused, or the folder is not there or not whole; with the steps to get it.
    """
    chosen = {"findings": findings, "views": views, "uncertain": uncertain, "blank": blank}
    for key, value in chosen.items():
        if value not in CHOICES[key]:
            raise ConfigError(f"datasets.chexpert.options.{key}: {value!r} is none of {', '.join(CHOICES[key])}")
    binary = findings == "pleural_effusion"
    for key in ("views", "uncertain", "blank"):
        if binary and chosen[key] != SOURCE.options[key]:
            raise ConfigError(
                f"datasets.chexpert.options.{key}: findings: pleural_effusion is drawn from certain frontal images, "
                "with blanks as zeros; leave this option away"
            )
    if row_level and not binary:
        raise ConfigError("datasets.chexpert.options.row_level: only findings: pleural_effusion is split by row")
    root = Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise ConfigError(f"datasets.chexpert.options.folder: {folder!r} is no folder. {SOURCE.access}")
    for name in ("train.csv", "valid.csv"):
        if not (root / name).is_file():
            raise ConfigError(f"datasets.chexpert.options.folder: {root / name} is absent. {SOURCE.access}")

    caveats = list(SOURCE.caveats)
    if binary:
        names: tuple[str, ...] = BINARY
        title = "CheXpert, pleural effusion or none, balanced"
        caveats = ["labels are mined from reports by a program, in the test part too"]
        caveats.append("drawn after the recipe of Favero et al. (MIDL 2025), but not their images row by row")
        if row_level:
            caveats.append(
                "split 80/10/10 by row, as by Favero et al.; no patient is in two parts, as each has one image here"
            )
    else:
        names = COMPETITION if findings == "competition" else ALL
        title = f"CheXpert, {views} views" if views == "frontal" else "CheXpert, all views"
        if not _has_test(root):
            caveats.append("valid.csv is the test part, for want of test_labels.csv and test/")
        if uncertain == "multi_class":
            caveats.append(
                "outputs named '... uncertain' are auxiliary: validation and test have none that is present, so leave "
                "them out of means"
            )
            names = (*names, *(f"{name} uncertain" for name in names))
    return replace(
        SOURCE,
        title=title,
        labels=LabelSpec("one_of_k" if binary else "multi_label", names),
        cite=SOURCE.cite + ("; Favero et al., MIDL (2025), arXiv 2502.03687" if binary else ""),
        facts=Facts() if binary else _facts(root, views=views),
        inputs=tuple(
            root / name for name in (*_tables(root).values(), "train", "valid", "test") if (root / name).exists()
        ),
        caveats=tuple(caveats),
    )


def read(
    raw: Path,
    *,
    size: int,
    folder: str = "",
    findings: str = "competition",
    views: str = "frontal",
    uncertain: str = "ignore",
    blank: str = "zeros",
    row_level: bool = False,
) -> Iterator[partial[Sample]]:
    """Yield a function for each image that reads it from the user's folder; nothing is read from ``raw``.

    Raises:
        ConfigError: an option's value is refused, or the folder is not there.
        DataError: a table is not what it should be, or an image is absent or damaged.
    """
    source = describe(
        folder=folder, findings=findings, views=views, uncertain=uncertain, blank=blank, row_level=row_level
    )
    root = Path(folder).expanduser()
    if findings == "pleural_effusion":
        yield from _balanced(root, row_level=row_level)
        return
    columns = [name for name in source.labels.names if name in ALL]
    policies = {1.0: 1.0, 0.0: 0.0, -1.0: {"ignore": UNKNOWN, "zeros": 0.0, "ones": 1.0, "multi_class": 0.0}[uncertain]}
    not_mentioned = UNKNOWN if blank == "ignore" else 0.0
    for split, table in _tables(root).items():
        for row in _rows(root / table, columns=columns):
            if views == "frontal" and not row.frontal:
                continue
            labels = [not_mentioned if value is None else policies[value] for value in row.values]
            if uncertain == "multi_class":
                labels += [not_mentioned if value is None else float(value == -1.0) for value in row.values]
            yield partial(_load, root, row, labels=labels, group=row.patient, split=split)


Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class _Row:
    """One image as a table lists it."""

    where: str
    file: str  # without suffix
    patient: str
    frontal: bool
    first: bool  # whether it is the first frontal view of the patient's first study
    values: tuple[float | None, ...]  # 1 present, 0 absent, -1 uncertain, None not mentioned


def _load(root: Path, row: _Row, *, labels: list[float], group: str, split: Split | None) -> Sample:
    path = root / f"{row.file}.jpg"
    if not path.is_file():
        raise DataError(f"{path} is absent, but {row.where} lists it; unpack the archive again")
    return Sample(
        sample_id=row.file,
        image=decode_image(path.read_bytes(), name=str(path)),
        labels=labels,
        group=group,
        split=split,
    )


def _balanced(root: Path, *, row_level: bool) -> Iterator[partial[Sample]]:
    """Draw as Favero et al. do (dataset/chexpert.py at 63492ac): first views, blank as absent, either or."""
    path = root / "train.csv"
    rows = [
        row
        for row in _rows(path, columns=BINARY)
        if row.first and -1.0 not in row.values and (row.values[0] == 1.0) != (row.values[1] == 1.0)
    ]
    drawn = draw(
        [int(row.values[1] == 1.0) for row in rows],
        names=BINARY,
        ids=[row.file for row in rows],
        patients=[row.patient for row in rows],
        row_level=row_level,
        table=str(path),
    )
    for one in drawn:
        row = rows[one.row]
        labels = [float(value == 1.0) for value in row.values]
        yield partial(_load, root, row, labels=labels, group=one.group, split=one.split)


def _rows(path: Path, *, columns: Sequence[str]) -> Iterator[_Row]:
    for where, row in read_table(path, columns=("Path", *columns)):
        match = PATH.fullmatch(row["Path"])
        if match is None:
            raise DataError(
                f"{where}: the path {row['Path']!r} is not like CheXpert-v1.0/train/patient00001/study1/"
                "view1_frontal.jpg; unpack the archive again"
            )
        values: list[float | None] = []
        for column in columns:
            try:
                value = float(row[column]) if row[column] else None
            except ValueError:
                value = UNKNOWN
            if value not in (1.0, 0.0, -1.0, None):
                raise DataError(
                    f"{where}: {column} is {row[column]!r} instead of 1.0, 0.0, -1.0 or blank; unpack the archive again"
                )
            values.append(value)
        view = match["view"]
        yield _Row(
            where=where,
            file=match["file"],
            patient=match["patient"],
            frontal=view.endswith("frontal"),
            first=(match["study"], view) == ("study1", "view1_frontal"),
            values=tuple(values),
        )


def _has_test(root: Path) -> bool:
    return (root / "test_labels.csv").is_file() and (root / "test").is_dir()


def _tables(root: Path) -> dict[Split, str]:
    """Name the table of each part: with the test set of 2022, or with the validation part in its place."""
    if _has_test(root):
        return {"train": "train.csv", "validation": "valid.csv", "test": "test_labels.csv"}
    return {"train": "train.csv", "test": "valid.csv"}


def _facts(root: Path, *, views: str) -> Facts:
    """Return what is published of the whole set; nothing where the user's table is a part of it."""
    if (root / "train.csv").read_bytes().count(b"\n") not in (ROWS, ROWS + 1):
        return Facts()
    parts = len(_tables(root))
    counts = IMAGES[views][:parts]
    return Facts(
        samples=sum(counts),
        groups=sum(PATIENTS[:parts]) if views == "all" else None,
        splits=dict(zip(_tables(root), counts, strict=True)),
    )
