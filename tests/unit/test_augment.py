import pytest
import torch

from jointdiff.data.augment import GEOMETRIC, PHOTOMETRIC, Views, _compose, random_crop
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


def where(crops):
    """Return the first and last position (N, 2) in [-1, 1] that crops of a ramp show, and how evenly they show it."""
    rows = crops[:, 0, 0]
    return rows[:, [0, -1]], rows.diff(dim=1)


@pytest.mark.parametrize("flat", [(0, 1, 2, 3), (0, 1, 3, 2)], ids=["columns", "rows"])
def test_crops_lie_within_the_image_and_have_the_share_asked_for(flat):
    """On a ramp from the first pixel's centre to the last one's, what is shown says where it was."""
    torch.manual_seed(0)
    images = ramp(4000, 32).permute(flat)
    ends, steps = where(random_crop(images, area=(0.3, 0.9)).permute(flat))
    assert ends.abs().max() <= 1, "what lies outside would go on beyond the ramp's ends, were it not the border's"
    inner = (ends[:, 0] > -1) & (ends[:, 1] < 1)
    # Side of the crop = pixels' distance in it, relative to that in the image.
    sides = steps[inner].mean(1) / (2 / 31)
    torch.testing.assert_close(steps[inner], steps[inner].mean(1, keepdim=True).expand(-1, 31), atol=1e-4, rtol=0)
    assert sides.min() >= 0.3**0.5 - 1e-3 and sides.max() <= 0.9**0.5 + 1e-3
    assert sides.min() < 0.57 and sides.max() > 0.92, "every share occurs"
    # Positions are drawn from one end to the other, whatever the size: half of the crops lie left of the middle.
    assert abs((ends.mean(1) < 0).float().mean() - 0.5) < 0.05
    assert inner.float().mean() > 0.8


def test_a_crop_of_everything_is_the_image():
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(random_crop(images, area=(1.0, 1.0)), images, atol=1e-5, rtol=0)


def test_contrastive_views_stay_in_range_and_differ_between_images():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 16, 16) * 2 - 1
    views = Views(Augmentations()).contrastive(image.expand(64, -1, -1, -1))
    assert views.shape == (64, 1, 16, 16)
    assert views.abs().max() <= 1.0001
    assert len({tuple(view.flatten().tolist()) for view in views}) == 64


@pytest.mark.parametrize("allowed", [False, True])
def test_contrastive_views_are_flipped_where_allowed(allowed):
    """No crop or photometric operation turns a ramp round."""
    torch.manual_seed(0)
    views = Views(Augmentations(horizontal_flip=allowed)).contrastive(ramp(200))
    turned = int((views[:, 0, 0, 0] > views[:, 0, 0, -1]).sum())
    assert 60 < turned < 140 if allowed else turned == 0
