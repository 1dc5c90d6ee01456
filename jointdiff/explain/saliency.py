"""Maps that rival counterfactuals, and the controls without which no localisation number means anything.

A saliency map asks a classifier that is done learning where it sees one finding. Each is a function of the classifier,
images (N, C, H, W) in [-1, 1] and the finding, and returns maps (N, H, W), at least 0; put it into ``SALIENCY`` and it
can be named in a configuration. They come from captum (Kokhlikyan et al. 2020, arXiv 2009.07896), which has no
Grad-CAM++.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jointdiff.method import HasLogits, HasMaps
from jointdiff.seeding import rng

# Mid-grey, from which bright and dark findings are equally far: with black, what is dark could never be seen.
NOTHING = 0.0
PATH_STEPS = 12  # of integrated gradients; on phantoms their maps correlate by .98 and more with those of 64 steps
WINDOW = 1 / 4  # of the side, which occlusion covers at once
STRIDE = 3 / 4  # of the window: 5 x 5 windows where the side is a multiple of 16


def grad_cam(model: HasMaps, images: Tensor, finding: int) -> Tensor:
    """Weigh the last maps by the mean of their gradients (Grad-CAM, Selvaraju et al. 2017, arXiv 1610.02391)."""
    from captum.attr import LayerGradCam

    explainer = LayerGradCam(model.image_logits, model.feature_layer())
    maps = explainer.attribute(images.detach().requires_grad_(), target=finding, relu_attributions=True)
    return _enlarged(maps, images)


def grad_cam_plus_plus(model: HasMaps, images: Tensor, finding: int) -> Tensor:
    """Weigh the last maps pixel by pixel (Grad-CAM++, Chattopadhay et al. 2018, arXiv 1710.11063).

    With g the gradient of the logit S on the maps A and Y = exp(S) the score that the paper derives, the weight of map
    k is the sum over pixels of alpha relu(exp(S) g), where alpha = g^2 / (2 g^2 + g^3 sum_ab A_ab), and 0 where g is.
    That alpha takes S to be linear in A, as it is behind mean pooling. The factor exp(S) of each whole map is left out:
    no metric sees it, and it spans many orders of magnitude.
    """
    kept: list[Tensor] = []
    handle = model.feature_layer().register_forward_hook(lambda layer, inputs, output: kept.append(output))
    try:
        logits = model.image_logits(images.detach().requires_grad_())
    finally:
        handle.remove()
    (maps,) = kept
    (g,) = torch.autograd.grad(logits[:, finding].sum(), maps)
    below = 2 * g**2 + g**3 * maps.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where(below == 0, 0.0, g**2 / torch.where(below == 0, 1.0, below))
    weights = (alpha * g.relu()).sum(dim=(2, 3), keepdim=True)
    return _enlarged((weights * maps).sum(dim=1, keepdim=True).relu(), images)


def integrated_gradients(model: HasLogits, images: Tensor, finding: int) -> Tensor:
    """Add up gradients on the way from mid-grey to the image (Sundararajan et al. 2017, arXiv 1703.01365, Eq. 1).

    A pixel's value is the size of the sum over its channels. The nodes of the way (Gauss-Legendre) are asked about one
    after the other, so that memory is that of one pass over ``images``.
    """
    from captum.attr import IntegratedGradients

    explainer = IntegratedGradients(model.image_logits)
    shares = explainer.attribute(
        images.detach(), NOTHING, target=finding, n_steps=PATH_STEPS, internal_batch_size=len(images)
    )
    return shares.detach().float().sum(dim=1).abs()


@torch.no_grad()
def occlusion(model: HasLogits, images: Tensor, finding: int) -> Tensor:
    """Cover a window at a time with mid-grey and see by how much the logit falls (Zeiler & Fergus 2014).

    A pixel's value is the mean over the windows that cover it, 0 where the logit rises instead.
    """
    from captum.attr import Occlusion

    window = max(1, round(images.shape[2] * WINDOW))
    stride = max(1, round(window * STRIDE))
    falls = Occlusion(model.image_logits).attribute(
        images,
        sliding_window_shapes=(images.shape[1], window, window),
        strides=(images.shape[1], stride, stride),
        baselines=NOTHING,
        target=finding,
    )
    return falls.float().mean(dim=1).relu()


@dataclass(frozen=True)
class Saliency:
    """A saliency map, and what a method must offer for it."""

    draw: Callable[..., Tensor]
    needs: type


SALIENCY: dict[str, Saliency] = {
    "grad_cam": Saliency(grad_cam, HasMaps),
    "grad_cam_plus_plus": Saliency(grad_cam_plus_plus, HasMaps),
    "integrated_gradients": Saliency(integrated_gradients, HasLogits),
    "occlusion": Saliency(occlusion, HasLogits),
}


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """Bring maps (N, 1, h, w) to the size of the images: (N, H, W)."""
    return F.interpolate(maps.detach().float(), tuple(images.shape[2:]), mode="bilinear")[:, 0]


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
