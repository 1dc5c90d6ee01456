import math
from dataclasses import replace

import pytest
import torch

from jointdiff.config import ConfigError
from jointdiff.data.augment import OPERATIONS, Views, _compose, _motions, random_crop
from jointdiff.data.source import MEDICAL, PHOTOMETRIC, UNORIENTED, Augmentations
from jointdiff.registry import load_source

STILL = Augmentations(
    max_shift=0.0, photometric=("identity",), max_rotation=0.0, max_shear=0.0, max_translation=0.0, max_cutout=0.0
)


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


def test_strong_views_of_natural_images_are_as_they_were_before_policies():
    """Means and a pixel of eight views, as they came before a data set could say how strong they may be."""
    torch.manual_seed(0)
    images = torch.linspace(-1, 1, 16).expand(8, 1, 16, 16) * torch.linspace(-1, 1, 16)[:, None]
    strong = Views(Augmentations()).strong(images)
    means = [0.12651, 0.00851, 0.56458, -0.14756, -0.23503, -0.0614, 0.00002, 0.19567]
    pixels = [-0.18605, -0.16676, 0.36965, -0.66495, -0.42214, -0.56109, -0.42743, -0.31278]
    torch.testing.assert_close(strong.mean((1, 2, 3)), torch.tensor(means), atol=2e-5, rtol=0)
    torch.testing.assert_close(strong[:, 0, 3, 12], torch.tensor(pixels), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_operations_keep_the_range(name):
    out = OPERATIONS[name](ramp(4), torch.tensor([0.0, 0.3, 0.7, 1.0])[:, None, None, None])
    assert out.min() >= -1.0001
    assert out.max() <= 1.0001


def test_geometric_operations_without_strength_do_nothing():
    identity = torch.eye(2, 3)[None]
    for motion, bound in _motions(Augmentations()):
        most = motion(torch.tensor([bound]))
        torch.testing.assert_close(motion(torch.zeros(1)), identity)
        torch.testing.assert_close(_compose(identity, most), most)


def affine_maps(allowed, n=600, size=33):
    """Return how strong views of n images move them, (n, 2, 3) in units of half the side, measured in the images.

    An image of coordinates says at each pixel where that came from; near the middle nothing is reflected.
    """
    at = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    seen = Views(allowed).strong(torch.stack([x, y]).expand(n, 2, size, size))
    middle = slice(size // 2 - 2, size // 2 + 3)
    known = torch.stack([x, y, torch.ones_like(x)])[:, middle, middle].flatten(1)
    return seen[:, :, middle, middle].flatten(2) @ torch.linalg.pinv(known)


def test_a_policy_that_allows_nothing_moves_nothing():
    images = torch.rand(20, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(Views(STILL).strong(images), images)


@pytest.mark.parametrize("most", [10.0, 30.0])
def test_strong_views_turn_by_at_most_the_declared_angle(most):
    torch.manual_seed(0)
    maps = affine_maps(replace(STILL, max_rotation=most))
    angle = torch.atan2(maps[:, 1, 0], maps[:, 0, 0])
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).unflatten(1, (2, 2))
    torch.testing.assert_close(maps[:, :, :2], turned, atol=1e-4, rtol=0)
    torch.testing.assert_close(maps[:, :, 2], torch.zeros(600, 2), atol=1e-4, rtol=0)
    assert 1.5 * most < angle.rad2deg().abs().max() <= 3 * most + 0.01, "three operations, each within the bound"
    assert angle.min() < 0 < angle.max()
    assert angle.unique().numel() > 450, "each image has an angle of its own, but those that drew no rotation"


def test_strong_views_shear_and_translate_by_at_most_the_declared_share():
    torch.manual_seed(0)
    tangent = affine_maps(replace(STILL, max_shear=0.2))
    torch.testing.assert_close(torch.linalg.det(tangent[:, :, :2]), torch.ones(600), atol=1e-4, rtol=0)
    reach = tangent[:, [0, 1], [1, 0]].abs().amax(0)
    assert ((reach > 0.3) & (reach <= 0.6 + 0.2**3 + 1e-4)).all()
    moved = affine_maps(replace(STILL, max_translation=0.1))
    torch.testing.assert_close(moved[:, :, :2], torch.eye(2).expand(600, 2, 2), atol=1e-4, rtol=0)
    share = moved[:, :, 2].abs() / 2  # of the side, which is 2 long
    assert (share.sum(1) <= 0.3 + 1e-4).all() and (share.amax(0) > 0.15).all()


def test_one_operation_goes_as_far_as_declared():
    maps = [motion(torch.tensor([bound]))[0] for motion, bound in _motions(Augmentations(max_translation=0.25))]
    half = math.sqrt(3) / 2
    expected = [
        [[half, -0.5, 0], [0.5, half, 0]],
        [[1, 0.3, 0], [0, 1, 0]],
        [[1, 0, 0], [0.3, 1, 0]],
        [[1, 0, 0.5], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 0.5]],
    ]
    torch.testing.assert_close(torch.stack(maps), torch.tensor(expected))


@pytest.mark.parametrize("most", [0.25, 0.5])
def test_cutout_covers_at_most_the_declared_square(most):
    torch.manual_seed(0)
    grey = (Views(replace(STILL, max_cutout=most)).strong(torch.ones(500, 1, 32, 32)) == 0)[:, 0]
    tallest, widest = (grey.any(dim).sum(1).max() for dim in (2, 1))
    assert 0.9 * most * 32 <= tallest <= most * 32 + 1
    assert 0.9 * most * 32 <= widest <= most * 32 + 1
    assert len({tuple(image.flatten().tolist()) for image in grey}) > 250, "each image has a square of its own"


def test_only_operations_that_are_named_are_drawn():
    images = torch.rand(300, 1, 8, 8) - 0.5
    low, high = images.flatten(1).aminmax(dim=1)
    stretched = (2 * images - (low + high)[:, None, None, None]) / (high - low)[:, None, None, None]
    views = Views(replace(STILL, photometric=("autocontrast",))).strong(images)
    torch.testing.assert_close(views, stretched, atol=1e-4, rtol=0)  # three times as once


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"photometric": ("solarise",)}, "augmentations.photometric: there is no 'solarise': did you mean 'posterise'"),
        ({"photometric": ()}, "augmentations.photometric names no operation"),
        ({"max_rotation": -1.0}, r"augmentations.max_rotation: -1.0 is not in 0 to 180"),
        ({"max_cutout": 1.5}, r"augmentations.max_cutout: 1.5 is not in 0 to 1"),
        ({"max_shear": math.nan}, r"augmentations.max_shear: nan is not in 0 to 1"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_where_it_is_declared(fields, message):
    with pytest.raises(ConfigError, match=message):
        Augmentations(**fields)


@pytest.mark.parametrize(
    ("source", "policy"),
    [
        ("chestxray14", MEDICAL),
        ("chexpert", MEDICAL),
        ("busi", replace(MEDICAL, horizontal_flip=True)),
        ("isic2018", UNORIENTED),
        ("isic2019", UNORIENTED),
        ("melanoma", UNORIENTED),
        ("phantom", Augmentations()),
        ("cifar10", Augmentations(horizontal_flip=True)),
    ],
)
def test_data_sets_declare_what_keeps_their_labels_true(source, policy):
    assert load_source(source).SOURCE.augmentations == policy


def test_every_name_is_an_operation():
    assert tuple(OPERATIONS) == PHOTOMETRIC


def hidden_share(policy, side, views=2000, size=30):
    """Return in which share of strong views less than half of a finding is left.

    A finding is a square, brighter than its surroundings by a tenth of the range, in the middle 80 % of an image of
    grey levels from black to white. It is seen where the same view of the image without it is darker by one percent.
    """
    image = torch.linspace(-0.6, 0.2, size).repeat(views, 1, size, 1)
    image[:, :, 0, 0], image[:, :, -1, -1] = -1.0, 1.0
    pixels, margin = round(side * size), size // 10
    top, left = torch.randint(margin, size - margin - pixels + 1, (2, views, 1, 1))
    at = torch.arange(size)
    rows, columns = ((at >= start) & (at < start + pixels) for start in (top, left))
    finding = (rows.transpose(1, 2) & columns)[:, None]
    state = torch.get_rng_state()
    without = Views(policy).strong(image)
    torch.set_rng_state(state)
    seen = Views(policy).strong(image + 0.2 * finding) - without > 0.02
    return (seen.flatten(1).sum(1) < pixels**2 / 2).float().mean().item()


@pytest.mark.parametrize("side", [0.1, 0.2])
@pytest.mark.parametrize("policy", [MEDICAL, UNORIENTED], ids=["medical", "unoriented"])
def test_a_medical_policy_leaves_small_findings_in_view(policy, side):
    torch.manual_seed(0)
    hidden, natural = hidden_share(policy, side), hidden_share(Augmentations(), side)
    assert hidden <= 0.02
    assert natural >= 0.04 and natural >= 4 * hidden


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
