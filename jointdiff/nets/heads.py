"""Classifier heads on encoder maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class PooledHead(nn.Module):
    """Pool every map, concatenate, and classify with one hidden layer (JointDiffusion).

    Args:
        widths: channels of each map.
        outputs: number of logits K.
        hidden: width of the hidden layer; half of what is pooled by default.
        pooling: average, maximum, or both beside each other.
        dropout: on the pooled vector.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        outputs: int,
        hidden: int | None = None,
        pooling: Literal["avg", "max", "both"] = "avg",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        width = sum(widths) * (2 if pooling == "both" else 1)
        hidden = hidden or width // 2
        self.net = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, outputs)
        )

    def pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the pooled vector (N, D) of maps (N, d, h, w)."""
        average = [m.mean(dim=(2, 3)) for m in maps] if self.pooling != "max" else []
        # Not amax, whose backward pass looks for ties over the whole map.
        maximum = [m.flatten(2).max(dim=2).values for m in maps] if self.pooling != "avg" else []
        return torch.cat([*average, *maximum], dim=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (N, K)."""
        return self.net(self.pool(maps))
