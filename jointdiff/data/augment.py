"""Label-preserving views of image batches, each image changed on its own, on the device they are on.

Random numbers come from torch's global generator, which the training loop seeds for every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from jointdiff.data.source import Augmentations, Photometric

# Share of the image that a crop shows. Any two of more than a quarter overlap, so that there is something to agree on;
# SimCLR's least share for photographs, .08, often misses the one small thing that a medical image is about.
CROP_AREA = (0.3, 1.0)


class Views:
    """Weak and strong views of images (N, C, H, W) in [-1, 1], within what a data set declares to be harmless."""

    def __init__(self, allowed: Augmentations) -> None:
        self.allowed = allowed

    def flip(self, images: Tensor) -> Tensor:
        """Flip each image with probability one half along every axis that keeps its labels true."""
        if self.allowed.horizontal_flip:
            images = torch.where(_coin(images), images.flip(3), images)
        if self.allowed.vertical_flip:
            images = torch.where(_coin(images), images.flip(2), images)
        return images

    def weak(self, images: Tensor) -> Tensor:
        """Flip where allowed and shift by up to ``max_shift`` of the side, edges reflected."""
        n, _, height, width = images.shape
        reach = round(self.allowed.max_shift * height)
        if reach == 0:
            return self.flip(images)
        padded = F.pad(self.flip(images), (reach, reach, reach, reach), mode="reflect")
        top, left = torch.randint(2 * reach + 1, (2, n, 1), device=images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        each = torch.arange(n, device=images.device)[:, None, None]
        # Indexing dimensions 0, 2 and 3 around a slice puts the channel last.
        return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    def strong(self, images: Tensor) -> Tensor:
        """Apply a weak view, three random operations and cutout (RandAugment, Cubuk et al. 2020; USB: n = 3).

        Operations and how far they go are what the data set declares. Geometric operations of an image are composed and
        resampled once, after its photometric ones.
        """
        images = self.weak(images)
        n = len(images)
        photometric = [OPERATIONS[name] for name in self.allowed.photometric]
        motions = [(motion, bound) for motion, bound in _motions(self.allowed) if bound]
        transform = torch.eye(2, 3, device=images.device).repeat(n, 1, 1)
        for _ in range(3):
            choice = torch.randint(len(photometric) + len(motions), (n,), device=images.device)
            strength = torch.rand(n, device=images.device)
            for index, operation in enumerate(photometric):
                picked = (choice == index)[:, None, None, None]
                images = torch.where(picked, operation(images, strength[:, None, None, None]), images)
            signed = 2.0 * strength - 1.0
            for index, (motion, bound) in enumerate(motions, start=len(photometric)):
                picked = (choice == index)[:, None, None]
                transform = torch.where(picked, _compose(transform, motion(bound * signed)), transform)
        grid = F.affine_grid(transform, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)
        return _cutout(moved, most=self.allowed.max_cutout)

    def contrastive(self, images: Tensor) -> Tensor:
        """Crop, flip and apply two photometric operations, as allowed (SimCLR, Chen et al. 2020, arXiv 2002.05709).

        Crops are square, since proportions can be findings. Brightness, contrast and the like take the place of the
        paper's colour distortion, since grey images have no hue.
        """
        images = self.flip(random_crop(images, area=CROP_AREA))
        n, operations = len(images), [OPERATIONS[name] for name in self.allowed.photometric]
        for _ in range(2):
            choice = torch.randint(len(operations), (n,), device=images.device)[:, None, None, None]
            strength = torch.rand(n, 1, 1, 1, device=images.device)
            for index, operation in enumerate(operations):
                images = torch.where(choice == index, operation(images, strength), images)
        return images


def random_crop(images: Tensor, *, area: tuple[float, float]) -> Tensor:
    """Enlarge a random square of each image (N, C, H, W) to its size; squares have a share of ``area`` in (0, 1]."""
    n, (least, most) = len(images), area
    side = (least + (most - least) * torch.rand(n, device=images.device)).sqrt()
    x, y = (1.0 - side) * (2.0 * torch.rand(2, n, device=images.device) - 1.0)  # of the centre, in [-1, 1]
    zero = torch.zeros_like(side)
    grid = F.affine_grid(_affine(side, zero, zero, side, x, y), list(images.shape), align_corners=False)
    # At the very edge half a pixel is missing, which the border lends.
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def _coin(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5


def _identity(x: Tensor, strength: Tensor) -> Tensor:
    return x


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-3) * 2.0 - 1.0


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    return (x + 0.9 * (strength - 0.5)).clamp(-1.0, 1.0)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return (mean + (x - mean) * (0.4 + 1.2 * strength)).clamp(-1.0, 1.0)


def _gamma(x: Tensor, strength: Tensor) -> Tensor:
    return ((x + 1.0) / 2.0).clamp(1e-4, 1.0) ** (2.0 ** (2.0 * strength - 1.0)) * 2.0 - 1.0


def _posterise(x: Tensor, strength: Tensor) -> Tensor:
    levels = 2.0 ** (4.0 + (4.0 * strength).floor()) - 1.0
    return ((x + 1.0) / 2.0 * levels).round() / levels * 2.0 - 1.0


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    return (blurred + (x - blurred) * (0.1 + 1.8 * strength)).clamp(-1.0, 1.0)


def _affine(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b, x], dim=-1), torch.stack([c, d, y], dim=-1)], dim=-2)


def _rotate(angle: Tensor) -> Tensor:
    zero = torch.zeros_like(angle)
    return _affine(angle.cos(), -angle.sin(), angle.sin(), angle.cos(), zero, zero)


def _shear_x(tangent: Tensor) -> Tensor:
    one, zero = torch.ones_like(tangent), torch.zeros_like(tangent)
    return _affine(one, tangent, zero, one, zero, zero)


def _shear_y(tangent: Tensor) -> Tensor:
    one, zero = torch.ones_like(tangent), torch.zeros_like(tangent)
    return _affine(one, zero, tangent, one, zero, zero)


def _translate_x(way: Tensor) -> Tensor:
    one, zero = torch.ones_like(way), torch.zeros_like(way)
    return _affine(one, zero, zero, one, way, zero)


def _translate_y(way: Tensor) -> Tensor:
    one, zero = torch.ones_like(way), torch.zeros_like(way)
    return _affine(one, zero, zero, one, zero, way)


# Their order decides which operation a random number stands for.
OPERATIONS: dict[Photometric, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "contrast": _contrast,
    "gamma": _gamma,
    "posterise": _posterise,
    "sharpness": _sharpness,
}


def _motions(allowed: Augmentations) -> tuple[tuple[Callable[[Tensor], Tensor], float], ...]:
    """Return each motion with the most it is allowed, in radians and in the grid's units, where the side is 2."""
    return (
        (_rotate, math.radians(allowed.max_rotation)),
        (_shear_x, allowed.max_shear),
        (_shear_y, allowed.max_shear),
        (_translate_x, 2.0 * allowed.max_translation),
        (_translate_y, 2.0 * allowed.max_translation),
    )


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Return the affine map (N, 2, 3) that applies ``second`` after ``first``."""
    linear = second[:, :, :2] @ first[:, :, :2]
    offset = second[:, :, :2] @ first[:, :, 2:] + second[:, :, 2:]
    return torch.cat([linear, offset], dim=2)


def _cutout(images: Tensor, *, most: float) -> Tensor:
    """Grey out a random square of up to ``most`` of the side in each image (DeVries & Taylor 2017)."""
    n, _, height, width = images.shape
    side = torch.rand(n, 1, 1, device=images.device) * most * height
    centre_y, centre_x = torch.rand(2, n, 1, 1, device=images.device) * height
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    hidden = ((rows - centre_y).abs() < side / 2) & ((columns - centre_x).abs() < side / 2)
    return images.masked_fill(hidden[:, None], 0.0)
