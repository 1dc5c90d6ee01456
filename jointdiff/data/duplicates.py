"""Images that are nearly identical: found by perceptual hashes, confirmed by their thumbnails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

SIDE = 16  # of a thumbnail
BLOCK = 1 << 14  # thumbnails, or pairs of them, that are numbers with decimals at one time


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return a grey thumbnail uint8 (16, 16) of an image uint8 (H, W) or (H, W, C), an area average."""
    from PIL import Image

    if image.ndim == 3:
        # The rounded mean in whole numbers: of three bytes it never lies half-way, and decimals take ten times as long.
        total = np.full(image.shape[:2], image.shape[2] // 2, dtype=np.uint16)
        for plane in range(image.shape[2]):
            total += image[..., plane]
        image = (total // image.shape[2]).astype(np.uint8)
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


def unit_vectors(thumbs: np.ndarray) -> np.ndarray:
    """Return thumbnails (N, S, S) as vectors float32 (N, S * S) whose inner products are their correlations."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


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


def near_pairs(thumbs: np.ndarray, *, hamming: int, correlation: float) -> np.ndarray:
    """Return the pairs (P, 2) of thumbnails (N, S, S) that are nearly identical, the lower index first, sorted.

    Hashes that differ in at most ``hamming`` bits nominate, the ``correlation`` of the thumbnails decides: of many
    similar images (one body part, one pose) hashes alone would call too many the same.
    """
    blocks = range(0, len(thumbs), BLOCK)
    hashes = [perceptual_hash(thumbs[start : start + BLOCK].astype(np.float32)) for start in blocks]
    found = [np.empty((0, 2), dtype=np.int64)]
    for close in _close_hashes(np.concatenate(hashes), hamming) if hashes else ():
        for start in range(0, len(close), BLOCK):
            pairs = close[start : start + BLOCK]
            left, right = unit_vectors(thumbs[pairs[:, 0]]), unit_vectors(thumbs[pairs[:, 1]])
            found.append(pairs[np.einsum("ij,ij->i", left, right) >= correlation])
    return np.unique(np.concatenate(found), axis=0)


def _close_hashes(hashes: np.ndarray, hamming: int) -> Iterator[np.ndarray]:
    """Yield pairs (P, 2), some of them twice, of hashes (N,) uint64 that differ in at most ``hamming`` bits.

    Of ``hamming + 1`` bands of bits at least one is equal in such a pair, so that only hashes with an equal band are
    compared, and not all with all.
    """
    edges = np.linspace(0, 64, hamming + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, sorted_hashes = band[order], hashes[order]
        places, step = np.arange(len(order)), 1
        while True:  # compare each with the next, then the one after, as long as their bands are equal
            places = places[places + step < len(order)]
            places = places[band[places] == band[places + step]]
            if not len(places):
                break
            bits = np.bitwise_count(sorted_hashes[places] ^ sorted_hashes[places + step])
            close = places[bits <= hamming]
            yield np.sort(np.column_stack([order[close], order[close + step]]), axis=1)
            step += 1


def distinct_near_pairs(pixels: np.ndarray, thumbs: np.ndarray, *, hamming: int, correlation: float) -> np.ndarray:
    """Return ``near_pairs`` of the first image of each digest (N,): equal pixels are no news to their thumbnails."""
    first = np.unique(_first_of(pixels))
    return first[near_pairs(thumbs[first], hamming=hamming, correlation=correlation)]


def equal_pairs(pixels: np.ndarray) -> np.ndarray:
    """Return the pairs (P, 2) of each image whose digest (N,) came before, and the first one that has it."""
    first = _first_of(pixels)
    again = np.flatnonzero(first != np.arange(len(first)))
    return np.column_stack([first[again], again])


def _first_of(pixels: np.ndarray) -> np.ndarray:
    _, first, digest = np.unique(pixels.astype(np.str_), return_index=True, return_inverse=True)
    return first[digest]


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
