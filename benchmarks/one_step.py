"""What one training step of each method of a configuration takes at its full size, on images made of noise.

    uv run python benchmarks/one_step.py config/experiments/systems.yaml --images 2

Shows before days of training that every network fits and learns: parameters, operations, time and, on a GPU, memory. An
autoencoder to be trained is built with random weights; variants that need downloaded weights are named and left out.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from jointdiff.config import ConfigError, Experiment, load_experiment
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo, describe
from jointdiff.devices import pick_device, pick_precision
from jointdiff.method import Batch, Method
from jointdiff.nets.autoencoder import Autoencoder, KLAutoencoder
from jointdiff.nets.codecs import Codec
from jointdiff.registry import load_source
from jointdiff.training.loop import NO_AUGMENTATIONS, build_method


def info_of(experiment: Experiment, name: str) -> DataInfo:
    """Return what a prepared data set would say of itself."""
    data = experiment.datasets[name]
    source, _ = describe(load_source(data.source or name), data.options)
    return DataInfo(
        name=name,
        title=source.title,
        labels=source.labels,
        channels=source.channels,
        size=data.size,
        augmentations=source.augmentations,
        samples=1,
        digest="",
        has_regions=False,
    )


def codec_of(experiment: Experiment, autoencoder: str, info: DataInfo, folder: Path) -> Codec:
    """Return an autoencoder of the configured size with random weights."""
    entry = experiment.autoencoders[autoencoder]
    if entry.pretrained:
        raise ConfigError(f"needs the weights {entry.pretrained}")
    KLAutoencoder(info, KLAutoencoder.Settings.model_validate(entry.settings)).save_pretrained(folder)
    return Autoencoder(folder, info)


def step(method: Method, info: DataInfo, images: int, *, device: torch.device, bf16: bool) -> tuple[float, float]:
    """Take one training step; return its operations in GFLOP and its seconds."""
    torch.manual_seed(0)
    method = method.to(device).train()
    averaged = copy.deepcopy(method).eval()
    count = images * method.settings.unlabelled_ratio
    shape = (info.channels, info.size, info.size)
    views = Views(info.augmentations)
    if method.codec.costly:  # the loop hands over latents, and augments none
        shape, views = (method.codec.channels, method.codec.size, method.codec.size), Views(NO_AUGMENTATIONS)
    labels = torch.eye(len(info.labels.names), device=device)[torch.arange(images) % len(info.labels.names)]
    method.prepare(labels, count)
    batch = Batch(
        torch.rand(images, *shape, device=device) * 2 - 1,
        labels,
        torch.rand(count, *shape, device=device) * 2 - 1,
        0,
        10,
        torch.arange(images, device=device),
        torch.arange(count, device=device),
    )
    started = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = torch.stack(list(method(batch, views, averaged).values())).sum()
        if loss.requires_grad:  # a control has nothing to learn
            loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    if not loss.isfinite():
        raise ArithmeticError(f"the loss is {loss.item()}")
    return counter.get_total_flops() / 1e9, time.perf_counter() - started


def main() -> None:
    """Print a line for each method and data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--images", type=int, default=2, help="labelled images of the step")
    parser.add_argument("--methods", nargs="*", help="these alone")
    options = parser.parse_args()
    experiment, device = load_experiment(options.config), pick_device("auto")
    bf16 = pick_precision("auto", device) == "bf16"
    print(f"{device}, {'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} thread(s), {options.images} images")
    print("| data set, px | method | network | parameters (M) | GFLOP | s | MiB |\n|---|---|---|--:|--:|--:|--:|")
    for dataset in experiment.datasets:
        info = info_of(experiment, dataset)
        budget = experiment.datasets[dataset].labels[0]
        for name, variant in experiment.methods.items():
            if options.methods and name not in options.methods:
                continue
            run = experiment.run(dataset, "all" if variant.labels == "all" else budget, name, experiment.seeds[0])
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    used = variant.autoencoder
                    codec = codec_of(experiment, used, info, Path(folder)) if used else None
                    method = build_method(run, info, codec)
                    gflop, seconds = step(method, info, options.images, device=device, bf16=bf16)
            except (ConfigError, OSError) as error:
                print(f"| {dataset}, {info.size} | {name} | left out: {error} | | | | |", flush=True)
                continue
            millions = sum(p.numel() for p in method.parameters()) / 1e6
            memory = f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}" if device.type == "cuda" else ""
            line = (
                f"| {dataset}, {info.size} | {name} | {method.network} | {millions:.1f} | {gflop:.0f} | {seconds:.1f}"
            )
            print(f"{line} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
