"""Measures by neighbours and kernels against other libraries and closed forms."""

import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance as clean_fid_kernel_distance
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from jointdiff.evaluate import distances
from jointdiff.evaluate.distances import density_coverage, kernel_distance, nearest, precision_recall
from jointdiff.evaluate.privacy import copy_limit, draw_nearest, privacy, small


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(120, 6)), rng.normal(size=(90, 6)) * 0.8 + 0.4


@pytest.fixture(params=[4_000_000, 700], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(distances, "CELLS", request.param)


def test_kernel_distance_equals_the_unbiased_estimate_of_its_definition(clouds, blocks):
    a, b = clouds
    xx, yy, xy = (polynomial_kernel(*pair, degree=3, gamma=1 / 6, coef0=1) for pair in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    expected = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_equals_clean_fid_on_one_subset_of_all(clouds):
    a, b = clouds[0][:90], clouds[1]
    assert kernel_distance(a, b) == pytest.approx(clean_fid_kernel_distance(a, b, num_subsets=1), rel=1e-6)


def test_equal_distributions_have_no_kernel_distance_on_average():
    rng = np.random.default_rng(1)
    values = [kernel_distance(*rng.normal(size=(2, 40, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200) and min(values) < 0 < max(values)


def test_precision_recall_density_and_coverage_by_another_library(clouds, blocks):
    generated, real = clouds

    def radii(points, k):
        return NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, k]

    def held(points, of, k):  # (points, of): whether a point lies in the ball of a member
        apart = np.linalg.norm(points[:, None] - of[None], axis=2)
        return apart <= radii(of, k)[None]

    precision, recall = held(generated, real, 3).any(1).mean(), held(real, generated, 3).any(1).mean()
    assert precision_recall(generated, real) == pytest.approx((precision, recall))
    inside = held(generated, real, 5)
    assert density_coverage(generated, real) == pytest.approx((inside.sum(1).mean() / 5, inside.any(0).mean()))


def test_equal_distributions_have_density_one_and_far_ones_nothing():
    rng = np.random.default_rng(2)
    real, same = rng.normal(size=(2, 1500, 3))
    density, coverage = density_coverage(same, real)
    # Naeem et al. 2020: 1 and, for equal numbers, 1 - 2^-5 up to terms of 1 / N.
    assert density == pytest.approx(1.0, abs=0.05)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)
    assert density_coverage(same + 100, real) == (0.0, 0.0)
    assert precision_recall(same + 100, real) == (0.0, 0.0)
    assert precision_recall(real, real) == (1.0, 1.0)


def test_a_generator_of_one_image_has_precision_and_no_recall():
    rng = np.random.default_rng(3)
    real = rng.normal(size=(300, 4))
    collapsed = np.repeat(real[:1], 50, axis=0)
    precision, recall = precision_recall(collapsed, real)
    assert precision == 1.0 and recall <= 1 / 300 + 1e-9


def test_nearest_neighbours_by_another_library(clouds, blocks):
    distance, place = nearest(*clouds)
    expected, index = NearestNeighbors(n_neighbors=1).fit(clouds[1]).kneighbors(clouds[0])
    np.testing.assert_allclose(distance, expected[:, 0], atol=1e-9)
    np.testing.assert_array_equal(place, index[:, 0])


def test_copies_are_found_and_unseen_images_are_none():
    rng = np.random.default_rng(4)
    seen, test, unseen = rng.normal(size=(400, 8)), rng.normal(size=(1000, 8)), rng.normal(size=(1000, 8))
    reference = nearest(test, seen)[0]
    copied = privacy(nearest(seen[:50] + 1e-9, seen)[0], reference)
    assert copied["nearest_ratio"] == pytest.approx(0.0, abs=1e-6) and copied["near_copies"] == 1.0
    fresh = privacy(nearest(unseen, seen)[0], reference)
    assert fresh["nearest_ratio"] == pytest.approx(1.0, abs=0.05)
    assert fresh["near_copies"] == pytest.approx(0.01, abs=0.012)
    half = np.concatenate([nearest(seen[:500], seen)[0][:100], nearest(unseen[:100], seen)[0]])
    assert privacy(half, reference)["near_copies"] == pytest.approx(0.505, abs=0.02)


def test_distances_of_images_are_root_mean_squares_of_the_range_at_any_size():
    black, grey = torch.full((1, 1, 128, 128), -1.0), torch.full((1, 1, 128, 128), 0.0)
    for side in (128, 28):
        a, b = (small(images[..., :side, :side]).numpy().astype(np.float64) for images in (black, grey))
        assert a.shape[1] == min(side, 32) ** 2
        assert nearest(a, b)[0][0] == pytest.approx(0.5, abs=1e-6)


def test_the_picture_shows_the_nearest_pairs(tmp_path):
    rng = np.random.default_rng(5)
    images = rng.integers(0, 255, (12, 16, 16, 1), dtype=np.uint8)
    distance = rng.random(12)
    draw_nearest(images, images, distance, np.arange(12), limit=copy_limit(distance), path=tmp_path / "nearest.png")
    assert (tmp_path / "nearest.png").stat().st_size > 2000
