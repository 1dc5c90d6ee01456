"""Where the time of a joint training step goes, and how close it comes to what the machine can do.

    uv run python benchmarks/step_profile.py                      # 28 px, 2 M parameters, 64 + 64 images
    uv run python benchmarks/step_profile.py --case pixels        # 32 px, 128 channels (JointDiffusion's size)
    uv run python benchmarks/step_profile.py --case latents       # 4 x 32 x 32, 256 channels (Mediffusion's size)

The step is the last line of training_step.py. Its floating-point operations are counted by torch (matrix products,
convolutions and attention, forward and backward) and held against a large matrix product in the same precision; its
bytes are those of what every operation reads and writes, as if no cache helped, and are held against a large copy. Time
by kind of operation is the profiler's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from noise import UNETS, run_as_job
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training_step import Steps, manners

# The first whose name is part of an operation's: a backward pass counts with its forward pass.
KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "attention": ("attention",),
    "matrix products": ("aten::mm", "addmm", "bmm"),
    "normalisation": ("norm",),
    "activations": ("silu",),
    "sums, copies, joining": ("add", "sum", "copy_", "cat", "clone", "fill_", "mul", "div"),
    "optimiser and average": ("adamw", "lerp"),
}


class Bytes(TorchDispatchMode):
    """Add up the bytes that operations read and write; views carry none."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its tensors."""
        answer = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, answer)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return answer


def seconds(work: Callable[[], Any], device: torch.device, *, repeats: int) -> float:
    """Return the median seconds of some work, after two other rounds."""
    taken = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return the operations a second of a large matrix product, and the bytes a second of a large copy."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = 2 * side**3 / seconds(lambda: a @ b, device, repeats=5)
    source = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return product, 2 * source.numel() / seconds(lambda: target.copy_(source), device, repeats=5)


def time_by_kind(steps: Steps) -> dict[str, float]:
    """Return the seconds of one step by kind of operation, on the device that computes it."""
    on_gpu = steps.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        steps.take()
        if on_gpu:
            torch.cuda.synchronize()
    found: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        named = [kind for kind, parts in KINDS.items() if any(part in event.key.lower() for part in parts)]
        found[named[0] if named else "all else"] += own / 1e6
    return found


def main() -> None:
    """Print the step's shares of the machine's peaks, and its time by kind of operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=UNETS, default="small")
    parser.add_argument("--batch", type=int, default=64, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    run_as_job()
    torch.set_num_threads(options.threads)
    steps = Steps(options.case, list(manners().values())[-1], batch=options.batch)
    product, copy = peaks(steps.device, torch.bfloat16 if steps.device.type == "cuda" else torch.float32)
    took = seconds(steps.take, steps.device, repeats=options.steps)
    with FlopCounterMode(display=False) as operations:
        steps.take()
    with Bytes() as moved:
        steps.take()
    flop = operations.get_total_flops()
    print(f"{options.case}, {options.batch} + {options.batch} images on {steps.device}: {took:.3f} s a step")
    print("| | of a step | a second | the machine's most | share |\n|---|--:|--:|--:|--:|")
    for unit, amount, most in (("GFLOP", flop, product), ("GB read and written", moved.total, copy)):
        rate = amount / took
        print(f"| {unit} | {amount / 1e9:,.1f} | {rate / 1e9:,.0f} | {most / 1e9:,.0f} | {rate / most:.0%} |")
    kinds = time_by_kind(steps)
    whole = sum(kinds.values())
    print("\n| operations | s | share |\n|---|--:|--:|")
    for kind, spent in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {spent:.3f} | {spent / whole:.0%} |")


if __name__ == "__main__":
    main()
