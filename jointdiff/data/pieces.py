"""Prepared samples on their way from a part to the store: Arrow files of some dozen megabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.data.checks import check_sample
from jointdiff.data.duplicates import SIDE, thumbnail
from jointdiff.data.images import Fit
from jointdiff.data.source import DataError, Loadable, Source, load
from jointdiff.data.store import tensor_file
from jointdiff.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa


def prepare_sample(source: Source, place: int, loadable: Loadable, *, size: int) -> dict[str, Any]:
    """Load, check and resize one sample and return it as a row of a piece.

    Raises:
        DataError: it is not what its source promises.
    """
    sample = load(loadable)
    height, width, labels = check_sample(source, sample)
    fit = Fit(height, width, size, source.resize)
    image = fit.image(sample.image).tobytes()
    regions = []
    for region in sample.regions:
        mask = None if region.mask is None else fit.mask(region.mask)
        box = _tight_box(mask) if mask is not None else fit.box(region.box)  # type: ignore[arg-type]
        if box is not None:  # else it is cropped away
            packed = None if mask is None else np.packbits(mask).tobytes()
            regions.append({"finding": region.finding, "box": box, "mask": packed})
    said: tuple[Any, ...] = (sample.sample_id, sample.group, sample.split, labels.tolist(), regions)
    if sample.domain:  # sets without domains keep their digests
        said += (sample.domain,)
    content = hashlib.blake2b(repr(said).encode(), digest_size=16)
    content.update(image)
    return {
        "place": place,
        "sample_id": sample.sample_id,
        "group": sample.group,
        "split": sample.split or "",
        "domain": sample.domain or "",
        "width": width,
        "height": height,
        "labels": labels,
        "image": image,
        "pixels": hashlib.blake2b(image, digest_size=16).hexdigest(),
        "thumbnail": thumbnail(sample.image).tobytes(),
        "digest": content.digest(),
        "regions": regions,
        "masks": sum(region["mask"] is not None for region in regions),
    }


def _schema(names: int) -> pa.Schema:
    import pyarrow as pa

    box = pa.list_(pa.float64(), 4)
    region = pa.struct([("finding", pa.string()), ("box", box), ("mask", pa.binary())])
    columns = {
        "shard": pa.int32(),
        "place": pa.int64(),
        **dict.fromkeys(("sample_id", "group", "split", "domain"), pa.string()),
        **dict.fromkeys(("width", "height"), pa.int32()),
        "labels": pa.list_(pa.float32(), names),
        "image": pa.binary(),
        "pixels": pa.string(),
        "thumbnail": pa.binary(SIDE * SIDE),
        "digest": pa.binary(16),
        "regions": pa.list_(region),
        "masks": pa.int32(),
    }
    return pa.schema(list(columns.items()))


def write_piece(path: Path, shard: int, rows: Sequence[dict[str, Any]], *, names: int) -> None:
    """Write rows of samples with ``names`` labels, whole or not at all."""
    import pyarrow as pa
    from pyarrow import ipc

    schema, at_once = _schema(names), -(-len(rows) // 32)
    with atomic_path(path) as aside, ipc.new_file(str(aside), schema) as writer:
        # Some rows at a time: Arrow then fills the same megabyte again, and not new memory as large as the piece.
        for start in range(0, len(rows), at_once):
            some = [{"shard": shard, **row} for row in rows[start : start + at_once]]
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def read_piece(path: Path) -> pa.Table:
    """Return the rows of a piece, memory-mapped.

    Raises:
        DataError: it is damaged.
    """
    import pyarrow as pa
    from pyarrow import ipc

    try:
        with pa.memory_map(str(path)) as mapped:
            return ipc.open_file(mapped).read_all()
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged ({error}); delete its folder so that it is prepared anew") from error


def write_pixels(
    pieces: Sequence[Path], rank: np.ndarray, masks: np.ndarray, folder: Path, *, size: int, channels: int
) -> dict[str, np.ndarray]:
    """Write images.arrow and masks.arrow from all pieces and return the table of regions.

    Args:
        pieces: their files.
        rank: final row (N,) of every sample, in the order of the pieces.
        masks: number of masks (N,) of every final row.
        folder: where to write.
        size, channels: of the images.
    """
    import pyarrow as pa

    found: dict[str, list[Any]] = {key: [] for key in ("row", "finding", "x0", "y0", "x1", "y1", "mask")}
    next_mask = np.cumsum(masks) - masks
    rows = iter(rank.tolist())
    with (
        tensor_file(folder / "images.arrow", (size, size, channels), len(rank)) as images,
        tensor_file(folder / "masks.arrow", (size, size), int(masks.sum())) as planes,
    ):
        for path in pieces:
            table = read_piece(path)
            for image, regions in zip(table["image"], table["regions"].to_pylist(), strict=True):
                row = next(rows)
                images.write(row, memoryview(image.as_buffer()))
                for region in regions:
                    place = -1
                    if region["mask"] is not None:
                        place = int(next_mask[row])
                        next_mask[row] += 1
                        plane = np.unpackbits(np.frombuffer(region["mask"], np.uint8), count=size * size)
                        planes.write(place, plane.tobytes())
                    for key, value in zip(found, (row, region["finding"], *region["box"], place), strict=True):
                        found[key].append(value)
            del table
            pa.default_memory_pool().release_unused()
    order = np.argsort(np.asarray(found["row"], dtype=np.int64), kind="stable")
    kinds: dict[str, Any] = {"row": np.int64, "finding": np.str_, "mask": np.int64}
    return {key: np.asarray(values, dtype=kinds.get(key, np.float64))[order] for key, values in found.items()}


def _tight_box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return (x0, y0, x1, y1), x1 and y1 exclusive; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
