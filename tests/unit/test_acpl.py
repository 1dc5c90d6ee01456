"""ACPL: densities, levels, pseudo-labels and anchors against independent computations; and a resumed training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

import baselines.acpl as acpl
import jointdiff.training.loop as loop
from baselines.acpl import ACPL, least_dense, mutual, nearest
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.data.store import open_store
from jointdiff.method import Batch
from jointdiff.training.averaging import averaged_copy
from jointdiff.training.feed import Feed
from jointdiff.training.loop import train
from tests.tiny import SMALL, tiny_phantoms, tiny_run

KINDS = {"one_of_k": ("a", "b", "c"), "multi_label": ("a", "b")}
VIEWS = Views(Augmentations(max_shift=0.0))  # leave images as they are


def build(kind, labels, images, **settings):
    """Return a method that has to learn from so many images, of which those with labels come first."""
    torch.manual_seed(0)
    info = DataInfo("toy", "toy", LabelSpec(kind, KINDS[kind]), 1, 8, VIEWS.allowed, 10, "", has_regions=False)
    method = ACPL(info, ACPL.Settings(**{**SMALL["acpl"], **settings}))
    method.prepare(labels, images)
    return method


def show(method, directions, answers):
    """Let a method remember features (N, d), any few of its features, and answers (N, K)."""
    directions = torch.as_tensor(directions, dtype=torch.float32)
    padded = F.pad(directions, (0, method.directions.shape[1] - directions.shape[1]))
    method.directions.copy_(padded)
    method.answers.copy_(answers)


def at(*degrees):
    """Return unit vectors in a plane."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cosine(degrees):
    return math.cos(math.radians(degrees))


# --- Neighbours and levels --------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(acpl, "AT_ONCE", 7)
    queries, keys = F.normalize(torch.randn(23, 6), dim=1), F.normalize(torch.randn(40, 6), dim=1)
    similarity, places = nearest(queries, keys, 5)
    distance, expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(keys.numpy()).kneighbors(queries.numpy())
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-5)


def test_the_least_dense_level_is_selected_wherever_it_stands():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.9, 0.03, 40), rng.normal(0.5, 0.03, 60), rng.normal(0.1, 0.03, 20)])
    order = rng.permutation(len(values))
    chosen = least_dense(torch.from_numpy(values[order]))
    assert sorted(order[chosen].tolist()) == list(range(100, 120))


@pytest.mark.parametrize("density", [[], [0.3], [0.1, 0.9], [0.5] * 20, [0.0, 1.0] * 10])
def test_no_level_is_told_from_fewer_than_three_densities(density):
    assert least_dense(torch.tensor(density)).tolist() == []


def test_mutual_neighbours_are_counted():
    # Two images, at places 4 and 1, with the anchors that are nearest to them; three anchors with their nearest images.
    near, back = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[4, 1], [0, 3], [4, 2]])
    assert mutual(torch.tensor([4, 1]), near, back).tolist() == [2, 0]
    rng = np.random.default_rng(1)
    near, back = rng.permuted(np.tile(np.arange(9), (30, 1)), axis=1)[:, :4], rng.integers(30, size=(9, 4))
    expected = [sum(place in back[anchor] for anchor in near[place]) for place in range(30)]
    assert mutual(torch.arange(30), torch.from_numpy(near), torch.from_numpy(back)).tolist() == expected


# --- A stage ----------------------------------------------------------------------------------------------------------


def test_a_stage_by_hand():
    """Anchors of class a at 0 and b at 180 degrees; two images each near a, further, and in the middle."""
    method = build("one_of_k", torch.eye(3)[:2], 8, neighbour_share=0.5)  # the nearest anchor of two
    answers = torch.tensor([[0.2, 0.3, 0.5]]).repeat(8, 1)
    show(method, at(0.0, 180.0, 1.0, 2.0, 30.0, 31.0, 80.0, 85.0), answers)
    method.select()
    assert method.targets[2:6].isnan().all(), "only the least dense ones"
    low, high = cosine(85), cosine(1)
    for place, degrees in ((6, 80), (7, 85)):
        density = (cosine(degrees) - low) / (high - low)
        expected = density * np.array([0.2, 0.3, 0.5]) + (1 - density) * np.array([1.0, 0.0, 0.0])
        np.testing.assert_allclose(method.targets[place], expected, atol=1e-5)
    # Anchor a is nearest to both, but its own nearest image is that at 1 degree; so both are alike lonely.
    assert method.anchors.tolist() == [True, True, False, False, False, False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_follows_its_formulas(kind):
    rng = np.random.default_rng(2)
    outputs, anchors, images = len(KINDS[kind]), 20, 90
    labels = np.eye(outputs)[rng.integers(outputs, size=anchors)]
    answers = rng.dirichlet(np.ones(outputs), size=anchors + images)
    features = rng.normal(size=(anchors + images, 4)) + 2.0
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    method = build(kind, torch.tensor(labels).float(), anchors + images, neighbour_share=0.2)
    show(method, features, torch.from_numpy(answers))
    method.select()

    known, pool = features[:anchors], features[anchors:]
    distance, near = NearestNeighbors(n_neighbors=4, metric="cosine").fit(known).kneighbors(pool)
    density = (1 - distance).mean(axis=1)
    density = (density - density.min()) / np.ptp(density)
    expected = density[:, None] * answers[anchors:] + (1 - density[:, None]) * labels[near].mean(axis=1)
    found, chosen = method.targets[anchors:].numpy(), ~method.targets[anchors:].isnan().any(dim=1).numpy()
    assert 0 < chosen.sum() < images
    assert density[chosen].max() < density[~chosen].min()
    np.testing.assert_allclose(found[chosen], expected[chosen], atol=1e-5)
    np.testing.assert_array_equal(method.targets[:anchors], labels)

    back = NearestNeighbors(n_neighbors=4, metric="cosine").fit(pool).kneighbors(known)[1]
    links = np.array([sum(image in back[anchor] for anchor in near[image]) for image in range(images)])
    lonely = chosen & (links == links[chosen].min())
    assert 0 < lonely.sum() < chosen.sum()
    np.testing.assert_array_equal(method.anchors[anchors:], lonely)


def test_pseudo_labels_are_for_good_and_the_next_stage_looks_at_the_others():
    rng = np.random.default_rng(3)
    method = build("one_of_k", torch.eye(3).repeat(4, 1), 72)
    show(method, F.normalize(torch.from_numpy(rng.normal(size=(72, 4)) + 1.0), dim=1), torch.full((72, 3), 1 / 3))
    method.select()
    first = method.targets.clone()
    given = ~first.isnan().any(dim=1)
    method.answers.copy_(torch.eye(3)[[0]].expand(72, 3))
    method.select()
    assert torch.equal(method.targets[given], first[given])
    assert given.sum() < (~method.targets.isnan().any(dim=1)).sum()


def test_images_that_have_not_come_by_are_neither_selected_nor_asked():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(60, 4)) + 1.0
    method = build("one_of_k", torch.eye(3).repeat(4, 1), 60)
    unseen = np.concatenate([[0, 3], np.arange(12, 60, 2)])
    features[unseen] = math.nan
    answers = torch.full((60, 3), 1 / 3)
    answers[unseen] = math.nan
    show(method, F.normalize(torch.from_numpy(features), dim=1), answers)
    method.select()
    assert method.targets[12::2].isnan().all()
    chosen = ~method.targets[13::2].isnan()
    assert chosen.any()
    assert torch.equal(chosen.any(dim=1), chosen.all(dim=1)), "no NaN of an unseen anchor is in a pseudo-label"


@pytest.mark.parametrize("seen", [slice(0), slice(0, 2), slice(2, None)], ids=["none", "anchors", "others"])
def test_a_stage_without_anchors_or_others_changes_nothing(seen):
    method = build("one_of_k", torch.eye(3)[:2], 20)
    show(method, at(*np.linspace(0, 90, 20)), torch.full((20, 3), 1 / 3))
    keep = torch.zeros(20, dtype=torch.bool)
    keep[seen] = True
    method.directions[~keep] = math.nan
    method.select()
    assert method.targets[2:].isnan().all()
    assert method.anchors.sum() == 2


def test_a_single_label_is_enough():
    method = build("multi_label", torch.tensor([[1.0, 0.0]]), 9)
    show(method, at(0.0, 1.0, 2.0, 3.0, 30.0, 31.0, 32.0, 70.0, 71.0), torch.full((9, 2), 0.5))
    method.select()
    assert (~method.targets.isnan()).all(dim=1).tolist() == [True] + 6 * [False] + 2 * [True]
    np.testing.assert_allclose(method.targets[8], [1.0, 0.0], atol=1e-5)


def test_neighbours_say_nothing_of_a_finding_that_none_of_them_knows():
    method = build("multi_label", torch.tensor([[1.0, math.nan], [1.0, math.nan]]), 8)
    show(method, at(0.0, 180.0, 1.0, 2.0, 30.0, 31.0, 80.0, 85.0), torch.full((8, 2), 0.3))
    method.select()
    assert method.targets[7].tolist() == pytest.approx([1.0, 0.3], abs=1e-5)


def test_no_more_neighbours_than_the_setting_and_the_share_allow(monkeypatch):
    counts = []

    def counted(queries, keys, count):
        counts.append(count)
        return nearest(queries, keys, count)

    monkeypatch.setattr(acpl, "nearest", counted)
    for settings in ({}, {"neighbours": 3}, {"neighbour_share": 1.0}):
        method = build("one_of_k", torch.eye(3).repeat(20, 1), 100, **settings)
        show(method, F.normalize(torch.rand(100, 4), dim=1), torch.full((100, 3), 1 / 3))
        method.select()
    assert counts[::2] == counts[1::2] == [7, 3, 40], "12 % of 60 anchors; K; all the 40 others there are"


# --- Losses -----------------------------------------------------------------------------------------------------------


def batch(kind, step=0, steps=100):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    places = torch.tensor([5, 2])
    labels = torch.eye(len(KINDS[kind]))[[1, 0]]
    return Batch(images[:2], labels, images[2:], step, steps, torch.tensor([1, 0]), places)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_counts_what_has_a_target(kind):
    method = build(kind, torch.eye(len(KINDS[kind]))[:2], 6, weight=2.0)
    seen, teacher = batch(kind), averaged_copy(method)
    loss = F.cross_entropy if kind == "one_of_k" else F.binary_cross_entropy_with_logits
    assert method(seen, VIEWS, teacher)["pseudo_label"].item() == 0.0
    soft = torch.tensor([[0.2, 0.3, 0.5]])[:, : method.task.outputs]
    method.targets[2] = soft
    terms = method(seen, VIEWS, teacher)
    logits = method.logits(torch.cat([seen.labelled, seen.unlabelled]))
    torch.testing.assert_close(terms["supervised"], loss(logits[:2], seen.labels))
    torch.testing.assert_close(terms["pseudo_label"], 2.0 * loss(logits[3:], soft) / 2)
    terms = method(replace(seen, unlabelled_at=torch.tensor([1, 3])), VIEWS, teacher)
    own = loss(logits[2:3], torch.eye(len(KINDS[kind]))[1:2])
    torch.testing.assert_close(terms["pseudo_label"], 2.0 * own / 2, msg="a labelled image counts with its labels")


def test_the_average_is_asked_and_gets_no_gradients():
    method = build("multi_label", torch.eye(2), 6)
    teacher = averaged_copy(method).requires_grad_(True)
    with torch.no_grad():
        teacher.net.head.weight.add_(1.0)
    seen = batch("multi_label")
    torch.stack(list(method(seen, VIEWS, teacher).values())).sum().backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    for images, places in ((seen.labelled, [1, 0]), (seen.unlabelled, [5, 2])):
        with torch.no_grad():
            features, answers = teacher.features(images), teacher.logits(images).sigmoid()
        torch.testing.assert_close(method.directions[places], features / features.norm(dim=1, keepdim=True))
        torch.testing.assert_close(method.answers[places], answers)
    assert method.directions[[3, 4]].isnan().all()


def test_stages_begin_after_the_warm_up_at_equal_distances(monkeypatch):
    method = build("one_of_k", torch.eye(3)[:2], 6)
    assert sorted(method.stage_steps(100)) == [50, 60, 70, 80, 90]
    began, teacher = [], averaged_copy(method)
    monkeypatch.setattr(ACPL, "select", lambda self: began.append(step))
    for step in range(100):
        method(replace(batch("one_of_k"), step=step), VIEWS, teacher)
    assert began == [50, 60, 70, 80, 90]


# --- In the loop ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared store of 48 phantoms and a split of it."""
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=28)


def test_the_unlabelled_stream_begins_with_the_labelled_images(data):
    store = open_store(data["store"])
    feed = Feed(store, store.split_rows(data["split"]), seed=0, device=torch.device("cpu"))
    np.testing.assert_array_equal(feed.unlabelled[: len(feed.labelled)], feed.labelled)


@pytest.mark.parametrize("stop_after", [1, 3], ids=["before the first stage", "before the last"])
def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path, monkeypatch, stop_after):
    run = tiny_run(
        "acpl",
        settings={"stages": 3, "warmup": 0.3},  # at steps 12, 21 and 31
        steps=40,
        batch_size=8,
        log_every=10,
        validate_every=20,
        checkpoint_seconds=0.0,
    )
    memories = []
    select, save = ACPL.select, loop.save_checkpoint

    def selected(method):
        select(method)
        memories.append(method.targets.clone())

    monkeypatch.setattr(ACPL, "select", selected)
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    whole = memories.copy()
    counts = [int((~targets.isnan()).all(dim=1).sum()) for targets in whole]
    assert 12 < counts[0] < counts[-1], "there are pseudo-labels, and more from later stages"
    memories.clear()

    saved = []

    def save_then_die(*args, **kwargs):
        save(*args, **kwargs)
        saved.append(1)
        if len(saved) == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "save_checkpoint", save_then_die)
        train(run, **data, out=tmp_path / "resumed", state=tmp_path / "state")
    train(run, **data, out=tmp_path / "resumed", state=tmp_path / "state")

    assert len(memories) == len(whole) == 3
    assert all(torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) for a, b in zip(whole, memories, strict=True))
    for file in ("model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()
