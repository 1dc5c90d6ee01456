"""Who plays which role: test, labelled, validation or unlabelled, drawn by whole groups.

Roles are dealt, not thrown: groups are taken one at a time, each time the one of a few that keeps every finding's
share in its role closest to the share in all. A budget is a prefix of that one order, so that smaller budgets lie
within larger ones, in both of their roles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.data.source import DataError
from jointdiff.data.store import Store, open_store
from jointdiff.files import atomic_path
from jointdiff.seeding import rng
from jointdiff.text import by_letters, composed, decode_text

if TYPE_CHECKING:
    import pandas as pd


class BudgetError(DataError):
    """A label budget that the data set cannot give, with what it can."""


def split_dataset(store: Path | str, *, out: Path | str, budget: str, lists: Mapping[str, str], **how: Any) -> None:
    """Write the split of one (data set, budget, seed) as a table; see ``draw_split``.

    Args:
        store: folder of the prepared data set.
        out: file to write.
        budget: as in ``draw_split``, or "list-NAME".
        lists: file of sample ids for each NAME.
        how: what else ``draw_split`` takes.

    Raises:
        BudgetError: the budget cannot be met.
        DataError: a list names images that the data set does not know.
    """
    opened = open_store(store)
    listed = read_list(lists[budget.removeprefix("list-")], opened) if budget.startswith("list-") else None
    split = draw_split(opened, budget=budget, listed=listed, **how)
    with atomic_path(out) as aside:
        split.to_parquet(aside, write_page_checksum=True)


def read_list(path: Path | str, store: Store) -> np.ndarray:
    """Return which samples (N,) a file of sample ids names; a line that comes again counts once.

    Raises:
        DataError: it is empty, or names images that the data set does not know.
    """
    try:
        lines = re.split(r"\r\n|\r|\n", decode_text(Path(path).read_bytes(), name=str(path)))
    except UnicodeError as error:
        raise DataError(str(error)) from None
    names = [(row, line.strip()) for row, line in enumerate(lines, start=1) if line.strip()]
    known, letters = set(store.sample_ids.tolist()), by_letters(store.sample_ids.tolist())
    meant = [name if name in known else letters.get(composed(name)) for _, name in names]
    listed = np.isin(store.sample_ids, [name for name in meant if name])
    strange = [line for line, name in zip(names, meant, strict=True) if name is None]
    if strange or not names:
        what = (
            f"{len(strange)} of its ids are unknown, first {strange[0][1]!r} in line {strange[0][0]}"
            if names
            else ("it is empty")
        )
        raise DataError(f"{path}: no list of samples of {store.info.name}: {what}; it should hold one sample id a line")
    return listed


def draw_split(
    store: Store,
    *,
    budget: str,
    seed: int,
    validation: float,
    test: float,
    test_images: int | None = None,
    folds: int | None = None,
    listed: np.ndarray | None = None,
) -> pd.DataFrame:
    """Draw the roles of one (data set, budget, seed): a table with the columns sample_id and role.

    Where images are of domains, those of the source are labelled, validation or unlabelled, those of the target
    unlabelled or test; budgets count the source alone, ``test`` and ``folds`` the target alone.

    Args:
        store: the prepared data set.
        budget: "200" (images), "25-per-class" (of each of K classes), "0.1" (of the training images) or "all".
            It counts validation too, and is met exactly: what is left of a group that the budget cuts has no role.
        seed: decides everything that is drawn; the test images are the same for every budget.
        validation: share of the budget's images kept for choices, in (0, 1).
        test: share of the images held out where the publisher has no test split, in (0, 1).
        test_images: about so many of the test images, dealt by whole groups, where that is fewer; the others have no
            role. They too are the same for every budget.
        folds: k, where each seed is to hold out another k-th of all images instead: seed s its fold s modulo k, of
            the partition s // k.
        listed: which samples (N,) are labelled, instead of what ``budget`` says. The other images of their groups stay
            unlabelled, as those who publish such lists have it, unless the group validates.

    Raises:
        BudgetError: the data set has fewer images than the budget, or the budget is too small to validate on.
    """
    import pandas as pd

    roles = draw_roles(
        store.labels,
        groups=store.groups,
        published=store.published_splits,
        domains=store.domains,
        kind=store.info.labels.kind,
        names=store.info.labels.names,
        dataset=store.info.name,
        budget=budget,
        seed=seed,
        validation=validation,
        test=test,
        test_images=test_images,
        folds=folds,
        listed=listed,
    )
    kept = roles != ""
    return pd.DataFrame({"sample_id": store.sample_ids[kept], "role": roles[kept]})


def draw_roles(
    labels: np.ndarray,
    *,
    groups: np.ndarray,
    published: np.ndarray,
    kind: str,
    names: tuple[str, ...],
    dataset: str,
    budget: str,
    seed: int,
    validation: float,
    test: float,
    test_images: int | None = None,
    folds: int | None = None,
    listed: np.ndarray | None = None,
    domains: np.ndarray | None = None,
) -> np.ndarray:
    """Return the role of each sample (N,), an empty string where it has none; see ``draw_split``.

    Args:
        labels: (N, K) in {0, 1}, NaN where unknown. Images without any known label are only ever unlabelled.
        groups: (N,) names that no two roles share.
        published: (N,) the publisher's split, where there is one.
        kind: "one_of_k" or "multi_label".
        names: the K findings or classes, for messages.
        dataset: its name, for messages.
        budget, seed, validation, test, test_images, folds, listed: as in ``draw_split``.
        domains: (N,) "source" or "target", an empty string for images that may play any role.
    """
    _, group = np.unique(groups, return_inverse=True)
    roles = np.full(len(labels), "", dtype="<U10")
    known = ~np.isnan(labels).all(axis=1)
    domains = np.full(len(labels), "") if domains is None else domains
    testable, labellable = domains != "source", domains != "target"

    if folds:
        partition = draw_folds(labels, group, folds=folds, seed=seed // folds, pool=np.flatnonzero(testable))
        held_out = partition == seed % folds
    else:
        held_out = published == "test"
        if not (held_out & testable).any():
            held_out |= _dealt(labels, group, np.flatnonzero(testable), share=test, seed=seed, purpose="test")
    tested = held_out & testable  # what a publisher holds out of the source domain has no role
    asked = np.flatnonzero(tested & known)
    if test_images is not None and test_images < len(asked):
        share = test_images / len(asked)
        asked = np.flatnonzero(_dealt(labels, group, asked, share=share, seed=seed, purpose="fewer test images"))
    roles[asked] = "test"

    # A training image of a group that the publisher also put into the test split would leak: it gets no role.
    training = ~held_out & ~np.isin(group, group[held_out])
    pool = np.flatnonzero(training & known & labellable)
    roles[training] = "unlabelled"
    if listed is not None:
        if (wrong := int((listed & (published == "test") & ~training).sum())) and not folds:
            raise BudgetError(
                f"{dataset}: the list of the label budget {budget!r} names {wrong} images of the official test "
                "split; remove them from the list"
            )
        if wrong := int((listed & ~labellable).sum()):
            raise BudgetError(
                f"{dataset}: the list of the label budget {budget!r} names {wrong} images of the target domain, which "
                "has no labels; remove them from the list"
            )
        return _as_listed(roles, labels, group, training & known & listed, seed, validation, dataset, budget)

    counted = _budget(budget, pool=labels[pool], kind=kind, names=names, dataset=dataset, held_out=int(tested.sum()))
    if counted.per_class:
        # Each class is an order of its own; a group belongs to the class of most of its images.
        classes = _majority(labels, group, pool)
        parts = [pool[classes == k] for k in range(len(names))]
    else:
        parts = [pool]
    for index, part in enumerate(parts):
        # The classes' turns to validate are staggered, so that the shares come out right over all of them.
        phase = (index + 0.5) / len(parts) - 0.5
        taken = 0
        deal = _deal(
            labels,
            group,
            part,
            share=validation,
            seed=seed,
            purpose=f"labels-{index}",
            phase=phase,
            cover=kind == "multi_label",
        )
        for rows, chosen in deal:
            used = rows[: counted.images - taken]
            roles[used] = "validation" if chosen else "labelled"
            taken += len(used)
            if taken == counted.images:
                break
        if taken < counted.images:
            raise BudgetError(
                f"{dataset}: the label budget {budget!r} cannot be met by whole groups: {names[index]!r} "
                f"has only {taken} images in groups of its own; ask for at most {taken}-per-class"
            )
    # What the budget cuts off a group may not be unlabelled, or the group would play two roles.
    labelled = np.isin(roles, ("labelled", "validation"))
    roles[(roles == "unlabelled") & np.isin(group, group[labelled])] = ""
    _check_roles(roles, validation, dataset, budget)
    return roles


def draw_folds(
    labels: np.ndarray, group: np.ndarray, *, folds: int, seed: int, pool: np.ndarray | None = None
) -> np.ndarray:
    """Return the fold (N,), 0 to ``folds`` - 1, of each sample; folds hold whole groups and are alike.

    Of samples that are not in ``pool`` (rows, all by default) it is -1.
    """
    rest = np.arange(len(labels)) if pool is None else pool
    fold = np.full(len(labels), -1)
    fold[rest] = folds - 1
    for index in range(folds - 1):
        chosen = _dealt(labels, group, rest, share=1 / (folds - index), seed=seed, purpose=f"fold-{index}")
        fold[chosen] = index
        rest = rest[~chosen[rest]]
    return fold


def _as_listed(
    roles: np.ndarray,
    labels: np.ndarray,
    group: np.ndarray,
    listed: np.ndarray,
    seed: int,
    validation: float,
    dataset: str,
    budget: str,
) -> np.ndarray:
    """Label the listed images, some of them for validation; nothing of a group that validates is trained on."""
    pool = np.flatnonzero(listed)
    chosen = _dealt(labels, group, pool, share=validation, seed=seed, purpose="labels-0", cover=True)
    roles[pool] = "labelled"
    roles[chosen] = "validation"
    roles[(roles == "unlabelled") & np.isin(group, group[chosen])] = ""
    _check_roles(roles, validation, dataset, budget)
    return roles


def _check_roles(roles: np.ndarray, validation: float, dataset: str, budget: str) -> None:
    for role in ("labelled", "validation"):
        if not (roles == role).any():
            raise BudgetError(
                f"{dataset}: the label budget {budget!r} leaves no image for the role {role} "
                f"(validation share {validation}); ask for more labels"
            )


CHOICE = 32  # groups of which one is taken: more balance with more, more chance with fewer; of few groups, an eighth


@dataclass(frozen=True)
class _Budget:
    images: int  # in all, or of each class
    per_class: bool = False


def _budget(
    budget: str, *, pool: np.ndarray, kind: str, names: tuple[str, ...], dataset: str, held_out: int
) -> _Budget:
    """Turn a token into a number of images that the pool (N, K) can give."""
    available = len(pool)
    if budget == "all":
        return _Budget(available)
    if match := re.fullmatch(r"(\d+)-per-class", budget):
        asked = int(match[1])
        if kind != "one_of_k":
            raise BudgetError(
                f"{dataset}: the label budget {budget!r} needs one class per image, and here an image may have "
                "several findings; ask for a count (200) or a fraction (0.1)"
            )
        for name, count in zip(names, (pool == 1).sum(axis=0).tolist(), strict=True):
            if asked > count:
                raise BudgetError(
                    f"{dataset}: the label budget {budget!r} is larger than the class {name!r}, of which {count} "
                    f"images can be labelled ({held_out} of the data set are the test); ask for at most "
                    f"{min((pool == 1).sum(axis=0))}-per-class"
                )
        return _Budget(asked, per_class=True)
    asked = int(budget) if re.fullmatch(r"\d+", budget) else max(1, round(float(budget) * available))
    if asked > available:
        raise BudgetError(
            f"{dataset}: the label budget {budget!r} is larger than the data set, of which {available} images can be "
            f"labelled ({held_out} are the test); ask for at most {available}, or for 'all'"
        )
    return _Budget(asked)


def _majority(labels: np.ndarray, group: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Return the most frequent class (len(pool),) of each image's group."""
    counts = np.zeros((group.max() + 1, labels.shape[1]))
    np.add.at(counts, group[pool], np.nan_to_num(labels[pool]))
    return counts.argmax(axis=1)[group[pool]]


def _dealt(labels: np.ndarray, group: np.ndarray, pool: np.ndarray, **how: Any) -> np.ndarray:
    """Return which samples (N,) the second hand gets when all of ``pool`` is dealt; see ``_deal``."""
    second = np.zeros(len(labels), dtype=bool)
    for rows, chosen in _deal(labels, group, pool, **how):
        second[rows] = chosen
    return second


def _deal(
    labels: np.ndarray,
    group: np.ndarray,
    pool: np.ndarray,
    *,
    share: float,
    seed: int,
    purpose: str,
    phase: float = 0.0,
    cover: bool = False,
) -> Iterator[tuple[np.ndarray, bool]]:
    """Deal the groups of ``pool`` into two hands, of which the second gets ``share`` of the images.

    Yields the rows of one group after another and whether they go to the second hand; neither depends on how many of
    them the caller takes. The first group goes to the first hand, so that a finding with a single positive can be
    learnt. Each hand looks for a positive and a negative of every finding first, the rarest one first, then for
    balance: of up to ``CHOICE`` groups drawn at random it takes the one that brings its counts closest to the pool's.
    """
    g = rng(seed, "split", purpose)
    if not len(pool):
        return
    # Shuffle images, then gather those of a group; a group stands where its first image does.
    rows = pool[g.permutation(len(pool))]
    _, first, member = np.unique(group[rows], return_index=True, return_inverse=True)
    rows = rows[np.argsort(first[member], kind="stable")]
    starts = np.flatnonzero(np.diff(group[rows], prepend=-1))
    sizes = np.diff(starts, append=len(rows))
    known = np.concatenate([labels[rows] == 1, labels[rows] == 0], axis=1).astype(np.float64)
    gain = np.add.reduceat(known, starts, axis=0)  # (groups, 2K): positives and negatives
    left = gain.sum(axis=0)
    target = left / len(rows)
    weight = 1.0 / np.maximum(target * (1.0 - target), 1e-6)
    typical = float(sizes.mean())
    waiting = np.arange(len(starts))
    # Offered every group at each turn, a small data set would be dealt alike by every seed.
    draws = g.random((len(starts), CHOICE))[:, : max(2, len(starts) // 8)]
    hands, dealt = np.zeros((2, gain.shape[1])), [0, 0]
    for turn in range(len(starts)):
        # Half a typical group ahead, so that the share is met on average and not from below. While the second hand
        # lacks a finding it may take up to twice its share for it; the balance returns later.
        due = min(2 * share, max(share, 0.5)) if cover and ((hands[1] == 0) & (left > 0)).any() else share
        second = turn > 0 and dealt[1] + typical / 2 <= due * (sum(dealt) + typical) + phase * typical
        hand = hands[int(second)]
        lacking = (hand == 0) & (left > 0)
        if lacking.any():
            rarest = np.argmin(np.where(lacking, left, np.inf))
            having = np.flatnonzero(gain[waiting, rarest])
            places = having[(draws[turn] * len(having)).astype(int)]
        else:
            places = (draws[turn] * len(waiting)).astype(int)
        offered = waiting[places]
        off = (hand + gain[offered] - target * (dealt[int(second)] + sizes[offered])[:, None]) ** 2 @ weight
        if lacking.any():
            helps = (lacking & (gain[offered] > 0)).sum(axis=1)
            off[helps < helps.max()] = np.inf
        best = int(np.argmin(off))
        picked = int(offered[best])
        waiting[places[best]] = waiting[-1]
        waiting = waiting[:-1]
        images = slice(starts[picked], starts[picked] + sizes[picked])
        # Should the budget end within this group, then with the images that bring what the hand lacks.
        helpful = np.argsort(-known[images][:, lacking].sum(axis=1), kind="stable")
        hand += gain[picked]
        left = left - gain[picked]
        dealt[int(second)] += int(sizes[picked])
        yield rows[images][helpful], bool(second)
