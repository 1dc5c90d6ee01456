"""Leaks between roles: shared groups, identical images, and images that are nearly identical."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.data.duplicates import near_pairs, perceptual_hash, thumbnails
from jointdiff.data.store import ROLES, Store

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3  # pairs named per row


def find_leaks(store: Store, split: pd.DataFrame) -> pd.DataFrame:
    """Count what any two roles share.

    Returns a table with the columns role_a, role_b, shared_groups (must be 0), exact_duplicates and near_duplicates
    (pairs of images, one in each role; the latter without the former) and examples (names of some such pairs).
    """
    import pandas as pd

    rows = {role: members for role, members in store.split_rows(split).items() if len(members)}
    used = np.sort(np.concatenate(list(rows.values()))) if rows else np.empty(0, dtype=np.int64)
    place = np.full(store.info.samples, -1)
    place[used] = np.arange(len(used))
    exact = np.array([hashlib.blake2b(image, digest_size=16).hexdigest() for image in store.images[used]])
    thumbs = thumbnails(store.images, used)
    hashes = perceptual_hash(thumbs)
    found = []
    for role_a, role_b in combinations([role for role in ROLES if role in rows], 2):
        a, b = place[rows[role_a]], place[rows[role_b]]
        count_a, count_b = Counter(exact[a].tolist()), Counter(exact[b].tolist())
        near = near_pairs(hashes, thumbs, a, b)
        near = near[exact[near[:, 0]] != exact[near[:, 1]]]
        twins = [digest for digest in count_a if digest in count_b]
        examples = [(a[exact[a] == digest][0], b[exact[b] == digest][0]) for digest in twins[:EXAMPLES]]
        examples += [tuple(pair) for pair in near[: EXAMPLES - len(examples)]]
        found.append(
            {
                "role_a": role_a,
                "role_b": role_b,
                "shared_groups": len(np.intersect1d(store.groups[rows[role_a]], store.groups[rows[role_b]])),
                "exact_duplicates": sum(count_a[digest] * count_b[digest] for digest in twins),
                "near_duplicates": len(near),
                "examples": "; ".join(" ~ ".join(store.sample_ids[used[list(pair)]]) for pair in examples),
            }
        )
    columns = ["role_a", "role_b", "shared_groups", "exact_duplicates", "near_duplicates", "examples"]
    return pd.DataFrame(found, columns=columns)
