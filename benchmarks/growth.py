"""How cost grows with what it depends on: the slope on logarithmic scales, beside what the algorithm needs.

    uv run python benchmarks/growth.py

A slope of 1 is proportional. Each time is the least of several, the slope that from the second largest size to the
largest: at smaller sizes what is fixed hides it. Grids of methods, budgets and seeds are benchmarks/dry_run.py's.
"""

from __future__ import annotations

import argparse
import math
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
from noise import noise_info, run_as_job

from jointdiff.data.augment import Views
from jointdiff.data.prepare import prepare_source
from jointdiff.data.source import LabelSpec, Sample, Source
from jointdiff.data.splits import draw_roles
from jointdiff.evaluate.classification import Predictions
from jointdiff.evaluate.distances import density_coverage
from jointdiff.method import Batch
from jointdiff.methods.joint import JointDiffusion
from jointdiff.seeding import rng
from jointdiff.training.averaging import averaged_copy

Work = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """One cost against one size."""

    what: str
    against: str
    needs: str  # of the algorithm, as a slope
    sizes: tuple[int, ...]
    work: Callable[[int], Any]  # a context that gives the work of one size, ready to be timed


def names(count: int) -> tuple[str, ...]:
    """Return names of findings."""
    return tuple(f"finding {k}" for k in range(count))


@contextmanager
def preparing(images: int, *, size: int = 64) -> Iterator[Work]:
    """Prepare images of noise."""
    source = Source("noise", "Noise", LabelSpec("multi_label", ("a",)), 1, "none", "none")

    def draw(index: int) -> Sample:
        return Sample(
            f"{index}", rng(index).integers(0, 256, (size, size), dtype=np.uint8), labels=[0], group=f"{index}"
        )

    module: Any = types.SimpleNamespace(SOURCE=source, read=lambda raw, *, size: map(draw, range(images)))
    with tempfile.TemporaryDirectory() as folder:
        yield lambda: prepare_source(module, folder, Path(folder, "store"), size=size)


@contextmanager
def splitting(images: int, *, findings: int = 14) -> Iterator[Work]:
    """Draw the roles of images of patients who have four each."""
    labels = (rng(0).random((images, findings)) < 0.1).astype(np.float32)
    groups = np.array([f"patient {i // 4}" for i in range(images)])
    shared: dict[str, Any] = {
        "groups": groups,
        "published": np.full(images, ""),
        "domains": np.full(images, ""),
        "kind": "multi_label",
        "names": names(findings),
        "dataset": "noise",
    }
    yield lambda: draw_roles(labels, budget="0.1", seed=0, validation=0.2, test=0.25, **shared)


@contextmanager
def training(size: int, *, findings: int = 4, attention_at: tuple[int, ...] = ()) -> Iterator[Work]:
    """Take a joint step of 16 + 16 images, forward and backward."""
    info = noise_info(size, names=names(findings))
    settings = JointDiffusion.Settings(
        width=16, multipliers=(1, 2), blocks=1, attention_at=attention_at, classifier_input="clean"
    )
    method = JointDiffusion(info, settings).train()
    averaged, views = averaged_copy(method), Views(info.augmentations)
    images = torch.rand(16, 1, size, size) * 2 - 1
    batch = Batch(images, torch.zeros(16, findings), images, 0, 10)

    def step() -> None:
        torch.stack(list(method(batch, views, averaged).values())).sum().backward()
        method.zero_grad()

    yield step


@contextmanager
def sampling(images: int) -> Iterator[Work]:
    """Draw images of 16 px in two steps."""
    info = noise_info(16)
    method = JointDiffusion(
        info, JointDiffusion.Settings(width=16, multipliers=(1, 2), blocks=1, attention_at=())
    ).eval()

    def draw() -> None:
        for part in torch.arange(images).split(64):
            method.sample(torch.zeros(len(part), 2), part, steps=2, sampler="ddim", guidance=0.0)

    yield draw


@contextmanager
def scoring(images: int, *, findings: int = 4, draws: int = 50) -> Iterator[Work]:
    """Compute every metric of a cell under bootstrap weights."""
    random = rng(1)
    labels = (random.random((images, findings)) < 0.3).astype(np.float64)
    scores = (0.3 * labels + 0.7 * random.random((images, findings))).clip(0.0, 1.0)
    cell = Predictions(
        names=names(findings),
        kind="multi_label",
        sample_ids=np.arange(images).astype(str),
        groups=np.arange(images).astype(str),
        scores=scores,
        labels=labels,
        decided=scores > 0.5,
        thresholds=(0.5,) * findings,
        threshold_from="nothing",
        conformal=(0.5,) * findings,
        validated=100,
    )
    weights = random.multinomial(images, np.full(images, 1.0 / images), size=draws).T.astype(np.float64)
    yield lambda: [cell.values(metric, weights) for metric in cell.metrics()]


@contextmanager
def neighbours(images: int) -> Iterator[Work]:
    """Compute density and coverage, which compare all drawn images with all real ones."""
    drawn, real = (rng(seed).normal(size=(images, 64)) for seed in (2, 3))
    yield lambda: density_coverage(drawn, real)


GROWTHS = (
    Growth("prepare", "images", "1", (500, 1000, 2000, 4000), preparing),
    Growth("split", "images", "1 (sorting a little more)", (8000, 16000, 32000, 64000), splitting),
    Growth("training step", "side in pixels", "2", (16, 32, 64, 128), training),
    Growth(
        "training step, attention at full size",
        "side in pixels",
        "2 to 4",
        (8, 16, 32, 64),
        lambda size: training(size, attention_at=(size,)),
    ),
    Growth("training step", "findings", "0", (2, 8, 32, 128), lambda count: training(16, findings=count)),
    Growth("sampling", "images", "1", (64, 128, 256, 512), sampling),
    Growth("all classification metrics", "images", "1 (sorting a little more)", (500, 1000, 2000, 4000), scoring),
    Growth(
        "all classification metrics",
        "findings",
        "1",
        (2, 4, 8, 16),
        lambda count: scoring(1000, findings=count),
    ),
    Growth("density and coverage", "images", "2", (500, 1000, 2000, 4000), neighbours),
)  # fmt: skip


def main() -> None:
    """Print a line for each growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    run_as_job()
    print(f"{torch.get_num_threads()} thread(s), the least of {options.repeats}")
    print("| cost of | against | sizes | seconds | slope | needed |\n|---|---|--:|--:|--:|---|")
    for growth in GROWTHS:
        seconds = []
        for size in growth.sizes:
            with growth.work(size) as work:
                each = []
                for _ in range(options.repeats + 1):
                    started = time.perf_counter()
                    work()
                    each.append(time.perf_counter() - started)
            seconds.append(min(each[1:]))
        slope = math.log(seconds[-1] / seconds[-2]) / math.log(growth.sizes[-1] / growth.sizes[-2])
        shown = ", ".join(f"{value:.3g}" for value in seconds)
        sizes = ", ".join(map(str, growth.sizes))
        print(f"| {growth.what} | {growth.against} | {sizes} | {shown} | {slope:.2f} | {growth.needs} |", flush=True)


if __name__ == "__main__":
    main()
