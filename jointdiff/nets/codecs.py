"""Codecs: the spaces in which diffusion happens, and the ways there and back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from jointdiff.data.source import DataInfo


class Codec(ABC):
    """Maps images (N, C, H, W) in [-1, 1] to codes and back. It has nothing to train.

    Attributes:
        channels: of the codes.
        size: side of the codes.
        bounded: whether codes lie in [-1, 1].
        costly: whether the codes of a data set are better computed once and kept.
    """

    channels: int
    size: int
    bounded = True
    costly = False

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (N, channels, size, size) of images."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return images; gradients flow."""


class Identity(Codec):
    """Diffusion of the pixels themselves."""

    def __init__(self, data: DataInfo) -> None:
        self.channels, self.size = data.channels, data.size

    def encode(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codes."""
        return codes


class HaarWavelet(Codec):
    """One level of the Haar transform, halved to stay in [-1, 1]: C x H x W becomes 4C x H/2 x W/2.

    The quarters are the average and the horizontal, vertical and diagonal details, each for all channels (Favero et
    al. 2025, section 3; the transform is that of Haar 1910, orthonormal but for the halving).

    Raises:
        ValueError: the side is odd.
    """

    def __init__(self, data: DataInfo) -> None:
        if data.size % 2:
            raise ValueError(f"codec wavelet: images of {data.size} px cannot be halved; choose an even size")
        self.channels, self.size = 4 * data.channels, data.size // 2

    def encode(self, images: Tensor) -> Tensor:
        """Return the four bands."""
        a, b = images[..., ::2, ::2], images[..., ::2, 1::2]
        c, d = images[..., 1::2, ::2], images[..., 1::2, 1::2]
        return torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 4.0

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of four bands."""
        return self.compose(codes)

    @staticmethod
    def compose(codes: Tensor) -> Tensor:
        """Return images (N, C, H, W) of their four bands (N, 4 C, H / 2, W / 2)."""
        mean, across, down, diagonal = codes.chunk(4, dim=1)
        n, c, h, w = mean.shape
        rows = [
            torch.stack([mean + across + down + diagonal, mean - across + down - diagonal], dim=-1),
            torch.stack([mean + across - down - diagonal, mean - across - down + diagonal], dim=-1),
        ]
        return torch.stack(rows, dim=3).reshape(n, c, 2 * h, 2 * w)

    def save_pretrained(self, folder: Path) -> None:
        """Write what pipelines of diffusers ask of a part: there are no weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": type(self).__name__}) + "\n", encoding="utf-8")
