"""DICOM files: their pixels, what the values mean, and how to show them. Nothing about a patient is kept."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.complaints import DataError
from jointdiff.data.picture import Picture, check_size, ramp

if TYPE_CHECKING:
    from pydicom import Dataset

# The UID of a DICOM file that is deflated as a whole: pydicom inflates it before any of it can be looked at.
DEFLATED = b"1.2.840.10008.1.2.1.99"

# What says how values become brightness, at the top of a file or in the functional groups of its frame.
SHADES = (
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")  # the latter are more special

# All that is read of a DICOM file, so that nothing about a patient ever is.
DICOM_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PresentationLUTShape"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *(f"{kind}PixelPadding{end}" for kind in ("", "Float") for end in ("Value", "RangeLimit")),
    *SHADES,
    *GROUPS,
    *(
        f"{segmented}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
]

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # which pydicom returns as RGB
CHOOSE = "Set window to a range such as -1000..400 for all images to be shown alike"


def is_dicom(data: bytes) -> bool:
    """Say whether a file is DICOM: by its mark, or, where that is absent, by two elements that follow each other."""
    if data[128:132] == b"DICM":
        return True
    for order, groups in (("<", (b"\x02\0", b"\x08\0")), (">", (b"\0\x02", b"\0\x08"))):
        if data[:2] in groups and len(data) > 16:
            from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

            kind = data[4:6].decode("latin-1")
            place, form = (
                (6, "H") if kind in EXPLICIT_VR_LENGTH_16 else (8 if kind in EXPLICIT_VR_LENGTH_32 else 4, "I")
            )
            (length,) = struct.unpack_from(order + form, data, place)
            start = place + struct.calcsize(form) + length
            return data[start : start + 2] in groups
    return False


def open_dicom(data: bytes, *, name: str) -> Picture:
    """Decode the one image of a DICOM file.

    Raises:
        DataError: it has none or several, or is damaged, or says of its pixels what nothing here understands.
    """
    from pydicom.pixels import get_decoder

    if DEFLATED in data:
        raise DataError(f"{name} is a deflated DICOM file, which can grow a thousandfold; export it uncompressed")
    # No message of pydicom is passed on: it may quote what it could not read.
    try:
        header = _read(data)
        has_pixels = any(key in header for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        rows, columns, frames = (int(header.get(key) or 1) for key in ("Rows", "Columns", "NumberOfFrames"))
    except Exception as error:
        raise DataError(f"{name} is no readable DICOM file ({type(error).__name__}); export it again") from None
    if not has_pixels:
        raise DataError(f"{name} is a DICOM file without pixels (a report or a plan?); remove it from the table")
    if frames > 1:
        raise DataError(f"{name} holds {frames} images (frames); save the one that counts")
    check_size(columns, rows, name)
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{name} is compressed and does not say how; export it again, uncompressed")
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
        _merge_groups(header)
        return _grey(header) if header.get("SamplesPerPixel") == 1 and not _palette(header) else _colour(header)
    except _UnclearError as error:
        raise DataError(f"{name} {error}; export it again") from None
    except Exception as error:
        raise DataError(
            f"{name} does not decode ({type(error).__name__}): its pixels are damaged, fewer than declared or badly "
            f"compressed ({syntax.name}); export it again, uncompressed"
        ) from None


class _UnclearError(Exception):
    """What a file says about its pixels contradicts itself, or has no meaning here."""


def _read(data: bytes) -> Dataset:
    """Read the tags above; a file without a preamble gets the transfer syntax that it turned out to have."""
    from pydicom import dcmread, uid

    header = dcmread(io.BytesIO(data), specific_tags=DICOM_TAGS, force=True)
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        if not ("PixelData" in header and header["PixelData"].is_undefined_length):
            header.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian
                if implicit
                else (uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian)
            )
    return header


def _merge_groups(header: Dataset) -> None:
    """Set at the top what the functional groups say of the one frame, and drop them: they hold more than that."""
    for key in GROUPS:
        for group in list(header.get(key) or ())[:1]:
            macros = (group.get(f"{macro}Sequence") or () for macro in ("PixelValueTransformation", "FrameVOILUT"))
            for item in (group, *(item for macro in macros for item in macro)):
                for shade in SHADES:
                    if shade in item:
                        header[item[shade].tag] = item[shade]
        if key in header:
            del header[key]


def _palette(header: Dataset) -> bool:
    return header.get("PhotometricInterpretation") == "PALETTE COLOR"


def _stored(header: Dataset) -> tuple[np.ndarray, int]:
    """Return the stored values (H, W) or (H, W, 3) and how many bits they have."""
    from pydicom.pixels import pixel_array
    from pydicom.uid import RLELossless

    bits = int(header.get("BitsStored", 32))
    shift = int(header.get("HighBit", bits - 1)) + 1 - bits
    if shift == 0 or "PixelData" not in header:
        return pixel_array(header), bits
    syntax = header.file_meta.TransferSyntaxUID
    if shift < 0 or (syntax.is_encapsulated and syntax != RLELossless):
        raise _UnclearError(f"stores {bits} bits up to bit {header.HighBit}, which is not possible")
    header.BitsStored = bits + shift  # pydicom takes values to end at bit 0
    values = pixel_array(header)
    if (values & ((1 << shift) - 1)).any():
        raise _UnclearError(f"says that its values lie in bits {shift} to {header.HighBit}, yet has others set")
    return values >> shift, bits


def _colour(header: Dataset) -> Picture:
    from pydicom.pixels import apply_color_lut

    photometric = header.PhotometricInterpretation
    values, bits = _stored(header)
    if _palette(header):
        count = int(header.RedPaletteColorLookupTableDescriptor[0]) or 1 << 16
        colours = apply_color_lut(values, header)
        if colours.dtype == np.uint8 and count > 256:
            raise _UnclearError(f"has a palette of {count} colours of 8 bits")  # whose numbers pydicom cuts at 255
        # Some writers declare 16 bits and fill 8.
        values, bits = colours >> (8 if colours.dtype == np.uint16 and colours.max() > 255 else 0), 8
        return Picture(values.astype(np.uint8), "DICOM", bits, full=(0, 255))
    if photometric not in COLOURS or values.ndim != 3 or (bits > 8 and photometric != "RGB"):
        raise _UnclearError(f"has colours of {bits} bits in the form {photometric}, which nothing here reads")
    return Picture(values, "DICOM", bits, full=(0.0, 2.0**bits - 1))


def _grey(header: Dataset) -> Picture:
    photometric = header.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _UnclearError(f"has one value a pixel in the form {photometric}, which nothing here reads")
    values, bits = _stored(header)
    outside = _padding(header, values)
    low = -(2.0 ** (bits - 1)) if values.dtype.kind == "i" else 0.0
    full = None if values.dtype.kind == "f" else (low, low + 2.0**bits - 1)
    slope, intercept = (
        float(default if header.get(key) is None else header[key].value)
        for key, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if header.get("ModalityLUTSequence"):
        table, first, depth = _table(header.ModalityLUTSequence[0], header)
        values = _look_up(values, table=table, first=first)
        full, bits = (0.0, 2.0**depth - 1), min(bits, depth)
    elif slope == 0 or not np.isfinite([slope, intercept]).all():
        raise _UnclearError(f"has the rescale slope {slope:g} and intercept {intercept:g}, which leave no image")
    elif (slope, intercept) != (1, 0):
        values = values * slope + intercept
        ends = sorted(end * slope + intercept for end in full or ())
        full = (ends[0], ends[1]) if ends else None
    shown, remarks = _shown(header)
    inverted = "INVERSE" in str(header.get("PresentationLUTShape")) or photometric == "MONOCHROME1"
    return Picture(values, "DICOM", bits, full, shown, inverted, outside, remarks=remarks)


def _padding(header: Dataset, values: np.ndarray) -> np.ndarray | None:
    """Return which pixels are no part of the image, as the file says; None where none are."""
    key = "FloatPixelPadding" if values.dtype.kind == "f" else "PixelPadding"
    value = header.get(f"{key}Value")
    if value is None:
        return None
    limit = header.get(f"{key}RangeLimit")
    ends = np.array([value, value if limit is None else limit])
    # Writers declare -2000 as 63536, too.
    low, high = np.sort(ends if values.dtype.kind == "f" else ends.astype(np.int64).astype(values.dtype))
    outside = (values >= low) & (values <= high)
    return outside if outside.any() else None


def _shown(header: Dataset) -> tuple[Callable[[np.ndarray], np.ndarray] | None, tuple[tuple[str, str], ...]]:
    """Return the brightness, 0..1 of rescaled values, that the file's first table or window gives; and what to note."""
    tables = [item for item in header.get("VOILUTSequence") or () if item.get("LUTDescriptor") and item.get("LUTData")]
    centres, widths = (
        np.atleast_1d(np.array([] if header.get(key) in (None, "") else header[key].value, dtype=float))
        for key in ("WindowCenter", "WindowWidth")
    )
    several = (("a DICOM file names several windows, and the first is used", CHOOSE),)
    if tables:
        table, first, depth = _table(tables[0], header)
        remarks = several if len(tables) > 1 else ()
        return partial(_look_up, table=table / (2**depth - 1), first=first), remarks
    if not len(centres) or not len(widths):
        return None, ()
    centre, width = centres[0], widths[0]
    remarks = several if len(centres) > 1 else ()
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if np.isfinite([centre, width]).all():
        # PS3.3 C.11.2.1.2 and C.11.2.1.3
        if function == "SIGMOID" and width > 0:
            return partial(_sigmoid, centre=centre, width=width), remarks
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        if function in ("LINEAR", "LINEAR_EXACT") and width >= 0:
            return partial(ramp, low=centre - width / 2, high=centre + width / 2), remarks
    return None, (("a DICOM file names a window that has no meaning, and it is not used", CHOOSE),)


def _table(item: Dataset, header: Dataset) -> tuple[np.ndarray, int, int]:
    """Return a lookup table (N,), the value of its first entry, and the bits of an entry (PS3.3 C.11.1.1.1).

    pydicom's own functions cut an index at 255 where entries have 8 bits, and know no 12 bits.
    """
    count, first, depth = (int(number) for number in item.LUTDescriptor)
    count, data = count or 1 << 16, item.LUTData
    if isinstance(data, bytes):
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(data, "u1" if len(data) < 2 * count else f"{order}u2")[:count]
    else:
        table = np.atleast_1d(np.array(data))
    if len(table) != count or not 1 <= depth <= 16 or table.max() >= 1 << depth:
        raise _UnclearError(f"has a lookup table that is not of {count} values of {depth} bits")
    return table, first, depth


def _look_up(values: np.ndarray, *, table: np.ndarray, first: int) -> np.ndarray:
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def _sigmoid(values: np.ndarray, *, centre: float, width: float) -> np.ndarray:
    from scipy.special import expit

    return expit(4 * (values.astype(np.float64) - centre) / width)
