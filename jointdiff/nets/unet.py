"""diffusers' U-Net, cut where the encoder ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor


@dataclass(frozen=True)
class Encoding:
    """What the encoder says of a batch: every skip map and the middle map, and the time embedding."""

    skips: tuple[Tensor, ...]  # each (N, D, h, w), from the first convolution to the deepest block
    middle: Tensor  # (N, D, h, w)
    embedding: Tensor  # (N, E)

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """Return every map in the order in which it was computed."""
        return (*self.skips, self.middle)

    def with_maps(self, maps: Sequence[Tensor]) -> Encoding:
        """Return the same encoding with other maps."""
        return Encoding(tuple(maps[:-1]), maps[-1], self.embedding)

    def part(self, rows: slice) -> Encoding:
        """Return the encoding of some images of the batch."""
        return Encoding(tuple(s[rows] for s in self.skips), self.middle[rows], self.embedding[rows])


# The halves take the U-Net as Any: to a type checker its blocks are plain modules.
def encode(unet: Any, images: Tensor, steps: Tensor) -> Encoding:
    """Return the maps of noisy images (N, C, H, W) at integer steps (N,): the first half of ``unet(images, steps)``."""
    embedding = unet.time_embedding(unet.time_proj(steps).to(images.dtype))
    x = unet.conv_in(images)
    skips = [x]
    for block in unet.down_blocks:
        x, outputs = block(hidden_states=x, temb=embedding)
        skips.extend(outputs)
    return Encoding(tuple(skips), unet.mid_block(x, embedding), embedding)


def decode(unet: Any, encoding: Encoding) -> Tensor:
    """Return the noise estimate (N, C, H, W): the second half of ``unet(images, steps)``."""
    x, skips = encoding.middle, encoding.skips
    for block in unet.up_blocks:
        count = len(block.resnets)
        x = block(x, skips[-count:], encoding.embedding)
        skips = skips[:-count]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def build_unet(
    *,
    channels: int,
    size: int,
    width: int,
    multipliers: Sequence[int],
    blocks: int,
    attention_at: Sequence[int],
    dropout: float = 0.0,
) -> UNet2DModel:
    """Build a U-Net of ``width`` x ``multipliers`` channels with attention at maps of the given sides in pixels.

    Raises:
        ValueError: the image side cannot be halved once per level, or the width does not suit group normalisation.
    """
    levels = len(multipliers)
    if size % 2 ** (levels - 1):
        raise ValueError(f"images of {size} px cannot be halved {levels - 1} times: use fewer multipliers")
    groups = next((g for g in (32, 16, 8, 4) if width % g == 0), None)
    if groups is None:
        raise ValueError(f"width {width} of the U-Net must be a multiple of 4")
    attention = [size // 2**level in set(attention_at) for level in range(levels)]
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(width * m for m in multipliers),
        layers_per_block=blocks,
        norm_num_groups=groups,
        attention_head_dim=min(64, width),
        dropout=dropout,
        add_attention=any(attention),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )


def pooled_width(unet: UNet2DModel) -> list[int]:
    """Return the channels of every map of an encoding, in order."""
    with torch.no_grad():
        size, channels = unet.config["sample_size"], unet.config["in_channels"]
        encoding = encode(unet, torch.zeros(1, channels, size, size), torch.zeros(1, dtype=torch.long))
    return [m.shape[1] for m in encoding.maps]
