"""How generated images lie among real ones: distances of distributions, and nearest neighbours. numpy alone.

Features are (N, D). Distances are Euclidean and computed in blocks, so that memory grows with N and not with N^2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CELLS = 4_000_000  # distances held at once (32 MB)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) between features (N, D) (Dowson & Landau 1982).

    The trace of the root comes from the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2), which needs no matrix
    root of a product and stays real when N < D.
    """
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0.0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)


def few_images(features: np.ndarray) -> str | None:
    """Return a caution where features (N, D) are too few for a covariance of full rank, else None."""
    count, width = features.shape
    return f"fewer images than the {width} features" if count <= width else None


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared maximum mean discrepancy of features under the kernel (x y / D + 1)^3, without bias.

    In Inception features this is the kernel inception distance (Binkowski et al. 2018, Eq. 4), here over all pairs
    instead of a mean over random subsets. It may be slightly negative where both are alike.
    """
    within = (_kernel_sum(x, x) - ((np.square(x).sum(1) / x.shape[1] + 1) ** 3).sum() for x in (a, b))
    of_a, of_b = (total / (len(x) * (len(x) - 1)) for total, x in zip(within, (a, b), strict=True))
    return float(of_a + of_b - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(((a[rows] @ b.T / a.shape[1] + 1) ** 3).sum()) for rows in _blocks(len(a), len(b)))


def precision_recall(generated: np.ndarray, real: np.ndarray, *, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019, Eq. 1-2).

    Precision is the share of generated images within a ball of some real image, whose radius is the distance to that
    image's k-th nearest real neighbour; recall is the same with the two exchanged.
    """
    return _share_within(generated, real, k), _share_within(real, generated, k)


def density_coverage(generated: np.ndarray, real: np.ndarray, *, k: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020, Eq. 3-4).

    Density counts in how many balls of real images a generated one lies, over k: 1 is expected of equal distributions,
    more is possible. Coverage is the share of real images whose ball holds a generated one.
    """
    radii, held = _radii(real, k), np.zeros(len(real), dtype=bool)
    inside = 0
    for rows in _blocks(len(generated), len(real)):
        within = _distances(generated[rows], real) <= radii
        inside += int(within.sum())
        held |= within.any(0)
    return inside / (k * len(generated)), float(held.mean())


def nearest(points: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each point's distance to its nearest neighbour (N,), and that one's place (N,)."""
    distance, place = np.empty(len(points)), np.empty(len(points), dtype=np.int64)
    for rows in _blocks(len(points), len(among)):
        apart = _distances(points[rows], among)
        place[rows] = apart.argmin(1)
        distance[rows] = apart.min(1)
    return distance, place


def _share_within(points: np.ndarray, of: np.ndarray, k: int) -> float:
    """Return the share of points that lie within the ball of any member of ``of``."""
    radii = _radii(of, k)
    found = [(_distances(points[rows], of) <= radii).any(1) for rows in _blocks(len(points), len(of))]
    return float(np.concatenate(found).mean())


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each point to its k-th nearest other one (N,); to the last one where there are fewer."""
    k = min(k, len(points) - 1)
    return np.concatenate(
        [np.partition(_distances(points[rows], points), k, axis=1)[:, k] for rows in _blocks(len(points), len(points))]
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Euclidean distances (N, M)."""
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(squared.clip(min=0.0))


def _blocks(count: int, against: int) -> Iterator[slice]:
    step = max(1, CELLS // max(against, 1))
    return (slice(start, start + step) for start in range(0, count, step))
