"""Tables in and out of Arrow: as pyarrow makes them, and without pandas."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jointdiff.arrow import read_column, read_parquet, to_table

COLUMNS = {
    "name": np.array(["a", "größer", ""]),
    "score": np.array([0.25, np.nan, 1.0], dtype=np.float32),
    "exact": np.arange(6, dtype=np.float64)[::2],  # not contiguous
    "count": np.array([1, -2, 3], dtype=np.int32),
}


def test_a_table_is_the_one_that_pyarrow_makes():
    ours, theirs = to_table(COLUMNS), pa.table(COLUMNS)
    assert ours.schema.equals(theirs.schema, check_metadata=True)
    for name in set(COLUMNS) - {"score"}:
        assert ours[name].equals(theirs[name])
    np.testing.assert_array_equal(ours["score"].to_numpy(), theirs["score"].to_numpy())  # NaN equals none there
    assert to_table({"name": []}).schema == pa.schema({"name": pa.string()})


def test_columns_come_back_from_a_file_in_several_parts(tmp_path):
    table = pa.concat_tables([to_table(COLUMNS), to_table(COLUMNS)])
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=3, write_page_checksum=True)
    read = read_parquet(tmp_path / "table.parquet", checksums=True)
    for name, values in COLUMNS.items():
        found = read_column(read, name)
        np.testing.assert_array_equal(found, np.concatenate([values, values]))
        assert found.dtype == values.dtype


JOB = """
import sys
import numpy as np
import pyarrow.parquet as pq
from jointdiff.arrow import read_column, read_parquet, to_table
from jointdiff.data.store import map_tensor, tensor_file
from pathlib import Path

pq.write_table(to_table({"name": ["a"], "score": np.zeros(1)}), "table.parquet")
table = read_parquet("table.parquet", checksums=True)
assert read_column(table, "name") == ["a"] and read_column(table, "score") == [0.0]
with tensor_file(Path("images.arrow"), (2, 2), 3) as images:
    for row in range(3):
        images.write(row, bytes([1, 2, 3, 4]))
assert (map_tensor("images.arrow") == [[1, 2], [3, 4]]).all()
assert "pandas" not in sys.modules
"""


def test_what_every_job_reads_and_writes_imports_no_pandas(tmp_path):
    subprocess.run([sys.executable, "-c", JOB], cwd=tmp_path, check=True)
