"""The Frechet distance between two sets of features. numpy alone."""

from __future__ import annotations

import numpy as np


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
