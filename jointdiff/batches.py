"""Stored images as batches on a device, for all that looks at them without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from jointdiff.method import to_unit_range
from jointdiff.processes import share_out

Result = TypeVar("Result")


def image_batches(pixels: np.ndarray, rows: np.ndarray, *, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield images (n, C, H, W) in [-1, 1] of some rows of uint8 images (N, H, W, C), which may be memory-mapped."""
    for start in range(0, len(rows), batch_size):
        images = torch.from_numpy(pixels[rows[start : start + batch_size]])
        yield to_unit_range(images.permute(0, 3, 1, 2).to(device)).contiguous()


def of_batches(
    work: Callable[[Tensor, np.ndarray], Result],
    pixels: np.ndarray,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
) -> list[Result]:
    """Return ``work(images, places)`` of batch after batch, which the processes of a job share out among them.

    ``places`` say which of ``rows`` the images (n, C, H, W) are.
    """

    def of(places: np.ndarray) -> Result:
        (images,) = image_batches(pixels, rows[places], batch_size=batch_size, device=device)
        return work(images, places)

    parts = np.split(np.arange(len(rows)), range(batch_size, len(rows), batch_size))
    return share_out(of, parts, device=device)


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

    def ask_about(images: Tensor, places: np.ndarray) -> np.ndarray:
        return ask(images).float().cpu().numpy()

    return np.concatenate(of_batches(ask_about, pixels, rows, batch_size=batch_size, device=device))
