"""Files that are watched: what counts as a change of them, what does not, and how much is read to know."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.config import ConfigError
from jointdiff.data import manifest
from jointdiff.data.manifest import Manifest, check_downloads, content_of, look, watch
from jointdiff.data.prepare import join_parts, prepare_part
from jointdiff.data.source import DataError
from jointdiff.data.sources import own
from jointdiff.files import sha256, write_json
from jointdiff.paths import check_folders
from tests.properties import examples
from tests.unit.test_own import image, pictures, place, png, text

FUTURE = 4_000_000_000_000_000_000  # ns: the year 2096


def rewrite(path: Path, content: bytes, *, date: int | None = None) -> None:
    """Write a file anew, by default with its former time, as a careful program does."""
    was = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(was, was if date is None else date))


def dated(path: Path, date: int) -> None:
    os.utime(path, ns=(date, date))


def renamed_copy(path: Path) -> None:
    """Put a file with the same content, size and time, and another inode, in place of one."""
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    dated(copy, path.stat().st_mtime_ns)
    copy.replace(path)


CHANGES = {
    "other content": (lambda path: rewrite(path, b"other, longer"), True),
    "same size": (lambda path: path.write_bytes(b"XXXX"), True),
    "same size and time": (lambda path: rewrite(path, b"XXXX"), True),
    "same size, dated ahead": (lambda path: rewrite(path, b"XXXX", date=FUTURE), True),
    "same size, dated back": (lambda path: rewrite(path, b"XXXX", date=1), True),
    "empty": (lambda path: rewrite(path, b""), True),
    "gone": (lambda path: path.unlink(), True),
    "new beside it": (lambda path: path.with_name("z.png").write_bytes(b"new"), True),
    "renamed": (lambda path: path.rename(path.with_name("z.png")), True),
    "touched": (lambda path: path.touch(), False),
    "dated ahead": (lambda path: dated(path, FUTURE), False),
    "dated back": (lambda path: dated(path, 1), False),
    "written again": (lambda path: path.write_bytes(b"abcd"), False),
    "a copy": (renamed_copy, False),
    "other rights": (lambda path: path.chmod(0o600), False),
    "hidden beside it": (lambda path: path.with_name(".DS_Store").write_bytes(b"new"), False),
    "nothing": (lambda path: None, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_content_alone_makes_another_state(tmp_path, change, capsys):
    folder, record = tmp_path / "mein {1} [α] é日本 #%'&", tmp_path / "record.json"
    place(folder, {"a.png": b"abcd", "b.png": b"efgh", "sub/c.png": b"ijkl"})
    look([folder]).with_sums("digest").write(record)
    before = watch([folder], record, name="scans")
    act, changes = CHANGES[change]
    act(folder / "a.png")
    assert (watch([folder], record, name="scans") != before) == changes
    said = capsys.readouterr().err
    assert ("since it was last prepared" in said and "of 3 files 1 " in said) == changes
    assert (watch([folder], record, name="scans") != before) == changes, "looking changes nothing"


@examples(40)
@given(
    before=st.dictionaries(st.sampled_from("abcde"), st.binary(max_size=2), min_size=1),
    after=st.dictionaries(st.sampled_from("abcde"), st.binary(max_size=2), min_size=1),
    date=st.integers(0, FUTURE),
)
def test_states_are_equal_just_where_names_and_contents_are(tmp_path_factory, before, after, date):
    folder = tmp_path_factory.mktemp("files")
    place(folder, before)
    known = look([folder]).with_sums("digest")
    for path in folder.iterdir():
        path.unlink()
    for path in place(folder, after).iterdir():
        dated(path, date)
    assert (look([folder], known).state == known.state) == (before == after)


def test_only_what_may_have_changed_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(manifest, "sha256", lambda path: (read.append(Path(path).name), sha256(path))[1])
    monkeypatch.setattr(manifest, "TICK", 0)  # otherwise files as young as these are read for their youth
    files = place(tmp_path / "scans", {f"{index}.png": bytes([index]) * 9 for index in range(20)})
    first = look([files])
    assert read == [], "the first look reads nothing"
    known = first.with_sums("digest")
    read.clear()
    assert look([files], known) is known and read == []
    (files / "3.png").touch()
    again = look([files], known)
    assert read == ["3.png"] and again.state == known.state
    assert look([files], again) is again and read == ["3.png"], "a touched file is read once"
    (files / "4.png").write_bytes(b"longer than before")
    assert look([files], again).state != again.state and read == ["3.png"], "another size says enough"


def test_what_changes_shortly_before_a_look_is_read_again(tmp_path):
    """A clock counts in steps: what is written in the step of a look may bear the time of before."""
    path = tmp_path / "a.png"
    path.write_bytes(b"abcd")
    known = look([path]).with_sums("digest")
    entry = known.files[str(path)]
    unseen = Manifest(known.state, known.looked, {str(path): entry._replace(sha256="0" * 64)})
    assert look([path], unseen).state != known.state


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"state": 1}', b'{"files": {"a": [1]}, "state": "", "looked": 0}']
)
def test_a_damaged_record_counts_as_none(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    assert Manifest.read(tmp_path / "record.json") is None


def test_weights_are_known_by_content_wherever_they_lie(tmp_path):
    for name in ("vae {1}", "moved"):
        place(tmp_path / name, {"config.json": b"{}", "sub/weights.safetensors": b"1234"})
    kept = content_of(tmp_path / "vae {1}", tmp_path / "a.json")
    assert content_of(tmp_path / "moved", tmp_path / "b.json") == kept
    (tmp_path / "vae {1}/config.json").touch()
    assert content_of(tmp_path / "vae {1}", tmp_path / "a.json") == kept
    (tmp_path / "vae {1}/sub/weights.safetensors").write_bytes(b"1235")
    assert content_of(tmp_path / "vae {1}", tmp_path / "a.json") != kept
    with pytest.raises(DataError, match="gone cannot be read"):
        content_of(tmp_path / "gone", tmp_path / "c.json")


@pytest.fixture
def scans(tmp_path):
    rows = [
        (f"images/{index}.png", index % 2, f"p{index}", f"mask{index}.png" if index % 2 else "") for index in range(4)
    ]
    mask = image(0) > 100
    masks = {f"mask{index}.png": png(mask) for index in (1, 3)}
    folder = place(
        tmp_path / "scans", {**pictures(), **masks, "labels.csv": text(("path", "nodule", "patient", "mask"), *rows)}
    )
    return {"path": str(folder), "labels": ["nodule"], "group": "patient", "mask": "mask"}


@pytest.mark.parametrize("file", ["images/2.png", "mask3.png", "labels.csv"])
def test_what_changes_while_it_is_prepared_is_named(tmp_path, scans, monkeypatch, file):
    path, read = Path(scans["path"], file), own.read

    def meddled(*arguments, **options):
        for index, item in enumerate(read(*arguments, **options)):
            if index == 3:
                rewrite(path, path.read_bytes())
            yield item

    monkeypatch.setattr(own, "read", meddled)
    with pytest.raises(DataError, match=f"{file} changed while the data set was prepared"):
        prepare_part(own, tmp_path, tmp_path / "part", size=8, options=scans)
    monkeypatch.undo()
    prepare_part(own, tmp_path, tmp_path / "part", size=8, options=scans)
    Path(scans["path"], "images/1.png").write_bytes(png(image(9)))
    with pytest.raises(DataError, match=r"images/1\.png changed while"):
        join_parts(own, [tmp_path / "part"], tmp_path / "store", raw=tmp_path, size=8, options=scans)
    assert not (tmp_path / "store").exists()


def test_pieces_of_older_images_are_not_taken_up(tmp_path, scans, monkeypatch):
    monkeypatch.setattr("jointdiff.data.prepare.PIECE", 1)
    monkeypatch.setattr("jointdiff.data.prepare.BATCH", 1)
    read = own.read

    def failing(*arguments, **options):
        for index, item in enumerate(read(*arguments, **options)):
            if index == 3:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(own, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare_part(own, tmp_path, tmp_path / "part", size=8, options=scans)
    monkeypatch.setattr(own, "read", read)
    rewrite(Path(scans["path"], "images/0.png"), png(image(9)))
    for folder in ("part", "anew"):
        prepare_part(own, tmp_path, tmp_path / folder, size=8, options=scans)
        join_parts(own, [tmp_path / folder], tmp_path / f"{folder}-store", raw=tmp_path, size=8, options=scans)
    stores = [
        {path.name: path.read_bytes() for path in (tmp_path / f"{name}-store").iterdir()} for name in ("part", "anew")
    ]
    assert stores[0] == stores[1]


def test_a_store_records_what_it_was_made_from(tmp_path, scans):
    prepare_part(own, tmp_path, tmp_path / "part", size=8, options=scans)
    planned = watch(own.describe(**scans).inputs, tmp_path / "store.json", name="scans")
    join_parts(
        own,
        [tmp_path / "part"],
        tmp_path / "store",
        raw=tmp_path,
        size=8,
        options=scans,
        record=tmp_path / "store.json",
    )
    made = Manifest.read(tmp_path / "store.json")
    assert made is not None and made.state == planned and all(entry.sha256 for entry in made.files.values())
    assert {Path(name).name for name in made.files} == {
        "labels.csv",
        "mask1.png",
        "mask3.png",
        *(f"{k}.png" for k in range(4)),
    }


def test_a_replaced_download_is_named(tmp_path):
    path = tmp_path / "set.zip"
    path.write_bytes(b"published")
    write_json(tmp_path / "downloads.json", {"set.zip": {"sha256": sha256(path), "bytes": 9}, "gone.zip": {}})
    check_downloads(tmp_path)
    path.touch()
    check_downloads(tmp_path)
    rewrite(path, b"replaced!", date=1)
    with pytest.raises(DataError, match=r"set\.zip is not the file.*remove both"):
        check_downloads(tmp_path)
    check_downloads(tmp_path / "nothing here")


@pytest.mark.parametrize(
    ("project", "pathvars", "message"),
    [
        ("/home/a\nb", {}, "the project's folder: .* rename it"),
        ("/home/a\rb", {}, "the project's folder: .* rename it"),
        ("/home/a", {"results": "out {1}"}, r"pathvars.results: 'out \{1\}' has '\{' or '\}'"),
        ("/home/a", {"resources": "a\nb"}, "pathvars.resources"),
    ],
)
def test_folders_that_snakemake_cannot_take_are_refused(project, pathvars, message):
    with pytest.raises(ConfigError, match=message):
        check_folders(project, pathvars)
    check_folders("/home/mein Projekt {1} [α] é日本 #%'&", {"results": "out [α] é #%'&"})
