"""What every registered data set must satisfy: a new file is tested without being named here."""

import inspect
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from jointdiff.data.audit import find_leaks
from jointdiff.data.download import DownloadError, download
from jointdiff.data.prepare import prepare
from jointdiff.data.source import Source
from jointdiff.data.splits import draw_split
from jointdiff.data.store import open_store
from jointdiff.registry import load_source, sources

SIZE = 32
SMALL = {"phantom": {"patients": 40}}  # options that keep the test short, where a set is drawn and not read


@pytest.fixture(scope="module", params=sorted(sources()))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def raw(name, tmp_path_factory):
    """The set's files from the mirror that JOINTDIFF_MIRROR names; publishers are not asked by a test."""
    source = load_source(name).SOURCE
    folder = tmp_path_factory.mktemp(name)
    mirror = os.environ.get("JOINTDIFF_MIRROR")
    needed = [file for file in source.files if not file.optional]
    if needed and not mirror:
        pytest.skip(f"{name} needs its files: set JOINTDIFF_MIRROR to a mirror that has them (docs/mirror.md)")
    if needed and "://" not in mirror and not (Path(mirror) / name / needed[0].name).is_file():
        pytest.skip(f"the mirror that JOINTDIFF_MIRROR names has no {name}/{needed[0].name}")
    try:
        download(source, folder, mirror=mirror)
    except DownloadError as error:
        pytest.fail(str(error))
    return folder


@pytest.fixture(scope="module")
def store(name, raw, tmp_path_factory):
    out = tmp_path_factory.mktemp(name) / "store"
    prepare(name, raw, out, size=SIZE, options=SMALL.get(name, {}))
    return open_store(out)


def test_facts_are_stated(name):
    module = load_source(name)
    source = module.SOURCE
    assert isinstance(source, Source) and source.name == name
    assert source.title and source.licence and source.cite and source.channels in (1, 3)
    assert len(set(source.labels.names)) == len(source.labels.names) >= 1
    assert set(source.facts.positives) <= set(source.labels.names)
    for file in source.files:
        assert Path(file.name).name == file.name, "a file's name is no path"
        assert file.optional or file.urls or file.sha256, "a file that is needed has an address or a checksum"
    parameters = inspect.signature(module.read).parameters
    options = {key: value.default for key, value in parameters.items() if key not in ("raw", "size")}
    assert options == dict(source.options), "read() accepts what `options` says, with the same defaults"


def test_prepared_store_keeps_its_promises(name, store):
    source, n = load_source(name).SOURCE, store.info.samples
    assert store.images.shape == (n, SIZE, SIZE, source.channels) and store.images.dtype == np.uint8
    assert not store.images.flags.owndata, "images are mapped, not read"
    assert len(set(store.sample_ids.tolist())) == n == len(store.groups)
    assert store.labels.shape == (n, len(source.labels.names))
    assert np.all(np.nansum(store.labels, axis=0) > 0), "every finding occurs"
    assert store.images[:: max(1, n // 100)].std(axis=(1, 2, 3)).min() > 0, "no image is blank"


def test_regions_lie_where_findings_are(store):
    for k, finding in enumerate(store.info.labels.names):
        rows = np.flatnonzero(store.has_region(finding))
        assert np.all(store.labels[rows, k] == 1), "only a finding that is present is somewhere"
        for row in rows[:50]:
            region = store.regions(row, finding)
            assert region.shape == (SIZE, SIZE) and region.any() and not region.all()


def test_first_samples_are_read_the_same_twice(name, raw):
    module = load_source(name)
    for one, other in islice(zip(module.read(raw, size=SIZE), module.read(raw, size=SIZE), strict=True), 20):
        assert one.sample_id == other.sample_id and np.array_equal(one.image, other.image)


def test_splits_do_not_leak(store):
    split = draw_split(store, budget="0.2", seed=0, validation=0.2, test=0.25)
    rows = store.split_rows(split)
    assert all(len(rows[role]) for role in ("labelled", "unlabelled", "validation", "test"))
    for role in ("labelled", "validation", "test"):
        assert np.all(np.nansum(store.labels[rows[role]], axis=0) > 0), f"every finding occurs in {role}"
    audit = find_leaks(store, split)
    assert not audit.shared_groups.any()
    # A publisher's own split may hold the same picture twice; ours may not.
    assert not audit.exact_duplicates.any() or (store.published_splits == "test").any()
