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


@pytest.mark.parametrize("resident", [2**31, 0])
@pytest.mark.parametrize("real", [True, False])
def test_drawn_images_count_as_labelled_ones(data, real, resident):
    store, roles = data
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255, (7, *store.images.shape[1:]), dtype=np.uint8)
    labels = rng.integers(0, 2, (7, store.labels.shape[1])).astype(np.float32)
    feed = feed_of(data, synthetic=(drawn, labels), real_labels=real, resident_bytes=resident)
    size = 7 + (len(roles["labelled"]) if real else 0)
    batch = feed.batch(0, steps=1, labelled=size, unlabelled=28)
    given = np.concatenate([store.images[roles["labelled"]], drawn])[-size:]
    known = np.concatenate([store.labels[roles["labelled"]], labels])[-size:]
    seen = {image.tobytes(): label for image, label in zip(given, known, strict=True)}
    shown = ((batch.labelled + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    assert {image.tobytes() for image in shown} == seen.keys(), "each once in a pass"
    for image, label in zip(shown, batch.labels.numpy(), strict=True):
        np.testing.assert_array_equal(label, seen[image.tobytes()])
    plain = feed_of(data, resident_bytes=resident).batch(0, steps=1, labelled=size, unlabelled=28)
    assert torch.equal(batch.unlabelled, plain.unlabelled), "the unlabelled stream is that of real images"
