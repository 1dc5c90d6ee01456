"""Stored images as batches on a device, for all that looks at them without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from jointdiff.method import to_unit_range


def image_batches(pixels: np.ndarray, rows: np.ndarray, *, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield images (n, C, H, W) in [-1, 1] of some rows of uint8 images (N, H, W, C), which may be memory-mapped."""
    for start in range(0, len(rows), batch_size):
        images = torch.from_numpy(pixels[rows[start : start + batch_size]])
        yield to_unit_range(images.permute(0, 3, 1, 2).to(device)).contiguous()


@torch.no_grad()
def answers(
    ask: Callable[[Tensor], Tensor],
    pixels: np.ndarray,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Return what ``ask`` (a model's predict or features) says of some rows of uint8 images (N, H, W, C)."""
    batches = image_batches(pixels, rows, batch_size=batch_size, device=device)
    return torch.cat([ask(images) for images in batches]).float().cpu().numpy()
