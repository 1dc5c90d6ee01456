"""Splits: by whole groups, in nested budgets, the same for the same seed, and audited."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointdiff.data.prepare import prepare
from jointdiff.data.splits import BudgetError, audit_split, draw_roles, draw_split
from jointdiff.data.store import open_store


def draw(labels, groups=None, *, published=None, budget="all", seed=0, kind="multi_label", validation=0.2, test=0.25):
    labels = np.asarray(labels, dtype=np.float32)
    return draw_roles(
        labels,
        groups=np.arange(len(labels)) if groups is None else np.asarray(groups),
        published=np.full(len(labels), "") if published is None else np.asarray(published),
        kind=kind,
        names=tuple(f"finding {k}" for k in range(labels.shape[1])),
        dataset="toy",
        budget=budget,
        seed=seed,
        validation=validation,
        test=test,
    )


@st.composite
def data_sets(draw_value):
    """Multi-label sets of 100 to 250 images in groups of 1 to 5, some labels unknown, some with a published test."""
    g = np.random.default_rng(draw_value(st.integers(0, 2**32)))
    n, biggest = draw_value(st.integers(100, 250)), draw_value(st.integers(1, 5))
    groups = g.permutation(np.repeat(np.arange(n), g.integers(1, biggest + 1, n))[:n])
    labels = (g.random((n, draw_value(st.integers(1, 4)))) < 0.3).astype(np.float32)
    labels[g.random(labels.shape) < draw_value(st.sampled_from([0.0, 0.3]))] = np.nan
    published = np.where(g.random(n) < 0.2, "test", "train") if draw_value(st.booleans()) else np.full(n, "")
    return labels, groups, published


@settings(max_examples=60, deadline=None)
@given(
    data=data_sets(), budget=st.integers(25, 40), seed=st.integers(0, 5), validation=st.sampled_from([0.1, 0.2, 0.5])
)
def test_no_group_crosses_roles_and_budgets_are_exact_and_nested(data, budget, seed, validation):
    labels, groups, published = data
    known = ~np.isnan(labels).all(axis=1)
    pool = draw(labels, groups, published=published, seed=seed, validation=validation)
    larger = min(2 * budget, int(np.isin(pool, ["labelled", "validation"]).sum()))
    rolls = [
        draw(labels, groups, published=published, budget=str(b), seed=seed, validation=validation)
        for b in (min(budget, larger), larger)
    ]
    rolls.append(pool)
    for size, roles in zip((min(budget, larger), larger, None), rolls, strict=True):
        held = {}
        for group, role in zip(groups, roles, strict=True):
            if role:
                assert held.setdefault(group, role) == role, "a group crosses roles"
        labelled = np.isin(roles, ["labelled", "validation"])
        assert size is None or labelled.sum() == size
        assert known[labelled].all(), "an image without labels is called labelled"
        if (published == "test").any():
            assert np.array_equal(roles == "test", (published == "test") & known)
        assert np.array_equal(roles == "test", pool == "test")
    for smaller, bigger in pairwise(rolls):
        for role in ("labelled", "validation"):
            assert not ((smaller == role) & (bigger != role)).any(), f"{role} is not nested"


@settings(max_examples=20, deadline=None)
@given(data=data_sets(), seed=st.integers(0, 3))
def test_the_seed_decides(data, seed):
    labels, groups, published = data
    once = draw(labels, groups, published=published, budget="20", seed=seed)
    assert np.array_equal(once, draw(labels, groups, published=published, budget="20", seed=seed))
    assert not np.array_equal(once, draw(labels, groups, published=published, budget="20", seed=seed + 1))


def test_every_finding_keeps_a_positive_and_a_negative_in_every_role():
    for seed in range(5):
        g = np.random.default_rng(seed)
        labels = np.zeros((400, 6))
        for k, positives in enumerate((3, 6, 20, 100, 200, 397)):
            labels[g.choice(400, positives, replace=False), k] = 1
        roles = draw(labels, np.arange(400) // 2, budget="60", seed=seed)
        for role in ("labelled", "validation", "test"):
            counts = labels[roles == role].sum(axis=0)
            assert np.all(counts[1:] > 0) and np.all(counts < (roles == role).sum()), (seed, role, counts)
        # Three positives, in up to three groups, are just enough for the three roles.
        assert labels[roles == "labelled", 0].sum() > 0


def test_prevalence_is_kept():
    g = np.random.default_rng(0)
    labels = (g.random((2000, 3)) < [0.1, 0.3, 0.5]).astype(float)
    roles = draw(labels, np.arange(2000) // 4, budget="200")
    for role, count in (("labelled", 160), ("validation", 40), ("test", 500)):
        assert abs((roles == role).sum() - count) <= 4
        np.testing.assert_allclose(labels[roles == role].mean(axis=0), labels.mean(axis=0), atol=0.06)


def one_of_k(n=600, k=5, seed=0):
    return np.eye(k)[np.random.default_rng(seed).integers(0, k, n)]


@pytest.mark.parametrize("each", [2, 3, 7, 25])
def test_a_count_per_class_is_a_count_per_class(each):
    labels = one_of_k()
    roles = draw(labels, budget=f"{each}-per-class", kind="one_of_k")
    used = np.isin(roles, ["labelled", "validation"])
    assert labels[used].sum(axis=0).tolist() == [each] * 5
    assert np.all(labels[roles == "labelled"].sum(axis=0) > 0)
    assert abs((roles == "validation").sum() - each) <= 1
    bigger = draw(labels, budget=f"{each + 3}-per-class", kind="one_of_k")
    for role in ("labelled", "validation"):
        assert not ((roles == role) & (bigger != role)).any()


def test_counts_and_fractions_of_classes_are_stratified():
    labels = one_of_k()
    roles = draw(labels, budget="100", kind="one_of_k")
    counts = labels[np.isin(roles, ["labelled", "validation"])].sum(axis=0)
    assert counts.sum() == 100
    np.testing.assert_allclose(counts / 100, labels.mean(axis=0), atol=0.03)
    roles = draw(labels, budget="0.1", kind="one_of_k")
    training = np.isin(roles, ["labelled", "validation", "unlabelled"]).sum()
    assert np.isin(roles, ["labelled", "validation"]).sum() == round(0.1 * training)


def test_all_leaves_nothing_unlabelled():
    roles = draw(one_of_k(), kind="one_of_k")
    assert not (roles == "unlabelled").any() and (roles != "").all()


def test_training_images_of_a_published_test_group_play_no_role():
    published = np.array(["train"] * 40 + ["test"] * 10)
    groups = np.arange(50)
    groups[3] = 45
    roles = draw(one_of_k(50, 2), groups, published=published, kind="one_of_k")
    assert roles[3] == "" and (roles[40:] == "test").all()


@pytest.mark.parametrize(
    ("budget", "kind", "message"),
    [
        ("1000", "one_of_k", r"toy: the label budget '1000' is larger than the data set, of which 450 images"),
        ("99-per-class", "one_of_k", r"toy: the label budget '99-per-class' is larger than the class 'finding \d'"),
        ("5-per-class", "multi_label", "needs one class per image"),
        ("1", "one_of_k", "leaves no image for the role validation"),
    ],
)
def test_impossible_budgets_are_named(budget, kind, message):
    with pytest.raises(BudgetError, match=message):
        draw(one_of_k(), budget=budget, kind=kind)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    prepare("phantom", folder, folder / "phantom", size=32, options={"patients": 60})
    return open_store(folder / "phantom")


def test_a_split_of_a_store_is_read_back(store, tmp_path):
    split = draw_split(store, budget="50", seed=1, validation=0.2, test=0.25)
    split.to_parquet(tmp_path / "split.parquet")
    rows = store.split_rows(tmp_path / "split.parquet")
    assert len(rows["labelled"]) + len(rows["validation"]) == 50
    for role, members in rows.items():
        expected = set(split.sample_id[split.role == role])
        assert set(store.sample_ids[members]) == expected
    split.loc[0, "sample_id"] = "stranger"
    with pytest.raises(ValueError, match=r"names 'stranger', which .* does not know"):
        store.split_rows(split)


def test_an_honest_split_passes_its_audit(store):
    audit = audit_split(store, draw_split(store, budget="50", seed=1, validation=0.2, test=0.25))
    assert len(audit) == 6
    assert not audit[["shared_groups", "exact_duplicates"]].to_numpy().any()


def test_the_audit_finds_planted_leaks(store):
    import dataclasses

    split = draw_split(store, budget="50", seed=1, validation=0.2, test=0.25)
    rows = store.split_rows(split)
    leaky = dataclasses.replace(store)
    images, groups = store.images.copy(), store.groups.copy()
    train, test = rows["unlabelled"], rows["test"]
    images[test[0]] = images[train[0]]
    images[test[1]] = np.clip(images[train[1]].astype(int) + 5, 0, 255).astype(np.uint8)
    groups[test[2]] = groups[rows["labelled"][0]]
    vars(leaky).update(images=images, groups=groups)
    audit = audit_split(leaky, split).set_index(["role_a", "role_b"])
    honest = audit_split(store, split).set_index(["role_a", "role_b"])
    assert audit.loc[("unlabelled", "test"), "exact_duplicates"] == 1
    assert audit.loc[("unlabelled", "test"), "near_duplicates"] > honest.loc[("unlabelled", "test"), "near_duplicates"]
    assert store.sample_ids[train[0]] in audit.loc[("unlabelled", "test"), "examples"]
    assert audit.loc[("labelled", "test"), "shared_groups"] == 1
