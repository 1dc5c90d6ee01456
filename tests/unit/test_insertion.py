"""The way from an image to its edit, by hand and in closed form."""

import numpy as np
import pytest
import torch

from jointdiff.explain.insertion import insertion_path
from jointdiff.explain.localisation import cout


def brightness(images):
    """Give two findings the mean brightness, and 1 less it, as probabilities."""
    p = (images.mean(dim=(1, 2, 3)) + 1) / 2
    return torch.stack([p, 1 - p], dim=1)


def test_the_most_changed_pixels_come_first():
    images = torch.ones(1, 1, 2, 2)
    edited = torch.tensor([[[[0.8, -1.0], [0.6, 1.0]]]])
    seen = []

    def predict(states):
        seen.append(states.flatten().tolist())
        return brightness(states)

    path = insertion_path(predict, images, edited, finding=0, steps=4)
    expected = [[1, -1, 1, 1], [1, -1, 0.6, 1], [0.8, -1, 0.6, 1]]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    np.testing.assert_allclose(path[0], [(np.mean(state) + 1) / 2 for state in expected], rtol=1e-6)


def test_each_image_has_its_own_order_and_steps_of_equal_size():
    images, edited = -torch.ones(2, 3, 5, 7), -torch.ones(2, 3, 5, 7)
    edited[0] += torch.arange(35).view(5, 7) / 35
    edited[1] += torch.arange(35).flip(0).view(5, 7) / 35
    states = []
    insertion_path(lambda s: states.append(s) or brightness(s), images, edited, finding=1, steps=10)
    put_in = torch.stack([(state > -1).any(dim=1).flatten(1) for state in states])  # (9, 2, 35)
    assert put_in.sum(dim=2)[:, 0].tolist() == [round(3.5 * step) for step in range(1, 10)]
    assert torch.equal(put_in[:, 0], put_in[:, 1].flip(-1)) and put_in[0, 0, -1] and not put_in[0, 0, 0]


def test_a_linear_classifier_has_its_closed_form():
    """Of n pixels put in one by one, the k-th takes c (n + 1 - k) from p: c (t n - t (t - 1) / 2) after t of them.

    The sum over t = 0..n is c n (n + 1) (2 n + 1) / 6, and half the ends less and by n it is c (n + 1) (4 n - 1) / 12.
    """
    n, c = 16, 0.005
    change = torch.arange(n, 0, -1, dtype=torch.float64)[torch.randperm(n)]
    images = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    edited = (change / n).view(1, 1, 4, 4)

    def predict(states):
        return 0.9 - c * n * states.sum(dim=(1, 2, 3))[:, None]

    between = insertion_path(predict, images, edited, finding=0, steps=n)
    path = np.concatenate([predict(images), between, predict(edited)], axis=1)
    t = np.arange(n + 1)
    np.testing.assert_allclose(path[0], 0.9 - c * (t * n - t * (t - 1) / 2))
    area = 0.9 - c * (n + 1) * (4 * n - 1) / 12
    assert cout(path)[0] == pytest.approx((1 - area) - area)


def test_cout_is_the_difference_of_both_areas():
    path = np.random.default_rng(0).random((20, 11))
    path[:, 0] = 0.8
    expected = np.trapezoid(1 - path, dx=0.1, axis=1) - np.trapezoid(path, dx=0.1, axis=1)
    np.testing.assert_allclose(cout(path), expected)


def test_the_extremes_of_cout():
    gone_at_once = np.array([[1.0] + [0.0] * 10])
    assert cout(gone_at_once) == pytest.approx(0.9)  # half of the first of ten steps is lost
    assert cout(np.ones((1, 11))) == -1
    assert np.isnan(cout(np.zeros((1, 11))))  # never seen
