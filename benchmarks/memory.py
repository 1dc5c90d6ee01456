"""The most memory that a training step holds, by size of the network and number of parts of the batch.

    uv run python benchmarks/memory.py                        # 28 px, 2 M parameters
    uv run python benchmarks/memory.py --case pixels --largest   # on a GPU also the largest batch that fits

Each figure is of a process of its own: three steps of the joint model as the loop takes them, on images of noise. On a
GPU it is what torch allocated at most, on a CPU the resident memory at most beyond that of the imported libraries.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from typing import Any

from noise import UNETS, noise_info


def resident_mib() -> float:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case: str, batch: int, parts: int) -> None:
    """Train three steps and print the MiB they needed; exit with 3 where the device has too little."""
    import torch
    from accelerate import Accelerator

    from jointdiff.data.augment import Views
    from jointdiff.devices import pick_device, pick_precision
    from jointdiff.method import Batch
    from jointdiff.methods.joint import JointDiffusion
    from jointdiff.training.averaging import averaged_copy, update_average
    from jointdiff.training.shares import Shares

    device, shape = pick_device("auto"), dict(UNETS[case])
    size, channels = shape.pop("size"), shape.pop("channels")
    info = noise_info(size, channels=channels)
    before = resident_mib()
    method: Any = JointDiffusion(info, JointDiffusion.Settings(**shape, classifier_input="clean")).to(device).train()
    if device.type == "cuda":
        method = method.to(memory_format=torch.channels_last)
    averaged, views = averaged_copy(method), Views(info.augmentations)
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision="bf16" if pick_precision("auto", device) == "bf16" else "no"
    )
    shares = Shares(method, accelerator=accelerator, seed=0, count=parts, batch_size=batch)
    optimiser = shares.prepare(torch.optim.AdamW(method.parameters(), fused=True))

    def batch_of(share: int, count: int) -> Batch:
        images = torch.zeros(batch // count, channels, size, size, device=device)
        return Batch(images, torch.zeros(batch // count, 2, device=device), images, 0, 10)

    try:
        for step in range(3):
            shares._backward(step, batch_of, views, averaged)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            update_average(averaged, method, decay=0.99, step=step + 1)
    except torch.OutOfMemoryError:
        sys.exit(3)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident_mib() - before
    print(f"{peak:.0f}")


def peak_of(case: str, batch: int, parts: int) -> float | None:
    """Return the MiB of a fresh process, None where it ran out of memory."""
    command = [sys.executable, __file__, f"--case={case}", f"--batch={batch}", "--one", str(parts)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    if done.returncode == 3:
        return None
    done.check_returncode()
    return float(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=UNETS, default="small")
    parser.add_argument("--batch", type=int, default=64, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8], help="parts of the batch (micro_batches)")
    parser.add_argument("--largest", action="store_true", help="double the batch until it does not fit")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        measure(options.case, options.batch, options.one)
        return
    print("| parts of a batch of", options.batch, "| MiB | share |\n|--:|--:|--:|")
    whole: float | None = None
    for parts in options.parts:
        peak = peak_of(options.case, options.batch, parts)
        whole = whole or peak
        shown = "does not fit |" if peak is None else f"{peak:.0f} | {peak / whole if whole else 1:.2f}"
        print(f"| {parts} | {shown} |", flush=True)
    if options.largest:
        batch = options.batch
        while peak_of(options.case, 2 * batch, 1) is not None:
            batch *= 2
        print(f"largest batch of a power of two that fits whole: {batch} + {batch}")


if __name__ == "__main__":
    main()
