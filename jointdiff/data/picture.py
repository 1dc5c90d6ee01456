"""A decoded image before it is brought to 8 bits, and how it is.

Images of 8 bits stay as they are. Of deeper ones (16-bit or float, grey or in colour, DICOM) a range of values is
spread over 0..255 and what lies outside is cut off. ``window`` says which range:

- ``"auto"``: the window, curve or table that a DICOM file names; without one, from the 0.5th to the 99.5th percentile
  of the image: scanners use 10 to 14 of 16 bits, and in the full range they are nearly black. Brightness is relative to
  the image;
- ``"full"``: all values that the declared bits can hold;
- ``"-1000..400"``: these values, after a DICOM file's rescaling (Hounsfield units in CT), the same for every image.

What is transparent, and the padding of a DICOM file, is black, as margins are, and has no say in the range.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from jointdiff.complaints import ConfigError, DataError

MOST_PIXELS = 1 << 27  # a file of a few bytes can declare billions
TOO_MANY = f"more than {MOST_PIXELS // 1_000_000} million pixels"
NUMBER = r"\s*([-+]?\d+(?:\.\d+)?)\s*"

Window = Literal["auto", "full"] | tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A decoded image before it is brought to 8 bits."""

    values: np.ndarray  # (H, W) or (H, W, 3) of any number type, upright
    format: str  # "PNG", "DICOM", ...
    bits: int  # declared for each value
    full: tuple[float, float] | None  # what the declared bits can hold; None where they say nothing (float)
    shown: Callable[[np.ndarray], np.ndarray] | None = None  # the file's own window: brightness in 0..1 of values
    inverted: bool = False  # low values are bright
    outside: np.ndarray | None = None  # (H, W) bool: transparent, or padding of a DICOM file
    indices: np.ndarray | None = None  # (H, W): numbers of a palette's colours, where the image has a palette
    orientation: int = 1  # EXIF's number of the turn that made it upright
    remarks: tuple[tuple[str, str], ...] = ()  # what leaves doubt, and what to do about it

    @property
    def channels(self) -> int:
        """1 for grey and 3 for colour."""
        return 1 if self.values.ndim == 2 else 3

    def to_bytes(self, *, name: str, mode: str = "L", window: str = "auto") -> np.ndarray:
        """Return uint8 (H, W) in mode "L" or (H, W, 3) in mode "RGB"; see this module on ``window``."""
        from PIL import Image

        values = self.values
        if values.dtype != np.uint8 or self.shown:
            brightness = self._brightness(name, parse_window(window))
            values = np.rint(np.nan_to_num(brightness(values)) * 255).astype(np.uint8)
        if self.inverted:
            values = 255 - values
        if self.outside is not None:
            values = np.where(self.outside if values.ndim == 2 else self.outside[:, :, None], np.uint8(0), values)
        if self.channels == len(mode):
            return values
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).convert(mode))

    def _brightness(self, name: str, window: Window) -> Callable[[np.ndarray], np.ndarray]:
        if window == "auto" and self.shown:
            return self.shown
        if window == "full" and self.full is None:
            raise DataError(f"{name} holds numbers without a full range; set the window to a range such as '0..1'")
        if self.full is not None and (window == "full" or (window == "auto" and self.bits <= 8)):
            window = self.full
        if not isinstance(window, tuple):
            inside = self.values if self.outside is None else self.values[~self.outside]
            known = inside[np.isfinite(inside)]
            low, high = np.percentile(known, (0.5, 99.5)) if known.size else (0.0, 0.0)
            # A few bright pixels on nothing are all there is.
            window = (low, high) if low < high or not known.size else (float(known.min()), float(known.max()))
        return partial(ramp, low=window[0], high=window[1])


def parse_window(text: str) -> Window:
    """Read the option ``window``.

    Raises:
        ConfigError: it is neither "auto" nor "full" nor a range with its lower end first.
    """
    if text == "auto":
        return "auto"
    if text == "full":
        return "full"
    match = re.fullmatch(rf"{NUMBER}\.\.{NUMBER}", text)
    if match is None or float(match[1]) >= float(match[2]):
        raise ConfigError(f"window: {text!r} is neither auto nor full nor a range such as '-1000..400', low end first")
    return float(match[1]), float(match[2])


def ramp(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..1 and cut off what lies outside; what is no number is 0."""
    if high <= low:  # a threshold, or a blank image
        return (values > low).astype(np.float64)
    return (np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high) - low) / (high - low)


def check_size(width: int, height: int, name: str) -> None:
    """Refuse an image of more than ``MOST_PIXELS``.

    Raises:
        DataError: it has more.
    """
    if width * height > MOST_PIXELS:
        raise DataError(f"{name} is {width} x {height} pixels, {TOO_MANY}; reduce it first")
