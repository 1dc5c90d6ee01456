"""What samplers with few steps lose against a thousand: calls, images a second, and the Frechet distance.

    uv run python benchmarks/sampling.py results/default/phantom/labels-200/joint/seed-0 --images 400

The model of a finished cell draws the same number of images, of the same seeds and without guidance, by ancestral
sampling (Ho et al. 2020, algorithm 2) and by the solvers at several numbers of steps. Distances are to all test images
of the split in features of the independent classifier, whose folder is found beside the cell; the spread is that over
resampled drawn images. Times are of the whole set, on the threads that torch is given.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdiff.batches import answers
from jointdiff.data.store import open_store
from jointdiff.devices import pick_device
from jointdiff.diffusion.process import STEPS, Process, Solver, noise_for
from jointdiff.evaluate.distances import frechet_distance
from jointdiff.method import HasFeatures, to_bytes
from jointdiff.models import load_model
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng


class Ancestral:
    """Every step of the process, each with fresh noise of the posterior's variance."""

    def __init__(self, process: Process) -> None:
        self.times: Sequence[float] = list(range(STEPS - 1, -1, -1))
        self.signal = process.signal(torch.arange(STEPS)).double().tolist()

    def step(self, clean: Tensor, t: float, z: Tensor) -> Tensor:
        """Return a draw from q(z_{t-1} | z_t, z_0) (Ho et al. 2020, Eq. 6 and 7)."""
        now = self.signal[int(t)]
        before = self.signal[int(t) - 1] if t > 0 else 1.0
        beta = 1.0 - now / before
        mean = math.sqrt(before) * beta / (1.0 - now) * clean
        mean = mean + math.sqrt(now / before) * (1.0 - before) / (1.0 - now) * z
        return mean + math.sqrt((1.0 - before) / (1.0 - now) * beta) * torch.randn_like(z)


@torch.no_grad()
def draw(method: Any, solver: Solver, seeds: Tensor, label: str, *, batch_size: int) -> np.ndarray:
    """Return images (N, H, W, C), drawn without guidance."""
    drawn = []
    shape = (method.codec.channels, method.codec.size, method.codec.size)
    with Progress(label, total=len(seeds), unit="images") as progress:
        for part in seeds.split(batch_size):
            if hasattr(solver, "before"):  # what a multistep solver remembers is of one batch
                solver.before = None
            z = noise_for(part, shape)
            for t in solver.times:
                at = torch.full((len(part),), t, device=z.device)
                z = solver.step(method.process.clean_from(method.unet(z, at), z, at), t, z)
            images = method.codec.decode(method.process.clipped(z)).clamp(-1.0, 1.0)
            drawn.append(to_bytes(images).permute(0, 2, 3, 1).cpu().numpy())
            progress.advance(len(part))
    return np.concatenate(drawn)


def main() -> None:
    """Print a line for each sampler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, help="folder of a finished cell of a method with a U-Net")
    parser.add_argument("--judge", default="fully_supervised", help="variant that gives features")
    parser.add_argument("--store", type=Path, help="prepared data set (default: the only one of that name)")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 250])
    parser.add_argument("--batch", type=int, default=100)
    options = parser.parse_args()
    device = pick_device("auto")
    labels, seed = options.cell.parent.parent, options.cell.name
    judge: Any = load_model(labels.parent / "labels-all" / options.judge / seed / "model").to(device)
    assert isinstance(judge, HasFeatures)
    method: Any = load_model(options.cell / "model").to(device)
    store = open_store(options.store or next(Path("resources/prepared").glob(f"{method.data.name}-*")))
    test = store.split_rows(labels / f"split-{seed.removeprefix('seed-')}.parquet")["test"]

    def features(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return answers(judge.features, images, rows, batch_size=256, device=device).astype(np.float64)

    real = features(store.images, test)
    seeds = torch.tensor([derive(0, "benchmark", i) for i in range(options.images)], device=device)
    solvers: list[tuple[str, Solver]] = [("ancestral", Ancestral(method.process))]
    solvers += [(name, method.process.solver(name, n)) for name in ("ddim", "dpm++") for n in options.steps]
    print(f"{options.cell}: {options.images} images of {method.data.size} px on {device}, {torch.get_num_threads()} "
          f"thread(s); {len(test)} test images")  # fmt: skip
    print("| sampler | steps | images/s | times faster | Frechet distance | times that of 1000 |")
    print("|---|--:|--:|--:|--:|--:|")
    first: tuple[float, float] | None = None
    for name, solver in solvers:
        torch.manual_seed(0)
        started = time.perf_counter()
        images = draw(method, solver, seeds, f"{name} {len(solver.times)}", batch_size=options.batch)
        rate = len(images) / (time.perf_counter() - started)
        drawn = features(images, np.arange(len(images)))
        distance = frechet_distance(drawn, real)
        chosen = rng(0, "resample")
        again = [frechet_distance(drawn[chosen.integers(len(drawn), size=len(drawn))], real) for _ in range(50)]
        first = first or (rate, distance)
        print(f"| {name} | {len(solver.times)} | {rate:.2f} | {rate / first[0]:.1f} | {distance:.3f} ± "
              f"{np.std(again):.3f} | {distance / first[1]:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
