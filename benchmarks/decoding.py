"""What preparing makes of the decoder's own rate, in images a second of one core.

    uv run python benchmarks/decoding.py

The same files on the disk (smooth fields with film grain) are brought through four manners in turn, so that a busy
machine slows all of them, in one thread of a process that is held on one core:

- decoder: Pillow decodes a file and nothing else;
- and resized: what it decoded is brought to the prepared size as well, by Pillow's bicubic filter, still no more;
- a sample: all that a thread of `prepare` does with an image: decoded, checked, resized, its thumbnail and digests;
- the store: `prepare_source`, with pieces, joining, near-duplicates, checksums, and all of it brought to the disk.

What is printed are medians with their quartiles, and the store's rate as a share of the first two, by medians of the
shares of each turn. The first turn is left out.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jointdiff.data.images import FORMATS, decode_image
from jointdiff.data.pieces import prepare_sample
from jointdiff.data.prepare import prepare_source
from jointdiff.data.source import LabelSpec, Sample, Source
from jointdiff.seeding import rng

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grey PNG": ("L", {"format": "PNG", "compress_level": 1}),
    "colour JPEG": ("RGB", {"format": "JPEG", "quality": 90}),
}


def main() -> None:
    """Print one row per kind and side of the files and per prepared size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024], help="of the files, pixels")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 64], help="of the prepared images, pixels")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--megapixels", type=int, default=64, help="of all files of one kind and side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for some hundred megabytes of files (default: a temporary one)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print("| files | px | prepared px | decoder | and resized | a sample | the store | of the decoder | of both |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for kind in options.kinds:
        for side in options.sides:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                files = drawn_files(Path(folder, "files"), kind, count=options.megapixels * 2**20 // side**2, side=side)
                for size in options.sizes:
                    rates = in_turn(manners(files, kind, Path(folder), size=size), len(files), options.repeats)
                    decoder, both, _, store = rates.values()
                    shares = (
                        spread([one / other for one, other in zip(store, limit, strict=True)], ".2f")
                        for limit in (decoder, both)
                    )
                    cells = [*(spread(values, ",.0f") for values in rates.values()), *shares]
                    print(f"| {kind} | {side} | {size} | {' | '.join(cells)} |", flush=True)


def manners(files: list[Path], kind: str, folder: Path, *, size: int) -> dict[str, Callable[[], object]]:
    """Return what is done with all of the files, by name."""
    mode, _ = KINDS[kind]
    source = Source("drawn", "Drawn", LabelSpec("multi_label", ("a", "b")), len(mode), "none", "none")

    def sample(path: Path) -> Sample:
        image = decode_image(path.read_bytes(), name=path.name, mode=mode)
        return Sample(path.name, image, labels=[0, 1], group=path.name)

    def decode(path: Path) -> Image.Image:
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            image.load()
            return image

    def decode_all() -> None:
        for path in files:
            decode(path)

    def resize_all() -> None:
        for path in files:
            decode(path).resize((size, size), Image.Resampling.BICUBIC)

    def prepare_samples() -> None:
        for place, path in enumerate(files):
            prepare_sample(source, place, partial(sample, path), size=size)

    module: Any = types.SimpleNamespace(SOURCE=source, read=lambda raw, *, size: (partial(sample, p) for p in files))
    return {
        "decoder": decode_all,
        "and resized": resize_all,
        "a sample": prepare_samples,
        "the store": lambda: prepare_source(module, folder, folder / "store", size=size),
    }


def in_turn(works: dict[str, Callable[[], object]], images: int, repeats: int) -> dict[str, list[float]]:
    """Return images a second of each of the works, which are done in turn after a first time."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if repeat:
                rates[name].append(images / (time.perf_counter() - started))
    return rates


def spread(values: list[float], form: str) -> str:
    """Return median and quartiles as text."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def drawn_files(folder: Path, kind: str, *, count: int, side: int) -> list[Path]:
    """Write images of smooth random fields with grain and return their files."""
    folder.mkdir()
    mode, how = KINDS[kind]
    grain = rng(0, "grain").normal(0, 2, (2 * side, 2 * side)).astype(np.float32)
    files = [folder / f"{index:05d}" for index in range(count)]
    for index, path in enumerate(files):
        g = rng(1, "field", index)
        planes = []
        for _ in mode:
            coarse = Image.fromarray(g.uniform(30, 220, (9, 9)).astype(np.float32))
            top, left = g.integers(0, side, 2)
            field = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
            planes.append(np.clip(field + grain[top : top + side, left : left + side], 0, 255).astype(np.uint8))
        pixels = planes[0] if mode == "L" else np.stack(planes, axis=2)
        Image.fromarray(pixels).save(path, **how)
    return files


if __name__ == "__main__":
    main()
