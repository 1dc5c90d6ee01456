"""How long a training step takes with memory as glibc gives it by default, and as the workflow's jobs keep it.

    uv run python benchmarks/allocation.py

glibc reads its settings as a process starts, so that each measurement is a process; the two kinds alternate, so that a
busy machine slows both.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time


def measure(size: int, batch: int, steps: int) -> None:
    """Print the milliseconds and page faults of one step of the default experiment's U-Net, on one thread."""
    import torch

    from jointdiff.devices import pick_precision
    from jointdiff.nets.unet import UNet

    torch.set_num_threads(1)
    bf16 = pick_precision("auto", torch.device("cpu")) == "bf16"
    network = UNet(channels=1, size=size, width=16, multipliers=(1, 2, 4), blocks=1, attention_at=())
    images, times = torch.randn(batch, 1, size, size), torch.randint(1000, (batch,))
    for step in range(steps + 2):
        if step == 2:  # the first ones set up what is kept anyway
            started, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            answer = network(images, times)
        answer.float().square().mean().backward()
        network.zero_grad()
    milliseconds = 1000 * (time.perf_counter() - started) / steps
    print(milliseconds, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / steps)


def main() -> None:
    """Print the median of each kind of memory and their ratio, for two sizes of images."""
    from jointdiff.jobs import keep_memory

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=96, help="images per step: noisy and labelled ones")
    parser.add_argument("--steps", type=int, default=8, help="measured steps per process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--size", type=int, help="measure one process at this size and say nothing else")
    options = parser.parse_args()
    if options.size:
        measure(options.size, options.batch, options.steps)
        return
    plain = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    kept = dict(plain)
    keep_memory(kept)
    for size in (32, 48):
        command = [sys.executable, __file__, f"--size={size}", f"--batch={options.batch}", f"--steps={options.steps}"]
        measured: dict[str, list[list[float]]] = {"default": [], "kept": []}
        for _ in range(options.rounds):
            for name, environment in (("default", plain), ("kept", kept)):
                printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                measured[name].append([float(number) for number in printed.split()])
        (default, faults), (ours, fewer) = (map(statistics.median, zip(*of, strict=True)) for of in measured.values())
        print(
            f"{size} px: default {default:6.0f} ms and {faults:7.0f} page faults a step, kept {ours:6.0f} ms and"
            f" {fewer:3.0f}, ratio {default / ours:.2f}"
        )


if __name__ == "__main__":
    main()
