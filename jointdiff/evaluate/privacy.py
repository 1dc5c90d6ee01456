"""Do generated images repeat training images? Distances to the nearest one, held against those of test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdiff.pictures import save_pairs

COPY_QUANTILE = 0.01  # of the test images' distances: what comes nearer is a near copy
SIDE = 32  # pixels, to which images are averaged before they are compared
SHOWN = 8  # pairs in the picture


def privacy(drawn: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Compare distances to the nearest image of the training side: of drawn images (N,) and of test images (M,).

    ``nearest_ratio`` is the ratio of their medians: 1 where drawn images keep the distance of unseen ones, 0 of copies.
    ``near_copies`` is the share of drawn images nearer than all but the nearest 1 % of the test images: .01 is chance.
    """
    return {
        "nearest_ratio": float(np.median(drawn) / max(np.median(test), 1e-12)),
        "near_copies": float((drawn < copy_limit(test)).mean()),
    }


def copy_limit(test: np.ndarray) -> float:
    """Return the distance below which an image is a near copy, from those of test images (M,)."""
    return float(np.quantile(test, COPY_QUANTILE))


def small(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as vectors of at most 32 x 32 means, in root mean squares of the pixel range [0, 1].

    So that what is compared is the scene, not the noise of its pixels, and large images cost no more than small ones.
    """
    means = torch.nn.functional.adaptive_avg_pool2d(images, min(SIDE, images.shape[-1])).flatten(1)
    return means / (2.0 * means.shape[1] ** 0.5)


def draw_nearest(
    images: np.ndarray, real: np.ndarray, distance: np.ndarray, place: np.ndarray, *, limit: float, path: Path
) -> None:
    """Draw the generated images nearest to one of the training side, each beside that one."""
    shown = np.argsort(distance, kind="stable")[:SHOWN]
    pairs = np.stack([image for i in shown for image in (images[i], real[place[i]])])
    captions = [f"{100 * distance[i]:.1f} %" + (", near copy" if distance[i] < limit else "") for i in shown]
    title = f"Synthetic | nearest training image, by distance; 1 % of test images come nearer than {100 * limit:.1f} %"
    save_pairs(pairs, path, captions=captions, title=title)
