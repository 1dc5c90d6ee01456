"""Splits: by whole groups, in nested budgets, the same for the same seed, and audited."""

import types
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jointdiff.data.audit import find_leaks, most_alike
from jointdiff.data.prepare import prepare, prepare_source
from jointdiff.data.source import DataError
from jointdiff.data.sources import phantom
from jointdiff.data.splits import BudgetError, draw_folds, draw_roles, draw_split, read_list, split_dataset
from jointdiff.data.store import open_store
from jointdiff.report.audit import draw_audit
from tests.properties import examples


def draw(
    labels, groups=None, *, published=None, budget="all", seed=0, kind="multi_label", validation=0.2, test=0.25, **how
):
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
        **how,
    )


@st.composite
def data_sets(draw_value):
    """Multi-label sets of 100 to 250 images in groups of 1 to 5, some labels unknown, some with a published test.

    At least 40 images can be labelled, the largest budget asked for, however the other images are held out.
    """
    g = np.random.default_rng(draw_value(st.integers(0, 2**32)))
    n, biggest = draw_value(st.integers(100, 250)), draw_value(st.integers(1, 5))
    groups = g.permutation(np.repeat(np.arange(n), g.integers(1, biggest + 1, n))[:n])
    labels = (g.random((n, draw_value(st.integers(1, 4)))) < 0.3).astype(np.float32)
    labels[g.random(labels.shape) < draw_value(st.sampled_from([0.0, 0.3]))] = np.nan
    published = np.where(g.random(n) < 0.2, "test", "train") if draw_value(st.booleans()) else np.full(n, "")
    trainable = ~np.isnan(labels).all(axis=1) & ~np.isin(groups, groups[published == "test"])
    assume(trainable.sum() * (1.0 if (published == "test").any() else 0.75) >= 40 + biggest)
    return labels, groups, published


@examples(60)
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


@examples(40)
@given(
    data=data_sets(), budget=st.sampled_from(["25", "40", "0.4"]), seed=st.integers(0, 5),
    validation=st.sampled_from([0.1, 0.2, 0.5]),
)  # fmt: skip
def test_whoever_trains_with_every_label_sees_no_group_that_validates_or_tests_a_smaller_budget(
    data, budget, seed, validation
):
    """So that a smaller budget may begin with what was learnt from all images without their labels."""
    labels, groups, published = data
    how = {"published": published, "seed": seed, "validation": validation}
    few, every = draw(labels, groups, budget=budget, **how), draw(labels, groups, **how)
    held_out = np.unique(groups[np.isin(few, ["validation", "test"])])
    assert len(held_out)
    assert not np.isin(groups[np.isin(every, ["labelled", "unlabelled"])], held_out).any()


@examples(20)
@given(data=data_sets(), seed=st.integers(0, 3))
def test_the_seed_decides(data, seed):
    labels, groups, published = data
    once = draw(labels, groups, published=published, budget="20", seed=seed)
    assume((once == "unlabelled").sum() > 10)  # where nothing is left to choose, nothing differs
    assert np.array_equal(once, draw(labels, groups, published=published, budget="20", seed=seed))
    assert not np.array_equal(once, draw(labels, groups, published=published, budget="20", seed=seed + 1))


def test_seeds_share_few_labels_where_groups_are_few():
    labels, groups = (np.random.default_rng(0).random((200, 2)) < 0.3).astype(float), np.arange(200) // 4
    published = np.where(groups % 4 == 0, "test", "train")
    splits = [draw(labels, groups, published=published, budget="15", seed=seed) for seed in range(20)]
    used = np.isin(splits, ["labelled", "validation"]).astype(float)
    shared = (used @ used.T)[np.triu_indices(20, 1)] / 15
    assert shared.mean() < 0.25  # 0.10 at random, 0.63 were every group offered at each turn


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
    audit = find_leaks(store, draw_split(store, budget="50", seed=1, validation=0.2, test=0.25))
    assert len(audit) == 6
    assert not audit[["shared_groups", "exact_duplicates"]].to_numpy().any()


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """Prepare phantoms with a published split across which images were planted."""
    folder = tmp_path_factory.mktemp("leaky")
    drawn = [load() for load in phantom.read(size=32, patients=60)]
    split = ["test" if row >= 180 else "train" for row in range(240)]
    samples = [replace(sample, split=role) for sample, role in zip(drawn, split, strict=True)]
    samples[200] = replace(samples[200], image=samples[3].image)
    samples[201] = replace(samples[201], image=samples[3].image)
    samples[202] = replace(samples[202], image=np.clip(samples[7].image * 0.98 + 5, 0, 255).astype(np.uint8))
    samples[203] = replace(samples[203], group=samples[11].group)
    module = types.SimpleNamespace(SOURCE=phantom.SOURCE, read=lambda raw, *, size, **options: iter(samples))
    prepare_source(module, folder, folder / "store", size=32)
    return open_store(folder / "store")


def test_the_audit_finds_planted_leaks(leaky):
    role = np.repeat(["labelled", "unlabelled", "test"], [6, 174, 60])
    found = find_leaks(leaky, {"sample_id": leaky.sample_ids, "role": role}).set_index(["role_a", "role_b"])
    assert found.loc[("labelled", "test"), "exact_duplicates"] == 2
    assert found.loc[("unlabelled", "test"), "near_duplicates"] == 1
    assert found.loc[("unlabelled", "test"), "shared_groups"] == 1
    assert found.loc[("unlabelled", "test"), "examples"] == "00001-03 ~ 00050-02"
    assert found.loc[("labelled", "unlabelled"), ["exact_duplicates", "near_duplicates"]].tolist() == [0, 0]
    assert found.loc[("labelled", "test"), ["images_a", "images_b"]].tolist() == [6, 60]


def test_equal_images_have_the_near_duplicates_of_their_first(leaky):
    one, other = leaky.near_duplicates.tolist()[0]
    assert (one, other) == (7, 202)
    pixels = leaky.pixels.copy()
    pixels[100] = pixels[7]  # a twin of the training image, in the training part as well
    twinned = replace(leaky)
    vars(twinned).update(pixels=pixels)
    role = np.repeat(["labelled", "unlabelled", "test"], [50, 130, 60])
    found = find_leaks(twinned, {"sample_id": leaky.sample_ids, "role": role}).set_index(["role_a", "role_b"])
    assert found.loc[("unlabelled", "test"), "near_duplicates"] == 1
    assert found.loc[("labelled", "test"), "near_duplicates"] == 1


def test_the_most_alike_pairs_are_shown(leaky, tmp_path):
    role = np.repeat(["labelled", "unlabelled", "test"], [6, 174, 60])
    split = pd.DataFrame({"sample_id": leaky.sample_ids, "role": role})
    first, second, third = most_alike(leaky, split, count=3)
    assert {first[:2], second[:2]} == {(200, 3), (201, 3)} and third[:2] == (202, 7)
    assert first[2] == pytest.approx(1.0) and 0.995 < third[2] < 1.0
    for labels in ("9", "10"):
        (tmp_path / f"labels-{labels}").mkdir()
        split.to_parquet(tmp_path / f"labels-{labels}/split-0.parquet")
    draw_audit(
        leaky.folder,
        sorted(tmp_path.glob("*/split-0.parquet")),
        table=tmp_path / "audit.csv",
        page=tmp_path / "audit.html",
        picture=tmp_path / "audit.png",
    )
    text = (tmp_path / "audit.html").read_text()
    assert text.count("<td>unlabelled</td>") == 4 and "00001-03 ~ 00050-02" in text
    assert len(pd.read_csv(tmp_path / "audit.csv")) == 6
    assert (tmp_path / "audit.png").stat().st_size > 10_000


def test_budgets_of_chest_xray14_are_exact():
    """The public lists of 2 to 20 % hold 2.4 to 23.1 % of the 86,524 training images."""
    g = np.random.default_rng(0)
    groups = np.sort(np.concatenate([np.arange(30_805), g.integers(0, 30_805, 112_120 - 30_805)]))
    test = np.isin(groups, np.flatnonzero(g.random(30_805) < 0.09))
    published = np.where(test, "test", "train")
    labels = (g.random((112_120, 14)) < np.geomspace(0.002, 0.18, 14)).astype(np.float32)
    pool = int((~test).sum())
    smaller = np.zeros(112_120, dtype=bool)
    for share in (0.02, 0.05, 0.1, 0.15, 0.2):
        roles = draw(labels, groups, published=published, budget=str(share))
        labelled = np.isin(roles, ["labelled", "validation"])
        assert labelled.sum() == round(share * pool)
        assert not (smaller & ~labelled).any()
        for role in ("labelled", "validation"):
            assert (labels[roles == role].sum(axis=0) > 0).all()
        smaller = labelled


# Folds


@examples(30)
@given(data=data_sets(), folds=st.integers(2, 5), partition=st.integers(0, 3))
def test_folds_hold_each_image_out_once_by_whole_groups(data, folds, partition):
    labels, groups, published = data
    known = ~np.isnan(labels).all(axis=1)
    held_out = np.zeros(len(labels), dtype=int)
    for fold in range(folds):
        roles = draw(labels, groups, published=published, seed=partition * folds + fold, folds=folds)
        held_out += roles == "test"
        assert not set(groups[roles == "test"]) & set(groups[np.isin(roles, ["labelled", "validation", "unlabelled"])])
    assert np.array_equal(held_out, known.astype(int))


def test_folds_are_alike():
    g = np.random.default_rng(0)
    labels = (g.random((1200, 3)) < [0.05, 0.3, 0.6]).astype(float)
    fold = draw_folds(labels, np.arange(1200) // 3, folds=5, seed=0)
    sizes = np.bincount(fold)
    assert sizes.min() >= 234 and sizes.max() <= 246
    rates = np.array([labels[fold == k].mean(axis=0) for k in range(5)])
    np.testing.assert_allclose(rates, np.broadcast_to(labels.mean(axis=0), rates.shape), atol=0.03)
    assert not np.array_equal(fold, draw_folds(labels, np.arange(1200) // 3, folds=5, seed=1))


@pytest.mark.parametrize("seed", range(3))
def test_roles_are_as_balanced_as_iterative_stratification(seed):
    """Sechidis et al. 2011, here without groups, which it does not know."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    g = np.random.default_rng(seed)
    labels = (g.random((1000, 8)) < g.uniform(0.02, 0.4, 8)).astype(float)
    reference = np.empty(1000, dtype=int)
    folds = MultilabelStratifiedKFold(n_splits=5, shuffle=True, random_state=seed).split(np.zeros(1000), labels)
    for index, (_, held_out) in enumerate(folds):
        reference[held_out] = index
    ours = draw_folds(labels, np.arange(1000), folds=5, seed=seed)
    random = g.permutation(1000) % 5

    def unevenness(fold):
        """Mean deviation of a fold's positives from their even share, as label distribution in that paper."""
        counts = np.array([labels[fold == k].sum(axis=0) for k in range(5)])
        return np.abs(counts - labels.sum(axis=0) / 5).mean()

    assert unevenness(ours) < 0.5 * unevenness(random)
    assert unevenness(ours) < 2.0 * unevenness(reference) + 0.5


# Published lists of labels


def test_a_published_list_is_used_as_it_is(store, tmp_path):
    ids = store.sample_ids
    listed = [*ids[0:80:2], ids[0], ""]  # with a line twice and an empty one, as published lists have them
    (tmp_path / "list.txt").write_text("\n".join(listed))
    split_dataset(
        store.folder,
        out=tmp_path / "split.parquet",
        budget="list-mine",
        lists={"mine": str(tmp_path / "list.txt")},
        seed=0,
        validation=0.2,
        test=0.25,
    )
    rows = store.split_rows(tmp_path / "split.parquet")
    used = np.sort(np.concatenate([rows["labelled"], rows["validation"]]))
    training_side = np.setdiff1d(np.arange(0, 80, 2), rows["test"])
    assert np.array_equal(used, training_side)
    assert 0.1 < len(rows["validation"]) / len(used) < 0.3
    groups = {role: set(store.groups[members]) for role, members in rows.items()}
    assert not groups["validation"] & (groups["labelled"] | groups["unlabelled"] | groups["test"])
    assert groups["labelled"] & groups["unlabelled"], "other images of listed patients stay, as published"
    audit = find_leaks(store, pd.read_parquet(tmp_path / "split.parquet")).set_index(["role_a", "role_b"]).shared_groups
    assert audit.drop(("labelled", "unlabelled")).max() == 0


def test_a_list_may_not_name_official_test_images():
    published = np.array(["train"] * 30 + ["test"] * 10)
    listed = np.arange(40) < 20
    assert (draw(one_of_k(40, 2), published=published, listed=listed, budget="list-x") == "test").sum() == 10
    listed[35] = True
    with pytest.raises(BudgetError, match="'list-x' names 1 images of the official test split; remove them"):
        draw(one_of_k(40, 2), published=published, listed=listed, budget="list-x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "00000-00\nstranger\n",
            r"list\.txt: no list of samples of phantom: 1 of its ids are unknown, first 'stranger' ",
        ),
        ("\n", r"list\.txt: no list of samples of phantom: it is empty"),
    ],
)
def test_a_list_of_another_data_set_is_named(store, tmp_path, content, message):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "list.txt", store)


def test_a_list_is_read_in_the_forms_that_editors_write(store, tmp_path):
    accented = SimpleNamespace(
        info=store.info, sample_ids=np.array(["e\u0301.png", "b.png", "\u1ed9", "o\u0323\u0302"])
    )
    (tmp_path / "list.txt").write_bytes("\u00e9.png\r\n\n b.png\r\u1ed9\n".encode("utf-16"))
    assert read_list(tmp_path / "list.txt", accented).tolist() == [True, True, True, False]
    (tmp_path / "list.txt").write_text("b.png\n\nstranger\n")
    with pytest.raises(DataError, match="first 'stranger' in line 3"):
        read_list(tmp_path / "list.txt", accented)


# Domains


@examples(60)
@given(
    data=data_sets(),
    seed=st.integers(0, 5),
    budget=st.sampled_from(["all", "0.5", "15"]),
    folds=st.sampled_from([None, 4]),
    whole=st.booleans(),
)
def test_labels_are_of_the_source_and_test_images_of_the_target(data, seed, budget, folds, whole):
    labels, groups, published = data
    g = np.random.default_rng(seed)
    # A domain need not be of whole groups: near-duplicates may be joined across.
    domains = np.where(g.random(len(labels))[groups if whole else slice(None)] < 0.5, "source", "target")
    known = ~np.isnan(labels).all(axis=1)
    everything = draw(labels, groups, published=published, seed=seed, folds=folds, domains=domains)
    available = int(np.isin(everything, ["labelled", "validation"]).sum())
    assume(available >= 15)
    roles = draw(labels, groups, published=published, budget=budget, seed=seed, folds=folds, domains=domains)
    used, test = np.isin(roles, ["labelled", "validation"]), roles == "test"
    assert (domains[used] == "source").all() and (domains[test] == "target").all()
    assert (domains[roles == "unlabelled"] == "target").any()
    assert not (budget == "all" and (roles[known & (domains == "source")] == "unlabelled").any())
    for role in ("labelled", "validation", "unlabelled", "test"):
        assert not set(groups[roles == role]) & set(groups[(roles != role) & (roles != "")]), "a group crosses roles"
    if (published == "test").any() and not folds:
        assert np.array_equal(test, (published == "test") & known & (domains == "target"))
        assert (roles[(published == "test") & (domains == "source")] == "").all()
    assert used.sum() == {"all": available, "0.5": round(0.5 * available), "15": 15}[budget]
    assert np.array_equal(test, everything == "test")


def test_counts_per_class_are_of_the_source():
    labels, domains = one_of_k(), np.resize(["source", "target"], 600)
    roles = draw(labels, budget="7-per-class", kind="one_of_k", domains=domains)
    used = np.isin(roles, ["labelled", "validation"])
    assert labels[used].sum(axis=0).tolist() == [7] * 5 and set(domains[used]) == {"source"}
    with pytest.raises(
        BudgetError, match=r"larger than the data set, of which 300 images can be labelled \(75 are the"
    ):
        draw(labels, budget="301", kind="one_of_k", domains=domains)


def test_a_list_may_not_name_target_images():
    domains, listed = np.resize(["source", "target"], 80), np.arange(80) % 4 == 0
    roles = draw(one_of_k(80, 2), kind="one_of_k", budget="list-x", listed=listed, domains=domains)
    assert np.array_equal(np.isin(roles, ["labelled", "validation"]), listed)
    with pytest.raises(BudgetError, match="'list-x' names 1 images of the target domain, which has no labels; remove"):
        draw(one_of_k(80, 2), kind="one_of_k", budget="list-x", listed=listed | (np.arange(80) == 1), domains=domains)


@examples(20)
@given(data=data_sets(), folds=st.sampled_from([None, 3]))
def test_images_of_no_domain_play_the_roles_they_always_did(data, folds):
    labels, groups, published = data
    without = draw(labels, groups, published=published, budget="20", folds=folds)
    domains = np.full(len(labels), "")
    assert np.array_equal(without, draw(labels, groups, published=published, budget="20", folds=folds, domains=domains))


@pytest.mark.parametrize(
    ("how", "digest"),
    [
        ({"budget": "all"}, "530f591a1993ae20"),
        ({"budget": "0.1", "seed": 1}, "ee039a6870c60bba"),
        ({"budget": "60", "seed": 7, "folds": 5}, "941706f1cbbb15ed"),
        ({"budget": "7-per-class", "kind": "one_of_k"}, "86571a37c30fb01d"),
    ],
)
def test_a_seed_gives_the_same_split_in_every_version(how, digest):
    roles = draw(one_of_k(), np.arange(600) // 2, **how)
    assert sha256(" ".join(roles).encode()).hexdigest()[:16] == digest


@examples(30)
@given(data=data_sets(), seed=st.integers(0, 5), wanted=st.integers(5, 15))
def test_fewer_test_images_are_whole_groups_of_the_others_and_change_no_other_role(data, seed, wanted):
    labels, groups, published = data
    every = draw(labels, groups, published=published, budget="30", seed=seed)
    fewer = draw(labels, groups, published=published, budget="30", seed=seed, test_images=wanted)
    shrunk = draw(labels, groups, published=published, budget="25", seed=seed, test_images=wanted)
    changed = every != fewer
    assert set(every[changed]) <= {"test"}
    assert set(fewer[changed]) <= {""}
    kept = groups[fewer == "test"]
    assert not np.isin(groups[changed & (every == "test")], kept).any(), "whole groups"
    assert abs((fewer == "test").sum() - wanted) <= 5 or (every == "test").sum() <= wanted
    assert np.array_equal(fewer == "test", shrunk == "test")
