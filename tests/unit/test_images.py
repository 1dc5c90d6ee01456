"""Decoding: every format against what was written into it, and bad files, each one message."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from jointdiff.config import ConfigError
from jointdiff.data.images import decode_image, open_picture
from jointdiff.data.masks import decode_mask
from jointdiff.data.picture import parse_window
from jointdiff.data.source import DataError
from tests.properties import examples


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format, **options)
    return stream.getvalue()


def dicom(pixels, *, photometric="MONOCHROME2", bits=None, syntax=ExplicitVRLittleEndian, **tags):
    """Write a DICOM file of a patient whose name no message may hold."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientName = "Secret^Name"
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[:2]
        data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
        if pixels.ndim == 3:
            data.PlanarConfiguration = 0
        data.PhotometricInterpretation = photometric
        data.BitsAllocated = pixels.dtype.itemsize * 8
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for key, value in tags.items():
        setattr(data, key, value)
    if syntax == RLELossless:
        data.compress(syntax)
    elif syntax != ExplicitVRLittleEndian:
        data.file_meta.TransferSyntaxUID, data.PixelData = syntax, encapsulate([b"compressed"])
        data["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def spread(values, low, high):
    """The mapping of the module's docstring, in the plainest words."""
    return np.rint(255 * (np.clip(values.astype(float), low, high) - low) / (high - low)).astype(np.uint8)


SHAPE = st.tuples(st.integers(1, 20), st.integers(1, 20))
BYTES = arrays(np.uint8, SHAPE)
WORDS = arrays(np.uint16, SHAPE)


@examples(40)
@given(BYTES, st.sampled_from(["PNG", "TIFF", "BMP"]))
def test_8_bits_stay_as_they_are(pixels, format):
    assert np.array_equal(decode_image(encode(pixels, format), name="x"), pixels)
    colour = np.stack([pixels, 255 - pixels, pixels // 2], axis=2)
    assert np.array_equal(decode_image(encode(colour, format), name="x", mode="RGB"), colour)
    assert np.array_equal(
        decode_image(encode(colour, format), name="x"), np.asarray(Image.fromarray(colour).convert("L"))
    )
    # A window is for deeper images.
    assert np.array_equal(decode_image(encode(pixels, format), name="x", window="0..4"), pixels)


@examples(40)
@given(WORDS, st.sampled_from(["PNG", "TIFF"]))
def test_16_bits_are_spread_and_never_wrap(pixels, format):
    data = encode(pixels, format)
    assert np.array_equal(open_picture(data, name="x").values, pixels)
    assert np.array_equal(decode_image(data, name="x", window="full"), spread(pixels, 0, 65535))
    assert np.array_equal(decode_image(data, name="x", window="100..4095"), spread(pixels, 100, 4095))
    automatic = decode_image(data, name="x")
    order = np.argsort(pixels, axis=None, kind="stable")
    assert np.all(np.diff(automatic.ravel()[order].astype(int)) >= 0), "what is brighter stays brighter"
    low, high = np.percentile(pixels, (0.5, 99.5))
    if low < high:
        assert np.array_equal(automatic, spread(pixels, low, high))
    colour = decode_image(data, name="x", mode="RGB")
    assert np.array_equal(colour, np.stack([automatic] * 3, axis=2))


def test_12_bits_in_16_are_not_black():
    pixels = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    assert decode_image(encode(pixels), name="x").max() == 255
    assert decode_image(encode(pixels), name="x", window="full").max() == 16
    assert decode_image(encode(np.full((9, 9), 300, dtype=np.uint16)), name="x").max() == 0


def test_a_few_bright_pixels_on_nothing_are_seen():
    pixels = np.zeros((100, 100), dtype=np.uint16)
    pixels[5, 5] = 900
    assert decode_image(encode(pixels), name="x")[5, 5] == 255


@examples(25)
@given(arrays(np.float32, SHAPE, elements=st.floats(-1000, 1000, width=32)))
def test_floats(pixels):
    data = encode(pixels, "TIFF")
    assert np.array_equal(decode_image(data, name="x", window="-50..50.5"), spread(pixels, -50, 50.5))
    with pytest.raises(DataError, match=r"x holds numbers without a full range; set the window to a range"):
        decode_image(data, name="x", window="full")


def test_floats_that_are_no_numbers_are_black():
    pixels = np.array([[np.nan, np.inf, -np.inf, 0.25, 1.0]], dtype=np.float32)
    assert decode_image(encode(pixels, "TIFF"), name="x", window="0..1").tolist() == [[0, 255, 0, 64, 255]]
    assert decode_image(encode(pixels * np.nan, "TIFF"), name="x").tolist() == [[0] * 5]


def test_white_is_zero_is_inverted_at_any_depth():
    def tiff(pixels, bits):
        """Write the smallest TIFF: photometric 0, which Pillow itself does not write."""
        entries = [
            (256, 4, pixels.shape[1]),
            (257, 4, pixels.shape[0]),
            (258, 3, bits),
            (259, 3, 1),
            (262, 3, 0),
            (273, 4, 8 + 2 + 9 * 12 + 4),
            (277, 3, 1),
            (278, 4, pixels.shape[0]),
            (279, 4, pixels.nbytes),
        ]
        body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
        return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 4 + pixels.tobytes()

    ramp = np.arange(256).reshape(16, 16)
    assert np.array_equal(decode_image(tiff(ramp.astype(np.uint8), 8), name="x"), 255 - ramp)
    deep = decode_image(tiff((ramp * 257).astype(np.uint16), 16), name="x", window="full")
    assert np.array_equal(deep, 255 - ramp)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_an_orientation_is_applied_once(orientation, format):
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[:10, :20], pixels[:10, 20:] = 200, 100
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(pixels, format, exif=exif)
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data, name="x"), theirs)


def test_palettes_and_transparency():
    indexed = Image.new("P", (2, 2))
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.putdata([0, 1, 2, 3])
    expected = [[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]]]
    assert decode_image(encode(indexed), name="x", mode="RGB").tolist() == expected
    assert decode_image(encode(indexed, transparency=1), name="x", mode="RGB")[0, 1].tolist() == [0, 0, 0]
    hidden = Image.fromarray(np.array([[[200, 255], [200, 0], [200, 128]]], dtype=np.uint8), "LA")
    assert decode_image(encode(hidden), name="x").tolist() == [[200, 0, 100]]
    assert open_picture(encode(hidden), name="x").channels == 1
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert decode_image(encode(bilevel), name="x").tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], [0, 1]),
        ([3, 250], [0, 1]),  # noise of JPEG
        ([0, 1], [0, 1]),
        ([0, 1, 2, 3], [0, 1, 1, 1]),
        ([0, 0], [0, 0]),
    ],
)
def test_masks(values, expected):
    for kind in (np.uint8, np.uint16):
        scale = 257 if kind is np.uint16 and max(values) > 127 else 1
        mask = decode_mask(encode((np.array([values]) * scale).astype(kind)), name="x")
        assert mask.dtype == bool and mask.tolist() == [[bool(value) for value in expected]]


@pytest.mark.parametrize("format", ["TIFF", "GIF", "PNG", "WEBP"])
def test_several_images_in_one_file_are_refused(format):
    pages = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 200)]
    with pytest.raises(DataError, match=r"x\.img holds 2 images \(pages or frames\); save the one that counts"):
        decode_image(encode(pages[0], format, save_all=True, append_images=pages[1:]), name="x.img")


def test_a_cameras_previews_are_no_frames():
    picture, preview = (Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (90, 10))
    assert decode_image(encode(picture, "MPO", save_all=True, append_images=[preview]), name="x").mean() > 80


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(side):
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x does not decode as an image: it is empty"),
        (b"no picture at all", "its format is none of PNG, JPEG, TIFF, DICOM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its format is none of"),
        (encode(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))[:2000], "the file is damaged"),
        (bomb(12000), "x is 12000 x 12000 pixels, more than 134 million pixels; reduce it first"),
        (bomb(60000), "x is too large an image"),
    ],
)
def test_what_is_no_image(data, message):
    with pytest.raises(DataError, match=message):
        decode_image(data, name="x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags that make no sense
@examples(150)
@given(st.data())
def test_damaged_bytes_end_in_one_message(data):
    whole = data.draw(
        st.sampled_from(
            [
                encode(np.arange(256, dtype=np.uint8).reshape(16, 16), format)
                for format in ("PNG", "JPEG", "TIFF", "GIF", "WEBP")
            ]
            + [dicom(np.arange(256, dtype=np.uint16).reshape(16, 16), RescaleSlope=2, WindowCenter=9, WindowWidth=4)]
        )
    )
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]), name="x")
    except DataError as error:
        assert "\n" not in str(error) and "Secret" not in str(error)
    else:
        assert image.dtype == np.uint8


def png16(values):
    """Write a PNG of one to four channels of 16 bits, which Pillow does not write."""
    values = values[:, :, None] if values.ndim == 2 else values
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@examples(30)
@given(arrays(np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))))
def test_channels_of_16_bits_are_kept_whole(values):
    picture = open_picture(png16(values), name="x")
    channels = values.shape[2]
    colours = values[:, :, 0] if channels < 3 else values[:, :, :3]
    assert picture.bits == 16 and np.array_equal(picture.values, colours)
    clear = values[:, :, -1] == 0 if channels in (2, 4) else np.zeros(values.shape[:2], bool)
    mode = "L" if channels < 3 else "RGB"
    image = decode_image(png16(values), name="x", mode=mode, window="100..4095")
    assert np.array_equal(image[~clear], spread(colours, 100, 4095)[~clear]) and not image[clear].any()


def test_12_bits_in_colour_are_no_darker_than_in_grey():
    grey = np.linspace(500, 2480, 48 * 48).reshape(48, 48).astype(np.uint16)
    expected = decode_image(encode(grey), name="x")
    colour = decode_image(png16(np.stack([grey] * 3, axis=2)), name="x")
    assert np.abs(colour.astype(int) - expected).max() <= 1, "percentiles of three times as many values"
    opaque = np.stack([grey, np.full_like(grey, 65535)], axis=2)
    assert np.array_equal(decode_image(png16(opaque), name="x"), expected)


def tiff(values, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


NUMBERS = np.array([[0, 1, 5, 127], [128, 250, 251, 255]])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    "values",
    [
        (NUMBERS * 16_000_000).astype(np.uint32),  # beyond 2^31, where Pillow's numbers turn negative
        (NUMBERS * 8_000_000 - 2**30).astype(np.int32),
        (NUMBERS * 100 - 9000).astype(np.int16),
        (NUMBERS * 257).astype(np.uint16),
        NUMBERS.astype(np.uint8),
        (NUMBERS / 3).astype(np.float32),
    ],
    ids=lambda values: str(values.dtype),
)
def test_numbers_of_any_tiff_are_as_they_were_written(values, compression):
    for options in ({}, {"bigtiff": True}):
        picture = open_picture(tiff(values, compression=compression, **options), name="x")
        assert np.array_equal(picture.values, values), options
        if values.dtype.kind != "f":
            assert picture.full == (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max)
    try:
        big = open_picture(tiff(values, compression=compression, byteorder=">"), name="x").values
    except DataError as error:
        assert re.search("x is a compressed TIFF of big-endian numbers|its kind of pixels is unknown", str(error))
        assert values.dtype.itemsize > 1
    else:
        assert np.array_equal(big, values)


COLOURS = np.stack([NUMBERS] * 3, axis=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(NUMBERS.astype(np.int8)), "x holds signed numbers of 8 bits, .*; save it with 16 bits"),
        (tiff((COLOURS * 16).astype(np.uint16)), "x holds colours of 16 bits, .*; save it as a 16-bit PNG"),
        (tiff((COLOURS * 16).astype(np.uint16), compression="zlib"), "x holds colours of 16 bits"),
        (b"P6\n4 2\n4095\n" + (COLOURS * 16).astype(">u2").tobytes(), "x holds colours of 12 bits"),
        (encode(Image.new("LAB", (4, 2)), "TIFF"), "x holds pixels of the kind LAB, .*; save it as RGB"),
        (tiff(NUMBERS.astype(np.float16)), "its kind of pixels is unknown; convert it to PNG"),
        (tiff(NUMBERS.astype(np.float64)), "its kind of pixels is unknown"),
        (tiff(NUMBERS.astype(np.uint64)), "its kind of pixels is unknown"),
        (tiff(COLOURS.astype(np.float32), photometric="rgb"), "its kind of pixels is unknown"),
    ],
)
def test_pixels_that_would_lose_something_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        open_picture(data, name="x")


def test_a_transparent_value_of_a_shallow_png_is_that_value():
    """Two bits a pixel, of which the value 3 is transparent; Pillow spreads the values to 0..255, but not that one."""
    body = chunk(b"tRNS", struct.pack(">H", 3)) + chunk(b"IDAT", zlib.compress(b"\0\x1b")) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)) + body
    assert decode_image(data, name="x").tolist() == [[0, 85, 170, 0]]


# DICOM


@examples(25)
@given(arrays(np.int16, SHAPE), st.sampled_from([(1, -1024), (2.5, 0), (-1, 10)]))
def test_dicom_is_rescaled_and_windowed(pixels, rescale):
    slope, intercept = rescale
    hounsfield = pixels * float(slope) + intercept
    data = dicom(pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    assert np.array_equal(decode_image(data, name="x", window="-1000..400"), spread(hounsfield, -1000, 400))
    ends = sorted(end * slope + intercept for end in (-32768, 32767))
    assert np.array_equal(decode_image(data, name="x", window="full"), spread(hounsfield, *ends))
    low, high = np.percentile(hounsfield, (0.5, 99.5))
    if low < high:
        assert np.array_equal(decode_image(data, name="x"), spread(hounsfield, low, high))
    named = dicom(pixels, RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=[40, 600], WindowWidth=[401, 9])
    # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5), so that 401 values around 40 are shown.
    expected = np.rint(255 * np.clip((hounsfield - 39.5) / 400 + 0.5, 0, 1)).astype(np.uint8)
    assert np.array_equal(decode_image(named, name="x"), expected)
    exact = dicom(
        pixels,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=40,
        WindowWidth=400,
        VOILUTFunction="LINEAR_EXACT",
    )
    assert np.array_equal(decode_image(exact, name="x"), spread(hounsfield, -160, 240))


def test_pydicoms_own_windowing_agrees():
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut, apply_windowing

    pixels = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    data = dicom(pixels, bits=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    header = dcmread(io.BytesIO(data))
    theirs = apply_windowing(apply_modality_lut(header.pixel_array, header), header)
    theirs = 255 * (theirs - theirs.min()) / (theirs.max() - theirs.min())
    assert np.abs(decode_image(data, name="x") - theirs).max() <= 0.5 + 1e-6


def test_monochrome1_is_inverted():
    ramp = np.arange(4096).reshape(64, 64).astype(np.uint16)
    bright = decode_image(dicom(ramp, bits=12), name="x", window="full")
    assert np.array_equal(bright, spread(ramp, 0, 4095))
    assert np.array_equal(
        decode_image(dicom(ramp, bits=12, photometric="MONOCHROME1"), name="x", window="full"), 255 - bright
    )


def test_dicom_of_8_bits_stays_as_it_is():
    ramp = np.arange(40, 104, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decode_image(dicom(ramp, RescaleSlope=1, RescaleIntercept=0), name="x"), ramp)
    shown = decode_image(dicom(ramp, WindowCenter=70.5, WindowWidth=21), name="x")
    assert np.array_equal(shown, spread(ramp, 60, 80))


def test_dicom_in_colour():
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(dicom(colour, photometric="RGB"), name="x", mode="RGB"), colour)
    from pydicom.pixels import convert_color_space

    other = convert_color_space(colour, "RGB", "YBR_FULL")
    back = decode_image(dicom(other, photometric="YBR_FULL"), name="x", mode="RGB")
    assert np.abs(back.astype(int) - colour).max() <= 3
    tables = {}
    for name, table in zip(("Red", "Green", "Blue"), np.eye(3, 4, 1), strict=True):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (table * 65535).astype(np.uint16).tobytes()
    indexed = dicom(np.array([[0, 1], [2, 3]], dtype=np.uint8), photometric="PALETTE COLOR", **tables)
    assert decode_image(indexed, name="x", mode="RGB").tolist() == [
        [[0, 0, 0], [255, 0, 0]],
        [[0, 255, 0], [0, 0, 255]],
    ]


def test_dicom_compressed_without_loss():
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
    packed = dicom(pixels, bits=12, syntax=RLELossless)
    assert np.array_equal(decode_image(packed, name="x", window="full"), spread(pixels, 0, 4095))


WHOLE = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            dicom(WHOLE, syntax=JPEGLosslessSV1),
            r"scan\.dcm is compressed as JPEG Lossless.* pip install python-gdcm .*or export it uncompressed",
        ),
        (dicom(WHOLE, syntax=MPEG2MPML), r"scan\.dcm is compressed as MPEG2"),
        (dicom(None), r"scan\.dcm is a DICOM file without pixels .*; remove it from the table"),
        (dicom(WHOLE, NumberOfFrames=2), r"scan\.dcm holds 2 images \(frames\); save the one that counts"),
        (dicom(WHOLE, PixelData=b"\0" * 20), r"scan\.dcm does not decode .*fewer than declared"),
        (dicom(WHOLE, Rows=60000, Columns=60000), r"scan\.dcm is 60000 x 60000 pixels, more than"),
        (
            b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\4\0",
            r"scan\.dcm is no readable DICOM file|scan\.dcm .*without pixels",
        ),
    ],
)
def test_bad_dicom_is_named_and_nothing_about_the_patient(data, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_image(data, name="scan.dcm")
    assert "Secret" not in str(caught.value)


# The option


@pytest.mark.parametrize("text", ["", "lung", "4..4", "9..1", "0-9", "..", "1..2..3", "nan..1"])
def test_a_bad_window_is_named(text):
    with pytest.raises(ConfigError, match=r"window: .* is neither auto nor full nor a range"):
        parse_window(text)


def test_windows():
    assert parse_window("auto") == "auto" and parse_window("full") == "full"
    assert parse_window("-1000..400") == (-1000, 400) and parse_window(" 0.5 .. 1 ") == (0.5, 1)
