"""Images and regions: decoded, and brought to one square size together."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jointdiff.data.source import DataError


def decode_image(data: bytes, *, name: str, mode: str = "L") -> np.ndarray:
    """Decode a PNG, JPEG, ... to uint8, (H, W) in mode "L" or (H, W, 3) in mode "RGB".

    Raises:
        DataError: the bytes are no image or end early; ``name`` says which file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} does not decode as an image ({error}): the file is damaged; remove it and download it again"
        ) from error


@dataclass(frozen=True)
class Fit:
    """The move of a (height, width) image into a square of ``size`` pixels with its aspect kept.

    ``pad`` shows the whole image between black margins; ``centre_crop`` fills the square and cuts what sticks out.
    """

    height: int
    width: int
    size: int
    how: Literal["pad", "centre_crop"]

    @property
    def scaled(self) -> tuple[int, int]:
        """Height and width after scaling, before padding or cropping."""
        reference = (max if self.how == "pad" else min)(self.height, self.width)
        return tuple(max(1, round(side * self.size / reference)) for side in (self.height, self.width))  # type: ignore[return-value]

    @property
    def offset(self) -> tuple[int, int]:
        """Rows and columns by which the scaled image is moved; negative where it is cut."""
        height, width = self.scaled
        return (self.size - height) // 2, (self.size - width) // 2

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """Scale (H, W) or (H, W, C) uint8 with antialiasing and return (size, size, C) uint8."""
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        square = self._place(self._scale(pixels))
        return square if square.ndim == 3 else square[:, :, None]

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Scale (H, W) bool and return (size, size) bool: pixels covered by half or more.

        A region too small for that keeps its most covered pixel, so that no finding loses its place.
        """
        covered = self._place(self._scale(mask.astype(np.uint8) * 255))
        if not (covered >= 128).any() and covered.any():
            return covered == covered.max()
        return covered >= 128

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float] | None:
        """Move (x0, y0, x1, y1) along, cut at the border; None where nothing of it is left."""
        (height, width), (top, left) = self.scaled, self.offset
        x = np.clip(np.array(box[0::2]) * width / self.width + left, 0, self.size)
        y = np.clip(np.array(box[1::2]) * height / self.height + top, 0, self.size)
        if x[1] <= x[0] or y[1] <= y[0]:
            return None
        return float(x[0]), float(y[0]), float(x[1]), float(y[1])

    def _scale(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.scaled
        if (height, width) == pixels.shape[:2]:
            return pixels
        from PIL import Image

        # Pillow widens the filter when it reduces, which is what keeps thin lines from aliasing.
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    def _place(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        square = np.zeros((self.size, self.size, *pixels.shape[2:]), dtype=np.uint8)
        top, left = self.offset
        source = pixels[max(-top, 0) : max(-top, 0) + self.size, max(-left, 0) : max(-left, 0) + self.size]
        top, left = max(top, 0), max(left, 0)
        square[top : top + source.shape[0], left : left + source.shape[1]] = source
        return square
