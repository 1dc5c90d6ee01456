"""NIH ChestX-ray14: 112,120 frontal chest radiographs with 14 findings mined from reports (Wang et al. 2017)."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from jointdiff.config import ConfigError
from jointdiff.data.archives import tar_stream
from jointdiff.data.images import decode_image
from jointdiff.data.source import MEDICAL, DataError, Facts, File, LabelSpec, Region, Sample, Source
from jointdiff.data.sources._tables import read_table

LABELS, BOXES = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"
LISTS: dict[Literal["train", "test"], str] = {"train": "train_val_list.txt", "test": "test_list.txt"}

# Images per finding in Data_Entry_2017_v2020.csv, in the order of the paper. Cross-checked against the table in the
# README of huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset, as is "No Finding": 60,361.
POSITIVES = {
    "Atelectasis": 11_559,
    "Cardiomegaly": 2_776,
    "Effusion": 13_317,
    "Infiltration": 19_894,
    "Mass": 5_782,
    "Nodule": 6_331,
    "Pneumonia": 1_431,
    "Pneumothorax": 5_302,
    "Consolidation": 4_667,
    "Edema": 2_303,
    "Emphysema": 2_516,
    "Fibrosis": 1_686,
    "Pleural Thickening": 3_385,
    "Hernia": 227,
}
FINDINGS = tuple(POSITIVES)
# How the two tables spell what FINDINGS spells otherwise.
SPELLINGS = {"Pleural_Thickening": "Pleural Thickening", "Infiltrate": "Infiltration"}
NOTHING = "No Finding"
SIDE = 1024  # pixels of the published images; boxes are given in these

# The publisher's batch_download_zips.py; the same twelve stand in many public copies of it.
PUBLISHER = "https://nihcc.box.com/shared/static/"
KEYS = (
    "vfk49d74nhbxq3nqjg0900w5nvkorp5c",
    "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1",
    "f1t00wrtdk94satdfb9olcolqx20z2jp",
    "0aowwzs5lhjrceb3qp67ahp0rd1l1etg",
    "v5e3goj22zr6h8tzualxfsqlqaygfbsn",
    "asi7ikud9jwnkrnkj99jnpfkjdes7l6l",
    "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n",
    "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j",
    "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj",
    "l6nilvfa9cg3s28tqv1qc1olm3gnz54p",
    "hhq8fkdgvcari67vfhs7ppg2w6ni4jze",
    "ioqwiy20ihqwyr8pf4c24eazhh281pbu",
)
ARCHIVES = tuple(
    File(f"images_{number:03d}.tar.gz", urls=(f"{PUBLISHER}{key}.gz",)) for number, key in enumerate(KEYS, start=1)
)
# No lasting address of the tables is known: the publisher's pages hand them out by a browser only.
TABLES = tuple(File(name) for name in (LABELS, BOXES, *LISTS.values()))

SOURCE = Source(
    name="chestxray14",
    title="NIH ChestX-ray14",
    labels=LabelSpec("multi_label", FINDINGS),
    channels=1,
    licence="no restriction on use; name the NIH Clinical Center, cite the paper and link the download site",
    cite="Wang et al., CVPR (2017), pp. 3462-3471",
    files=(*ARCHIVES, *TABLES),
    augmentations=MEDICAL,  # no flips: they would move the heart to the other side
    facts=Facts(
        samples=112_120,
        groups=30_805,
        positives=POSITIVES,
        splits={"train": 86_524, "test": 25_596},
    ),
    options={"archives": len(ARCHIVES)},
    access=(
        f"The archives are downloaded by themselves, the tables by hand: open "
        f"https://nihcc.app.box.com/v/ChestXray-NIHCC in a browser, save {LABELS}, {BOXES}, {LISTS['train']} and "
        f"{LISTS['test']}, and put the four into the folder chestxray14 of the mirror that the configuration names"
    ),
    caveats=(
        "labels are mined from reports by a program; the publisher expects more than 90 % of them to be right",
        "every box lies on an image of the official test list, so boxes must not tune anything",
    ),
)


def describe(*, archives: int = len(ARCHIVES)) -> Source:
    """Return the data set that the first ``archives`` image archives make.

    Raises:
        ConfigError: there are not so many archives.
    """
    if not 1 <= archives <= len(ARCHIVES):
        raise ConfigError(f"datasets.chestxray14.options.archives: {archives} is not in 1 to {len(ARCHIVES)}")
    if archives == len(ARCHIVES):
        return SOURCE
    return replace(
        SOURCE,
        title=f"{SOURCE.title}, {archives} of {len(ARCHIVES)} archives",
        files=(*ARCHIVES[:archives], *TABLES),
        facts=Facts(),
        caveats=(*SOURCE.caveats, f"a subset for trying: {archives} of {len(ARCHIVES)} archives"),
    )


def shards(raw: Path, *, archives: int = len(ARCHIVES)) -> list[str]:
    """Return the names of the image archives."""
    return [file.name for file in ARCHIVES[:archives]]


def read(raw: Path, *, size: int, shard: str | None = None, archives: int = len(ARCHIVES)) -> Iterator[partial[Sample]]:
    """Yield a function for each image of one archive, or of all in order, that decodes it with its labels and boxes.

    Raises:
        DataError: a file is absent or damaged, or the archives, tables and lists do not fit one another.
    """
    for table in TABLES:
        if not (raw / table.name).is_file():
            raise DataError(f"{raw / table.name} is absent. {SOURCE.access}")
    whole = archives == len(ARCHIVES)
    rows, splits = _labels(raw / LABELS), _splits(raw)
    boxes = _boxes(raw / BOXES, known=rows if whole else None)
    for name in splits if whole else ():
        if name not in rows:
            raise DataError(
                f"{raw / LABELS} has no row of {name}, which {LISTS[splits[name]]} lists; download both again"
            )
    seen = set()
    for archive in [shard] if shard else shards(raw, archives=archives):
        for member, content in tar_stream(raw / archive):
            name = PurePosixPath(member).name
            if not name.endswith(".png") or name.startswith("."):
                continue
            where = f"{raw / archive}: {member}"
            if name not in rows:
                raise DataError(f"{where} has no row in {LABELS}; download the table again")
            if name not in splits:
                raise DataError(f"{where} is neither in {LISTS['train']} nor in {LISTS['test']}; download both again")
            seen.add(name)
            yield partial(_load, content, where=where, row=rows[name], split=splits[name], boxes=boxes.get(name, ()))
    if whole and not shard and (missing := rows.keys() - seen):
        raise DataError(
            f"{raw / LABELS} lists {min(missing)} and {len(missing) - 1} more images that no archive holds; "
            "download the archives again, or try fewer with the option archives"
        )


@dataclass(frozen=True)
class _Row:
    """What the label table says of one image."""

    patient: str
    findings: frozenset[str]


_Box = tuple[str, float, float, float, float]  # the finding and x0, y0, x1, y1 as shares of the image's sides


def _load(content: bytes, *, where: str, row: _Row, split: Literal["train", "test"], boxes: tuple[_Box, ...]) -> Sample:
    image = decode_image(content, name=where)  # grey: some of the files have four channels
    height, width = image.shape
    return Sample(
        sample_id=PurePosixPath(where).name,  # as in the published lists of labels
        image=image,
        labels=[float(finding in row.findings) for finding in FINDINGS],
        group=row.patient,
        split=split,
        # A box may only say where a finding is that is there. The label table of November 2017 lacked findings
        # that had been boxed (github.com/jrzech/reproduce-chexnet/issues/2).
        regions=[
            Region(finding, box=(x0 * width, y0 * height, x1 * width, y1 * height))
            for finding, x0, y0, x1, y1 in boxes
            if finding in row.findings
        ],
    )


def _labels(path: Path) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for where, row in read_table(path, columns=("Image Index", "Finding Labels", "Patient ID")):
        image, patient = row["Image Index"], row["Patient ID"].strip()
        named = [name.strip() for name in row["Finding Labels"].split("|")]
        findings = frozenset(SPELLINGS.get(name, name) for name in named if name != NOTHING)
        if image in rows:
            raise DataError(f"{where}: {image} has a row already; download the table again")
        if not patient:
            raise DataError(f"{where}: {image} has no Patient ID; download the table again")
        if unknown := findings - set(FINDINGS):
            raise DataError(
                f"{where}: {min(unknown)!r} is none of the 14 findings ({', '.join(FINDINGS)}) and not {NOTHING!r}; "
                "download the table again"
            )
        if findings and NOTHING in named:
            raise DataError(f"{where}: {NOTHING!r} stands beside {min(findings)!r}; download the table again")
        rows[image] = _Row(patient, findings)
    return rows


def _splits(raw: Path) -> dict[str, Literal["train", "test"]]:
    splits: dict[str, Literal["train", "test"]] = {}
    for split, name in LISTS.items():
        for image in (raw / name).read_text(encoding="utf-8-sig").split():
            if splits.get(image, split) != split:
                raise DataError(f"{raw / name}: {image} is in {LISTS[splits[image]]} too; download both lists again")
            splits[image] = split
    return splits


def _boxes(path: Path, *, known: dict[str, _Row] | None) -> dict[str, tuple[_Box, ...]]:
    """Read the boxes of every image; each must be of an image that is ``known``, if given."""
    boxes: dict[str, tuple[_Box, ...]] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream)
        # One title is spread over four cells, "Bbox [x,y,w,h]", and empty ones follow: no table by its header.
        header = [cell.strip() for cell in next(rows, [])]
        if header[:6] != ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]:
            raise DataError(f"{path} does not begin with Image Index,Finding Label,Bbox [x,y,w,h]; download it again")
        for row in rows:
            if not any(row):
                continue
            where = f"{path}, line {rows.line_num}"
            try:
                image, finding, (x, y, w, h) = row[0], row[1].strip(), map(float, row[2:6])
            except (ValueError, IndexError) as error:
                raise DataError(
                    f"{where}: {','.join(row)!r} is no image, finding, x, y, w, h; download it again"
                ) from error
            finding = SPELLINGS.get(finding, finding)
            if finding not in FINDINGS:
                raise DataError(f"{where}: {finding!r} is none of {', '.join(FINDINGS)}; download it again")
            if known is not None and image not in known:
                raise DataError(f"{where}: {image} has no row in {LABELS}; download both tables again")
            # Rounding may carry a box over the edge by a little, which is cut.
            x0, x1, y0, y1 = (min(max(edge / SIDE, 0.0), 1.0) for edge in (x, x + w, y, y + h))
            if not (all(map(math.isfinite, (x, y, w, h))) and x0 < x1 and y0 < y1):
                raise DataError(
                    f"{where}: the box x={x:g}, y={y:g}, w={w:g}, h={h:g} covers nothing of an image of "
                    f"{SIDE} x {SIDE} pixels; download it again"
                )
            boxes[image] = (*boxes.get(image, ()), (finding, x0, y0, x1, y1))
    return boxes
