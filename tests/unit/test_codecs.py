import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.nets.codecs import HaarWavelet, Identity
from tests.properties import examples


def info(size=16, channels=1):
    return DataInfo(
        name="toy",
        title="toy",
        labels=LabelSpec("multi_label", ("a",)),
        channels=channels,
        size=size,
        augmentations=Augmentations(),
        samples=1,
        digest="",
        has_regions=False,
    )


@examples(30)
@given(side=st.integers(1, 12), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**31))
def test_the_wavelet_inverts_exactly_and_stays_in_range(side, channels, seed):
    codec = HaarWavelet(info(2 * side, channels))
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, channels, 2 * side, 2 * side, generator=generator, dtype=torch.float64) * 2 - 1
    codes = codec.encode(images)
    assert codes.shape == (2, codec.channels, codec.size, codec.size) == (2, 4 * channels, side, side)
    assert codes.abs().max() <= 1
    torch.testing.assert_close(codec.decode(codes), images, atol=1e-15, rtol=0)
    torch.testing.assert_close(codec.encode(codec.decode(codes)), codes, atol=1e-15, rtol=0)


def test_bytes_survive_the_wavelet_bit_for_bit():
    """Sums of four byte values need ten bits, which single precision has to spare."""
    images = torch.randint(256, (4, 1, 32, 32)).float().sub(128).div(128)
    codec = HaarWavelet(info(32))
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_the_wavelet_is_the_orthonormal_haar_transform_halved():
    basis = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 2))
    transformed = basis @ image @ basis.T  # rows are vertical, columns horizontal frequencies
    codes = HaarWavelet(info(2)).encode(torch.tensor(image)[None, None])[0, :, 0, 0].numpy()
    np.testing.assert_allclose(2 * codes, [transformed[0, 0], transformed[0, 1], transformed[1, 0], transformed[1, 1]])


def test_a_constant_image_has_no_details():
    codes = HaarWavelet(info(8, 3)).encode(torch.full((1, 3, 8, 8), 0.5))
    assert (codes[:, :3] == 0.5).all()
    assert (codes[:, 3:] == 0).all()


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match="images of 7 px cannot be halved"):
        HaarWavelet(info(7))


def test_identity_is_that():
    codec, images = Identity(info()), torch.rand(1, 1, 16, 16)
    assert codec.encode(images) is images
    assert codec.decode(images) is images
    assert not codec.costly
