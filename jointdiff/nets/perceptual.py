"""LPIPS, a distance between images as people see it, with backbone weights from a file instead of a download."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# A key of torchvision's state dict, and the shape of its tensor, by which each backbone is known.
BACKBONES: dict[Literal["vgg", "alex", "squeeze"], tuple[str, tuple[int, ...]]] = {
    "vgg": ("features.28.weight", (512, 512, 3, 3)),  # vgg16
    "alex": ("features.0.weight", (64, 3, 11, 11)),  # alexnet
    "squeeze": ("features.12.squeeze.weight", (64, 512, 1, 1)),  # squeezenet1_1
}
SMALLEST = 64  # side in pixels; below it, the deeper maps of AlexNet and SqueezeNet are empty


class Perceptual(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, equation 1), computed by torchmetrics, frozen.

    The linear layers come with torchmetrics. A backbone of random weights makes no meaningful distance.

    Args:
        weights: state dict of torchvision's vgg16, alexnet or squeezenet1_1, as .safetensors or as the .pth that
            torchvision publishes (read with ``weights_only``, which runs no code).

    Raises:
        ValueError: the file is absent, damaged or of another network.
    """

    def __init__(self, weights: Path | str) -> None:
        super().__init__()
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        tensors = _read(Path(weights))
        fits = (kind for kind, (key, shape) in BACKBONES.items() if key in tensors and tensors[key].shape == shape)
        kind = next(fits, None)
        if kind is None:
            raise ValueError(_unfit(weights, "its tensors are of none of them"))
        self.lpips = _NoTrainLpips(pretrained=True, pnet_rand=True, net=kind)
        # torchmetrics cuts the features into slices but keeps their numbers: slice2.5.weight is features.5.weight.
        sources = {name: re.sub(r"^slices?\.?\d+\.", "features.", name) for name in self.lpips.net.state_dict()}
        try:
            self.lpips.net.load_state_dict({name: tensors[source] for name, source in sources.items()})
        except (KeyError, RuntimeError) as error:
            raise ValueError(_unfit(weights, f"it does not fit {kind}: {error}")) from error
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return distances (N,), 0 for equal images (N, C, H, W) in [-1, 1] of 1 or 3 channels; gradients flow."""
        return self.lpips(_prepared(images), _prepared(others)).flatten()


def _prepared(images: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    assert channels in (1, 3), f"LPIPS of {channels} channels"
    if min(height, width) < SMALLEST:
        larger = SMALLEST / min(height, width)
        sides = (round(height * larger), round(width * larger))
        images = F.interpolate(images, sides, mode="bilinear", align_corners=False)
    return images.expand(n, 3, -1, -1)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, TypeError, ValueError, UnpicklingError, SafetensorError) as error:
        raise ValueError(_unfit(path, f"it cannot be read ({error})")) from error


def _unfit(path: Path | str, why: str) -> str:
    return f"perceptual_weights: {path} is no state dict of torchvision's vgg16, alexnet or squeezenet1_1: {why}"
