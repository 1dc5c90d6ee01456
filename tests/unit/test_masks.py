"""Masks as people draw them: which pixels count, what is asked, and how a mask lies on its image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from jointdiff.config import ConfigError
from jointdiff.data.images import open_picture, turn
from jointdiff.data.masks import decode_mask, open_mask, parse_mask_values
from jointdiff.data.source import DataError
from tests.properties import examples
from tests.unit.test_images import encode

SHAPE = np.zeros((24, 30), dtype=bool)
SHAPE[6:15, 4:20] = True


def painted(*values, dtype=np.uint8):
    """Return a mask whose region is cut into stripes of these values."""
    grey = np.zeros(SHAPE.shape, dtype=dtype)
    for stripe, value in zip(np.array_split(np.arange(4, 20), len(values)), values, strict=True):
        grey[6:15, stripe] = value
    return grey


def palette(colours, indices):
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.ravel().tolist())
    image.putpalette([part for colour in colours for part in colour])
    return encode(image)


def alpha(colour):
    pixels = np.zeros((*SHAPE.shape, 4), dtype=np.uint8)
    pixels[SHAPE] = (*colour, 255)
    return encode(pixels)


def soft(radius):
    return Image.fromarray(SHAPE.astype(np.uint8) * 255).resize((300, 240)).filter(ImageFilter.GaussianBlur(radius))


PARTS = painted(1, 2, 3)
RED = np.where(SHAPE[:, :, None], np.array([200, 0, 0], np.uint8), np.uint8(0))


@pytest.mark.parametrize(
    ("data", "doubt"),
    [
        (encode(SHAPE.astype(np.uint8) * 255), ""),
        (encode(SHAPE.astype(np.uint8)), ""),
        (encode(Image.fromarray(SHAPE)), ""),
        (encode(SHAPE.astype(np.uint8) * 200), ""),
        (encode(SHAPE.astype(np.uint16) * 65535), ""),
        (encode(SHAPE.astype(np.uint16) * 7), ""),
        (encode(SHAPE.astype(np.float32), "TIFF"), ""),
        (encode(np.where(SHAPE, 250, 3).astype(np.uint8)), ""),
        (encode(PARTS), "0, 1, 2, 3: all but 0 count"),
        (encode(painted(85, 170, 255)), "0, 85, 170, 255: all but 0 count"),
        (encode(painted(1, 255)), "0, 1, 255: all but 0 count"),  # parts beside a margin that is not judged
        (encode(painted(300, 65535, dtype=np.uint16)), "0, 300, 65535: all but 0 count"),
        (encode(RED), ""),
        (alpha((255, 255, 255)), ""),
        (alpha((0, 0, 0)), ""),
        (palette([(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)], PARTS), "0, 1, 2, 3: all but 0 count"),
        (palette([(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)], PARTS), "0, 1, 2, 3: all but 0 count"),
        (palette([(255, 255, 255), (0, 0, 0)], ~SHAPE), ""),  # grey: what is seen counts, whatever its number
        (encode(SHAPE.astype(np.uint8) * 255, "JPEG", quality=60), ""),
        (encode(SHAPE.astype(np.uint8) * 255, "GIF"), ""),
    ],
)  # fmt: skip
def test_the_region_is_what_its_author_drew(data, doubt):
    mask = open_mask(data, name="m.png")
    assert np.array_equal(mask.region, SHAPE) and mask.doubt == doubt


def test_soft_edges_count_from_half_of_white():
    mask = open_mask(encode(soft(4)), name="m")
    assert np.array_equal(mask.region, np.asarray(soft(4)) > 127.5) and "those above 127.5 count" in mask.doubt
    assert not open_mask(encode(np.zeros((9, 9), np.uint8)), name="m").region.any()
    assert open_mask(encode(np.full((9, 9), 255, np.uint8)), name="m").region.all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(np.where(SHAPE, 2, 1).astype(np.uint8)), "m holds 1, 2, none of which is black: set mask_values to"),
        (encode(np.where(SHAPE[:, :, None], RED, np.uint8(250))), "none of which is black"),  # red on white
        (encode(SHAPE.astype(np.uint8) * 9, "JPEG"), "which may be the noise of the format"),
        (encode((np.arange(720) % 180).astype(np.uint8).reshape(24, 30)), "many of them below half of white"),
        (palette([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)], PARTS), "either may be the background"),
        (palette([(0, 0, 0)] * 4, PARTS), "either may be the background"),
    ],
)
def test_what_may_mean_two_things_is_asked(data, message):
    with pytest.raises(DataError, match=message):
        open_mask(data, name="m")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1, 3", [1, 3]), ("2", [2]), ("2..3", [2, 3]), ("0", [0]), ("7", []), (" 1 .. 1 ,2", [1, 2])],
)
def test_chosen_values_are_the_finding(text, expected):
    assert np.array_equal(decode_mask(encode(PARTS), name="m", values=text), np.isin(PARTS, expected))


@pytest.mark.parametrize("text", ["", "lesion", "3..1", "1;2", "1,,2", "Auto", "1..2..3"])
def test_bad_mask_values_are_named(text):
    with pytest.raises(ConfigError, match=r"mask_values: .* is neither auto nor values such as"):
        parse_mask_values(text)


@examples(60)
@given(st.lists(st.integers(1, 255), min_size=1, max_size=6, unique=True), st.sampled_from(["PNG", "TIFF", "BMP"]))
def test_no_part_is_lost_in_silence(values, format):
    mask = open_mask(encode(painted(*values), format), name="m")
    assert np.array_equal(mask.region, SHAPE) or mask.doubt
    assert bool(mask.doubt) == (len(values) > 1)


def turned(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(pixels, "PNG", exif=exif)


PHOTO = np.random.default_rng(0).integers(0, 255, SHAPE.shape, dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_lies_as_its_image_does(orientation):
    """Both turned by their own data; or the mask drawn on the stored pixels, without a word on how it lies."""
    image = open_picture(turned(PHOTO, orientation), name="i")
    right = turn(SHAPE, orientation)
    both = open_mask(turned(SHAPE.astype(np.uint8) * 255, orientation), name="m")
    assert np.array_equal(both.on(image, name="m"), right)
    plain = open_mask(encode(SHAPE.astype(np.uint8) * 255), name="m")
    upright = open_mask(encode(right.astype(np.uint8) * 255), name="m")
    if orientation >= 5:  # the sides change places, so that the size tells
        assert np.array_equal(plain.on(image, name="m"), right)
        assert np.array_equal(upright.on(image, name="m"), right)
    else:
        with pytest.raises(DataError, match="m and its image have different EXIF orientations"):
            plain.on(image, name="m")


def test_a_mask_of_another_size_is_refused():
    image = open_picture(encode(PHOTO), name="i")
    with pytest.raises(DataError, match="m is 9 x 9 pixels, its image 30 x 24; draw it on the image's own"):
        open_mask(encode(np.zeros((9, 9), np.uint8)), name="m").on(image, name="m")


def test_masks_of_either_kind_in_the_published_set(tmp_path):
    import zipfile

    from jointdiff.data.sources import busi

    for white in (1, 255):
        with zipfile.ZipFile(tmp_path / "Dataset_BUSI.zip", "w") as archive:
            archive.writestr("b/benign (1).png", encode(PHOTO))
            archive.writestr("b/benign (1)_mask.png", encode(SHAPE.astype(np.uint8) * white))
        (load,) = busi.read(tmp_path, size=16)
        assert np.array_equal(load().regions[0].mask, SHAPE)
