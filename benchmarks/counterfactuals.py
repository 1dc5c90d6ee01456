"""What an edit costs and is worth beside the scheme of the published code: 300 guided steps, the control in each.

    uv run python benchmarks/counterfactuals.py results/default/phantom/labels-200/joint/seed-0 --images 12

Of the same test images the model of a finished cell removes each finding, as the experiment has it and as the code of
Mediffusion does: noised to step 300, a step back at a time, the unchanged image estimated anew at each. An edit flips a
finding where an independent classifier's probability of it falls from above one half to below; the map is the change
beyond the control. Guidance of the reference is tried at several strengths, since a step of 300 is weaker than one of
two. Spreads are standard errors over images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff.batches import image_batches
from jointdiff.config import Explanation, load_experiment
from jointdiff.data.store import open_store
from jointdiff.devices import pick_device
from jointdiff.explain.localisation import pixel_auroc, pointing
from jointdiff.explain.saliency import change_map
from jointdiff.models import load_model
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng


def main() -> None:
    """Print a line for each scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, help="folder of a finished cell of a method that edits findings")
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"), help="whose `explanation` is ours")
    parser.add_argument("--judge", default="fully_supervised", help="variant that judges")
    parser.add_argument("--store", type=Path, help="prepared data set (default: the only one of that name)")
    parser.add_argument("--images", type=int, default=12, help="test images of each finding")
    parser.add_argument("--own-guidance", type=float, nargs="*", default=[], help="other strengths of ours")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="of the reference")
    options = parser.parse_args()
    device = pick_device("auto")
    labels, variant, seed = options.cell.parent.parent, options.cell.parent.name, options.cell.name
    judge: Any = load_model(labels.parent / "labels-all" / options.judge / seed / "model").to(device)
    method: Any = load_model(options.cell / "model").to(device).requires_grad_(False)
    store = open_store(options.store or next(Path("resources/prepared").glob(f"{method.data.name}-*")))
    test = store.split_rows(labels / f"split-{seed.removeprefix('seed-')}.parquet")["test"]
    ours = load_experiment(options.config).explanation_of(variant)
    schemes = {"this experiment's": ours}
    schemes |= {
        f"this experiment's, guidance {guidance:g}": ours.model_copy(update={"guidance": guidance})
        for guidance in options.own_guidance
    }
    schemes |= {
        f"300 steps, guidance {guidance:g}": Explanation(
            noise_level=300, steps=300, noises=1, guidance=guidance, guide="image", batch_size=ours.batch_size
        )
        for guidance in options.guidance
    }
    print(f"{options.cell}: {device}, {torch.get_num_threads()} thread(s)")
    print("| scheme | calls an image | s an image | times faster | flipped | pixel AUROC | pointing |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    rows: list[tuple[str, int, float, dict[str, np.ndarray]]] = []
    for name, how in schemes.items():
        seconds, calls = 0.0, 0
        found: dict[str, list[float]] = {"flipped": [], "pixel AUROC": [], "pointing": []}
        with Progress(name, total=None, unit="images") as progress:
            for finding, label in enumerate(store.info.labels.names):
                pool = [row for row in test if store.labels[row, finding] == 1]
                pool = [row for row in pool if store.regions(int(row), label) is not None]
                chosen = np.sort(rng(0, "benchmark", label).permutation(np.array(pool))[: options.images])
                (images,) = image_batches(store.images, chosen, batch_size=len(chosen), device=device)
                seeds = torch.tensor([derive(0, "benchmark", int(row)) for row in chosen], device=device)
                started = time.perf_counter()
                answer = method.counterfactual(images, finding, 0.0, seeds, how=how)
                maps = change_map(answer.images, answer.control).cpu().numpy()
                seconds += time.perf_counter() - started
                calls = answer.calls
                with torch.no_grad():
                    before, after = (judge.predict(x)[:, finding].cpu().numpy() for x in (images, answer.images))
                found["flipped"] += [float(b > 0.5 > a) for b, a in zip(before, after, strict=True) if b > 0.5]
                regions = [store.regions(int(row), label) for row in chosen]
                for heat, region in zip(maps, regions, strict=True):
                    assert region is not None
                    found["pixel AUROC"].append(pixel_auroc(heat, region))
                    found["pointing"].append(pointing(heat, region))
                progress.advance(len(chosen))
        count = len(found["pointing"])
        rows.append((name, calls, seconds / count, {key: np.array(values) for key, values in found.items()}))
    slowest = max(each for _, _, each, _ in rows)
    for name, calls, each, scores in rows:
        cells = " | ".join(f"{x.mean():.3f} ± {x.std() / np.sqrt(len(x)):.3f}" for x in scores.values())
        print(f"| {name} | {calls} | {each:.3f} | {slowest / each:.1f} | {cells} |")


if __name__ == "__main__":
    main()
