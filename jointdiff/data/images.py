"""Images and regions: decoded to 8 bits, and brought to one square size together.

``jointdiff.data.picture`` says how deep images become 8 bits, ``jointdiff.data.dicom`` reads DICOM, and
``jointdiff.data.masks`` says what of a mask counts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from jointdiff.complaints import DataError
from jointdiff.data.dicom import is_dicom, open_dicom
from jointdiff.data.picture import TOO_MANY, Picture, check_size

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile

# Named, since Pillow would also start interpreters of page descriptions.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits
FLAT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # that become grey or RGB


def decode_image(data: bytes, *, name: str, mode: str = "L", window: str = "auto") -> np.ndarray:
    """Decode a PNG, JPEG, TIFF, DICOM, ... to uint8, (H, W) in mode "L" or (H, W, 3) in mode "RGB".

    Raises:
        DataError: the bytes are no single image, end early or hold too much; ``name`` says which file.
    """
    return open_picture(data, name=name).to_bytes(name=name, mode=mode, window=window)


def open_picture(data: bytes, *, name: str) -> Picture:
    """Decode an image file of any known format, its values as they are stored.

    Raises:
        DataError: as ``decode_image``.
    """
    if is_dicom(data):
        return open_dicom(data, name=name)
    if not data:
        raise DataError(f"{name} does not decode as an image: it is empty (0 bytes); replace it or download it again")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # A camera's MPO is a JPEG with previews behind it.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{name} holds {image.n_frames} images (pages or frames); save the one that counts")  # type: ignore[attr-defined]
            check_size(image.width, image.height, name)
            return _from_pillow(image, data, name)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{name} does not decode as an image: its format is none of PNG, JPEG, TIFF, DICOM, or its kind of pixels "
            "is unknown; convert it to PNG, or, where it should be an image of these, download it again"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"{name} is too large an image ({TOO_MANY}); reduce it first") from None
    except Exception as error:  # decoders fail on damaged bytes in any way
        raise DataError(
            f"{name} does not decode as an image ({error}): the file is damaged; replace it or download it again"
        ) from error


def _from_pillow(image: ImageFile, data: bytes, name: str) -> Picture:
    """Decode what Pillow has opened; signs, depths and palettes that it loses are kept or refused."""
    declared = _orientation(image) if image.format == "TIFF" else 1  # which Pillow turns as it loads it
    if image.format == "PNG" and image.tile and image.tile[0].args in ("LA;16B", "RGB;16B", "RGBA;16B"):
        picture = _deep_png(image, data)
    elif (bits := _channel_bits(image, data)) > 8 and image.mode not in DEEP:
        raise DataError(f"{name} holds colours of {bits} bits, of which 8 would be lost; save it as a 16-bit PNG")
    elif image.mode in ("I", "F") and data[:2] == b"MM" and image.tile[0].codec_name == "libtiff":
        # Pillow swaps the bytes that libtiff has swapped before.
        raise DataError(f"{name} is a compressed TIFF of big-endian numbers, which is misread; save it uncompressed")
    elif image.mode in DEEP:
        picture = _deep_grey(image)
    elif image.mode in FLAT:
        picture = _flat(image, data, name)
    else:
        raise DataError(f"{name} holds pixels of the kind {image.mode}, which nothing here reads; save it as RGB")
    left = _orientation(image)
    return replace(
        picture,
        values=turn(picture.values, left),
        outside=None if picture.outside is None else turn(picture.outside, left),
        indices=None if picture.indices is None else turn(picture.indices, left),
        orientation=max(declared, left),
    )


def _deep_grey(image: ImageFile) -> Picture:
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    bits = int(tags.get(258, (16 if "16" in image.mode else 32,))[0])
    low = -(2.0 ** (bits - 1)) if _sign(image) == 2 else 0.0
    full = None if image.mode == "F" else (low, low + 2.0**bits - 1)
    values = values.astype(values.dtype.newbyteorder("="))
    if bits == 32 and full == (0, 2.0**32 - 1) and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no unsigned ones
    clear = image.info.get("transparency")
    outside = values == clear if isinstance(clear, int) else None
    # Pillow inverts white-is-zero TIFFs of 8 bits, but not of more.
    return Picture(values, image.format or "", bits, full, inverted=tags.get(262) == 0, outside=outside)


def _sign(image: PillowImage) -> int:
    """Return TIFF's SampleFormat: 1 for unsigned numbers, 2 for signed ones, 3 for floats."""
    return int(getattr(image, "tag_v2", {}).get(339, (1,))[0])


def _deep_png(image: ImageFile, data: bytes) -> Picture:
    """Decode a PNG of several channels of 16 bits, of which Pillow keeps the upper 8."""
    from PIL import Image

    (tile,) = image.tile
    if tile.args == "LA;16B":  # a pixel is as many bytes as one of RGBA
        image.tile = [tile._replace(args="RGBA")]
        values = np.ascontiguousarray(image).view(">u2")
    else:
        upper = np.asarray(image).astype(np.uint16)
        with Image.open(io.BytesIO(data), formats=FORMATS) as again:
            again.tile = [tile._replace(args=str(tile.args).replace("16B", "16L"))]  # the other byte of each pair
            values = upper << 8 | np.asarray(again)
    channels = values.shape[2]
    outside = values[:, :, -1] == 0 if channels in (2, 4) else None
    colours = values[:, :, 0] if channels < 3 else values[:, :, :3]
    return Picture(colours.astype(np.uint16), "PNG", 16, (0, 65535.0), outside=outside)


def _channel_bits(image: ImageFile, data: bytes) -> int:
    """Return the bits that a file declares for a channel; 8 where nothing says otherwise."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]
    if image.format == "PPM" and isinstance(args := image.tile[0].args, tuple):
        return int(args[1]).bit_length()  # the largest value
    if image.format == "JPEG2000":
        head, codestream = data.find(b"ihdr"), data.find(b"\xff\x4f\xff\x51")
        place = head + 14 if head >= 0 else codestream + 42
        return (data[place] & 127) + 1
    return 8


def _flat(image: ImageFile, data: bytes, name: str) -> Picture:
    from PIL import Image

    if _sign(image) == 2:
        raise DataError(f"{name} holds signed numbers of 8 bits, which nothing here reads; save it with 16 bits")
    image.load()
    indices = np.asarray(image) if image.mode == "P" else None
    grey = image.mode in ("1", "L", "LA", "La")
    clear, flat = image.info.get("transparency"), None
    if image.format == "PNG" and image.mode == "L" and isinstance(clear, int) and data[24] < 8:
        image.info["transparency"] = clear * 255 // ((1 << data[24]) - 1)  # as Pillow has spread the values
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or clear is not None:
        flat = image.convert("RGBA")
    outside = None if flat is None else np.asarray(flat)[:, :, 3] == 0
    # What is transparent is black, as margins are; its hidden colour means nothing.
    opaque = image if flat is None else Image.alpha_composite(Image.new("RGBA", flat.size, (0, 0, 0, 255)), flat)
    mode = "L" if grey else "RGB"
    values = np.asarray(opaque if opaque.mode == mode else opaque.convert(mode))
    return Picture(values, image.format or "", 8, (0, 255), outside=outside, indices=indices)


def _orientation(image: PillowImage) -> int:
    """Return how a camera was held, 1 to 8, as EXIF numbers it."""
    from PIL import ExifTags

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data do not make the pixels worse
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W) or (H, W, C) upright, from the way that EXIF's number says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


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
