"""The balanced binary sets of Favero et al. (MIDL 2025, arXiv 2502.03687): as many images of one class as of the other.

Their code (github.com/faverogian/diffusion-classifier, dataset/isic.py and dataset/chexpert.py) draws the larger class
down to the size of the smaller one with seed 42, shuffles, and cuts the rows at 80 and 90 % into training, validation
and test. The draw here has the same law and seed, by numpy's generator and not by polars': it is not theirs row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jointdiff.data.source import DataError

SEED = 42


@dataclass(frozen=True)
class Drawn:
    """One row of the drawn set."""

    row: int  # among all that could be drawn
    group: str
    split: Literal["train", "validation", "test"] | None


def draw(
    classes: Sequence[int],
    *,
    names: tuple[str, str],
    ids: Sequence[str],
    patients: Sequence[str],
    row_level: bool,
    table: str,
) -> list[Drawn]:
    """Draw equally many rows of class 0 and 1, in random order.

    Args:
        classes: 0 or 1 of every row.
        names: what the two classes are called.
        ids: of every row; its group where ``row_level``.
        patients: of every row; its group otherwise, and then the splits are left to be drawn by patient.
        row_level: whether to cut rows into 80/10/10, whoever they belong to.
        table: what the rows are from, for messages.

    Raises:
        DataError: a class has no row.
    """
    rng = np.random.default_rng(SEED)
    rows = [np.flatnonzero(np.asarray(classes) == k) for k in range(2)]
    for name, found in zip(names, rows, strict=True):
        if not len(found):
            raise DataError(f"{table} has no image of {name!r}, so no balanced set can be drawn; download it again")
    count = min(map(len, rows))
    order = rng.permutation(np.concatenate([rng.choice(found, count, replace=False) for found in rows]))
    if not row_level:
        return [Drawn(row, patients[row], None) for row in order.tolist()]
    train, validation = int(0.8 * len(order)), int(0.9 * len(order))
    return [
        Drawn(row, ids[row], "train" if place < train else "validation" if place < validation else "test")
        for place, row in enumerate(order.tolist())
    ]
