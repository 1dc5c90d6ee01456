"""Preparing: every sample checked, resized with its regions, and mapped back without a copy."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdiff.config import ConfigError
from jointdiff.data.duplicates import (
    distinct_near_pairs,
    join_groups,
    near_pairs,
    perceptual_hash,
    thumbnail,
    unit_vectors,
)
from jointdiff.data.images import Fit, decode_image
from jointdiff.data.prepare import Part, join_parts, prepare, prepare_part, prepare_source
from jointdiff.data.source import (
    UNORIENTED,
    Augmentations,
    DataError,
    Facts,
    File,
    LabelSpec,
    NearDuplicates,
    Region,
    Sample,
    Source,
    load,
)
from jointdiff.data.sources import busi, fashion_mnist
from jointdiff.data.store import map_tensor, open_store, tensor_file
from jointdiff.files import DamagedError, write_sums
from tests.properties import examples


def module(samples, **changes):
    facts = {
        "name": "toy",
        "title": "Toy",
        "labels": LabelSpec("multi_label", ("a", "b")),
        "channels": 1,
        "licence": "none",
        "cite": "none",
        **changes,
    }
    return types.SimpleNamespace(SOURCE=Source(**facts), read=lambda raw, *, size, **options: iter(samples))


def sample(name="one", **changes):
    fields = {
        "image": np.arange(48, dtype=np.uint8).reshape(6, 8),
        "labels": [1, float("nan")],
        "group": name,
        **changes,
    }
    return Sample(sample_id=name, **fields)


def prepared(samples, tmp_path, *, size=8, **changes):
    prepare_source(module(samples, **changes), tmp_path, tmp_path / "store", size=size)
    return open_store(tmp_path / "store")


# What is written


def test_store_gives_back_what_was_read(tmp_path):
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 5:7] = True
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    store = prepared(
        [
            sample("x", image=images[0], group="g", split="train", regions=[Region("a", mask=mask)]),
            sample("y", image=images[1], group="g", labels=[0, 1], regions=[Region("b", box=(1, 2, 4, 6))]),
            sample("z", image=images[2], labels=[0, 0], split="test"),
        ],
        tmp_path,
    )
    assert np.array_equal(store.images[..., 0], images)
    assert store.sample_ids.tolist() == ["x", "y", "z"]
    assert store.groups.tolist() == ["g", "g", "z"]
    assert store.published_splits.tolist() == ["train", "", "test"]
    np.testing.assert_array_equal(store.labels, np.array([[1, np.nan], [0, 1], [0, 0]], dtype=np.float32))
    assert np.array_equal(store.regions(0, "a"), mask)
    assert store.boxes(0, "a") == [(5, 2, 7, 4)]
    box = np.zeros((8, 8), dtype=bool)
    box[2:6, 1:4] = True
    assert np.array_equal(store.regions(1, "b"), box)
    assert store.regions(2, "a") is None
    assert store.has_region("a").tolist() == [True, False, False]
    assert store.info.has_regions and store.info.samples == 3 and store.info.size == 8
    assert json.loads((tmp_path / "store/dataset.json").read_text())["labels"]["names"] == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "SHA256SUMS",
        "dataset.json",
        "images.arrow",
        "masks.arrow",
        "near_duplicates.parquet",
        "regions.parquet",
        "samples.parquet",
        "thumbnails.arrow",
    ]


def test_augmentations_come_back_and_an_older_store_has_those_of_natural_images(tmp_path):
    store = prepared([sample("x")], tmp_path, augmentations=UNORIENTED)
    assert store.info.augmentations == UNORIENTED
    path = tmp_path / "store/dataset.json"
    older = json.loads(path.read_text()) | {
        "augmentations": {"horizontal_flip": True, "vertical_flip": False, "max_shift": 0.1}
    }
    path.write_text(json.dumps(older))
    write_sums(tmp_path / "store")
    assert open_store(tmp_path / "store").info.augmentations == Augmentations(horizontal_flip=True, max_shift=0.1)


def test_images_are_one_memory_mapped_arrow_batch(tmp_path):
    store = prepared([sample(f"{i}") for i in range(50)], tmp_path, size=64)
    before = pa.total_allocated_bytes()
    images = store.images
    assert pa.total_allocated_bytes() == before  # mapped, not read
    assert images.shape == (50, 64, 64, 1) and images.flags.c_contiguous
    assert not images.flags.owndata and not images.flags.writeable
    batch = pa.ipc.open_file(pa.memory_map(str(tmp_path / "store/images.arrow"))).read_all()
    assert batch.column(0).num_chunks == 1
    assert np.array_equal(batch.column(0).chunk(0).to_numpy_ndarray(), images)


def test_a_set_without_regions_says_so(tmp_path):
    store = prepared([sample()], tmp_path)
    assert not store.info.has_regions
    assert store.regions(0, "a") is None and not store.has_region("a").any()


def test_digest_follows_content(tmp_path):
    digests = set()
    for name, changes in {
        "a": {},
        "b": {"labels": [0, 0]},
        "c": {"group": "h"},
        "d": {"regions": [Region("a", box=(0, 0, 1, 1))]},
    }.items():
        digests.add(prepared([sample(**changes)], tmp_path / name).info.digest)
    assert len(digests) == 4
    assert prepared([sample()], tmp_path / "again").info.digest in digests


def test_failure_leaves_the_earlier_store(tmp_path):
    store = prepared([sample()], tmp_path)

    def read(raw, *, size):
        yield sample("fine")
        raise DataError("a file is damaged")

    broken = types.SimpleNamespace(SOURCE=module([]).SOURCE, read=read)
    with pytest.raises(DataError, match="damaged"):
        prepare_source(broken, tmp_path, tmp_path / "store", size=8)
    assert open_store(tmp_path / "store").info == store.info
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_half_written_tensor_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), tensor_file(tmp_path / "x.arrow", (2, 2), 3) as file:
        file.write(1, bytes(4))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@examples(30)
@given(count=st.integers(0, 9), shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), data=st.data())
def test_a_tensor_file_is_what_arrow_writes(tmp_path_factory, count, shape, data):
    """Rows in any order give, byte for byte, the file that Arrow writes of the whole array."""
    folder = tmp_path_factory.mktemp("tensor")
    array = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
    with tensor_file(folder / "ours.arrow", shape, count) as file:
        for row in data.draw(st.permutations(range(count))):
            file.write(row, array[row].tobytes())
    if count:
        rows = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), int(np.prod(shape)))
        tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), shape), rows)
        batch = pa.record_batch([tensors], names=["tensor"])
        options = pa.ipc.IpcWriteOptions(allow_64bit=True)
        with pa.ipc.new_file(str(folder / "theirs.arrow"), batch.schema, options=options) as writer:
            writer.write_batch(batch)
        assert (folder / "ours.arrow").read_bytes() == (folder / "theirs.arrow").read_bytes()
    assert np.array_equal(map_tensor(folder / "ours.arrow"), array)


def test_more_than_two_gibibytes_take_neither_memory_nor_disk_before_they_are_written(tmp_path):
    """112,120 radiographs of 256 px are 7.3 GB; Arrow's arrays end at 2 GiB unless told otherwise."""
    with tensor_file(tmp_path / "x.arrow", (256, 256, 1), 112_120) as file:
        file.write(112_119, bytes([7]) * 65536)
    assert (tmp_path / "x.arrow").stat().st_size > 7.3e9
    assert (tmp_path / "x.arrow").stat().st_blocks * 512 < 1e6
    images = map_tensor(tmp_path / "x.arrow")
    assert images.shape == (112_120, 256, 256, 1) and images[-1].min() == 7 and not images[-2].any()


# In parts, in threads, and again


def varied(count, *, shards=None):
    """Make a source of drawn samples with masks and boxes; ``reads`` lists what was loaded."""
    names = [f"s{index:03d}" for index in range(count)]
    reads = []

    def draw(index):
        reads.append(index)
        g = np.random.default_rng(index)
        mask = np.zeros((12, 10), dtype=bool)
        mask[2:5, 3 : 4 + index % 5] = True
        regions = [Region("a", mask=mask)] * (index % 3) + [Region("b", box=(1, 1, 2 + index % 7, 9))] * (index % 2)
        image = g.integers(0, 256, (12, 10), dtype=np.uint8)
        return sample(
            names[index], image=image, labels=[index % 2, float("nan")], group=f"g{index // 4}", regions=regions
        )

    def read(raw, *, size, shard=None):
        for index in range(count):
            if shard is None or index % shards == int(shard):
                yield (lambda index=index: draw(index)) if index % 2 else draw(index)

    made = types.SimpleNamespace(SOURCE=module([]).SOURCE, read=read, reads=reads)
    if shards:
        made.shards = lambda raw: [str(shard) for shard in range(shards)]
    return made


def contents(store):
    return {
        # As text, in which an unknown label equals itself.
        path.name: path.read_bytes() if path.suffix != ".parquet" else repr(pa.parquet.read_table(path).to_pydict())
        for path in store.iterdir()
    }


@examples(25)
@given(
    count=st.integers(1, 40),
    shards=st.sampled_from([None, 1, 3]),
    parts=st.integers(1, 7),
    threads=st.sampled_from([1, 3]),
)
def test_parts_and_threads_change_nothing(tmp_path_factory, count, shards, parts, threads):
    folder = tmp_path_factory.mktemp("parts")
    source = varied(count, shards=shards)
    prepare_source(source, folder, folder / "whole", size=8)
    pieces = [folder / f"parts/{k + 1}-of-{parts}" for k in range(parts)]
    for k, piece in enumerate(pieces):
        prepare_part(source, folder, piece, size=8, part=Part(k, parts), threads=threads)
    join_parts(source, reversed(pieces), folder / "joined", raw=folder, size=8)
    whole, joined = contents(folder / "whole"), contents(folder / "joined")
    assert whole == joined
    store = open_store(folder / "whole")
    if not shards:
        assert store.sample_ids.tolist() == [f"s{index:03d}" for index in range(count)]
    for row, name in enumerate(store.sample_ids):
        index = int(name[1:])
        assert len(store.boxes(row, "a")) == index % 3 and len(store.boxes(row, "b")) == index % 2


def test_an_interrupted_part_goes_on_after_its_last_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("jointdiff.data.prepare.PIECE", 16 * 64)  # 16 images
    source = varied(200)
    prepare_source(source, tmp_path, tmp_path / "whole", size=8)
    read = source.read

    def failing(raw, *, size):
        for index, item in enumerate(read(raw, size=size)):
            if index == 180:
                raise KeyboardInterrupt
            yield item

    source.read = failing
    with pytest.raises(KeyboardInterrupt):
        prepare_part(source, tmp_path, tmp_path / "part", size=8)
    assert not (tmp_path / "part").exists()
    source.read = read
    source.reads.clear()
    prepare_part(source, tmp_path, tmp_path / "part", size=8)
    loaded_later = {index for index in source.reads if index % 2}  # the others are drawn while they are read
    assert min(loaded_later) >= 96 and len(loaded_later) <= 52
    join_parts(source, [tmp_path / "part"], tmp_path / "joined", raw=tmp_path, size=8)
    assert contents(tmp_path / "whole") == contents(tmp_path / "joined")
    # What another size or another release of the files left behind is not taken up.
    source.read = failing
    with pytest.raises(KeyboardInterrupt):
        prepare_part(source, tmp_path, tmp_path / "other", size=16)
    source.read = read
    prepare_part(source, tmp_path, tmp_path / "other", size=8)
    join_parts(source, [tmp_path / "other"], tmp_path / "again", raw=tmp_path, size=8)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


KILLED = """
import sys, time, types
from pathlib import Path
from jointdiff.data import prepare
from tests.unit.test_prepare import varied
prepare.PIECE = 16 * 64
source = varied(200)
read = source.read

def slow(raw, *, size):
    for index, item in enumerate(read(raw, size=size)):
        time.sleep(0.02 if index > 120 else 0)
        yield item

source.read = slow
prepare.prepare_part(source, sys.argv[1], Path(sys.argv[1], "part"), size=8)
"""


def test_a_killed_part_goes_on_after_its_last_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("jointdiff.data.prepare.PIECE", 16 * 64)
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2])
    while running.poll() is None and not list(tmp_path.glob(".part.*/0*.arrow")):
        time.sleep(0.01)
    running.kill()
    assert running.wait() != 0, "it ended before it could be killed"
    source = varied(200)
    prepare_part(source, tmp_path, tmp_path / "part", size=8)
    assert min(index for index in source.reads if index % 2) >= 16
    (tmp_path / "part/.0000-0000-000000016.1.arrow").touch()  # as a kill amid writing leaves it
    join_parts(source, [tmp_path / "part"], tmp_path / "joined", raw=tmp_path, size=8)
    prepare_source(source, tmp_path, tmp_path / "whole", size=8)
    assert contents(tmp_path / "whole") == contents(tmp_path / "joined")


def test_ids_are_unique_across_parts(tmp_path):
    twice = module([sample("x"), sample("y"), sample("x")])
    parts = [tmp_path / "1", tmp_path / "2"]
    for k, part in enumerate(parts):
        prepare_part(twice, tmp_path, part, size=8, part=Part(k, 2))
    with pytest.raises(DataError, match="'x': two samples have this id"):
        join_parts(twice, parts, tmp_path / "store", raw=tmp_path, size=8)
    assert not (tmp_path / "store").exists()


def test_a_damaged_piece_is_named(tmp_path):
    source = varied(5)
    prepare_part(source, tmp_path, tmp_path / "part", size=8)
    piece = next((tmp_path / "part").iterdir())
    piece.write_bytes(piece.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"arrow is damaged .* delete its folder"):
        join_parts(source, [tmp_path / "part"], tmp_path / "store", raw=tmp_path, size=8)


def test_files_that_only_a_mirror_vouches_for_are_a_caveat(tmp_path):
    (tmp_path / "downloads.json").write_text('{"x.zip": {"sha256": "0", "modified": true}, "y.zip": {"sha256": "1"}}')
    caveats = prepared([sample()], tmp_path, caveats=("no patient is named",)).info.caveats
    assert caveats[0] == "no patient is named" and len(caveats) == 2
    assert caveats[1].startswith("x.zip is not the published file")


# How it is resized


def test_resizing_equals_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((30, 20), Image.Resampling.BICUBIC))
    padded = Fit(40, 60, 30, "pad").image(pixels)[:, :, 0]
    assert np.array_equal(padded[5:25], expected)
    assert not padded[:5].any() and not padded[25:].any()
    expected = np.asarray(Image.fromarray(pixels).resize((45, 30), Image.Resampling.BICUBIC))
    assert np.array_equal(Fit(40, 60, 30, "centre_crop").image(pixels)[:, :, 0], expected[:, 8:38])


@examples(60)
@given(
    height=st.integers(4, 80),
    width=st.integers(4, 80),
    size=st.integers(4, 64),
    how=st.sampled_from(["pad", "centre_crop"]),
    data=st.data(),
)
def test_image_mask_and_box_move_together(height, width, size, how, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    fit = Fit(height, width, size, how)
    image, moved, box = fit.image(mask.astype(np.uint8) * 255), fit.mask(mask), fit.box((x0, y0, x1, y1))
    assert image.shape == (size, size, 1) and moved.shape == (size, size)
    if how == "pad":
        assert box is not None and moved.any()
    if moved.any():
        assert np.array_equal(moved, image[:, :, 0] >= 128) or not (image >= 128).any()
    if box is not None and (image >= 128).any():
        rows, columns = np.nonzero(moved)
        # A pixel of rounding, and the filter's support where the image is enlarged.
        slack = 1.5 + 0.5 * size / min(height, width)
        assert columns.min() >= box[0] - slack and columns.max() + 1 <= box[2] + slack
        assert rows.min() >= box[1] - slack and rows.max() + 1 <= box[3] + slack


def test_a_tiny_lesion_keeps_a_pixel():
    mask = np.zeros((300, 300), dtype=bool)
    mask[100:103, 200:203] = True
    assert Fit(300, 300, 32, "pad").mask(mask).sum() >= 1


def test_fashion_mnist_pixels_survive_at_32(tmp_path):
    import gzip

    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        header = b"\0\0\x08\x03" + np.array([5, 28, 28], dtype=">u4").tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        header = b"\0\0\x08\x01" + np.array([5], dtype=">u4").tobytes()
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + bytes(range(5))))
    samples = list(fashion_mnist.read(tmp_path, size=32))
    assert len(samples) == 10 and [s.split for s in samples] == ["train"] * 5 + ["test"] * 5
    assert np.array_equal(samples[3].image[2:30, 2:30], pixels[3])
    assert samples[3].labels == np.eye(10)[3].tolist()
    assert next(fashion_mnist.read(tmp_path, size=64)).image.shape == (28, 28)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + bytes(range(4))))
    with pytest.raises(DataError, match=r"train-labels.* is no whole IDX file"):
        list(fashion_mnist.read(tmp_path, size=32))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(DataError, match=r"train-images.* is damaged"):
        list(fashion_mnist.read(tmp_path, size=32))


# BUSI from a small archive of its layout


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def busi_archive(folder, **changes):
    g = np.random.default_rng(0)

    def scene():
        coarse = g.integers(0, 256, (6, 8), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC))

    first, second, third = scene(), scene(), scene()
    left, right = np.zeros((30, 40), dtype=bool), np.zeros((30, 40), dtype=bool)
    left[5:10, 5:10] = right[15:20, 25:30] = True
    files = {
        "benign/benign (1).png": png(first),
        "benign/benign (1)_mask.png": png(left),
        "benign/benign (1)_mask_1.png": png(right),
        "malignant/malignant (1).png": png(second),
        "malignant/malignant (1)_mask.png": png(left),
        "normal/normal (1).png": png(np.clip(first.astype(int) + 6, 0, 255).astype(np.uint8)),
        "normal/normal (1)_mask.png": png(np.zeros((30, 40), dtype=bool)),
        "normal/normal (2).png": png(np.stack([third] * 3, axis=2)),
        "normal/normal (2)_mask.png": png(np.zeros((30, 40), dtype=bool)),
        **changes,
    }
    with zipfile.ZipFile(folder / "Dataset_BUSI.zip", "w") as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(f"Dataset_BUSI_with_GT/{name}", content)
    return left | right


def test_busi_merges_masks_and_joins_near_duplicates(tmp_path):
    union = busi_archive(tmp_path)
    (tmp_path / "near_duplicates.csv").write_text("image,group\nmalignant (1),7\nnormal (2),7\n")
    samples = {s.sample_id: s for s in map(load, busi.read(tmp_path, size=32))}
    assert list(samples) == ["benign (1)", "malignant (1)", "normal (1)", "normal (2)"]
    assert np.array_equal(samples["benign (1)"].regions[0].mask, union)
    assert samples["normal (1)"].labels == [0.0] and not samples["normal (1)"].regions
    assert samples["malignant (1)"].labels == [1.0]
    assert samples["malignant (1)"].group == samples["normal (2)"].group == "near-duplicates 7"
    # One pair is listed, the other is found: the same picture, a little brighter.
    prepare_source(
        module([*samples.values()], labels=busi.SOURCE.labels, near_duplicates=busi.SOURCE.near_duplicates),
        tmp_path,
        tmp_path / "store",
        size=32,
    )
    groups = dict(
        zip((store := open_store(tmp_path / "store")).sample_ids.tolist(), store.groups.tolist(), strict=True)
    )
    assert groups["benign (1)"] == groups["normal (1)"] != groups["malignant (1)"] == groups["normal (2)"]


def reading_busi(tmp_path):
    source = types.SimpleNamespace(SOURCE=busi.SOURCE, read=busi.read)
    prepare_source(source, tmp_path, tmp_path / "store", size=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benign/benign (1).png": b"no picture"}, r"benign \(1\)\.png does not decode.*download it again"),
        ({"benign/benign (1)_mask.png": png(np.ones((9, 9), dtype=bool))}, r"masks of benign \(1\) differ in size"),
        (
            {"malignant/malignant (1)_mask.png": png(np.ones((9, 8), dtype=bool))},
            r"'malignant \(1\)': the mask of 'lesion' is 8 x 9 pixels, its image 40 x 30",
        ),
        ({"malignant/malignant (1)_mask.png": None}, r"malignant \(1\) has no mask"),
        ({}, "4 samples were read where 780 are published"),
    ],
)
def test_busi_names_what_is_wrong(tmp_path, changes, message):
    busi_archive(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        reading_busi(tmp_path)
    assert not (tmp_path / "store").exists()


def test_truncated_image_and_archive(tmp_path):
    whole = png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    with pytest.raises(DataError, match=r"x\.png does not decode"):
        decode_image(whole[: len(whole) // 2], name="x.png")
    busi_archive(tmp_path)
    path = tmp_path / "Dataset_BUSI.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"Dataset_BUSI.zip is damaged"):
        reading_busi(tmp_path)


# Near-duplicates


def scenes(count, seed=3):
    g = np.random.default_rng(seed)
    coarse = [Image.fromarray(g.integers(0, 256, (7, 7), dtype=np.uint8)) for _ in range(count)]
    return [np.asarray(picture.resize((40, 40))) for picture in coarse]


def test_near_duplicates_are_found_among_others():
    images = scenes(30)
    images[29] = np.clip(images[4].astype(int) * 0.9 + 3, 0, 255).astype(np.uint8)
    thumbs = np.stack([thumbnail(image) for image in images])
    np.testing.assert_allclose(thumbs.mean(axis=(1, 2)), [image.mean() for image in images], atol=1.5)
    assert near_pairs(thumbs, hamming=4, correlation=0.995).tolist() == [[4, 29]]


def test_the_thumbnail_of_a_colour_image_is_that_of_its_rounded_mean():
    every_sum = np.array([(min(s, 255), min(max(s - 255, 0), 255), max(s - 510, 0)) for s in range(766)], np.uint8)
    tiles = np.broadcast_to(every_sum[:, None, None], (766, 16, 16, 3))
    for tile in tiles:
        assert np.array_equal(thumbnail(tile), tile.mean(axis=2).round())


@examples(40)
@given(seed=st.integers(0, 1000), hamming=st.integers(0, 12), correlation=st.sampled_from([-1.0, 0.5, 0.9, 0.99]))
def test_bands_find_what_comparing_all_finds(seed, hamming, correlation):
    g = np.random.default_rng(seed)
    base = np.stack([thumbnail(image) for image in scenes(12, seed)]).astype(float)
    thumbs = base[g.integers(0, 12, 60)] + g.normal(0, g.uniform(0, 25), (60, 16, 16))
    thumbs = np.clip(thumbs, 0, 255).astype(np.uint8)
    hashes = perceptual_hash(thumbs.astype(np.float32))
    alike = unit_vectors(thumbs) @ unit_vectors(thumbs).T
    expected = [
        [i, j]
        for i in range(60)
        for j in range(i + 1, 60)
        if int(hashes[i] ^ hashes[j]).bit_count() <= hamming and alike[i, j] >= correlation
    ]
    found = near_pairs(thumbs, hamming=hamming, correlation=correlation).tolist()
    unsure = [pair for pair in found + expected if abs(alike[tuple(pair)] - correlation) < 1e-5]
    assert [pair for pair in found if pair not in unsure] == [pair for pair in expected if pair not in unsure]


def test_of_equal_images_the_first_speaks():
    images = scenes(5)
    thumbs = np.stack([thumbnail(image) for image in (*images, images[0], images[0])])
    pixels = np.array([*"abcde", "a", "a"])
    assert distinct_near_pairs(pixels, thumbs, hamming=4, correlation=0.99).tolist() == []
    brighter = thumbnail(np.clip(images[0] * 0.9 + 4, 0, 255).astype(np.uint8))
    found = distinct_near_pairs(
        np.append(pixels, "f"), np.concatenate([thumbs, brighter[None]]), hamming=4, correlation=0.99
    )
    assert found.tolist() == [[0, 7]]


def test_groups_join_across_ties():
    assert join_groups(list("abcdef"), ["1", "2", "2", "3", "4", "5"], np.array([[0, 2], [4, 5], [4, 4]])) == list(
        "aaadee"
    )


def test_near_duplicates_join_groups_only_where_a_source_says_so(tmp_path):
    images = scenes(6)
    images[5] = np.clip(images[2] * 0.95 + 2, 0, 255).astype(np.uint8)
    samples = [sample(str(index), image=image) for index, image in enumerate([*images, images[0]])]
    apart = prepared(samples, tmp_path / "apart")
    assert len(set(apart.groups)) == 7 and apart.near_duplicates.tolist() == [[2, 5]]
    joined = prepared(samples, tmp_path / "joined", near_duplicates=NearDuplicates(join=True))
    assert joined.groups[5] == joined.groups[2] and joined.groups[6] == joined.groups[0]
    assert len(set(joined.groups)) == 5
    assert joined.info.digest != apart.info.digest


def test_busi_finds_the_listed_groups_by_itself(mirror, tmp_path):
    """Pairs of images in one group, ours against those of the list, which the reader does not see here."""
    shutil.copy(mirror / "busi/Dataset_BUSI.zip", tmp_path)
    prepare("busi", tmp_path, tmp_path / "store", size=32)
    store = open_store(tmp_path / "store")
    with (mirror / "busi/near_duplicates.csv").open(newline="") as stream:
        listed = {row["image"]: row["group"] for row in csv.DictReader(stream)}

    def pairs(groups):
        names = sorted(groups)
        return {(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if groups[a] == groups[b]}

    wanted = pairs(listed)
    found = pairs(dict(zip(store.sample_ids.tolist(), store.groups.tolist(), strict=True)))
    recall, precision = len(wanted & found) / len(wanted), len(wanted & found) / len(found)
    print(f"{len(wanted)} listed pairs, {len(found)} found, recall {recall:.3f}, precision {precision:.3f}")
    assert recall == 1.0


# Bad input, each one message


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "toy: no samples were read"),
        ([sample(), sample()], "'one': two samples have this id"),
        ([sample(group="")], "it has no group"),
        ([sample(image=np.zeros((4, 4), dtype=np.float32))], r"the image is float32 \(4, 4\) instead of uint8"),
        ([sample(image=np.zeros((4, 4, 3), dtype=np.uint8))], "the image has 3 channels instead of 1"),
        ([sample(labels=[1])], r"labels of shape \(1,\) instead of 2 \(a, b\)"),
        ([sample(labels=[1, 2])], "not all 0, 1 or NaN"),
        ([sample(split="dev")], "its split 'dev' is none of"),
        ([sample(regions=[Region("c", box=(0, 0, 1, 1))])], "finding 'c', which is none of a, b"),
        ([sample(regions=[Region("a")])], "neither mask nor box"),
        ([sample(regions=[Region("a", mask=np.ones((8, 6), dtype=bool))])], "is 6 x 8 pixels, its image 8 x 6"),
        ([sample(regions=[Region("a", mask=np.zeros((6, 8), dtype=bool))])], "is empty or not bool"),
        ([sample(regions=[Region("a", box=(0, 0, 9, 6))])], "is not inside its image of 8 x 6 pixels"),
        ([sample(regions=[Region("a", box=(3, 0, 3, 6))])], "is not inside its image"),
        ([sample(regions=[Region("a", box=(0, 0, float("nan"), 6))])], "is not inside its image"),
    ],
)
def test_bad_samples_are_named(tmp_path, samples, message):
    with pytest.raises(DataError, match=message):
        prepared(samples, tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_of_k_must_be_one_hot(tmp_path):
    with pytest.raises(DataError, match="not one-hot"):
        prepared([sample(labels=[1, 1])], tmp_path, labels=LabelSpec("one_of_k", ("a", "b")))


def test_published_numbers_are_asserted(tmp_path):
    with pytest.raises(DataError, match="1 positives of a were read where 2 are published"):
        prepared([sample()], tmp_path, facts=Facts(samples=1, positives={"a": 2}))


def test_absent_file_names_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"images.zip is absent; download it, or name a mirror"):
        prepared([], tmp_path, files=(File("images.zip"), File("more.csv", optional=True)))


def test_options_are_closed(tmp_path):
    with pytest.raises(ConfigError, match=r"datasets.phantom.options.patient is no option.*did you mean 'patients'"):
        prepare("phantom", tmp_path, tmp_path / "out", size=8, options={"patient": 3})
    with pytest.raises(ConfigError, match=r"patients: 'many' is no int; the default is 600"):
        prepare("phantom", tmp_path, tmp_path / "out", size=8, options={"patients": "many"})
    with pytest.raises(ConfigError, match="it has none"):
        prepare("busi", tmp_path, tmp_path / "out", size=8, options={"x": 1})


def test_no_store_and_damaged_store(tmp_path):
    with pytest.raises(DataError, match="is no prepared data set"):
        open_store(tmp_path)
    store = prepared([sample()], tmp_path)
    (tmp_path / "store/images.arrow").write_bytes(b"ARROW1 not really")
    with pytest.raises(DataError, match="is no Arrow file"):
        map_tensor(tmp_path / "store/images.arrow")
    with pytest.raises(DamagedError, match=r"images\.arrow is damaged, .* delete .*store so that the data set"):
        _ = store.images
    (tmp_path / "store/SHA256SUMS").unlink()
    with pytest.raises(DataError, match="store has no SHA256SUMS: delete"):
        open_store(tmp_path / "store")
