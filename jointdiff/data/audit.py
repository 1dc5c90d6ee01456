"""Leaks between roles: shared groups, identical images, and images that are nearly identical."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.data.duplicates import unit_vectors
from jointdiff.data.store import ROLES, Store

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3  # pairs named per row
COMPARED = 2048  # test images, at most, whose nearest training image is looked for


def find_leaks(store: Store, split: pd.DataFrame) -> pd.DataFrame:
    """Count what any two roles share.

    Returns a table with the columns role_a, role_b, images_a, images_b, shared_groups (0, but for labelled and
    unlabelled images of a published list), exact_duplicates and near_duplicates (pairs of images, one in each role;
    the latter without the former) and examples (names of some such pairs).
    """
    import pandas as pd

    rows = {role: members for role, members in store.split_rows(split).items() if len(members)}
    _, pixels = np.unique(store.pixels, return_inverse=True)
    found = []
    for role_a, role_b in combinations([role for role in ROLES if role in rows], 2):
        a, b = rows[role_a], rows[role_b]
        count_a, count_b = Counter(pixels[a].tolist()), Counter(pixels[b].tolist())
        twins = sorted(count_a.keys() & count_b.keys())
        # Near duplicates are known for the first of equal images; each of its twins counts.
        near = [
            (one, other, count_a[x] * count_b[y])
            for pair in store.near_duplicates.tolist()
            for one, other in (pair, pair[::-1])
            if (x := int(pixels[one])) in count_a and (y := int(pixels[other])) in count_b
        ]
        examples = [(a[pixels[a] == twin][0], b[pixels[b] == twin][0]) for twin in twins[:EXAMPLES]]
        examples += [(one, other) for one, other, _ in near[: EXAMPLES - len(examples)]]
        found.append(
            {
                "role_a": role_a,
                "role_b": role_b,
                "images_a": len(a),
                "images_b": len(b),
                "shared_groups": len(np.intersect1d(store.groups[a], store.groups[b])),
                "exact_duplicates": sum(count_a[twin] * count_b[twin] for twin in twins),
                "near_duplicates": sum(count for _, _, count in near),
                "examples": "; ".join(" ~ ".join(store.sample_ids[list(pair)]) for pair in examples),
            }
        )
    columns = ["role_a", "role_b", "images_a", "images_b"]
    columns += ["shared_groups", "exact_duplicates", "near_duplicates", "examples"]
    return pd.DataFrame(found, columns=columns)


def most_alike(store: Store, split: pd.DataFrame, *, count: int) -> list[tuple[int, int, float]]:
    """Return the ``count`` pairs (test row, other row, correlation of thumbnails) that are most alike.

    Of a large test split, every n-th image is looked at.
    """
    rows = store.split_rows(split)
    test = rows["test"][:: max(1, -(-len(rows["test"]) // COMPARED))]
    others = np.concatenate([rows[role] for role in ROLES if role != "test"])
    if not len(test) or not len(others):
        return []
    left, right = unit_vectors(store.thumbnails[test]), unit_vectors(store.thumbnails[others])
    likeness = np.full(len(test), -2.0)
    nearest = np.zeros(len(test), dtype=np.int64)
    for start in range(0, len(others), 4096):
        block = left @ right[start : start + 4096].T
        best = block.argmax(axis=1)
        values = block[np.arange(len(test)), best]
        better = values > likeness
        likeness[better], nearest[better] = values[better], start + best[better]
    order = np.argsort(-likeness, kind="stable")[:count]
    return [(int(test[i]), int(others[nearest[i]]), float(likeness[i])) for i in order]
