"""Arrow tables in and out without pandas, which pyarrow imports for what numpy or lists give it: .3 s in every job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def read_parquet(path: Path | str, *, checksums: bool = False) -> pa.Table:
    """Read a Parquet file; ``checksums`` holds its pages against theirs.

    Raises:
        pyarrow.ArrowException, OSError: it is none, cannot be read, or is damaged.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=checksums).read()  # read_table would import pandas


def read_column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column without nulls: numbers as they are, all else as numpy makes it of Python objects."""
    import pyarrow as pa

    found = table.column(name)
    if pa.types.is_integer(found.type) or pa.types.is_floating(found.type):
        return np.from_dlpack(found.combine_chunks())
    return np.array(found.to_pylist())


def to_array(values: np.ndarray | Sequence[str]) -> pa.Array:
    """Return numbers (N,) or texts as an Arrow array, built from its buffers."""
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        return pa.Array.from_buffers(
            pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
        )
    text = [str(value).encode() for value in values]
    ends = np.cumsum([0, *map(len, text)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(text), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(text))])


def to_table(columns: Mapping[str, np.ndarray | Sequence[str]]) -> pa.Table:
    """Return columns of numbers (N,) or texts as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_arrays([to_array(values) for values in columns.values()], names=list(columns))
