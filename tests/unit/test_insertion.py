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
    expected = [[1, 1, 1, 1], [1, -1, 1, 1], [1, -1, 0.6, 1], [0.8, -1, 0.6, 1], [0.8, -1, 0.6, 1]]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    np.testing.assert_allclose(path[0], [(np.mean(state) + 1) / 2 for state in expected], rtol=1e-6)


def test_a_path_begins_with_the_image_and_ends_with_the_edit():
    images, edited = torch.rand(3, 3, 5, 7) * 2 - 1, torch.rand(3, 3, 5, 7) * 2 - 1
    path = insertion_path(brightness, images, edited, finding=1, steps=10)
    torch.testing.assert_close(path[:, 0], brightness(images)[:, 1])
    torch.testing.assert_close(path[:, -1], brightness(edited)[:, 1])
    assert path.shape == (3, 11)


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

    path = insertion_path(predict, images, edited, finding=0, steps=n).numpy()
    t = np.arange(n + 1)
    np.testing.assert_allclose(path[0], 0.9 - c * (t * n - t * (t - 1) / 2))
    area = 0.9 - c * (n + 1) * (4 * n - 1) / 12
    assert cout(path, present=False)[0] == pytest.approx((1 - area) - area)


def test_cout_is_the_difference_of_both_areas():
    rng = np.random.default_rng(0)
    gone, came = rng.random((20, 11)), rng.random((20, 11))
    gone[:, 0], came[:, 0] = 0.8, 0.1
    for path, present in ((gone, False), (came, True)):
        asked = path if present else 1 - path
        expected = np.trapezoid(asked, dx=0.1, axis=1) - np.trapezoid(1 - asked, dx=0.1, axis=1)
        np.testing.assert_allclose(cout(path, present=present), expected)


def test_the_extremes_of_cout():
    gone_at_once = np.array([[1.0] + [0.0] * 10])
    assert cout(gone_at_once, present=False) == pytest.approx(0.9)  # half of the first of ten steps is lost
    assert cout(np.ones((1, 11)), present=False) == -1
    assert cout(np.zeros((1, 11)), present=True) == -1
    assert np.isnan(cout(np.zeros((1, 11)), present=False)) and np.isnan(cout(np.ones((1, 11)), present=True))
