"""Masks: which pixels of a mask file are the finding, and how they lie on its image."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from jointdiff.complaints import ConfigError, DataError
from jointdiff.data.images import open_picture, turn
from jointdiff.data.picture import NUMBER, Picture

FEW = 16  # values of a mask: up to so many are parts, more are shades
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")  # formats that blur what they store
NOISE = 1 / 16  # of white, below which a value may be noise
SHADES = 1 / 3  # of a mask's pixels that may lie between noise and half of white, as soft edges do
ASK = "set mask_values to those of the finding, such as '1, 3' or '128..255'"


@dataclass(frozen=True)
class Mask:
    """What a mask file marks."""

    region: np.ndarray  # (H, W) bool, upright
    orientation: int  # EXIF's number of the turn that made it upright
    doubt: str  # which values it holds beside one on black, and which count; empty where there is no doubt

    def on(self, picture: Picture, *, name: str) -> np.ndarray:
        """Return the region as it lies on an image.

        Each is turned as its own EXIF data say. A mask that was drawn on the image as it is stored, and says nothing
        of how it lies, is turned as the image is.

        Raises:
            DataError: their sizes differ, or both readings fit and mark different pixels.
        """
        shape = picture.values.shape[:2]
        back = {6: 8, 8: 6}.get(self.orientation, self.orientation)
        as_stored = turn(turn(self.region, back), picture.orientation)
        fitting = [region for region in (self.region, as_stored) if region.shape == shape]
        if not fitting:
            height, width = self.region.shape
            raise DataError(
                f"{name} is {width} x {height} pixels, its image {shape[1]} x {shape[0]}; draw it on the image's own"
            )
        if not np.array_equal(fitting[0], fitting[-1]):
            raise DataError(
                f"{name} and its image have different EXIF orientations ({self.orientation} and "
                f"{picture.orientation}), so that either may be turned; save both without one"
            )
        return fitting[0]


def parse_mask_values(text: str) -> list[tuple[float, float]] | None:
    """Read the option ``mask_values`` as ranges, ends included; None for "auto".

    Raises:
        ConfigError: it is neither "auto" nor values and ranges between commas.
    """
    if text == "auto":
        return None
    matches = [re.fullmatch(rf"{NUMBER}(?:\.\.{NUMBER})?", part) for part in text.split(",")]
    ranges = [(float(match[1]), float(match[2] or match[1])) for match in matches if match]
    if len(ranges) < len(matches) or any(low > high for low, high in ranges):
        raise ConfigError(f"mask_values: {text!r} is neither auto nor values such as '1', '85, 170' or '128..255'")
    return ranges


def decode_mask(data: bytes, *, name: str, values: str = "auto") -> np.ndarray:
    """Decode a mask to bool (H, W); see ``open_mask``."""
    return open_mask(data, name=name, values=values).region


def open_mask(data: bytes, *, name: str, values: str = "auto") -> Mask:
    """Decode a mask file.

    ``values`` says which values are the finding, "1, 3" or "128..255": grey values, the numbers of a coloured palette,
    or the brightest of three colours. With "auto" all that is not 0 is: 0 and 255, 0 and 1, numbered parts and coloured
    ones alike. Of shades (soft edges, the noise of JPEG) it is what exceeds half of white. A mask that is black or
    transparent marks what is not transparent.

    Raises:
        DataError: as ``decode_image``; or the values leave open what is the finding.
    """
    picture = open_picture(data, name=name)
    grey = _values_of(picture, name)
    if chosen := parse_mask_values(values):
        return Mask(
            np.logical_or.reduce([(grey >= low) & (grey <= high) for low, high in chosen]), picture.orientation, ""
        )
    levels = np.unique(grey[np.isfinite(grey)])
    top = float(levels[-1]) if len(levels) else 0.0
    white = top if picture.full is None or picture.indices is not None else picture.full[1]
    listed = ", ".join(f"{level:g}" for level in levels)
    if len(levels) > FEW:
        listed = f"{len(levels)} values from {levels[0]:g} to {top:g}"

    def asked(why: str) -> DataError:
        return DataError(f"{name} holds {listed}, {why}: {ASK}")

    above, marked = grey > white / 2, grey > 0
    at_ends = bool(((levels <= white / 4) | (levels >= white * 3 / 4)).all())
    lossy, background = picture.format in LOSSY, len(levels) > 1 and levels[0] > 0
    if len(levels) == 2 and at_ends and levels[0] <= white / 4 and above.any():  # black and white, or nearly
        return Mask(above, picture.orientation, "")
    if lossy and marked.any() and not above.any():
        raise asked("which may be the noise of the format")
    if background and not (lossy or (len(levels) > FEW and at_ends)):
        raise asked("none of which is black")
    if not above.any() or (len(levels) <= FEW and not lossy):
        return Mask(marked, picture.orientation, f"{listed}: all but 0 count" if len(levels) > 2 else "")
    shades = grey > white * NOISE
    if (shades & ~above).sum() > SHADES * shades.sum():
        raise asked("many of them below half of white")
    doubt = "" if lossy and at_ends else f"{listed}: those above {white / 2:g} count"
    return Mask(above, picture.orientation, doubt)


def _values_of(picture: Picture, name: str) -> np.ndarray:
    """Return one value for each pixel (H, W)."""
    values = picture.values
    bright = values if values.ndim == 2 else values.max(axis=2)
    if picture.inverted and picture.full is not None:
        bright = picture.full[1] - bright
    numbers, outside = picture.indices, picture.outside
    coloured = values.ndim == 3 and bool((values != values[:, :, :1]).any())
    if numbers is not None and (coloured or (numbers.any() and not bright.any())):
        if not np.array_equal(numbers > 0, bright > 0):
            raise DataError(
                f"{name} has a palette in which number 0 is not the one black colour, so that either may be the "
                "background; save the mask in grey, black and white"
            )
        return numbers
    if outside is not None and not bright.any() and not outside.all():
        return (~outside).astype(np.uint8)
    return bright
