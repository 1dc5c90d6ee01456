"""Read a data set once, check every sample, and write it at one size as a memory-mapped store.

The work is cut into parts, which separate jobs prepare, and a part into pieces of some dozen megabytes, after each of
which it can be taken up again. What comes out does not depend on either: rows stand in the order of the source.
Memory holds a piece and what the threads work on, and when parts are joined the tables and thumbnails of all images.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.config import digest
from jointdiff.data.checks import check_facts
from jointdiff.data.duplicates import SIDE, distinct_near_pairs, equal_pairs, join_groups
from jointdiff.data.manifest import Manifest, check_downloads, look
from jointdiff.data.pieces import prepare_sample, read_piece, write_piece, write_pixels
from jointdiff.data.source import DataError, DataInfo, Source, describe
from jointdiff.data.store import info_to_json, tensor_file, write_table
from jointdiff.files import atomic_path, explain_trouble, read_json, write_json, write_sums
from jointdiff.progress import Progress
from jointdiff.registry import load_source

if TYPE_CHECKING:
    from types import ModuleType

    import pyarrow as pa

PIECE = 1 << 25  # bytes of pixels after which a piece is written
OWN = "own.json"  # manifest in the folder of a part
BATCH = 16  # samples that a thread takes at once


@dataclass(frozen=True)
class Part:
    """One of ``count`` shares of a data set's images."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read Snakemake's "3-of-8"."""
        index, count = text.split("-of-")
        return cls(int(index) - 1, int(count))


def prepare(
    name: str,
    raw: Path | str,
    out: Path | str,
    *,
    size: int,
    options: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> None:
    """Write the data set ``name`` at ``size`` pixels a side to the folder ``out``, whole or not at all.

    Args:
        name: a module of ``jointdiff.data.sources``.
        raw: folder of its published files.
        out: folder for images.arrow, masks.arrow, thumbnails.arrow, samples.parquet, regions.parquet,
            near_duplicates.parquet, dataset.json and SHA256SUMS.
        size: side of the prepared images in pixels.
        options: what the source's ``read`` accepts.
        threads: decoding and resizing at once.

    Raises:
        ConfigError: the data set or an option is unknown.
        DataError: a file is absent, or a sample is not what the source promises.
    """
    prepare_source(load_source(name), raw, out, size=size, options=options, threads=threads)


def prepare_source(
    module: ModuleType,
    raw: Path | str,
    out: Path | str,
    *,
    size: int,
    options: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> None:
    """Prepare a data set given by its module; see ``prepare``."""
    part = Path(out).with_name(f".{Path(out).name}.part")
    prepare_part(module, raw, part, size=size, options=options, threads=threads)
    try:
        join_parts(module, [part], out, raw=raw, size=size, options=options)
    finally:
        shutil.rmtree(part)


def prepare_part(
    module: ModuleType,
    raw: Path | str,
    out: Path | str,
    *,
    size: int,
    options: Mapping[str, Any] | None = None,
    part: Part = Part(),
    threads: int = 1,
    code_version: str = "",
) -> None:
    """Prepare one share of a data set to the folder ``out``, going on where an earlier call was stopped.

    ``code_version`` names the code that prepares: what another version began is not taken up.

    Raises:
        ConfigError: an option is unknown.
        DataError: a file is absent or changes meanwhile, or a sample is not what the source promises.
    """
    source, chosen = describe(module, options)
    raw, out = Path(raw), Path(out)
    _check_files(source, raw)
    own = look(source.inputs)
    downloads = {name: known.get("sha256") for name, known in _downloads(raw).items()}
    work = [source.name, size, chosen, part.index, part.count, code_version, own.state, downloads]
    with explain_trouble(out):
        unfinished = _unfinished(out, work)
    shards: Sequence[str | None] = module.shards(raw, **chosen) if hasattr(module, "shards") else [None]
    if not shards:
        raise DataError(f"{source.name}: {raw} holds none of its archives; download them, or name a mirror")
    try:
        _write_pieces(module, source, raw, unfinished, shards, part, size=size, options=chosen, threads=threads)
        own.same_as(look(source.inputs))
        if source.inputs:
            own.write(unfinished / OWN)
    except BaseException:
        if not any(unfinished.iterdir()):
            unfinished.rmdir()
        raise
    if out.is_dir():
        shutil.rmtree(out)
    unfinished.rename(out)


def _write_pieces(
    module: ModuleType,
    source: Source,
    raw: Path,
    folder: Path,
    shards: Sequence[str | None],
    part: Part,
    *,
    size: int,
    options: Mapping[str, Any],
    threads: int,
) -> None:
    # Where there are more parts than shards, several parts read the same shard and take turns in it.
    turns = -(-part.count // len(shards))
    units = [(shard, turn) for shard in range(len(shards)) for turn in range(turns)][part.index :: part.count]
    total = source.facts.samples and -(-source.facts.samples * len(units) // (len(shards) * turns))
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress(f"prepare {source.name}", total=total, unit="images") as progress,
    ):
        for shard, turn in units:
            done = _finished_pieces(folder, shard, turn)
            given = {} if shards[shard] is None else {"shard": shards[shard]}
            items = enumerate(module.read(raw, size=size, **options, **given))
            mine = islice(items, turn, None, turns)
            rows = _in_threads(
                pool, islice(mine, done, None), lambda item: prepare_sample(source, *item, size=size), 4 * threads
            )
            per_piece = max(BATCH, PIECE // (size * size * source.channels))
            for piece in _batches(rows, per_piece):
                path = folder / f"{shard:04d}-{turn:04d}-{done:09d}.arrow"
                write_piece(path, shard, piece, names=len(source.labels.names))
                done += len(piece)
                progress.advance(len(piece))


def join_parts(
    module: ModuleType,
    parts: Iterable[Path | str],
    out: Path | str,
    *,
    raw: Path | str,
    size: int,
    options: Mapping[str, Any] | None = None,
    record: Path | str | None = None,
) -> None:
    """Bring the parts of a data set together as one store, whole or not at all.

    ``record`` becomes the manifest of the user's own files, with digests: one touched later is then known again.

    Raises:
        DataError: two samples have one id, the set is not the published one, or a file changed meanwhile.
    """
    import pyarrow as pa

    source, _ = describe(module, options)
    folders = [Path(part) for part in parts]
    pieces = sorted(piece for part in folders for piece in part.glob("[!.]*.arrow"))  # not what a kill left half
    if not pieces:
        raise DataError(f"{source.name}: no samples were read; check its raw files and its options")
    table = pa.concat_tables([read_piece(path).drop_columns(["image", "regions"]) for path in pieces])
    order = np.lexsort((table["place"].to_numpy(), table["shard"].to_numpy()))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    table = table.take(order)
    ids = table["sample_id"].to_pylist()
    known: set[str] = set()
    for name in ids:
        if name in known:
            raise DataError(
                f"{source.name}, sample {name!r}: two samples have this id; ids must be unique "
                "(is a file listed twice?)"
            )
        known.add(name)
    _record_own(source, folders, record)
    with atomic_path(out) as aside:
        aside.mkdir(parents=True)
        masks = table["masks"].to_numpy()
        regions = write_pixels(pieces, rank, masks, aside, size=size, channels=source.channels)
        thumbs = _bytes_of(table["thumbnail"]).reshape(len(ids), SIDE, SIDE)
        with tensor_file(aside / "thumbnails.arrow", (*thumbs.shape[1:], 1), len(ids)) as file:
            for row, thumb in enumerate(thumbs):
                file.write(row, thumb.tobytes())
        near = source.near_duplicates
        pixels = table["pixels"].to_numpy()
        pairs = distinct_near_pairs(pixels, thumbs, hamming=near.hamming, correlation=near.correlation)
        groups = table["group"].to_pylist()
        if near.join:
            groups = join_groups(ids, groups, np.concatenate([pairs, equal_pairs(pixels)]))
        labels = table["labels"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
        splits = table["split"].to_numpy().astype(np.str_)
        check_facts(source, labels, groups=np.array(groups), splits=splits)
        columns = {name: table[name] for name in ("sample_id", "split", "width", "height", "pixels")}
        columns |= {f"label:{name}": labels[:, k] for k, name in enumerate(source.labels.names)}
        domains = table["domain"].to_numpy().astype(np.str_)
        if (domains != "").any():
            columns["domain"] = domains
        write_table({"group": groups, **columns}, aside / "samples.parquet")
        write_table(regions, aside / "regions.parquet")
        write_table({"row_a": pairs[:, 0], "row_b": pairs[:, 1]}, aside / "near_duplicates.parquet")
        content = hashlib.sha256(_bytes_of(table["digest"]).tobytes() + "\n".join(groups).encode())
        info = DataInfo(
            name=source.name,
            title=source.title,
            labels=source.labels,
            channels=source.channels,
            size=size,
            augmentations=source.augmentations,
            samples=len(ids),
            digest=content.hexdigest(),
            has_regions=bool(len(regions["row"])),
            resize=source.resize,
            cite=source.cite,
            licence=source.licence,
            caveats=(*source.caveats, *_modified(Path(raw))),
        )
        write_json(aside / "dataset.json", info_to_json(info))
        write_sums(aside)


def _record_own(source: Source, parts: Sequence[Path], record: Path | str | None) -> None:
    """Check that all parts were made from one state of the user's own files, and note it."""
    if not source.inputs:
        return
    now = look(source.inputs, Manifest.read(record) if record else None)
    for part in parts:
        if (own := Manifest.read(part / OWN)) is not None:
            own.same_as(now)
    if record:
        now = now.with_sums(f"digest files of {source.name}")
        now.same_as(look(source.inputs))
        now.write(record)


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Lay an array of uint8 over a column of equally long bytes."""
    values = column.combine_chunks()
    width = values.type.byte_width
    return np.frombuffer(values.buffers()[1], dtype=np.uint8)[values.offset * width :][: len(values) * width]


def _check_files(source: Source, raw: Path) -> None:
    for file in source.files:
        if not file.optional and not (raw / file.name).is_file():
            raise DataError(
                f"{source.name}: {raw / file.name} is absent; download it, or name a mirror that has it "
                "(see docs/mirror.md)"
            )
    check_downloads(raw)


def _downloads(raw: Path) -> dict[str, Any]:
    return read_json(raw / "downloads.json") if (raw / "downloads.json").is_file() else {}


def _modified(raw: Path) -> list[str]:
    """Name the files that a mirror vouches for although they are not the publisher's."""
    return [
        f"{name} is not the published file, but one that the mirror's keeper vouches for"
        for name, record in sorted(_downloads(raw).items())
        if record.get("modified")
    ]


def _unfinished(out: Path, work: Any) -> Path:
    """Return the folder in which this very work is or was going on; that of any other work is removed."""
    folder = out.with_name(f".{out.name}.{digest(work)}")
    for other in out.parent.glob(f".{out.name}.*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _finished_pieces(folder: Path, shard: int, turn: int) -> int:
    """Count the samples of a unit that earlier calls finished."""
    last = max(folder.glob(f"{shard:04d}-{turn:04d}-*.arrow"), default=None)
    return int(last.stem.rpartition("-")[2]) + len(read_piece(last)) if last else 0


def _in_threads(
    pool: ThreadPoolExecutor, items: Iterable[Any], work: Callable[[Any], Any], ahead: int
) -> Iterator[Any]:
    """Yield ``work(item)`` in the order of the items, with at most ``ahead`` batches of them under way."""
    waiting: deque[Future[list[Any]]] = deque()
    try:
        for batch in _batches(items, BATCH):
            waiting.append(pool.submit(lambda batch: [work(item) for item in batch], batch))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, count)):
        yield batch
