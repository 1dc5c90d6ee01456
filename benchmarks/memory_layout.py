"""How long a training step of each network takes with channels first and channels last, side by side.

    uv run python benchmarks/memory_layout.py

On a CPU the classifiers are faster with channels last and the U-Net is slower (its group normalisation), which is why
`WideResNet` chooses its layout itself. Steps of the two layouts alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from jointdiff.devices import pick_device, pick_precision
from jointdiff.nets.classifier import WideResNet
from jointdiff.nets.unet import UNet

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Return the networks of the default experiment."""
    unet = {"channels": 1, "size": 32, "width": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention_at": ()}
    return {
        "WRN-10-2": lambda: WideResNet(depth=10, width=2, channels=1, outputs=3),
        "U-Net": lambda: UNet(**unet),  # type: ignore[arg-type]
    }


def step(network: nn.Module, inputs: tuple[Tensor, ...], *, bf16: bool) -> float:
    """Return the seconds of one forward and backward pass."""
    device = inputs[0].device
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        answer = network(*inputs)
    answer.float().square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Print the median milliseconds of each layout and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--steps", type=int, default=30, help="measured steps per layout")
    options = parser.parse_args()
    device = pick_device("auto")
    bf16 = pick_precision("auto", device) == "bf16"
    print(f"{device}, {'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} thread(s), {options.batch} images")
    for name, build in networks().items():
        built = {text: build().to(device).to(memory_format=layout) for text, layout in LAYOUTS.items()}
        images = torch.randn(options.batch, 1, 32, 32, device=device)
        times = torch.randint(1000, (options.batch,), device=device)
        inputs = (images, times) if name == "U-Net" else (images,)
        seconds: dict[str, list[float]] = {text: [] for text in LAYOUTS}
        for _ in range(options.steps + 3):
            for text, network in built.items():
                seconds[text].append(step(network, inputs, bf16=bf16))
        first, last = (1000 * statistics.median(seconds[text][3:]) for text in LAYOUTS)
        print(f"{name:>10}: channels first {first:6.1f} ms, last {last:6.1f} ms, ratio {first / last:.2f}")


if __name__ == "__main__":
    main()
