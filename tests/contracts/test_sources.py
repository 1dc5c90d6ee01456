"""What every registered data set must satisfy: a new file is tested without being named here."""

import inspect
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.data.audit import find_leaks
from jointdiff.data.download import DownloadError, download
from jointdiff.data.prepare import prepare
from jointdiff.data.source import Source, describe, load
from jointdiff.data.splits import draw_split
from jointdiff.data.store import open_store
from jointdiff.registry import describe_source, load_source, sources

SIZE = 32


def scans(folder: Path) -> dict[str, object]:
    """Draw 60 pictures of 20 patients with a table, as a user has them."""
    g = np.random.default_rng(0)
    rows = ["path,fracture,patient"]
    for index in range(60):
        pixels = g.integers(0, 120, (20, 24), dtype=np.uint8)
        pixels[5:9, 5:9] = 255 * (index % 2)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{index % 2},p{index // 3}")
    (folder / "table.csv").write_text("\n".join(rows))
    return {"path": str(folder), "labels": ["fracture"], "group": "patient"}


# Options that keep the test short, or without which there is nothing to read.
OPTIONS = {
    "phantom": lambda folder: {"patients": 40},
    "chestxray14": lambda folder: {"archives": 1},
    "own": scans,
}


@pytest.fixture(scope="module", params=sorted(sources()))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def options(name, tmp_path_factory):
    if name == "chexpert":
        pytest.skip("CheXpert needs registration; tests/unit/test_chexpert.py reads a small set of its layout")
    return OPTIONS.get(name, lambda folder: {})(tmp_path_factory.mktemp("mine"))


@pytest.fixture(scope="module")
def raw(name, options, tmp_path_factory):
    """The set's files from the mirror that JOINTDIFF_MIRROR names; publishers are not asked by a test."""
    source = describe_source(name, options)
    folder = tmp_path_factory.mktemp(name)
    mirror = os.environ.get("JOINTDIFF_MIRROR")
    needed = [file for file in source.files if not file.optional]
    if needed and not mirror:
        pytest.skip(f"{name} needs its files: set JOINTDIFF_MIRROR to a mirror that has them (docs/mirror.md)")
    if needed and "://" not in mirror and not (Path(mirror) / source.name / needed[0].name).is_file():
        pytest.skip(f"the mirror that JOINTDIFF_MIRROR names has no {source.name}/{needed[0].name}")
    try:
        download(source, folder, mirror=mirror)
    except DownloadError as error:
        pytest.fail(str(error))
    return folder


@pytest.fixture(scope="module")
def store(name, raw, options, tmp_path_factory):
    out = tmp_path_factory.mktemp(name) / "store"
    prepare(name, raw, out, size=SIZE, options=options, threads=2)
    return open_store(out)


def test_facts_are_stated(name):
    module = load_source(name)
    source, facts = module.SOURCE, module.SOURCE.facts
    assert isinstance(source, Source) and (source.name == name or hasattr(module, "describe"))
    assert source.title and source.licence and source.cite and source.channels in (1, 3)
    assert len(set(source.labels.names)) == len(source.labels.names) >= 1
    assert set(facts.positives) <= set(source.labels.names)
    assert set(facts.splits) <= {"train", "validation", "test"}
    if facts.samples and facts.splits:
        assert sum(facts.splits.values()) == facts.samples
    if facts.samples and source.labels.kind == "one_of_k" and len(facts.positives) == len(source.labels.names):
        assert sum(facts.positives.values()) == facts.samples
    for file in source.files:
        assert Path(file.name).name == file.name, "a file's name is no path"
        known = file.optional or file.urls or file.sha256 or source.access
        assert known, "a file that is needed has an address or a checksum, or it is said how to get it"
    parameters = inspect.signature(module.read).parameters
    options = {key: value.default for key, value in parameters.items() if key not in ("raw", "size", "shard")}
    if options.keys() != {"options"}:  # a reader that passes all of them on
        assert options == dict(source.options), "read() accepts what `options` says, with the same defaults"
    assert hasattr(module, "shards") == ("shard" in parameters)


def test_prepared_store_keeps_its_promises(name, options, store):
    source, n = describe_source(name, options), store.info.samples
    assert store.images.shape == (n, SIZE, SIZE, source.channels) and store.images.dtype == np.uint8
    assert not store.images.flags.owndata, "images are mapped, not read"
    assert len(set(store.sample_ids.tolist())) == n == len(store.groups)
    assert store.labels.shape == (n, len(source.labels.names))
    assert np.all(np.nansum(store.labels, axis=0) > 0), "every finding occurs"
    assert store.images[:: max(1, n // 100)].std(axis=(1, 2, 3)).min() > 0, "no image is blank"
    assert store.thumbnails.shape == (n, 16, 16)


def test_regions_lie_where_findings_are(store):
    for k, finding in enumerate(store.info.labels.names):
        rows = np.flatnonzero(store.has_region(finding))
        assert np.all(store.labels[rows, k] == 1), "only a finding that is present is somewhere"
        for row in rows[:50]:
            region = store.regions(row, finding)
            assert region.shape == (SIZE, SIZE) and region.any() and not region.all()


def test_first_samples_are_read_the_same_twice(name, options, raw):
    module = load_source(name)
    _, chosen = describe(module, options)
    twice = (map(load, module.read(raw, size=SIZE, **chosen)) for _ in range(2))
    for one, other in islice(zip(*twice, strict=True), 20):
        assert one.sample_id == other.sample_id and np.array_equal(one.image, other.image)


def test_splits_do_not_leak(store):
    split = draw_split(store, budget="0.2", seed=0, validation=0.2, test=0.25)
    rows = store.split_rows(split)
    assert all(len(rows[role]) for role in ("labelled", "unlabelled", "validation", "test"))
    training = np.concatenate([rows[role] for role in ("labelled", "unlabelled", "validation")])
    for k, finding in enumerate(store.info.labels.names):
        positives = store.labels[:, k] == 1
        # A finding of a single group can play one role only.
        roles = (
            ["labelled", "validation"] if len(set(store.groups[training][positives[training]])) > 1 else ["labelled"]
        )
        for role in [*roles, "test"]:
            assert positives[rows[role]].any(), f"{finding} occurs in {role}"
    audit = find_leaks(store, split)
    assert not audit.shared_groups.any()
    # A publisher's own split may hold the same picture twice; ours may not.
    assert not audit.exact_duplicates.any() or (store.published_splits == "test").any()
