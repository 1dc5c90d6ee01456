"""Read a data set once, check every sample, and write it at one size as a memory-mapped store."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.config import ConfigError
from jointdiff.data.images import Fit
from jointdiff.data.source import DataError, DataInfo, Sample, Source
from jointdiff.data.store import info_to_json, tensor_writer, write_table
from jointdiff.files import atomic_path, write_json
from jointdiff.progress import Progress
from jointdiff.registry import load_source

if TYPE_CHECKING:
    from types import ModuleType


def prepare(
    name: str, raw: Path | str, out: Path | str, *, size: int, options: Mapping[str, Any] | None = None
) -> None:
    """Write the data set ``name`` at ``size`` pixels a side to the folder ``out``, whole or not at all.

    Args:
        name: a registered data set.
        raw: folder of its published files.
        out: folder for images.arrow, masks.arrow, samples.parquet, regions.parquet and dataset.json.
        size: side of the prepared images in pixels.
        options: what the source's ``read`` accepts.

    Raises:
        ConfigError: the data set or an option is unknown.
        DataError: a file is absent, or a sample is not what the source promises.
    """
    prepare_source(load_source(name), raw, out, size=size, options=options)


def prepare_source(
    module: ModuleType, raw: Path | str, out: Path | str, *, size: int, options: Mapping[str, Any] | None = None
) -> None:
    """Prepare a data set given by its module (``SOURCE`` and ``read``); see ``prepare``."""
    source: Source = module.SOURCE
    chosen = _check_options(source, options or {})
    for file in source.files:
        if not file.optional and not (Path(raw) / file.name).is_file():
            raise DataError(
                f"{source.name}: {Path(raw) / file.name} is absent; download it, or name a mirror that has it "
                "(see docs/mirror.md)"
            )
    with atomic_path(out) as aside:
        aside.mkdir(parents=True)
        total = module.count(**chosen) if hasattr(module, "count") else source.facts.samples
        _write(source, module.read(Path(raw), size=size, **chosen), aside, size=size, total=total)


def _write(source: Source, samples: Iterator[Sample], folder: Path, *, size: int, total: int | None) -> None:
    names = source.labels.names
    table: dict[str, list[Any]] = {key: [] for key in ("sample_id", "group", "split", "width", "height")}
    places: dict[str, list[Any]] = {key: [] for key in ("row", "finding", "x0", "y0", "x1", "y1", "mask")}
    labels: list[np.ndarray] = []
    known: set[str] = set()
    digest = hashlib.sha256()
    with (
        tensor_writer(folder / "images.arrow", (size, size, source.channels)) as images,
        tensor_writer(folder / "masks.arrow", (size, size)) as masks,
        Progress(f"prepare {source.name}", total=total, unit="images") as progress,
    ):
        for sample in samples:
            height, width, values = _check(source, sample, known)
            known.add(sample.sample_id)
            fit = Fit(height, width, size, source.resize)
            image = fit.image(sample.image)
            row = images.append(image)
            labels.append(values)
            entries: tuple[Any, ...] = (sample.sample_id, sample.group, sample.split or "", width, height)
            for key, entry in zip(table, entries, strict=True):
                table[key].append(entry)
            digest.update(repr((sample.sample_id, sample.group, sample.split, values.tolist())).encode())
            digest.update(image.tobytes())
            for region in sample.regions:
                mask = None if region.mask is None else fit.mask(region.mask)
                box = _tight_box(mask) if mask is not None else fit.box(region.box)  # type: ignore[arg-type]
                if box is None:
                    continue  # cropped away
                place = -1 if mask is None else masks.append(mask.astype(np.uint8))
                for key, entry in zip(places, (row, region.finding, *box, place), strict=True):
                    places[key].append(entry)
                digest.update(repr((region.finding, box)).encode())
                digest.update(b"" if mask is None else np.packbits(mask).tobytes())
            progress.advance()
    if not known:
        raise DataError(f"{source.name}: no samples were read; check its raw files and its options")
    stacked = np.stack(labels)
    _check_facts(source, stacked)
    table |= {f"label:{name}": stacked[:, k] for k, name in enumerate(names)}  # type: ignore[misc]
    write_table(table, folder / "samples.parquet")
    write_table(_typed_regions(places), folder / "regions.parquet")
    info = DataInfo(
        name=source.name,
        title=source.title,
        labels=source.labels,
        channels=source.channels,
        size=size,
        augmentations=source.augmentations,
        samples=len(known),
        digest=digest.hexdigest(),
        has_regions=bool(places["row"]),
        cite=source.cite,
        licence=source.licence,
    )
    write_json(folder / "dataset.json", info_to_json(info))


def _check_options(source: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in options.items():
        where = f"datasets.{source.name}.options.{key}"
        if key not in source.options:
            nearest = difflib.get_close_matches(key, source.options, n=1, cutoff=0.0)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "this data set has no options"
            raise ConfigError(f"{where} is no option of {source.name}: {hint}")
        kind = type(source.options[key])
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise ConfigError(f"{where}: {value!r} is no {kind.__name__}; the default is {source.options[key]!r}")
    return {**source.options, **options}


def _check(source: Source, sample: Sample, known: set[str]) -> tuple[int, int, np.ndarray]:
    """Return height, width and labels (K,) of a sample that keeps the contract."""

    def wrong(what: str) -> DataError:
        return DataError(f"{source.name}, sample {sample.sample_id!r}: {what}")

    image = sample.image
    if sample.sample_id in known:
        raise wrong("two samples have this id; ids must be unique (is a file listed twice?)")
    if not sample.group:
        raise wrong("it has no group; use its own id where nothing ties it to others")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise wrong(f"the image is {kind} instead of uint8 (H, W) or (H, W, C)")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels != source.channels:
        raise wrong(f"the image has {channels} channels instead of {source.channels}; convert it in read()")
    height, width = image.shape[:2]

    names = source.labels.names
    values = np.asarray(sample.labels, dtype=np.float32)
    if values.shape != (len(names),):
        raise wrong(f"it has labels of shape {values.shape} instead of {len(names)} ({', '.join(names)})")
    if not (np.isnan(values) | (values == 0) | (values == 1)).all():
        raise wrong(f"its labels {values.tolist()} are not all 0, 1 or NaN")
    if source.labels.kind == "one_of_k" and not np.isnan(values).all() and values.sum() != 1:
        raise wrong(f"its labels {values.tolist()} are not one-hot, as one_of_k asks")
    if sample.split not in (None, "train", "validation", "test"):
        raise wrong(f"its split {sample.split!r} is none of train, validation and test")

    for region in sample.regions:
        if region.finding not in names:
            raise wrong(f"a region names the finding {region.finding!r}, which is none of {', '.join(names)}")
        if region.mask is None and region.box is None:
            raise wrong(f"a region of {region.finding!r} has neither mask nor box")
        if region.mask is not None:
            if region.mask.shape != (height, width):
                raise wrong(
                    f"the mask of {region.finding!r} is {_size(region.mask.shape)} pixels, its image "
                    f"{_size((height, width))}: one of the two files is wrong; remove it and download it again"
                )
            if region.mask.dtype != bool or not region.mask.any():
                raise wrong(f"the mask of {region.finding!r} is empty or not bool; leave an empty region away")
        if region.box is not None:
            x0, y0, x1, y1 = region.box
            if not (all(map(math.isfinite, region.box)) and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise wrong(
                    f"the box {region.box} of {region.finding!r} is not inside its image of {width} x {height} pixels"
                )
    return height, width, values


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[1::-1])


def _check_facts(source: Source, labels: np.ndarray) -> None:
    found = {"samples": len(labels)} | {
        f"positives of {name}": int(np.nansum(labels[:, source.labels.names.index(name)]))
        for name in source.facts.positives
    }
    published = {"samples": source.facts.samples} | {
        f"positives of {name}": count for name, count in source.facts.positives.items()
    }
    for what, count in published.items():
        if count is not None and found[what] != count:
            raise DataError(
                f"{source.name}: {found[what]} {what} were read where {count} are published: the raw files are "
                "incomplete or of another release; remove them and download them again"
            )


def _tight_box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return (x0, y0, x1, y1), x1 and y1 exclusive; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _typed_regions(places: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Keep the column types where there is no region at all."""
    kinds = {"row": np.int64, "finding": np.str_, "mask": np.int64}
    return {key: np.asarray(values, dtype=kinds.get(key, np.float64)) for key, values in places.items()}
