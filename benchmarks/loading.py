"""What the store delivers, cold and warm, against what the training loop takes, in images a second; and its memory.

    uv run python benchmarks/loading.py

A prepared set is read whole in batches: in order, as evaluation reads it, and at random, as training does. Once from
bytes on the device; once from the memory-mapped file as it lies in the page cache (warm); once after the kernel was
told to drop the file's pages (cold), of which the table says how many were still there before each pass. As each cold
pass brings in pages that lie nearby, its first batches are given as well: they are nearer to what a set far larger
than memory would give. The same file in blocks of 1 MiB, cold, is what the disk itself gives. All take their turns;
medians and their quartiles, the first turn left out.

Beside them stands the loop's own rate: the same batch over and over through the losses, the backward pass and the
optimiser of a small and a large network, in batches of 16. As long as the first numbers are far above the last, loading
is no bottleneck.

The second table is of a process of its own for each set, which reads all of it at random from the memory-mapped file,
and in which the kernel (`/proc/self/smaps_rollup`) tells memory of its own from pages of files, which cost nothing: the
kernel takes them back when it needs them, and processes that read one set share them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff.config import RunSpec
from jointdiff.data.augment import Views
from jointdiff.data.prepare import prepare_source
from jointdiff.data.source import LabelSpec, Sample, Source
from jointdiff.data.store import Store, open_store
from jointdiff.devices import pick_device
from jointdiff.method import Batch
from jointdiff.seeding import rng
from jointdiff.training.feed import Feed
from jointdiff.training.loop import build_method

SMALL = {"width": 16, "multipliers": [1, 2, 4], "blocks": 1, "attention_at": [], "unlabelled_ratio": 1}
METHODS = {"supervised (WRN-10-2)": ("supervised", {"depth": 10, "width": 2}), "joint (width 16)": ("joint", SMALL)}
FIRST = 16  # batches of a pass that count as its beginning
LOOP_BATCH = 16  # images; at 256 px a step of 64 is long on two cores


@dataclass(frozen=True)
class Pass:
    """One reading of all images."""

    rate: float  # images/s
    first: float  # images/s of the first batches
    cached: float  # share of the file in the page cache before it


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[32, 128], help="of pixels; rates are of the last")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="per rate of the loop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: a temporary one)")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(*memory_of_reading(options.memory_of, options.batch))
        return
    device = pick_device(options.device)
    loops: list[str] = []
    memory: list[str] = []
    print(f"Batches of {options.batch} on {device}, {options.megabytes[-1]} MiB of pixels.\n")
    print(f"| px | read from | in order, images/s | at random | its first {FIRST} batches | in the page cache before |")
    print("|--:|---|--:|--:|--:|--:|", flush=True)
    for size in options.sizes:
        for megabytes in options.megabytes:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                on_disk(Path(folder))
                store = made_store(Path(folder), megabytes * 2**20 // size**2, size)
                memory.append(f"| {size} | {store.info.samples:,} | {megabytes} | {memory_row(store, options.batch)} |")
                if megabytes != options.megabytes[-1]:
                    continue
                for row in rates(store.folder, device, options.batch, options.repeats):
                    print(f"| {size} | {row} |", flush=True)
                feed = feed_of(store.folder, device, resident=True)
                for name, (method, settings) in METHODS.items():
                    taken = loop_rate(store, method, settings, feed, options.seconds, device)
                    loops.append(f"| {size} | {name} | {taken:,.1f} |")
    print("\n| px | network | the loop takes, images/s |\n|--:|---|--:|", *loops, sep="\n")
    print(
        "\n| px | images | pixels, MiB | own memory, MiB, before | at the end | pages of files before | at the end |"
        "\n|--:|--:|--:|--:|--:|--:|--:|",
        *memory,
        sep="\n",
    )


# Reading


def rates(folder: Path, device: torch.device, batch: int, repeats: int) -> Iterator[str]:
    """Yield the table's rows about one store."""
    path, images = folder / "images.arrow", open_store(folder).info.samples
    passes: dict[tuple[str, str], list[Pass]] = {}
    for repeat in range(repeats + 1):
        for where in ("the device", "mapped, warm", "mapped, cold"):
            for order in ("in order", "at random"):
                read = read_all(folder, device, batch, where=where, order=order, seed=repeat)
                passes.setdefault((where, order), []).append(read)
        evict(path)
        cached, started = cached_share(path), time.perf_counter()
        read_blocks(path)
        rate = images / (time.perf_counter() - started)
        passes.setdefault(("blocks of 1 MiB, cold", "in order"), []).append(Pass(rate, rate, cached))
    for where in dict.fromkeys(name for name, _ in passes):
        ordered, random = (passes.get((where, order), [])[1:] for order in ("in order", "at random"))
        before = [read.cached for read in ordered + random]
        cells = [
            spread([read.rate for read in ordered]),
            spread([read.rate for read in random]) if random else "",
            spread([read.first for read in random]) if random else "",
            "" if where == "the device" else f"{min(before):.1%} to {max(before):.1%}",
        ]
        yield f"{where} | {' | '.join(cells)}"


def read_all(folder: Path, device: torch.device, batch: int, *, where: str, order: str, seed: int) -> Pass:
    """Read every image of a store once."""
    if where.endswith("cold"):
        evict(folder / "images.arrow")
    elif where.endswith("warm"):
        read_blocks(folder / "images.arrow")
    cached = cached_share(folder / "images.arrow")
    feed = feed_of(folder, device, resident=where == "the device")
    rows = np.arange(len(feed.pixels))
    if order == "at random":
        rng(seed, "order").shuffle(rows)
    parts = np.split(rows, range(batch, len(rows), batch))
    started, first = time.perf_counter(), 0.0
    for done, part in enumerate(parts, start=1):
        feed.images(part)
        if done == FIRST:
            settle(device)
            first = FIRST * batch / (time.perf_counter() - started)
    settle(device)
    return Pass(len(rows) / (time.perf_counter() - started), first, cached)


def read_blocks(path: Path) -> None:
    """Read a file from its beginning to its end."""
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def feed_of(folder: Path, device: torch.device, *, resident: bool) -> Feed:
    """Return a feed of all images, from a mapping of its own."""
    store = open_store(folder)
    roles = {"labelled": np.arange(store.info.samples), "unlabelled": np.arange(0)}
    return Feed(store, roles, seed=0, device=device, resident_bytes=2**40 if resident else 0)


def settle(device: torch.device) -> None:
    """Wait for what a device is still doing."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def spread(values: list[float]) -> str:
    """Return median and quartiles as text."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


# The page cache


def on_disk(folder: Path) -> None:
    """Refuse a folder whose files lie in memory: they are never cold.

    Raises:
        SystemExit: it is such a one.
    """
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    device = f"{os.major(folder.stat().st_dev)}:{os.minor(folder.stat().st_dev)}"
    kinds = {mount[mount.index("-") + 1] for mount in mounts if mount[2] == device}
    if kinds & {"tmpfs", "ramfs"}:
        raise SystemExit(f"{folder} lies in memory ({', '.join(kinds)}); name a folder on a disk with --folder")


def evict(path: Path) -> None:
    """Ask the kernel to drop the pages of a file, which must not be mapped any more."""
    gc.collect()
    with path.open("rb") as file:
        os.fsync(file.fileno())  # dirty pages stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(path: Path) -> float:
    """Return which share of a file's pages is in the page cache, without touching them."""
    with path.open("rb") as file, mapping(file.fileno(), path.stat().st_size) as (address, length):
        pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        if LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), pages):
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return float((np.frombuffer(pages, np.uint8) & 1).mean())


LIBC: Any = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p


@contextmanager
def mapping(file: int, length: int) -> Iterator[tuple[int, int]]:
    """Map a file and yield address and length; Python's own mmap does not tell the address of read-only ones."""
    address = LIBC.mmap(None, ctypes.c_size_t(length), mmap.PROT_READ, mmap.MAP_SHARED, file, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        yield address, length
    finally:
        LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length))


# Memory


def memory_row(store: Store, batch: int) -> str:
    """Return what a process of its own said of its memory, as cells of a table."""
    command = [sys.executable, __file__, f"--memory-of={store.folder}", f"--batch={batch}"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    own_before, files_before, own_after, files_after = map(float, said)
    return f"{own_before:.0f} | {own_after:.0f} | {files_before:.0f} | {files_after:.0f}"


def memory_of_reading(folder: Path, batch: int) -> tuple[float, float, float, float]:
    """Read a set at random and return MiB of own memory and pages of files, before and at the end."""
    device = torch.device("cpu")
    before = resident()
    feed = feed_of(folder, device, resident=False)
    for part in np.split(rng(0).permutation(len(feed.pixels)), range(batch, len(feed.pixels), batch)):
        feed.images(part)
    return (*before, *resident())


def resident() -> tuple[float, float]:
    """Return the MiB of this process's resident memory that are its own, and those that are pages of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return kib["Anonymous"] / 1024, (kib["Rss"] - kib["Anonymous"]) / 1024


# The set, and the loop


def made_store(folder: Path, count: int, size: int) -> Store:
    """Prepare ``count`` images of noise."""
    source = Source("noise", "Noise", LabelSpec("multi_label", ("a", "b")), 1, "none", "none")

    def draw(index: int) -> Sample:
        image = rng(index).integers(0, 256, (size, size), dtype=np.uint8)
        return Sample(f"{index}", image, labels=[index % 2, index // 2 % 2], group=f"{index}")

    module = types.SimpleNamespace(SOURCE=source, read=lambda raw, *, size: map(draw, range(count)))
    prepare_source(module, folder, folder / "store", size=size)  # type: ignore[arg-type]
    return open_store(folder / "store")


def loop_rate(store: Store, method: str, settings: dict, feed: Feed, seconds: float, device: torch.device) -> float:
    """Return images a second of training on one batch that lies on the device."""
    run = RunSpec(
        experiment="benchmark", dataset="noise", size=store.info.size, labels="all", variant=method, method=method,
        seed=0, settings=settings, training={},
    )  # fmt: skip
    built = build_method(run, store.info).to(device)
    optimiser = torch.optim.AdamW(built.parameters(), foreach=True)
    unlabelled = LOOP_BATCH * settings.get("unlabelled_ratio", 0)
    batch = feed.batch(0, steps=1000, labelled=LOOP_BATCH, unlabelled=unlabelled)
    views = Views(store.info.augmentations)

    def step(index: int) -> None:
        shown = Batch(batch.labelled, batch.labels, batch.unlabelled, step=index, steps=1000)
        torch.stack(list(built(shown, views, built).values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return rate(step, LOOP_BATCH + unlabelled, seconds, device)


def rate(work: Callable[[int], object], images: int, seconds: float, device: torch.device) -> float:
    """Return images a second of ``work``, called for at least ``seconds`` after a first time."""
    work(0)
    settle(device)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        done += 1
        work(done)
    settle(device)
    return images * done / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
