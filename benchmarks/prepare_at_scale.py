"""Preparing radiographs in the layout of ChestX-ray14: rate, peak memory and disk against the number of images.

    uv run python benchmarks/prepare_at_scale.py --images 2803 5606 11212

Images of 1,024 px, smooth fields with film grain, are drawn, packed as the publisher does it, and prepared at 256 px by
a process of their own, whose peak resident memory the kernel tells. Each row is a set of its own size.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from jointdiff.data.sources import chestxray14
from jointdiff.seeding import rng

ROWS_OF_FINDINGS = [chestxray14.NOTHING, *chestxray14.SPELLINGS.keys() - {"Infiltrate"}, "Mass|Nodule", "Effusion"]

PREPARE = """
import sys, time
from pathlib import Path
from jointdiff.data.prepare import Part, join_parts, prepare_part
from jointdiff.data.sources import chestxray14
raw, out, size, threads, archives = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
options = {"archives": archives}
started = time.perf_counter()
prepare_part(chestxray14, raw, out / "part", size=size, options=options, threads=threads)
between = time.perf_counter()
join_parts(chestxray14, [out / "part"], out / "store", raw=raw, size=size, options=options)
print(between - started, time.perf_counter() - between)
"""


def main() -> None:
    """Print one row per number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--side", type=int, default=1024, help="of the drawn images, pixels")
    parser.add_argument("--grain", type=float, default=2.0, help="standard deviation of the noise, grey levels")
    parser.add_argument("--size", type=int, default=256, help="of the prepared images, pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="for some gigabytes of files (default: a temporary one)")
    options = parser.parse_args()
    print("images  read KB/image  prepare s  join s  images/s  peak MB  store bytes/image", flush=True)
    for count in options.images:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            raw, out = Path(folder, "raw"), Path(folder, "out")
            archives = publish(raw, count, side=options.side, grain=options.grain, threads=options.threads)
            arguments = [raw, out, options.size, options.threads, archives]
            with Path(folder, "log").open("w+") as log:
                child = subprocess.Popen(
                    [sys.executable, "-c", PREPARE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log
                )
                said = child.stdout.read() if child.stdout else b""
                _, status, used = os.wait4(child.pid, 0)
                if status:
                    log.seek(0)
                    raise SystemExit(f"preparing {count} images failed: {log.read()[-2000:]}")
            prepared, joined = map(float, said.split())
            read = sum(path.stat().st_size for path in raw.iterdir()) / count / 1e3
            kept = sum(path.stat().st_size for path in (out / "store").iterdir()) / count
            rate = count / (prepared + joined)
            print(
                f"{count:6d}  {read:13.0f}  {prepared:9.1f}  {joined:6.1f}  {rate:8.1f}  {used.ru_maxrss / 1024:7.0f}"
                f"  {kept:17.0f}",
                flush=True,
            )


def publish(raw: Path, count: int, *, side: int, grain: float, threads: int) -> int:
    """Write ``count`` drawn radiographs of count / 4 patients with their tables and return how many archives."""
    raw.mkdir()
    names = [f"{index // 4 + 1:08d}_{index % 4:03d}.png" for index in range(count)]
    archives = max(1, min(11, -(-count // 10_000)))  # twelve would be held against the published counts
    grains = (rng(0, "grain").standard_normal((2 * side, 2 * side), dtype=np.float32) * grain).astype(np.float32)
    with ThreadPoolExecutor(threads) as pool:
        for archive, part in enumerate(np.array_split(np.arange(count), archives), start=1):
            with tarfile.open(raw / f"images_{archive:03d}.tar.gz", "w:gz", compresslevel=0) as packed:
                for index, content in zip(part, pool.map(lambda i: draw(int(i), side, grains), part), strict=True):
                    member = tarfile.TarInfo(f"images/{names[index]}")
                    member.size = len(content)
                    packed.addfile(member, io.BytesIO(content))
    with (raw / chestxray14.LABELS).open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["Image Index", "Finding Labels", "Follow-up #", "Patient ID"])
        for index, name in enumerate(names):
            table.writerow([name, ROWS_OF_FINDINGS[index % len(ROWS_OF_FINDINGS)], 0, int(name[:8])])
    (raw / chestxray14.BOXES).write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
    test = {name[:8] for name in names[:: 4 * 4]}
    for split, path in chestxray14.LISTS.items():
        (raw / path).write_text("\n".join(name for name in names if (name[:8] in test) == (split == "test")) + "\n")
    return archives


def draw(index: int, side: int, grains: np.ndarray) -> bytes:
    """Return a PNG of a smooth random field with grain."""
    g = rng(1, "radiograph", index)
    field = Image.fromarray(g.uniform(30, 220, (9, 9)).astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    top, left = g.integers(0, side, 2)
    pixels = np.asarray(field) + grains[top : top + side, left : left + side]
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


if __name__ == "__main__":
    main()
