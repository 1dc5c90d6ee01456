"""The file votes.parquet: every trial of a diffusion classifier, so that any rule can be scored anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.arrow import read_column, read_parquet, to_array
from jointdiff.evaluate.voting import Kind
from jointdiff.files import atomic_path


@dataclass(frozen=True)
class Votes:
    """Recorded trials of some images."""

    sample_ids: np.ndarray  # (n,) str
    role: np.ndarray  # (n,) str
    steps: np.ndarray  # (n, N) float32: noise levels
    errors: np.ndarray  # (n, N, C) float32, NaN where not computed
    conditions: tuple[str, ...]  # (C,) names
    contests: tuple[tuple[int, ...], ...]
    kind: Kind
    names: tuple[str, ...]  # (K,) classes or findings
    cost: Mapping[str, float]


def write_votes(path: Path | str, votes: Votes) -> None:
    """Write trials to a Parquet file, one row per image and trial, whole or not at all.

    Raises:
        ValueError: the arrays do not belong together, or two conditions have one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, trials = votes.steps.shape
    expected = images, trials, len(set(votes.conditions))
    if votes.errors.shape != expected or not len(votes.sample_ids) == len(votes.role) == images:
        raise ValueError(
            f"{path}: errors {votes.errors.shape} do not fit steps {votes.steps.shape}, {len(votes.sample_ids)}"
            f" sample_ids, {len(votes.role)} roles and {expected[2]} different conditions"
        )
    image = to_array(np.repeat(np.arange(images, dtype=np.int32), trials))
    columns: dict[str, Any] = {
        "sample_id": pa.DictionaryArray.from_arrays(image, to_array(votes.sample_ids)),
        "role": pa.DictionaryArray.from_arrays(image, to_array(votes.role)),
        "trial": to_array(np.tile(np.arange(trials, dtype=np.int32), images)),
        "step": to_array(votes.steps.astype(np.float32).ravel()),
    }
    floats = {
        f"error:{name}": to_array(votes.errors[:, :, c].astype(np.float32).ravel())
        for c, name in enumerate(votes.conditions)
    }
    about = {
        "kind": votes.kind,
        "names": votes.names,
        "conditions": votes.conditions,
        "contests": votes.contests,
        "trials": trials,
        "cost": dict(votes.cost),
    }
    table = pa.table(columns | floats).replace_schema_metadata({"votes": json.dumps(about)})
    with atomic_path(path) as aside:
        # Streams of equal bytes, since the exponents of errors are much alike and their last digits are noise.
        pq.write_table(
            table, aside, compression="zstd", use_dictionary=["sample_id", "role"], use_byte_stream_split=[*floats]
        )


def read_votes(path: Path | str) -> Votes:
    """Read a table of votes.

    Raises:
        ValueError: the file is no such table, or lacks rows, with its name.
    """
    import pyarrow as pa

    again = "delete it so that the images are classified again"
    try:
        table = read_parquet(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error}); {again}") from error
    about = json.loads((table.schema.metadata or {}).get(b"votes", b"{}"))
    if missing := [key for key in ("kind", "names", "conditions", "contests", "trials", "cost") if key not in about]:
        raise ValueError(f"{path} is not a table of votes: its metadata 'votes' lack {missing[0]!r}; {again}")
    errors = [f"error:{name}" for name in about["conditions"]]
    if missing := [c for c in ("sample_id", "role", "trial", "step", *errors) if c not in table.column_names]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; {again}")
    shape = -1, about["trials"]
    if (
        not len(table)
        or len(table) % shape[1]
        or (read_column(table, "trial").reshape(shape) != np.arange(shape[1])).any()
    ):
        raise ValueError(f"{path} does not hold {shape[1]} trials of every image in order; {again}")
    return Votes(
        sample_ids=_text(table, "sample_id", shape[1]),
        role=_text(table, "role", shape[1]),
        steps=read_column(table, "step").reshape(shape),
        errors=np.stack([read_column(table, name).reshape(shape) for name in errors], axis=2),
        conditions=tuple(about["conditions"]),
        contests=tuple(map(tuple, about["contests"])),
        kind=about["kind"],
        names=tuple(about["names"]),
        cost=about["cost"],
    )


def _text(table: Any, name: str, every: int) -> np.ndarray:
    """Return one entry of a column in so many; a million rows as Python text would take seconds."""
    texts = table.column(name).unify_dictionaries().combine_chunks().dictionary_encode()
    return np.array(texts.dictionary.to_pylist(), dtype=str)[np.from_dlpack(texts.indices)[::every]]
