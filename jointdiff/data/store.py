"""A prepared data set: images as one memory-mapped array beside tables of samples and regions.

``images.arrow`` and ``masks.arrow`` are Arrow IPC files of a single record batch with a fixed-shape-tensor column, so
that all pixels lie in one buffer and a numpy array can be laid over the file without a copy. ``SHA256SUMS`` lists every
file; each is held against it when it is first read.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from jointdiff.arrow import read_column, read_parquet
from jointdiff.data.source import Augmentations, DataError, DataInfo, LabelSpec
from jointdiff.files import SUMS, check_sum, read_json, read_sums

if TYPE_CHECKING:
    import pyarrow as pa

ROLES = ("labelled", "unlabelled", "validation", "test")


@dataclass(frozen=True)
class Store:
    """What ``prepare`` wrote, row by row in the order of the source."""

    folder: Path
    info: DataInfo
    sums: dict[str, str]  # SHA-256 of each file

    @cached_property
    def images(self) -> np.ndarray:
        """All images, uint8 (N, H, W, C), memory-mapped and read-only."""
        return map_tensor(self._sound("images.arrow"))

    @cached_property
    def samples(self) -> pa.Table:
        """The table ``samples.parquet``: sample_id, group, split, width, height, pixels and one column per label.

        A set for adaptation has the column domain as well.
        """
        return _read_table(self._sound("samples.parquet"))

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """Names of the samples (N,), unique."""
        return self._column("sample_id")

    @cached_property
    def groups(self) -> np.ndarray:
        """Patient, lesion or near-duplicate group of each sample (N,)."""
        return self._column("group")

    @cached_property
    def published_splits(self) -> np.ndarray:
        """The publisher's split of each sample (N,): train, validation, test or an empty string."""
        return self._column("split")

    @cached_property
    def domains(self) -> np.ndarray:
        """Domain of each sample (N,): source, target or, where the set has none, an empty string."""
        if "domain" not in self.samples.column_names:
            return np.full(self.info.samples, "")
        return self._column("domain")

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, float32 (N, K): 0, 1 or NaN where unknown."""
        columns = [read_column(self.samples, f"label:{name}") for name in self.info.labels.names]
        return np.stack(columns, axis=1).astype(np.float32, copy=False)

    @cached_property
    def pixels(self) -> np.ndarray:
        """Digest of each prepared image (N,): equal where the pixels are."""
        return self._column("pixels")

    @cached_property
    def thumbnails(self) -> np.ndarray:
        """Grey thumbnails of the published images, uint8 (N, 16, 16), memory-mapped and read-only."""
        return map_tensor(self._sound("thumbnails.arrow"))[..., 0]

    @cached_property
    def near_duplicates(self) -> np.ndarray:
        """Rows (P, 2) of nearly identical images, the lower first; see ``jointdiff.data.duplicates``.

        Of images with equal pixels only the first takes part.
        """
        table = _read_table(self._sound("near_duplicates.parquet"))
        return np.column_stack([read_column(table, "row_a"), read_column(table, "row_b")]).astype(np.int64)

    def has_region(self, finding: str) -> np.ndarray:
        """Say for each sample whether it is known where ``finding`` is: bool (N,)."""
        known = np.zeros(self.info.samples, dtype=bool)
        known[[row for row, name in self._regions if name == finding]] = True
        return known

    def regions(self, row: int, finding: str) -> np.ndarray | None:
        """Return where a finding is as bool (H, W): the union of its masks, else its filled boxes, else None."""
        found = self._regions.get((int(row), finding))
        if not found:
            return None
        region = np.zeros((self.info.size, self.info.size), dtype=bool)
        for mask, (x0, y0, x1, y1) in found:
            if mask >= 0:
                region |= self._masks[mask] > 0
            else:
                region[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        return region

    def boxes(self, row: int, finding: str) -> list[tuple[float, float, float, float]]:
        """Return a finding's boxes (x0, y0, x1, y1) in pixels of the prepared image."""
        return [box for _, box in self._regions.get((int(row), finding), [])]

    def split_rows(self, split: Path | str | Any) -> dict[str, np.ndarray]:
        """Return the rows (int64, ascending) of every role of a split table, given as a file or as a table.

        Raises:
            DataError: the table names samples or roles that this store does not know.
        """
        if isinstance(split, str | Path):
            table = _read_table(Path(split))
            ids, roles = (np.asarray(table[name].to_pylist(), dtype=object) for name in ("sample_id", "role"))
        else:
            ids, roles = (np.asarray(split[name], dtype=object) for name in ("sample_id", "role"))
        places = {name: row for row, name in enumerate(self.sample_ids)}
        unknown = [name for name in ids if name not in places] + sorted(set(roles) - set(ROLES))
        if unknown:
            raise DataError(
                f"split {split if isinstance(split, str | Path) else 'table'} names {unknown[0]!r}, which "
                f"{self.folder} does not know: it was drawn from another data set; delete it so that it is drawn anew"
            )
        rows = np.array([places[name] for name in ids], dtype=np.int64)
        return {role: np.sort(rows[roles == role]) for role in ROLES}

    def _sound(self, name: str) -> Path:
        """Return the path of a file that is as it was prepared.

        Raises:
            DamagedError: it is not.
        """
        path = self.folder / name
        if path.is_file():  # else whoever reads it says so
            check_sum(path, self.sums.get(name), remedy=_anew(self.folder))
        return path

    def _column(self, name: str) -> np.ndarray:
        return read_column(self.samples, name).astype(np.str_)

    @cached_property
    def _masks(self) -> np.ndarray:
        return map_tensor(self._sound("masks.arrow"))

    @cached_property
    def _regions(self) -> dict[tuple[int, str], list[tuple[int, tuple[float, float, float, float]]]]:
        found: dict[tuple[int, str], list[tuple[int, tuple[float, float, float, float]]]] = {}
        for region in _read_table(self._sound("regions.parquet")).to_pylist():
            box = (region["x0"], region["y0"], region["x1"], region["y1"])
            found.setdefault((region["row"], region["finding"]), []).append((region["mask"], box))
        return found


def open_store(folder: Path | str) -> Store:
    """Open a prepared data set; images are mapped when they are first asked for.

    Raises:
        DataError: the folder holds no prepared data set.
        DamagedError: ``dataset.json`` is not what was prepared; of the other files whoever first reads them is told.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder} is no prepared data set: it has no dataset.json; let the rule join_parts write it")
    sums = read_sums(folder)
    if not sums:
        raise DataError(f"{folder} has no {SUMS}: {_anew(folder)}")
    check_sum(path, sums.get(path.name), remedy=_anew(folder))
    return Store(folder, info_from_json(read_json(path)), sums)


def _anew(folder: Path) -> str:
    return f"delete {folder} so that the data set is prepared anew"


def info_to_json(info: DataInfo) -> dict[str, Any]:
    """Return plain data for ``dataset.json`` and a model's ``config.json``."""
    return asdict(info)


def info_from_json(value: dict[str, Any]) -> DataInfo:
    """Invert ``info_to_json``; augmentations that an older file does not name are the default's."""
    labels, augmentations = value["labels"], dict(value["augmentations"])
    if "photometric" in augmentations:
        augmentations["photometric"] = tuple(augmentations["photometric"])
    return DataInfo(
        **{
            **value,
            "labels": LabelSpec(labels["kind"], tuple(labels["names"])),
            "augmentations": Augmentations(**augmentations),
            "caveats": tuple(value["caveats"]),
        }
    )


class TensorFile:
    """A tensor file of known length whose rows are written in any order, at their places on disk."""

    def __init__(self, path: Path, shape: Sequence[int], count: int) -> None:
        self.shape, self.count = tuple(shape), count
        self.item = int(np.prod(self.shape))  # bytes of a row
        with path.open("wb") as stream:
            self._start = _lay_out(stream, self.shape, count)
        self._file = os.open(path, os.O_WRONLY)

    def write(self, row: int, pixels: bytes | memoryview) -> None:
        """Write one row, uint8 in C order."""
        assert 0 <= row < self.count and len(pixels) == self.item, (row, self.count, len(pixels), self.item)
        place, rest = self._start + row * self.item, memoryview(pixels)
        while rest:  # a full disk may take a part before it complains
            written = os.pwrite(self._file, rest, place)
            place, rest = place + written, rest[written:]

    def close(self) -> None:
        """End writing."""
        os.close(self._file)


@contextmanager
def tensor_file(path: Path, shape: Sequence[int], count: int) -> Iterator[TensorFile]:
    """Write ``count`` uint8 arrays of one shape; nothing is left behind when the block fails."""
    tensors = TensorFile(path, shape, count)
    try:
        yield tensors
    except BaseException:
        path.unlink()
        raise
    finally:
        tensors.close()


def _lay_out(stream: BinaryIO, shape: tuple[int, ...], count: int) -> int:
    """Write an Arrow IPC file of one record batch without its body and return where that begins.

    Arrow is given a body of pages that exist only in the address space, and a sink that leaves it out: the file has a
    hole there, to be filled row by row. So neither memory nor time grow with the body.
    """
    import pyarrow as pa
    from pyarrow import ipc

    start: list[int] = []

    class Sink:
        closed = False

        def write(self, data: bytes | pa.Buffer) -> int:
            if isinstance(data, pa.Buffer):
                start.append(stream.tell())
                stream.seek(data.size, os.SEEK_CUR)
                return data.size
            return stream.write(data)

        def tell(self) -> int:
            return stream.tell()

        def flush(self) -> None:
            stream.flush()

    item = int(np.prod(shape))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    body = mmap.mmap(-1, count * item, flags=flags, prot=mmap.PROT_READ) if count else b""
    values = pa.Array.from_buffers(pa.uint8(), count * item, [None, pa.py_buffer(body)])
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), shape), pa.FixedSizeListArray.from_arrays(values, item)
    )
    batch = pa.record_batch([tensors], names=["tensor"])
    options = ipc.IpcWriteOptions(allow_64bit=True)  # more than 2 GiB of pixels
    with ipc.new_file(pa.PythonFile(Sink(), mode="w"), batch.schema, options=options) as writer:
        writer.write_batch(batch)
    assert len(start) == (count > 0)
    return start[0] if start else 0


def map_tensor(path: Path | str) -> np.ndarray:
    """Lay a read-only numpy array (N, ...) over a tensor file, without a copy.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa
    from pyarrow import ipc

    try:
        reader = ipc.open_file(pa.memory_map(str(path)))
        column = reader.get_batch(0).column(0)
    except (pa.ArrowException, FileNotFoundError) as error:
        raise DataError(
            f"{path} is no Arrow file of images ({error}): delete its folder so that the data set is prepared anew"
        ) from error
    shape = tuple(column.type.shape)
    if reader.num_record_batches != 1:
        raise DataError(f"{path} holds {reader.num_record_batches} record batches instead of one: prepare it anew")
    if len(column) == 0:
        return np.empty((0, *shape), dtype=np.uint8)
    return np.from_dlpack(column.storage.flatten()).reshape(len(column), *shape)  # to_numpy would import pandas


def write_table(columns: dict[str, Any], path: Path) -> None:
    """Write columns as a parquet table, with checksums of its pages."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path, write_page_checksum=True)


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        return read_parquet(path, checksums=True)
    except (pa.ArrowException, OSError) as error:  # what fails a checksum is an OSError
        raise DataError(f"{path} cannot be read ({error}): delete it so that it is written anew") from error
