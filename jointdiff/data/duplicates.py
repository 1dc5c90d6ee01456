"""Images that are nearly identical: found by perceptual hashes, confirmed by their thumbnails."""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 20  # pairs compared, or pixels averaged, at once: what fits a processor's cache


def thumbnails(images: np.ndarray, rows: np.ndarray, *, side: int = 16) -> np.ndarray:
    """Return grey thumbnails (len(rows), side, side) float32 of images uint8 (N, H, W, C), each an area average."""
    _, height, width, _ = images.shape
    down, across = _averaging(height, side), _averaging(width, side)
    out = np.empty((len(rows), side, side), dtype=np.float32)
    step = max(1, BLOCK // (4 * height * width))
    for start in range(0, len(rows), step):
        grey = images[rows[start : start + step]].mean(axis=3, dtype=np.float32)
        out[start : start + step] = down @ grey @ across.T
    return out


def perceptual_hash(thumbs: np.ndarray) -> np.ndarray:
    """Return 64-bit hashes (N,) of thumbnails (N, S, S): which of the lowest cosine frequencies exceed their median.

    The frequencies are those of pHash (Zauner 2010), 8 x 8 without the mean.
    """
    side = thumbs.shape[1]
    k, x = np.arange(9)[:, None], np.arange(side)[None, :]
    basis = np.cos(np.pi * k * (2 * x + 1) / (2 * side)).astype(np.float32)
    spectrum = (basis @ thumbs @ basis.T).reshape(len(thumbs), -1)
    low = [row * 9 + column for row in range(8) for column in range(8) if row + column] + [8]
    bits = spectrum[:, low] > np.median(spectrum[:, low], axis=1, keepdims=True)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64).ravel()


def near_pairs(
    hashes: np.ndarray,
    thumbs: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    *,
    hamming: int = 4,
    correlation: float = 0.995,
) -> np.ndarray:
    """Return the pairs (P, 2) of one index from ``a`` and one from ``b`` whose images are nearly identical.

    Hashes that differ in at most ``hamming`` bits nominate, the ``correlation`` of the thumbnails decides: of many
    similar images (one body part, one pose) hashes alone would call too many the same. Memory is bounded by blocks of
    pairs.
    """
    centred = thumbs.reshape(len(thumbs), -1) - thumbs.mean(axis=(1, 2))[:, None]
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.maximum(norm, 1e-6)
    found = [np.empty((0, 2), dtype=np.int64)]
    step = max(1, BLOCK // max(len(b), 1))
    for start in range(0, len(a), step):
        part = a[start : start + step]
        left, right = np.nonzero(np.bitwise_count(hashes[part][:, None] ^ hashes[b][None, :]) <= hamming)
        pairs = np.column_stack([part[left], b[right]])
        alike = np.einsum("ij,ij->i", unit[pairs[:, 0]], unit[pairs[:, 1]]) >= correlation
        found.append(pairs[alike])
    return np.concatenate(found)


def join_groups(names: list[str], groups: list[str], pairs: np.ndarray) -> list[str]:
    """Merge the groups that ``pairs`` (P, 2) of samples tie together; a merged group has its first sample's name."""
    parent = list(range(len(names)))

    def root(sample: int) -> int:
        while parent[sample] != sample:
            parent[sample] = sample = parent[parent[sample]]
        return sample

    first: dict[str, int] = {}
    ties = [(first.setdefault(group, sample), sample) for sample, group in enumerate(groups)]
    for one, other in [*ties, *pairs.tolist()]:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [names[root(sample)] for sample in range(len(names))]


def _averaging(length: int, side: int) -> np.ndarray:
    """Weights (side, length) of an area average, rows summing to 1."""
    edges = np.linspace(0, length, side + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.maximum(overlap, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
