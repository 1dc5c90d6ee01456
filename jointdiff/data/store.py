"""A prepared data set: images as one memory-mapped array beside tables of samples and regions.

``images.arrow`` and ``masks.arrow`` are Arrow IPC files of a single record batch with a fixed-shape-tensor column, so
that all pixels lie in one buffer and a numpy array can be laid over the file without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.data.source import Augmentations, DataError, DataInfo, LabelSpec
from jointdiff.files import read_json

if TYPE_CHECKING:
    import pyarrow as pa

ROLES = ("labelled", "unlabelled", "validation", "test")


@dataclass(frozen=True)
class Store:
    """What ``prepare`` wrote, row by row in the order of the source."""

    folder: Path
    info: DataInfo

    @cached_property
    def images(self) -> np.ndarray:
        """All images, uint8 (N, H, W, C), memory-mapped and read-only."""
        return map_tensor(self.folder / "images.arrow")

    @cached_property
    def samples(self) -> pa.Table:
        """The table ``samples.parquet``: sample_id, group, split, width, height and one column per label."""
        return _read_table(self.folder / "samples.parquet")

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
    def labels(self) -> np.ndarray:
        """Labels, float32 (N, K): 0, 1 or NaN where unknown."""
        columns = [self.samples[f"label:{name}"].to_numpy() for name in self.info.labels.names]
        return np.stack(columns, axis=1).astype(np.float32, copy=False)

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

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self.samples[name].to_pylist(), dtype=np.str_)

    @cached_property
    def _masks(self) -> np.ndarray:
        return map_tensor(self.folder / "masks.arrow")

    @cached_property
    def _regions(self) -> dict[tuple[int, str], list[tuple[int, tuple[float, float, float, float]]]]:
        found: dict[tuple[int, str], list[tuple[int, tuple[float, float, float, float]]]] = {}
        for region in _read_table(self.folder / "regions.parquet").to_pylist():
            box = (region["x0"], region["y0"], region["x1"], region["y1"])
            found.setdefault((region["row"], region["finding"]), []).append((region["mask"], box))
        return found


def open_store(folder: Path | str) -> Store:
    """Open a prepared data set; images are mapped when they are first asked for.

    Raises:
        DataError: the folder holds no prepared data set.
    """
    folder = Path(folder)
    if not (folder / "dataset.json").is_file():
        raise DataError(
            f"{folder} is no prepared data set: it has no dataset.json; let the rule prepare_dataset write it"
        )
    return Store(folder, info_from_json(read_json(folder / "dataset.json")))


def info_to_json(info: DataInfo) -> dict[str, Any]:
    """Return plain data for ``dataset.json`` and a model's ``config.json``."""
    return asdict(info)


def info_from_json(value: dict[str, Any]) -> DataInfo:
    """Invert ``info_to_json``."""
    labels, augmentations = value["labels"], value["augmentations"]
    return DataInfo(
        **{
            **value,
            "labels": LabelSpec(labels["kind"], tuple(labels["names"])),
            "augmentations": Augmentations(**augmentations),
        }
    )


class TensorWriter:
    """Gather arrays of one shape in a raw file, so that memory holds one at a time."""

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path, self.shape, self.count = path, tuple(shape), 0
        self._raw = path.with_suffix(".raw")
        self._stream = self._raw.open("wb")

    def append(self, array: np.ndarray) -> int:
        """Add one uint8 array and return its row."""
        if array.shape != self.shape:
            raise AssertionError(f"expected an array of {self.shape}, got {array.shape}")
        self._stream.write(np.ascontiguousarray(array, dtype=np.uint8).data)
        self.count += 1
        return self.count - 1

    def finish(self) -> None:
        """Turn the raw file into an Arrow IPC file with everything in one record batch."""
        import pyarrow as pa
        from pyarrow import ipc

        self._stream.close()
        item = int(np.prod(self.shape))
        with pa.memory_map(str(self._raw)) if self.count else pa.BufferReader(b"") as source:
            # One buffer over the mapped file: Arrow copies it page by page into the new one.
            values = pa.Array.from_buffers(pa.uint8(), self.count * item, [None, source.read_buffer()])
            kind = pa.fixed_shape_tensor(pa.uint8(), self.shape)
            tensors = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, item))
            batch = pa.record_batch([tensors], names=["tensor"])
            with ipc.new_file(str(self.path), batch.schema) as writer:
                writer.write_batch(batch)
            del batch, tensors, values
        self._raw.unlink()


@contextmanager
def tensor_writer(path: Path, shape: Sequence[int]) -> Iterator[TensorWriter]:
    """Write a tensor file; nothing is left behind when the block fails."""
    writer = TensorWriter(path, shape)
    try:
        yield writer
        writer.finish()
    finally:
        writer._stream.close()
        writer._raw.unlink(missing_ok=True)


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
    return column.storage.flatten().to_numpy(zero_copy_only=True).reshape(len(column), *shape)


def write_table(columns: dict[str, Any], path: Path) -> None:
    """Write columns as a parquet table."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (pa.ArrowException, FileNotFoundError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it so that it is written anew") from error
