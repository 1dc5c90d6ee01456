"""Bootstrap over groups: whole patients are drawn again, so that images of one patient stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from jointdiff.seeding import rng

MAX_CELLS = 8_000_000  # weights held at once (32 MB): more draws are made in blocks


def group_weights(groups: np.ndarray, *, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield blocks (n, b) of float32 with how often each case counts in each draw; the blocks hold ``draws`` in all.

    A draw takes as many groups as there are, with replacement. The same groups and seed give the same draws, whatever
    is scored with them: that makes comparisons paired.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    block = max(1, min(draws, MAX_CELLS // max(len(index), 1)))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        counts = np.stack([_counts(len(names), seed, draw) for draw in range(start, start + size)], axis=1)
        yield counts[index]


def _counts(groups: int, seed: int, draw: int) -> np.ndarray:
    """Draw a multinomial count per group as float32, which holds these integers and their sums exactly."""
    picked = rng(seed, "bootstrap", draw).integers(0, groups, groups)
    return np.bincount(picked, minlength=groups).astype(np.float32)


def resample(statistic: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, *, draws: int) -> np.ndarray:
    """Return ``statistic(weights (n, b)) -> (..., b)`` for every draw, joined to (..., draws)."""
    return np.concatenate([statistic(weights) for weights in group_weights(groups, draws=draws)], axis=-1)


def percentile_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central interval of draws (B,); NaN where more than half of them are undefined."""
    values = values[~np.isnan(values)] if np.isnan(values).sum() * 2 <= len(values) else values[:0]
    if not len(values):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
