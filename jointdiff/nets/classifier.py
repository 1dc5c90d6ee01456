"""Discriminative backbones: images in [-1, 1] to the last maps, their average (the features), and logits.

What maps the features to the logits is called ``head`` in each of them; everything else is the encoder.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

WIDE_RESNET = "wide_resnet"
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a checkpoint in timm's layout
# Arguments with which a checkpoint's network was built that do not change what its weights compute.
HARMLESS = {"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate"}
# What timm and torch raise where a network does not go with a size, a folder or weights.
REFUSALS = (AssertionError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError, ZeroDivisionError)


class WideResNet(nn.Module):
    """A wide residual network with pre-activation (Zagoruyko & Komodakis 2016): WRN-28-2 is the USB reference.

    Args:
        depth: 6 n + 4 convolutions.
        width: factor on the 16, 32 and 64 channels of the three groups.
        channels: of the images.
        outputs: number of logits.
    """

    def __init__(self, *, depth: int, width: int, channels: int, outputs: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth {depth} of a wide ResNet must be 6 n + 4, such as 10, 16 or 28")
        self.name = f"WRN-{depth}-{width}"
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        now = 16
        for group, base in enumerate((16, 32, 64)):
            for block in range(blocks):
                layers.append(_Block(now, base * width, stride=2 if group and not block else 1))
                now = base * width
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(now, momentum=0.1)
        self.maps = nn.LeakyReLU(0.1)
        self.head = nn.Linear(now, outputs)
        self.to(memory_format=torch.channels_last)  # the layout that its layers are fastest in, on a CPU too

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, 64 width)."""
        return self.maps(self.norm(self.blocks(self.stem(images)))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.head(self.features(images))


class TimmClassifier(nn.Module):
    """A classifier of timm (Wightman 2019) by its name, with random weights.

    Its own pooling and last layer give way to the mean of the last maps (of the patches' tokens, where it has tokens)
    and a linear layer, so that what Grad-CAM looks at is what the logits are made of.

    Args:
        name: as ``timm.list_models()`` has it.
        size: side of the images in pixels.
        channels: of the images.
        outputs: number of logits.

    Attributes:
        encoder: timm's network up to its last maps or tokens.
        maps: the module whose output is the last maps (N, D, h, w).
        head: the last layer.

    Raises:
        ValueError: the name is unknown, or the network cannot take images of this size or has no maps.
    """

    mean: Tensor  # (1, C, 1, 1): what is subtracted from images in [-1, 1], and by what they are then divided
    std: Tensor

    def __init__(self, name: str, *, size: int, channels: int, outputs: int) -> None:
        super().__init__()
        import timm

        known = [WIDE_RESNET, *timm.list_models()]
        if name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown backbone {name!r}: did you mean {nearest!r}? Use {WIDE_RESNET!r} or a name of "
                "timm.list_models(), without the tag of weights, which `pretrained` names"
            )
        self.name, self.size, self.channels = name, size, channels
        try:
            self.encoder = _encoder(name, size=size, channels=channels)
        except REFUSALS as error:
            raise ValueError(_unfit(name, size, error)) from error
        patch = _side(getattr(getattr(self.encoder, "patch_embed", None), "patch_size", 1))
        if size % patch:
            raise ValueError(
                f"backbone {name!r} cannot take images of {size} px, which its patches of {patch} px do not fill: use "
                f"a size that is a multiple of {patch}"
            )
        width = int(getattr(self.encoder, "head_hidden_size", self.encoder.num_features))
        self.maps = _Maps(width, prefix=getattr(self.encoder, "num_prefix_tokens", 0))
        self.head = nn.Linear(width, outputs)
        # From scratch images stay as they are: in [-1, 1].
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        try:
            found = self._try()
        except REFUSALS as error:
            raise ValueError(_unfit(name, size, error)) from error
        if len(found) != 4 or found[1] != width or not all(found):
            raise ValueError(f"backbone {name!r} ends in no maps that could be averaged: use another network of timm")
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _try(self) -> tuple[int, ...]:
        """Return the shape of the maps of a black image."""
        self.eval()
        shape = self.maps(self.encoder(torch.zeros(1, self.channels, self.size, self.size))).shape
        self.train()
        return tuple(shape)

    def load_pretrained(self, source: str) -> None:
        """Take over the weights of everything but the head, and the mean and deviation that they expect of images.

        For another number of channels timm sums or repeats the first layer's weights over the colours, and mean and
        deviation are averaged over them.

        Args:
            source: a folder in timm's layout, or the id of one on the hub; safetensors, no pickles.

        Raises:
            ValueError: there is none that can be read, or it is of another network.
        """
        folder = _checkpoint(source)
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"pretrained: {folder / CONFIG} is no JSON ({error}); fetch it again") from error
        if (of := config.get("architecture")) != self.name:
            raise ValueError(f"pretrained: {source} holds weights of {of!r}; say `backbone: {of}` or name others")
        if special := sorted(config.get("model_args", {}).keys() - HARMLESS):
            raise ValueError(
                f"pretrained: {source} is no plain {self.name}, since its {CONFIG} sets {', '.join(special)}; name "
                "weights of the network as timm builds it"
            )
        try:
            theirs = _encoder(self.name, size=self.size, channels=self.channels, folder=folder)
            self.encoder.load_state_dict(theirs.state_dict())
        except REFUSALS as error:
            raise ValueError(
                f"pretrained: the weights of {source} do not fit {self.name} ({_told(error)}); fetch them again or "
                "name others"
            ) from error
        # timm's are of images in [0, 1].
        self.mean.copy_(2.0 * _per_channel(theirs.pretrained_cfg["mean"], self.channels) - 1.0)
        self.std.copy_(2.0 * _per_channel(theirs.pretrained_cfg["std"], self.channels))

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D)."""
        return self.maps(self.encoder((images - self.mean) / self.std)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.head(self.features(images))


class _Maps(nn.Module):
    """Bring what a network of timm ends in, maps in either layout or tokens, into the form (N, D, h, w)."""

    def __init__(self, width: int, *, prefix: int) -> None:
        super().__init__()
        self.width = width  # D
        self.prefix = prefix  # tokens in front of those of the patches

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            patches = x[:, self.prefix :]
            side = math.isqrt(patches.shape[1])
            return patches.transpose(1, 2).unflatten(2, (side, side))
        return x.permute(0, 3, 1, 2) if x.ndim == 4 and x.shape[1] != self.width else x


def _encoder(name: str, *, size: int, channels: int, folder: Path | None = None) -> Any:
    """Return a network of timm without pooling and last layer, with the weights of a folder or random ones."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    fixed: dict[str, Any] = {"img_size": size} if settings is not None and settings.fixed_input_size else {}
    # The last layer goes only now: with it timm insists that every weight is there.
    encoder: Any = timm.create_model(
        f"local-dir:{folder}" if folder else name, pretrained=folder is not None, in_chans=channels, **fixed
    )
    encoder.reset_classifier(0, "")
    return encoder


def _checkpoint(source: str) -> Path:
    """Return a folder with a checkpoint of timm, fetched from the hub where it is none."""
    folder = Path(source).expanduser()
    why = ""
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
        except (OSError, ValueError) as error:
            why = f" ({_told(error)})"
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"pretrained: {source!r} is no folder, and no repository of the hub that can be reached, with timm's "
            f"{CONFIG} and {WEIGHTS}: {' and '.join(missing)} not found{why}; pickled weights (.bin, .pth) are not "
            "read, so name one with safetensors, or download it by hand and name the folder"
        )
    return folder


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Return one number per channel (1, C, 1, 1): as given, or their mean where the channels are others."""
    own = torch.tensor(values, dtype=torch.float32)
    return (own if len(own) == channels else own.mean().expand(channels)).view(1, -1, 1, 1)


def _side(patch: int | Sequence[int]) -> int:
    return patch if isinstance(patch, int) else patch[0]


def _unfit(name: str, size: int, error: BaseException) -> str:
    return f"backbone {name!r} cannot take images of {size} px ({_told(error)}): use larger images or another network"


def _told(error: BaseException) -> str:
    """Return what an error of a library says, in one short line."""
    return shorten(str(error), 200) or type(error).__name__


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs, momentum=0.1), nn.BatchNorm2d(outputs, momentum=0.1)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.leaky_relu(self.norm1(x), 0.1)
        residual = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), 0.1))
        # The first convolution of a group takes its shortcut from the activated input.
        return residual + (x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active))
