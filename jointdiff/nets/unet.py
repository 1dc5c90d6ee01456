"""A U-Net whose halves can be called apart, with the layers, names and configuration of diffusers' ``UNet2DModel``.

It is written out because the encoder must run alone, and because importing diffusers' takes longer than what most jobs
of a small experiment do. Equality with it is tested, and its weights are exchanged with it both ways.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from jointdiff.nets.groups import groups_of


@dataclass(frozen=True)
class Encoding:
    """What the encoder says of a batch: every skip map and the middle map, and the time embedding."""

    skips: tuple[Tensor, ...]  # each (N, D, h, w), from the first convolution to the deepest block
    middle: Tensor  # (N, D, h, w)
    embedding: Tensor  # (N, E), with the activation that every block applies

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """Return every map in the order in which it was computed."""
        return (*self.skips, self.middle)

    def with_maps(self, maps: Sequence[Tensor]) -> Encoding:
        """Return the same encoding with other maps."""
        return Encoding(tuple(maps[:-1]), maps[-1], self.embedding)

    def with_embedding(self, embedding: Tensor) -> Encoding:
        """Return the same maps with another embedding."""
        return Encoding(self.skips, self.middle, embedding)

    def split(self, *counts: int) -> list[Encoding]:
        """Return the encodings of consecutive parts of the batch, of so many images each."""
        # One split per map: its backward pass is one concatenation, that of slices fills and adds whole maps.
        parts = zip(*(m.split(counts) for m in (*self.maps, self.embedding)), strict=True)
        return [Encoding(part[:-2], *part[-2:]) for part in parts]


class UNetEncoder(nn.Module):
    """The first half of a U-Net and its middle: residual blocks, self-attention, one map per block.

    Args:
        channels: of the images.
        size: side of the images in pixels.
        width: channels of the first level.
        multipliers: channels of each level, times the width.
        blocks: residual blocks per level.
        attention_at: sides of the maps with self-attention, pixels; the middle has it where any level has.
        dropout: in the residual blocks.
        conditions: what the maps may be conditioned on, each with an embedding that is added to that of the time
            (Favero et al. 2025 attend to one embedding instead; over one token, attention is the same: a bias).

    Raises:
        ValueError: the image side cannot be halved once per level, or the width is no multiple of 4.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_at: Sequence[int],
        dropout: float = 0.0,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        self.name = f"U-Net {width} x ({', '.join(map(str, multipliers))})"
        levels = len(multipliers)
        if size % 2 ** (levels - 1):
            raise ValueError(f"images of {size} px cannot be halved {levels - 1} times: use fewer multipliers")
        groups = groups_of(width, of="U-Net")
        widths = [width * m for m in multipliers]
        attention = [size // 2**level in set(attention_at) for level in range(levels)]
        head = min(64, width)
        if wrong := [w for w, a in zip(widths, attention, strict=True) if a and w % head]:
            raise ValueError(f"self-attention has heads of {head} channels, into which {wrong[0]} cannot be divided")
        # What UNet2DModel is built from; its other options keep their defaults.
        self.config: dict[str, Any] = {
            "_class_name": "UNet2DModel",
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": widths,
            "layers_per_block": blocks,
            "norm_num_groups": groups,
            "attention_head_dim": head,
            "dropout": dropout,
            "add_attention": any(attention),
            "num_class_embeds": conditions or None,
            "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        }
        embedding = self.embedding_width = 4 * width
        # A level of this U-Net: what it takes, what it returns, and how many of its blocks attend.
        self.level_of = partial(_Level, embedding=embedding, groups=groups, head=head, dropout=dropout)

        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, embedding)
        if conditions:
            self.class_embedding = nn.Embedding(conditions, embedding)
        self.down_blocks = nn.ModuleList()
        now, skips = width, [width]  # channels of the present map and of every skip map
        for level, wide in enumerate(widths):
            attentions = blocks if attention[level] else 0
            down = self.level_of([now] + [wide] * (blocks - 1), wide, attentions=attentions)
            skips += [wide] * blocks
            if level < levels - 1:
                down.downsamplers = nn.ModuleList([_Downsample(wide)])
                skips.append(wide)
            self.down_blocks.append(down)
            now = wide
        self.mid_block = self.level_of([now, now], now, attentions=int(any(attention)))
        self.map_widths = (*skips, now)  # channels of every map of an encoding, in order
        self.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in, on a CPU too

    def encode(self, images: Tensor, steps: Tensor, conditions: Tensor | None = None) -> Encoding:
        """Return the maps of noisy images (N, C, H, W) at steps (N,), under whole-number conditions (N,) if any."""
        embedding = self.time_embedding(steps, dtype=images.dtype)
        if conditions is not None:
            embedding = embedding + self.class_embedding(conditions)
        embedding = F.silu(embedding)
        # One channel is at once first and last: its strides are made those of channels first, or convolutions guess.
        images = images.flatten(1).view(images.shape)
        x = self.conv_in(images)
        skips = [x]
        level: Any  # to a type checker, what a ModuleList holds are plain modules
        for level in self.down_blocks:
            for block in range(len(level.resnets)):
                x = level(block, x, embedding)
                skips.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skips.append(x)
        x = self.mid_block(0, x, embedding)
        return Encoding(tuple(skips), self.mid_block.resnets[1](x, embedding), embedding)


class UNet(UNetEncoder):
    """Estimate the noise in images (Ho et al. 2020): an encoder, and a decoder that takes its maps as skips.

    It is built from what an encoder is built from.
    """

    def __init__(
        self,
        *,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        **others: Any,
    ) -> None:
        super().__init__(width=width, multipliers=multipliers, blocks=blocks, **others)
        *skips, now = self.map_widths
        widths: list[int] = []  # channels of every map of the decoder, in order
        self.up_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            wide = width * multiplier
            inputs = [before + skips.pop() for before in [now] + [wide] * blocks]
            attentions = len(inputs) if self.down_blocks[level].attentions else 0
            up = self.level_of(inputs, wide, attentions=attentions)
            if level > 0:
                up.upsamplers = nn.ModuleList([_Upsample(wide)])
            self.up_blocks.append(up)
            widths += [wide] * len(inputs)
            now = wide
        self.decoder_widths = tuple(widths)
        self.conv_norm_out = nn.GroupNorm(self.config["norm_num_groups"], width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, self.config["out_channels"], 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def decoder_maps(self, encoding: Encoding) -> Iterator[Tensor]:
        """Yield the map (N, D, h, w) after each block of the decoder, the next computed when it is asked for."""
        x, skips = encoding.middle, list(encoding.skips)
        level: Any
        for level in self.up_blocks:
            for block in range(len(level.resnets)):
                x = level(block, torch.cat([x, skips.pop()], dim=1), encoding.embedding)
                yield x
            for upsample in level.upsamplers:
                x = upsample(x)

    def decode(self, encoding: Encoding) -> Tensor:
        """Return the noise estimate (N, C, H, W) that goes with maps."""
        (last,) = deque(self.decoder_maps(encoding), maxlen=1)
        return self.conv_out(F.silu(self.conv_norm_out(last)))

    def forward(self, images: Tensor, steps: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return the noise estimate (N, C, H, W) for noisy images at steps (N,), under conditions (N,) if any."""
        return self.decode(self.encode(images, steps, conditions))

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights as diffusers does."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


class _Level(nn.Module):
    """Residual blocks of one map size, the first ``attentions`` followed by self-attention, and the way to the next."""

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        *,
        attentions: int,
        embedding: int,
        groups: int,
        head: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _ResidualBlock(i, width, embedding=embedding, groups=groups, dropout=dropout) for i in inputs
        )
        self.attentions = nn.ModuleList(_SelfAttention(width, head=head, groups=groups) for _ in range(attentions))
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def forward(self, block: int, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the map (N, D, h, w) after one of the blocks."""
        x = self.resnets[block](x, embedding)
        return self.attentions[block](x) if block < len(self.attentions) else x


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs, eps=1e-5), nn.GroupNorm(groups, outputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(x)))
        residual = residual + self.time_emb_proj(embedding)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(residual))))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, *, head: int, groups: int) -> None:
        super().__init__()
        self.head = head  # channels of each head
        self.group_norm = nn.GroupNorm(groups, width, eps=1e-5)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        n, d, h, w = x.shape
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)  # (N, h w, D)
        q, k, v = (
            to(pixels).view(n, h * w, d // self.head, self.head).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, d)
        return x + self.to_out[0](seen).transpose(1, 2).view(n, d, h, w)


class TimeEmbedding(nn.Module):
    """Cosines and sines of the step (Vaswani et al. 2017) and two layers."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1, self.linear_2 = nn.Linear(width, outputs), nn.Linear(outputs, outputs)

    def forward(self, steps: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Return the embedding (N, E) of steps (N,)."""
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=steps.device))
        angles = steps[:, None].float() * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
