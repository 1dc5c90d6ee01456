"""What a classifier says on the way from an image to its counterfactual, the pixels put in from the most changed on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jointdiff.explain.saliency import change_map


@torch.no_grad()
def insertion_path(
    predict: Callable[[Tensor], Tensor], images: Tensor, edited: Tensor, *, finding: int, steps: int
) -> Tensor:
    """Return the probability of a finding (N, steps - 1) as the pixels of its edits take the place of the images'.

    ``predict`` maps images (N, C, H, W) to probabilities (N, K). Each step puts in the same share of the pixels, those
    of greater mean absolute change first, until ``edited`` would be whole (the masks of COUT, Khorram & Fuxin 2022,
    arXiv 2203.15064). What is said of both ends is known without asking again.
    """
    n, _, height, width = images.shape
    pixels = height * width
    order = change_map(edited, images).flatten(1).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1).view(n, 1, height, width)  # of each pixel in that order
    states = (torch.where(place < round(pixels * step / steps), edited, images) for step in range(1, steps))
    return torch.stack([predict(state)[:, finding] for state in states], dim=1)
