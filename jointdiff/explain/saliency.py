"""Maps that rival counterfactuals, and the controls without which no localisation number means anything."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jointdiff.method import HasFeatures
from jointdiff.seeding import rng


def grad_cam(model: HasFeatures, images: Tensor, finding: int) -> Tensor:
    """Return Grad-CAM maps (N, H, W), at least 0, for one finding (Selvaraju et al. 2017), through captum."""
    from captum.attr import LayerAttribution, LayerGradCam

    explainer = LayerGradCam(model.logits, model.feature_layer())
    maps = explainer.attribute(images.requires_grad_(), target=finding, relu_attributions=True)
    return LayerAttribution.interpolate(maps, tuple(images.shape[2:]), "bilinear")[:, 0].detach()


def random_map(seeds: np.ndarray, size: int) -> np.ndarray:
    """Return uniform random maps (N, size, size) in [0, 1), one seed each."""
    return np.stack([rng(int(seed), "random map").random((size, size), dtype=np.float32) for seed in seeds])


def centre_prior(count: int, size: int) -> np.ndarray:
    """Return maps (count, size, size) in (0, 1] that fall off from the centre as a Gaussian of a quarter side."""
    axis = (np.arange(size) - (size - 1) / 2) / (size / 4)
    one = np.exp(-0.5 * (axis[:, None] ** 2 + axis[None, :] ** 2)).astype(np.float32)
    return np.broadcast_to(one, (count, size, size)).copy()


def change_map(edited: Tensor, other: Tensor) -> Tensor:
    """Return the mean absolute difference over channels (N, H, W), as a share of the pixel range, in [0, 1]."""
    return torch.mean((edited - other).abs() / 2.0, dim=1)
