"""Images and regions: decoded to 8 bits, and brought to one square size together.

Images of 8 bits stay as they are, and of colours with 16 bits the upper 8 are kept. Of deep grey ones (16-bit or float,
DICOM) a range of values is spread over 0..255 and what lies outside is cut off. ``window`` says which range:

- ``"auto"``: the window that a DICOM file names; without one, from the 0.5th to the 99.5th percentile of the image:
  scanners use 10 to 14 of 16 bits, and in the full range they are nearly black. Brightness is relative to the image;
- ``"full"``: all values that the declared bits can hold;
- ``"-1000..400"``: these values, after a DICOM file's rescaling (Hounsfield units in CT), the same for every image.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jointdiff.config import ConfigError
from jointdiff.data.source import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Named, since Pillow would also start interpreters of page descriptions.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
MOST_PIXELS = 1 << 27  # a file of a few bytes can declare billions

# The UID of a DICOM file that is deflated as a whole: pydicom inflates it before any of it can be looked at.
DEFLATED = b"1.2.840.10008.1.2.1.99"

# All that is read of a DICOM file, so that nothing about a patient ever is.
DICOM_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
]


@dataclass(frozen=True)
class Picture:
    """A decoded image before it is brought to 8 bits."""

    values: np.ndarray  # (H, W) of any number type, or (H, W, 3) uint8
    format: str  # "PNG", "DICOM", ...
    bits: int  # declared for each value
    full: tuple[float, float] | None  # what the declared bits can hold; None where they say nothing (float)
    shown: tuple[float, float] | None = None  # the window that the file names
    inverted: bool = False  # low values are bright

    @property
    def channels(self) -> int:
        """1 for grey and 3 for colour."""
        return 1 if self.values.ndim == 2 else 3

    def to_bytes(self, *, name: str, mode: str = "L", window: str = "auto") -> np.ndarray:
        """Return uint8 (H, W) in mode "L" or (H, W, 3) in mode "RGB"; see this module on ``window``."""
        from PIL import Image

        values = self.values
        if values.ndim == 2 and (values.dtype != np.uint8 or self.shown):
            values = _spread(values, *self._range(name, window))
        if self.inverted:
            values = 255 - values
        if self.channels == len(mode):
            return values
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).convert(mode))

    def _range(self, name: str, window: str) -> tuple[float, float]:
        chosen = parse_window(window)
        if chosen == "auto":
            if self.shown is not None:
                return self.shown
            if self.bits <= 8 and self.full is not None:
                return self.full
            known = self.values[np.isfinite(self.values)]
            low, high = np.percentile(known, (0.5, 99.5)) if known.size else (0.0, 0.0)
            # A few bright pixels on nothing are all there is.
            return (low, high) if low < high or not known.size else (float(known.min()), float(known.max()))
        if chosen == "full":
            if self.full is None:
                raise DataError(f"{name} holds numbers without a full range; set the window to a range such as '0..1'")
            return self.full
        return chosen


def parse_window(text: str) -> Literal["auto", "full"] | tuple[float, float]:
    """Read the option ``window``.

    Raises:
        ConfigError: it is neither "auto" nor "full" nor a range with its lower end first.
    """
    if text == "auto":
        return "auto"
    if text == "full":
        return "full"
    number = r"\s*([-+]?\d+(?:\.\d+)?)\s*"
    match = re.fullmatch(rf"{number}\.\.{number}", text)
    if match is None or float(match[1]) >= float(match[2]):
        raise ConfigError(f"window: {text!r} is neither auto nor full nor a range such as '-1000..400', low end first")
    return float(match[1]), float(match[2])


def decode_image(data: bytes, *, name: str, mode: str = "L", window: str = "auto") -> np.ndarray:
    """Decode a PNG, JPEG, TIFF, DICOM, ... to uint8, (H, W) in mode "L" or (H, W, 3) in mode "RGB".

    Raises:
        DataError: the bytes are no single image, end early or hold too much; ``name`` says which file.
    """
    return open_picture(data, name=name).to_bytes(name=name, mode=mode, window=window)


def decode_mask(data: bytes, *, name: str) -> np.ndarray:
    """Decode a mask to bool (H, W): what exceeds half of white, or, where nothing does, what is not 0.

    So 0 and 255 (also after JPEG), 0 and 1, and numbered parts all mean what their author did.
    """
    picture = open_picture(data, name=name)
    values = picture.values if picture.values.ndim == 2 else picture.values.max(axis=2)
    half = 0.5 if picture.full is None else picture.full[1] / 2
    return values > half if (values > half).any() else values > 0


def open_picture(data: bytes, *, name: str) -> Picture:
    """Decode an image file of any known format, its values as they are stored.

    Raises:
        DataError: as ``decode_image``.
    """
    if data[128:132] == b"DICM":
        return _open_dicom(data, name=name)
    if not data:
        raise DataError(f"{name} does not decode as an image: it is empty (0 bytes); replace it or download it again")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # A camera's MPO is a JPEG with previews behind it.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{name} holds {image.n_frames} images (pages or frames); save the one that counts")  # type: ignore[attr-defined]
            _check_size(image.width, image.height, name)
            return _from_pillow(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{name} does not decode as an image: its format is none of PNG, JPEG, TIFF, DICOM; "
            "convert it, or, where it should be one, download it again"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"{name} is too large an image ({_TOO_MANY}); reduce it first") from None
    except Exception as error:  # decoders fail on damaged bytes in any way
        raise DataError(
            f"{name} does not decode as an image ({error}): the file is damaged; replace it or download it again"
        ) from error


_TOO_MANY = f"more than {MOST_PIXELS // 1_000_000} million pixels"


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MOST_PIXELS:
        raise DataError(f"{name} is {width} x {height} pixels, {_TOO_MANY}; reduce it first")


def _from_pillow(image: PillowImage) -> Picture:
    from PIL import Image

    kind, tags = image.format or "", getattr(image, "tag_v2", {})
    image.load()
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        bits = int(tags.get(258, (16 if "16" in image.mode else 32,))[0])
        low = -(2.0 ** (bits - 1)) if tags.get(339, (1,))[0] == 2 else 0.0
        full = None if image.mode == "F" else (low, low + 2.0**bits - 1)
        values = values.astype(values.dtype.newbyteorder("="))
        # Pillow inverts white-is-zero TIFFs of 8 bits, but not of more.
        return Picture(values, kind, bits, full=full, inverted=tags.get(262) == 0)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        # What is transparent is black, as margins are; its hidden colour means nothing.
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    mode = "L" if grey else "RGB"
    return Picture(np.asarray(image if image.mode == mode else image.convert(mode)), kind, 8, full=(0, 255))


def _upright(image: PillowImage) -> PillowImage:
    """Turn an image as its EXIF data say: cameras store how they were held."""
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data do not make the pixels worse
        return image
    turns = (  # of the orientations from 2 on
        *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    return image.transpose(turns[orientation - 2]) if orientation in range(2, 9) else image


def _open_dicom(data: bytes, *, name: str) -> Picture:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array

    if DEFLATED in data:
        raise DataError(f"{name} is a deflated DICOM file, which can grow a thousandfold; export it uncompressed")
    # No message of pydicom is passed on: it may quote what it could not read.
    try:
        header = dcmread(io.BytesIO(data), specific_tags=DICOM_TAGS)
        syntax = header.file_meta.TransferSyntaxUID
        has_pixels = "PixelData" in header or "FloatPixelData" in header
        rows, columns, frames = (int(header.get(key) or 1) for key in ("Rows", "Columns", "NumberOfFrames"))
    except Exception as error:
        raise DataError(f"{name} is no readable DICOM file ({type(error).__name__}); export it again") from None
    if not has_pixels:
        raise DataError(f"{name} is a DICOM file without pixels (a report or a plan?); remove it from the table")
    if frames > 1:
        raise DataError(f"{name} holds {frames} images (frames); save the one that counts")
    _check_size(columns, rows, name)
    try:
        able = get_decoder(syntax).is_available
    except NotImplementedError:
        able = False
    if not able:
        raise DataError(
            f"{name} is compressed as {syntax.name} ({syntax}), which nothing installed here decodes; "
            "pip install python-gdcm pylibjpeg-openjpeg, or export it uncompressed"
        )
    try:
        values = pixel_array(header)  # colour arrives as RGB
        photometric = header.PhotometricInterpretation
        bits = int(header.get("BitsStored", 32))
        if photometric == "PALETTE COLOR":
            values = apply_color_lut(values, header)
            bits = values.dtype.itemsize * 8
        if values.ndim == 3:
            return Picture((values >> max(bits - 8, 0)).astype(np.uint8), "DICOM", bits, full=(0, 255))
        low = -(2.0 ** (bits - 1)) if values.dtype.kind == "i" else 0.0
        full = None if values.dtype.kind == "f" else (low, low + 2.0**bits - 1)
        slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        if "ModalityLUTSequence" in header:
            values = apply_modality_lut(values, header)
            full = (0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
        elif (slope, intercept) != (1, 0):
            values = values * slope + intercept
            ends = sorted(end * slope + intercept for end in full or ())
            full = (ends[0], ends[1]) if ends else None
        shown = _dicom_window(header)
    except Exception as error:
        raise DataError(
            f"{name} does not decode ({type(error).__name__}): its pixels are damaged, fewer than declared or badly "
            f"compressed ({syntax.name}); export it again, uncompressed"
        ) from None
    return Picture(values, "DICOM", bits, full=full, shown=shown, inverted=photometric == "MONOCHROME1")


def _dicom_window(header: Any) -> tuple[float, float] | None:
    """Return the first window as its ends, as DICOM defines them (PS3.3 C.11.2.1.2); an S-shaped one as straight."""
    if header.get("WindowCenter") in (None, "") or header.get("WindowWidth") in (None, ""):
        return None
    centre, width = (float(np.atleast_1d(header[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    if header.get("VOILUTFunction", "LINEAR") == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return (centre - width / 2, centre + width / 2) if width >= 0 and np.isfinite([centre, width]).all() else None


def _spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, rounded, and cut off what lies outside; what is no number is 0."""
    if high <= low:  # a threshold, or a blank image
        return np.where(values > low, 255, 0).astype(np.uint8)
    share = (np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high) - low) / (high - low)
    return np.rint(share * 255).astype(np.uint8)


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
