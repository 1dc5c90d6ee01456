"""Discriminative backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
