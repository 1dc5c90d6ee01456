"""DICOM in full: what files say of their values, at the top or in functional groups, against the standard."""

import io

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from jointdiff.data.dicom import is_dicom
from jointdiff.data.images import decode_image, open_picture
from jointdiff.data.source import DataError
from tests.unit.test_images import dicom, spread

RAMP = np.arange(4096).reshape(64, 64).astype(np.uint16)


def item(**tags):
    data = Dataset()
    for key, value in tags.items():
        setattr(data, key, value)
    return data


def table(count, first, bits, values, kind=np.uint16):
    return item(LUTDescriptor=[count, first, bits], LUTData=np.asarray(values).astype(kind).tobytes())


def shared(**macros):
    return {"SharedFunctionalGroupsSequence": Sequence([item(**{k: Sequence([v]) for k, v in macros.items()})])}


RESCALE = item(RescaleSlope=2, RescaleIntercept=-1000)


@pytest.mark.parametrize("where", ["top", "shared", "of the frame", "of the frame before shared"])
def test_rescale_and_window_are_found_wherever_they_stand(where):
    voi = item(WindowCenter=500.5, WindowWidth=1001)
    ours = {"PixelValueTransformationSequence": RESCALE, "FrameVOILUTSequence": voi}
    if where == "top":
        tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 500.5, "WindowWidth": 1001}
    elif where == "shared":
        tags = shared(**ours)
    else:
        tags = {"PerFrameFunctionalGroupsSequence": shared(**ours)["SharedFunctionalGroupsSequence"]}
        if where.endswith("shared"):
            tags |= shared(PixelValueTransformationSequence=item(RescaleSlope=9, RescaleIntercept=0))
    data = dicom(RAMP, bits=12, NumberOfFrames=1, **tags)
    values = RAMP * 2.0 - 1000
    assert np.array_equal(open_picture(data, name="x").values, values)
    assert np.array_equal(decode_image(data, name="x"), spread(values, 0, 1000))
    assert np.array_equal(decode_image(data, name="x", window="-1000..400"), spread(values, -1000, 400))


def test_a_sigmoid_window_is_the_standards():
    data = dicom(RAMP, bits=12, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    expected = np.rint(255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 800))).astype(np.uint8)  # PS3.3 C.11.2.1.3.1
    assert np.array_equal(decode_image(data, name="x"), expected)
    header = dcmread(io.BytesIO(data))
    theirs = apply_voi_lut(header.pixel_array, header)
    assert np.abs(decode_image(data, name="x") - theirs / 4095 * 255).max() <= 1


@pytest.mark.parametrize("signed", [False, True])
def test_tables_of_values_and_of_brightness_are_applied(signed):
    pixels = RAMP.astype(np.int16) - 2048 if signed else RAMP
    curve = (np.linspace(0, 1, 4096) ** 2 * 65535).astype(np.uint16)
    data = dicom(pixels, bits=16, VOILUTSequence=Sequence([table(4096, -2048 if signed else 0, 16, curve)]))
    assert np.array_equal(decode_image(data, name="x").ravel(), np.rint(curve / 65535 * 255))
    header = dcmread(io.BytesIO(data))
    assert np.array_equal(apply_voi_lut(header.pixel_array, header).ravel(), curve), "as pydicom has it"
    modality = dicom(RAMP, bits=12, ModalityLUTSequence=Sequence([table(4096, 0, 16, curve)]))
    header = dcmread(io.BytesIO(modality))
    assert np.array_equal(open_picture(modality, name="x").values, apply_modality_lut(header.pixel_array, header))
    # Values beyond a table are its first and last entry.
    short = dicom(RAMP, bits=12, VOILUTSequence=Sequence([table(100, 1000, 12, np.arange(100) * 41)]))
    assert decode_image(short, name="x").ravel()[[0, 1000, 1099, 4095]].tolist() == [0, 0, 253, 253]
    # A table of 8 bits, and one that a window stands beside, which it comes before.
    small = table(256, 0, 8, 255 - np.arange(256), np.uint8)
    both = dicom(RAMP % 256, bits=12, VOILUTSequence=Sequence([small]), WindowCenter=9, WindowWidth=4)
    assert np.array_equal(decode_image(both, name="x"), 255 - RAMP % 256)


def test_several_windows_are_said():
    picture = open_picture(dicom(RAMP, bits=12, WindowCenter=[40, 600], WindowWidth=[401, 9]), name="x")
    assert [what for what, _ in picture.remarks] == ["a DICOM file names several windows, and the first is used"]
    odd = open_picture(dicom(RAMP, bits=12, WindowCenter=40, WindowWidth=-5), name="x")
    assert "has no meaning" in odd.remarks[0][0] and odd.shown is None
    assert not open_picture(dicom(RAMP, bits=12, WindowCenter=40, WindowWidth=400), name="x").remarks


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, -1990])
def test_padding_is_black_and_has_no_say_in_the_range(photometric, limit):
    values = np.tile(np.arange(0, 1000, 10, dtype=np.int16), (100, 1))
    padded = values.copy()
    padded[:30] = -2000
    padded[:5] = -2000 if limit is None else limit
    tags = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    data = dicom(padded, photometric=photometric, PixelPaddingValue=-2000, **tags)
    image, inside = decode_image(data, name="x"), padded[30:]
    bright = spread(inside, *np.percentile(inside, (0.5, 99.5)))
    assert np.array_equal(image[30:], 255 - bright if photometric == "MONOCHROME1" else bright)
    assert not image[:30].any()


def test_bits_that_end_elsewhere():
    """Values of 12 bits in the upper bits of 16; the lower four are free, or hold what is no part of the image."""
    data = dicom(RAMP << 4, bits=12, HighBit=15)
    assert np.array_equal(open_picture(data, name="x").values, RAMP)
    with pytest.raises(DataError, match=r"x says that its values lie in bits 4 to 15, yet has others set"):
        open_picture(dicom((RAMP << 4) | 1, bits=12, HighBit=15), name="x")
    with pytest.raises(DataError, match=r"x stores 12 bits up to bit 5, which is not possible"):
        open_picture(dicom(RAMP, bits=12, HighBit=5), name="x")
    signed = (RAMP.astype(np.int16) - 2048) & 0x0FFF  # 12 bits with a sign, overlays' bits above them empty
    assert np.array_equal(open_picture(dicom(signed, bits=12), name="x").values, RAMP.astype(np.int16) - 2048)


def test_numbers_of_other_sizes():
    wide = RAMP.astype(np.uint32) * 1_000_000
    assert np.array_equal(open_picture(dicom(wide, bits=32), name="x").values, wide)
    floats = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    data = dcmread(io.BytesIO(dicom(RAMP)))
    del data.PixelData, data.PixelRepresentation, data.BitsStored, data.HighBit
    data.FloatPixelData, data.BitsAllocated = floats.tobytes(), 32
    stream = io.BytesIO()
    data.save_as(stream)
    picture = open_picture(stream.getvalue(), name="x")
    assert np.array_equal(picture.values, floats) and picture.full is None
    assert np.array_equal(decode_image(stream.getvalue(), name="x", window="-1..1"), spread(floats, -1, 1))


@pytest.mark.parametrize("tags", [{"RescaleSlope": 0, "RescaleIntercept": 5}, {"RescaleSlope": "1e400"}])
def test_a_rescaling_that_leaves_no_image_is_refused(tags):
    with pytest.raises(DataError, match=r"x has the rescale slope .* which leave no image; export it again"):
        open_picture(dicom(RAMP, bits=12, **tags), name="x")


def test_inverted_by_the_presentation_table():
    data = dicom(RAMP, bits=12, PresentationLUTShape="INVERSE")
    assert np.array_equal(decode_image(data, name="x", window="full"), 255 - spread(RAMP, 0, 4095))


def test_colours_of_more_than_8_bits_are_spread_as_grey_is():
    colour = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=2)
    image = decode_image(dicom(colour, photometric="RGB", bits=12), name="x", mode="RGB", window="0..4095")
    assert np.array_equal(image, spread(colour, 0, 4095))
    low, high = np.percentile(colour, (0.5, 99.5))
    automatic = decode_image(dicom(colour, photometric="RGB", bits=12), name="x", mode="RGB")
    assert np.array_equal(automatic, spread(colour, low, high))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_a_preamble_is_read(syntax):
    data, stream = Dataset(), io.BytesIO()
    data.update(dcmread(io.BytesIO(dicom(RAMP, bits=12))))
    if syntax == ExplicitVRBigEndian:
        data.PixelData = RAMP.astype(">u2").tobytes()
    data.save_as(
        stream,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=False,
    )
    bare = stream.getvalue()
    assert bare[128:132] != b"DICM" and is_dicom(bare)
    assert np.array_equal(open_picture(bare, name="x").values, RAMP)


@pytest.mark.parametrize("data", [b"", b"\x08\0", b"\x08\0\x05\0CS", b"\x02\0" * 40, b"BM" + b"\0" * 200])
def test_other_bytes_are_no_dicom(data):
    assert not is_dicom(data) or data == b"\x02\0" * 40


def test_nothing_about_the_patient_is_kept():
    from jointdiff.data.dicom import _merge_groups, _read

    nested = shared(PixelValueTransformationSequence=RESCALE)
    nested["SharedFunctionalGroupsSequence"][0].PatientComments = "Secret"
    header = _read(dicom(RAMP, bits=12, PatientID="Secret", **nested))
    _merge_groups(header)
    assert "Secret" not in str(header) and header.RescaleSlope == 2
