"""What the store delivers to the training loop, against what the loop takes, in images a second.

    uv run python benchmarks/loading.py

Batches of a prepared set are drawn as in training: from bytes on the device, and gathered from the memory-mapped file.
Beside them the loop's own rate: the same batch over and over through the losses, the backward pass and the optimiser of
a small and a large network. As long as the first numbers are far above the last, loading is no bottleneck.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

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

SMALL = {"width": 16, "multipliers": [1, 2, 4], "blocks": 1, "attention_at": [], "unlabelled_ratio": 0}
METHODS = {"supervised (WRN-10-2)": ("supervised", {"depth": 10, "width": 2}), "joint (width 16)": ("joint", SMALL)}


def main() -> None:
    """Print one row per size and network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--megabytes", type=int, default=256, help="of pixels in the prepared set")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = pick_device(options.device)
    print(f"batches of {options.batch} on {device}; images/s, and times the loop's own rate")
    for size in options.sizes:
        count = options.megabytes * 2**20 // size**2
        with tempfile.TemporaryDirectory() as folder:
            store = made_store(Path(folder), count, size)
            roles = {"labelled": np.arange(count), "unlabelled": np.arange(0)}
            delivered = {}
            for name, resident in {"on the device": 2**40, "memory-mapped": 0}.items():
                feed = Feed(store, roles, seed=0, device=device, resident_bytes=resident)
                delivered[name] = rate(
                    lambda step, feed=feed: feed.batch(step, steps=1, labelled=options.batch, unlabelled=0),
                    options.batch,
                    options.seconds,
                    device,
                )
            taken = {name: loop_rate(store, *how, feed, options, device) for name, how in METHODS.items()}
        for name, loop in taken.items():
            row = "   ".join(f"{where} {images:9.0f} ({images / loop:6.1f} x)" for where, images in delivered.items())
            print(f"{size:4d} px   loop of {name:22s} {loop:7.1f}   {row}", flush=True)


def made_store(folder: Path, count: int, size: int) -> Store:
    """Prepare ``count`` images of noise."""
    source = Source("noise", "Noise", LabelSpec("multi_label", ("a", "b")), 1, "none", "none")

    def draw(index: int) -> Sample:
        image = rng(index).integers(0, 256, (size, size), dtype=np.uint8)
        return Sample(f"{index}", image, labels=[index % 2, index // 2 % 2], group=f"{index}")

    module = types.SimpleNamespace(SOURCE=source, read=lambda raw, *, size: map(draw, range(count)))
    prepare_source(module, folder, folder / "store", size=size)  # type: ignore[arg-type]
    return open_store(folder / "store")


def loop_rate(
    store: Store, method: str, settings: dict, feed: Feed, options: argparse.Namespace, device: torch.device
) -> float:
    """Return images a second of training on one batch that lies on the device."""
    run = RunSpec(
        experiment="benchmark", dataset="noise", size=store.info.size, labels="all", variant=method, method=method,
        seed=0, settings=settings, training={},
    )  # fmt: skip
    built = build_method(run, store.info).to(device)
    optimiser = torch.optim.AdamW(built.parameters(), foreach=True)
    batch, views = feed.batch(0, steps=1000, labelled=options.batch, unlabelled=0), Views(store.info.augmentations)

    def step(index: int) -> None:
        shown = Batch(batch.labelled, batch.labels, batch.unlabelled, step=index, steps=1000)
        torch.stack(list(built(shown, views, built).values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return rate(step, options.batch, options.seconds, device)


def rate(work: Callable[[int], object], images: int, seconds: float, device: torch.device) -> float:
    """Return images a second of ``work``, called for at least ``seconds`` after a first time."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work(0)
    wait()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        done += 1
        work(done)
    wait()
    return images * done / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
