import pytest
import torch

from jointdiff.data.augment import GEOMETRIC, PHOTOMETRIC, Views, _compose
from jointdiff.data.source import Augmentations


def ramp(n=3, size=16):
    column = torch.linspace(-1, 1, size)
    return column.expand(n, 1, size, size).clone()


def test_without_permission_nothing_is_flipped():
    images = torch.rand(50, 1, 8, 8)
    assert torch.equal(Views(Augmentations()).flip(images), images)


def test_flips_are_drawn_per_image():
    torch.manual_seed(0)
    images = ramp(200)
    flipped = Views(Augmentations(horizontal_flip=True)).flip(images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 60 < mirrored.sum() < 140


def test_weak_views_shift_by_at_most_the_declared_share():
    torch.manual_seed(0)
    images = ramp(64, 16)
    weak = Views(Augmentations(max_shift=0.125)).weak(images)
    assert weak.shape == images.shape
    step = 2 / 15
    middle = (weak[:, 0, 8, 8] - images[:, 0, 8, 8]) / step
    assert middle.abs().max() <= 2.01
    assert middle.round().unique().numel() == 5, "every shift of -2..2 pixels occurs"


def test_strong_views_stay_in_range_and_differ_between_images():
    torch.manual_seed(0)
    strong = Views(Augmentations()).strong(ramp(32))
    assert strong.shape == (32, 1, 16, 16)
    assert strong.min() >= -1.0001
    assert strong.max() <= 1.0001
    assert len({tuple(image.flatten().tolist()) for image in strong}) == 32


@pytest.mark.parametrize("operation", PHOTOMETRIC)
def test_photometric_operations_keep_the_range(operation):
    out = operation(ramp(4), torch.tensor([0.0, 0.3, 0.7, 1.0])[:, None, None, None])
    assert out.min() >= -1.0001
    assert out.max() <= 1.0001


@pytest.mark.parametrize("motion", GEOMETRIC)
def test_geometric_operations_without_strength_do_nothing(motion):
    identity = torch.eye(2, 3)[None]
    torch.testing.assert_close(motion(torch.zeros(1)), identity)
    torch.testing.assert_close(_compose(identity, motion(torch.ones(1))), motion(torch.ones(1)))
