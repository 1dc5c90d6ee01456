"""Which images training sees, told from the images themselves."""

import numpy as np
import pytest
import torch

from jointdiff.data.store import open_store
from jointdiff.training.feed import Feed
from tests.tiny import tiny_phantoms

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A store of 48 phantoms and the rows of its roles."""
    paths = tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)
    store = open_store(paths["store"])
    return store, store.split_rows(paths["split"])


def feed_of(data, seed=0, **settings):
    return Feed(*data, seed=seed, device=CPU, **settings)


def stream(data, feed, steps, name="unlabelled"):
    """Return the rows of the images that a stream hands out, six a step."""
    every = feed.images(np.arange(len(data[0].images)))
    shown = torch.cat([getattr(feed.batch(s, steps=steps, labelled=6, unlabelled=6), name) for s in range(steps)])
    return [int((every == image).all(dim=(1, 2, 3)).nonzero().item()) for image in shown]


def test_no_share_of_the_unlabelled_images_leaves_the_labelled_ones(data):
    assert sorted(stream(data, feed_of(data, unlabelled_share=0.0), steps=2)) == data[1]["labelled"].tolist()


@pytest.mark.parametrize(("share", "count"), [(0.25, 4), (0.5, 8), (1.0, 16)])
def test_a_share_of_the_unlabelled_images_is_seen_beside_all_labelled_ones(data, share, count):
    labelled, unlabelled = (set(data[1][role].tolist()) for role in ("labelled", "unlabelled"))
    seen = set(stream(data, feed_of(data, unlabelled_share=share), steps=12))
    assert labelled <= seen
    assert len(seen & unlabelled) == count


def test_the_seed_decides_which_share_it_is(data):
    one, same, other = (set(stream(data, feed_of(data, seed, unlabelled_share=0.5), steps=8)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize(("name", "size"), [("labelled", 12), ("unlabelled", 20)])
def test_every_image_is_seen_once_before_any_is_seen_again(data, name, size):
    rows = stream(data, feed_of(data, unlabelled_share=0.5), steps=10, name=name)
    passes = [rows[start : start + size] for start in range(0, 60, size)]
    assert all(sorted(one) == sorted(set(rows)) for one in passes)
    assert len(set(rows)) == size
    assert passes[0] != passes[1], "in another order"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["labelled", "unlabelled"])
def test_validation_and_test_images_are_never_handed_out(data, name, share):
    held_back = {*data[1]["validation"].tolist(), *data[1]["test"].tolist()}
    assert not held_back & set(stream(data, feed_of(data, unlabelled_share=share), steps=20, name=name))


def test_labels_are_those_of_the_images_beside_them(data):
    feed = feed_of(data)
    rows = stream(data, feed, steps=4, name="labelled")
    labels = torch.cat([feed.batch(step, steps=4, labelled=6, unlabelled=6).labels for step in range(4)])
    np.testing.assert_array_equal(labels.numpy(), data[0].labels[rows])


def test_a_batch_does_not_depend_on_those_asked_for_before(data):
    asked, fresh = feed_of(data, unlabelled_share=0.5), feed_of(data, unlabelled_share=0.5)
    for step in (9, 0, 3):
        batch = asked.batch(step, steps=10, labelled=6, unlabelled=6)
    expected = fresh.batch(3, steps=10, labelled=6, unlabelled=6)
    assert torch.equal(batch.labelled, expected.labelled)
    assert torch.equal(batch.unlabelled, expected.unlabelled)


def test_resident_images_are_those_of_the_store(data):
    held, gathered = (feed_of(data, unlabelled_share=0.5, resident_bytes=size) for size in (2**31, 0))
    assert held.resident is not None
    assert gathered.resident is None
    for step in range(4):
        one, other = (feed.batch(step, steps=4, labelled=5, unlabelled=7) for feed in (held, gathered))
        for name in ("labelled", "labels", "unlabelled"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    rows = np.array([40, 3, 3])
    expected = torch.from_numpy(data[0].images[rows]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(held.images(rows), expected)
