"""Domain adaptation: every image once, in one domain, by whole groups; corrupted the same wherever it is prepared."""

import types
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jointdiff.config import ConfigError
from jointdiff.data.prepare import Part, join_parts, prepare, prepare_part, prepare_source
from jointdiff.data.source import DataError, Facts, NearDuplicates, load
from jointdiff.data.sources import chestxray14, phantom, shifted
from jointdiff.data.splits import draw_split
from jointdiff.data.store import open_store
from jointdiff.registry import describe_source
from jointdiff.seeding import rng


def picture(shape):
    """A smooth scene, from black to white, with some grain."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    scene = 127.5 + 127.5 * np.sin(x / 3) * np.cos(y / 4) + rng(0, "picture").normal(0, 5, shape[:2])
    scene = scene.clip(0, 255).astype(np.uint8)
    return scene if len(shape) == 2 else np.stack([scene, scene[::-1], scene[:, ::-1]][: shape[2]], axis=2)


@pytest.mark.parametrize("shape", [(28, 28), (40, 33), (20, 24, 1), (200, 170, 3)], ids=str)
@pytest.mark.parametrize("name", shifted.CORRUPTIONS)
def test_corruptions_keep_the_shape_and_grow_with_severity(name, shape):
    image = picture(shape)
    before = image.copy()
    corrupt = partial(shifted.CORRUPTIONS[name], image)
    distances = [0.0]
    for severity in range(1, 6):
        corrupted = corrupt(severity, rng(0, "a"))
        assert corrupted.shape == shape and corrupted.dtype == np.uint8 and corrupted.std() > 0
        assert np.array_equal(corrupted, corrupt(severity, rng(0, "a")))
        distances.append(np.abs(corrupted.astype(float) - image).mean())
    assert np.all(np.diff(distances) > 0)
    assert np.array_equal(image, before), "the published image stays as it is"
    assert np.array_equal(corrupt(5, rng(0, "a")), corrupt(5, rng(0, "b"))) == (name != "noise")


def test_severity_means_the_same_at_any_resolution():
    for name in ("noise", "blur"):
        small, large = picture((64, 64)), np.kron(picture((64, 64)), np.ones((4, 4), dtype=np.uint8))
        one, other = (shifted.CORRUPTIONS[name](image, 3, rng(0)) for image in (small, large))
        shrunk = other.reshape(64, 4, 64, 4).mean(axis=(1, 3))
        distance, changed = (np.abs(image - small.astype(float)).mean() for image in (one, shrunk))
        assert 0.8 < distance / changed < 1.25


def test_full_inversion_is_a_negative():
    assert np.array_equal(shifted.inversion(picture((8, 8)), 5, rng(0)), 255 - picture((8, 8)))


@pytest.fixture(scope="module")
def read():
    """The phantoms and their two domains, sample by sample."""
    return (
        list(map(load, phantom.read(size=16))),
        list(map(load, shifted.read(None, size=16, corruption="contrast", severity=3))),
    )


def test_each_image_comes_once_and_domains_are_whole_groups(read):
    published, ours = read
    assert [sample.sample_id for sample in ours] == [sample.sample_id for sample in published]
    domain = {}
    for one, other in zip(published, ours, strict=True):
        assert domain.setdefault(other.group, other.domain) == other.domain
        assert np.array_equal(one.image, other.image) == (other.domain == "source")
        assert (one.group, one.labels, one.split) == (other.group, other.labels, other.split)
        assert len(one.regions) == len(other.regions)
    sizes = Counter(domain.values())
    assert sizes.keys() == {"source", "target"} and abs(sizes["source"] - sizes["target"]) < 0.15 * len(domain)


def test_facts_are_those_of_the_other_set():
    inner, source = describe_source("fashion_mnist"), describe_source("shifted", {"of": "fashion_mnist", "severity": 2})
    assert (source.name, source.files, source.facts, source.labels) == (
        "fashion_mnist",
        inner.files,
        inner.facts,
        inner.labels,
    )
    assert source.title == "Fashion-MNIST, to a domain with noise (2 of 5)"
    assert any("labels and validation are from the source alone" in caveat for caveat in source.caveats)
    assert source.options == shifted.SOURCE.options
    assert "groups that are found by likeness" in describe_source("shifted", {"of": "busi"}).caveats[-1]


def test_shards_are_those_of_the_other_set(tmp_path):
    assert shifted.shards(tmp_path, of="phantom") == [None]
    for archive in chestxray14.ARCHIVES[:2]:
        (tmp_path / archive.name).touch()
    assert shifted.shards(tmp_path, of="chestxray14") == chestxray14.shards(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "phantm"}, r"datasets\.shifted\.options\.of: 'phantm' is no data set to shift: did you mean 'phantom'"),
        ({"of": "shifted"}, r"datasets\.shifted\.options\.of: 'shifted' is no data set to shift"),
        ({"corruption": "nois"}, r"datasets\.shifted\.options\.corruption: .* did you mean 'noise'"),
        ({"severity": 6}, r"datasets\.shifted\.options\.severity: 6 is not in 1 \(mild\) to 5 \(severe\)"),
        ({"severity": 0}, r"datasets\.shifted\.options\.severity: 0 "),
        ({"severity": "3.5"}, r"datasets\.shifted\.options\.severity: '3\.5' is no int"),
        ({"level": 3}, r"datasets\.shifted\.options\.level is no option of this data set: did you mean 'severity'"),
    ],
)
def test_a_wrong_option_is_one_message(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        describe_source("shifted", options)
    assert "\n" not in str(caught.value)


# Prepared


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shifted")
    prepare("shifted", folder, folder / "store", size=16)
    return open_store(folder / "store")


def test_the_store_holds_domains_and_does_not_depend_on_threads_and_parts(store, tmp_path):
    assert set(store.domains) == {"source", "target"}
    assert store.info.caveats == shifted.SOURCE.caveats
    parts = [tmp_path / str(index) for index in range(3)]
    for index, folder in enumerate(parts):
        prepare_part(shifted, tmp_path, folder, size=16, part=Part(index, 3), threads=3)
    join_parts(shifted, parts, tmp_path / "joined", raw=tmp_path, size=16)
    for file in store.folder.iterdir():
        assert file.read_bytes() == (tmp_path / "joined" / file.name).read_bytes(), file.name


def test_domains_are_part_of_the_digest_and_other_stores_stay_as_they_were(tmp_path):
    drawn = [load(sample) for sample in phantom.read(size=16, patients=6)]
    stores = {}
    for name, domain in (("none", None), ("source", "source"), ("target", "target")):
        samples = [replace(sample, domain=domain) for sample in drawn]
        module = types.SimpleNamespace(
            SOURCE=phantom.SOURCE, read=lambda raw, *, size, samples=samples, **_: iter(samples)
        )
        prepare_source(module, tmp_path, tmp_path / name, size=16)
        stores[name] = open_store(tmp_path / name)
    assert len({store.info.digest for store in stores.values()}) == 3
    assert "domain" not in stores["none"].samples.column_names
    assert stores["none"].domains.tolist() == [""] * 24 and stores["target"].domains.tolist() == ["target"] * 24


def test_an_unknown_domain_is_named(tmp_path):
    odd = replace(phantom.draw(0, 0, 0, size=8), domain="elsewhere")
    source = replace(phantom.SOURCE, facts=Facts(), near_duplicates=NearDuplicates())
    module = types.SimpleNamespace(SOURCE=source, read=lambda raw, *, size, **_: iter([odd]))
    with pytest.raises(DataError, match="sample '00000-00': its domain 'elsewhere' is neither source nor target"):
        prepare_source(module, tmp_path, tmp_path / "store", size=8)


@pytest.mark.parametrize("how", [{}, {"folds": 4}])
def test_a_split_labels_the_source_and_tests_the_target(store, how):
    rows = store.split_rows(draw_split(store, budget="0.2", seed=1, validation=0.2, test=0.25, **how))
    for role, domains in (("labelled", {"source"}), ("validation", {"source"}), ("test", {"target"})):
        assert set(store.domains[rows[role]]) == domains
    assert set(store.domains[rows["unlabelled"]]) == {"source", "target"}
    counts = {domain: int((store.domains == domain).sum()) for domain in ("source", "target")}
    assert len(rows["labelled"]) + len(rows["validation"]) == round(0.2 * counts["source"])
    assert abs(len(rows["test"]) - 0.25 * counts["target"]) < 8
