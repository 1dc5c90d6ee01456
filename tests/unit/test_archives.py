"""Archives that are damaged or hostile: one message, nothing outside the folder, nothing beyond the limits."""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.data import archives
from jointdiff.data.archives import damage, extract, tar_stream, zip_members
from jointdiff.data.source import DataError
from tests.properties import examples

REMEDY = "remove it and download it again"


def zipped(*members, compression=zipfile.ZIP_DEFLATED):
    """Return a zip of (name or ZipInfo, content)."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(*members, kind=tarfile.REGTYPE, mode=0o644, **options):
    """Return a tar of (name, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, "../../outside", mode
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write(folder, content):
    path = folder / "x.archive"
    path.write_bytes(content)
    return path


def untouched(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()] == ["x.archive"]


MAKE = pytest.mark.parametrize("make", [zipped, tarred, lambda *members: gzip.compress(tarred(*members))])


def read(path):
    """Read an archive of either kind in place."""
    if path.read_bytes().startswith(b"PK"):
        with zip_members(path) as members:
            return {name: members.read(name) for name in members}
    return dict(tar_stream(path))


@MAKE
def test_honest_archives(tmp_path, make):
    path = write(tmp_path, make(("a/", b""), ("a/b..txt", b"b"), ("./c d/é.txt", b"c"), ("empty/", b""), ("e", b"")))
    expected = {"a/b..txt": b"b", "c d/é.txt": b"c", "e": b""}
    assert read(path) == expected
    (tmp_path / "out").mkdir()
    (tmp_path / "out/of an earlier time").touch()
    extract(path, tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert found == {name: content for name, content in expected.items() if "." in name}
    assert (tmp_path / "out/empty").is_dir() and (tmp_path / "out/e").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.archive"]
    assert damage(path, name="x.zip" if make is zipped else "x.tar.gz") is None


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_keep_their_order(tmp_path, pack):
    members = [(f"{index * 7 % 20}.bin", bytes([index]) * 3000) for index in range(20)]
    path = write(tmp_path, pack(tarred(*members)))
    assert list(tar_stream(path)) == members
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"x\.archive is corrupt or truncated.*{REMEDY}"):
        list(tar_stream(path))


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path):
    path = write(tmp_path, tarred(("a.zip", zipped(("inside", b"x"), compression=zipfile.ZIP_STORED))))
    assert zipfile.is_zipfile(path)
    extract(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.zip"]


EVIL = ["../evil", "a/../../evil", "/evil", "..\\evil", "C:/evil", "C:evil", "c:\\evil", "a/..", "//h/evil", "x:/evil"]


@MAKE
@pytest.mark.parametrize("name", EVIL)
def test_members_that_leave_the_folder_are_refused(tmp_path, make, name):
    path = write(tmp_path, make(("fine", b"fine"), (name, b"evil")))
    with pytest.raises(DataError, match=r"x\.archive: member .* would be written outside its folder; .* is refused"):
        extract(path, tmp_path / "out/deep")
    with pytest.raises(DataError, match="outside its folder"):
        read(path)
    assert untouched(tmp_path)


def linked(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return zipped((info, "../../etc/passwd"))


@pytest.mark.parametrize(
    "content",
    [linked("it", mode | 0o777) for mode in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)]
    + [
        tarred(("it", b""), kind=kind)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z")
    ],
)
def test_links_and_devices_are_refused(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match="member 'it' is a link or a device"):
        extract(path, tmp_path / "out")
    with pytest.raises(DataError, match="member 'it' is a link or a device"):
        read(path)
    assert untouched(tmp_path)


@MAKE
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "member 'a' has a name that is there already"),
        (["a", "./a"], "member './a' has a name that is there already"),
        (["d/a", "d\\a"], "has a name that is there already"),
        (["Scan.png", "scan.PNG"], "member 'scan.PNG' has a name that is there already, or differs from it in case"),
        (["straße", "STRASSE"], "has a name that is there already"),
        (["a", "a/b"], "member 'a/b' lies in a folder that is a file"),
        (["A", "a/b/c"], "member 'a/b/c' lies in a folder that is a file"),
        (["a/b", "a"], "member 'a' has a name that is there already"),
        (["a/", "A"], "member 'A' has a name that is there already"),
        (["."], "member '.' has no valid name"),
    ],
)
def test_names_that_clash_are_refused(tmp_path, make, names, message):
    path = write(tmp_path, make(*((name, b"") for name in names)))
    with pytest.raises(DataError) as caught:
        extract(path, tmp_path / "out")
    assert message in str(caught.value) and untouched(tmp_path)


def test_names_with_nul_are_refused(tmp_path):
    for name in (b"txt\0evil", b"\0xtZevil"):
        path = write(tmp_path, zipped(("txtZevil", b"")).replace(b"txtZevil", name))
        with pytest.raises(DataError, match=r"has no valid name"):
            extract(path, tmp_path / "out")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("good")
        member.pax_headers = {"path": "good\0evil"}
        archive.addfile(member)
    path.write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"has no valid name"):
        extract(path, tmp_path / "out")


def test_modes_are_not_taken_over(tmp_path):
    extract(write(tmp_path, tarred(("a", b""), mode=0o6777)), tmp_path / "out")
    assert not stat.S_IMODE((tmp_path / "out/a").stat().st_mode) & 0o7111


# Limits


@MAKE
def test_the_number_of_members(tmp_path, make):
    path = write(tmp_path, make(*((str(index), b"") for index in range(11))))
    extract(path, tmp_path / "out", members=11)
    with pytest.raises(DataError, match="member '10' is one too many: 10 may be there"):
        extract(path, tmp_path / "out2", members=10)
    if make is not zipped:
        with pytest.raises(DataError, match="one too many"):
            list(tar_stream(path, members=10))


@MAKE
def test_the_expanded_size(tmp_path, make):
    path = write(tmp_path, make(("a", bytes(60_000)), ("b", bytes(60_000))))
    extract(path, tmp_path / "out", limit=120_000)
    with pytest.raises(DataError, match=r"x\.archive expands to more than 119999 bytes"):
        extract(path, tmp_path / "out2", limit=119_999)
    assert not (tmp_path / "out2").exists()


def test_bombs_are_stopped_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SPARE", 1000)
    path = write(tmp_path, zipped(("a", bytes(1_000_000))))
    with pytest.raises(DataError, match="expands to more than"):
        extract(path, tmp_path / "out")


def test_a_zip_that_lies_about_its_size(tmp_path):
    """The headers say 10 bytes; what is written is counted, and the archive is refused."""
    content = bytearray(zipped(("a", bytes(5_000_000))))
    central = content.index(b"PK\1\2")
    content[22:26] = content[central + 24 : central + 28] = struct.pack("<I", 10)
    path = write(tmp_path, bytes(content))
    with pytest.raises(DataError, match=REMEDY):
        extract(path, tmp_path / "out", limit=1000)
    assert untouched(tmp_path)


def test_writing_is_counted_whatever_the_headers_say(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_size", lambda info: 0)
    for content in (zipped(("a", bytes(5000))), tarred(("a", bytes(5000)))):
        with pytest.raises(DataError, match="expands to more than 4999 bytes"):
            extract(write(tmp_path, content), tmp_path / "out", limit=4999)
        assert untouched(tmp_path)


@MAKE
def test_one_member_that_is_too_large_for_memory(tmp_path, make):
    path = write(tmp_path, make(("small", b"s"), ("large", bytes(1001))))
    with pytest.raises(DataError, match=r"x\.archive: member 'large' has more than 1000 bytes"):
        if make is zipped:
            with zip_members(path) as members:
                assert members.read("small", limit=1000) == b"s"
                members.read("large", limit=1000)
        else:
            list(tar_stream(path, limit=1000))


def test_streams_take_little_memory(tmp_path):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for index in range(300):
            member = tarfile.TarInfo(f"{index}.bin")
            member.size = 500_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    tracemalloc.start()
    assert sum(len(content) for _, content in tar_stream(path)) == 150_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_a_name_of_a_gigabyte_is_not_read_into_memory(tmp_path):
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        member = tarfile.TarInfo("x")
        member.type, member.size = kind, 1 << 30
        path = write(tmp_path, gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22)))
        with pytest.raises(DataError, match="bad header: a size of 1073741824 bytes"):
            list(tar_stream(path))


# Damage


def corrupt_header(content):
    """Spoil the second member's header of a tar."""
    return content[:1024] + b"X" + content[1025:]


TAR = tarred(("a", b"a" * 100), ("b", b"b" * 100), ("c", b"c" * 100))
GZ = gzip.compress(TAR, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive" * 100, "bad header: invalid header"),
        (b"", "no end mark"),
        (TAR[:2048], "at or after member 'b' .it has no end mark"),  # cut between two members
        (TAR[:1300], "at or after member 'a'"),
        (TAR[:600], "at or after member 'a'"),
        (corrupt_header(TAR), r"at or after member 'a' \(bad header: bad checksum"),
        (gzip.compress(corrupt_header(TAR), mtime=0), "bad header: bad checksum"),
        (GZ[:-4], "Compressed file ended before"),
        (GZ[:60], "Compressed file ended before"),
        (GZ[:-8] + b"\0\0\0\0" + GZ[-4:], "CRC check failed"),
        (GZ + b"garbage", "Not a gzipped file"),
        (b"\x1f\x8b\x08\0\0\0", "Compressed file ended before"),
        (b"\x1f\x8bnothing at all", "Unknown compression method"),
    ],
)
def test_damaged_tars(tmp_path, content, message):
    path = write(tmp_path, content)
    for use in (lambda: list(tar_stream(path)), lambda: extract(path, tmp_path / "out")):
        with pytest.raises(DataError, match=rf"x\.archive is corrupt or truncated.*{message}.*{REMEDY}"):
            use()
    assert untouched(tmp_path)
    assert damage(path, name="x.tar.gz").startswith("corrupt or truncated: ")


def spoilt(**fields):
    """Return a zip with one member whose headers are changed: by name, (offset in the central directory, value)."""
    content = bytearray(zipped(("a", b"content" * 9)))
    central = content.index(b"PK\1\2")
    for at, value in fields.values():
        content[central + at : central + at + 2] = content[at - 2 : at] = struct.pack("<H", value)
    return bytes(content)


ZIP = zipped(("a", b"content " * 100), compression=zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ZIP[:-30], "File is not a zip file"),
        (ZIP.replace(b"content", b"contend", 1), "member 'a' .*Bad CRC-32"),
        (spoilt(flags=(8, 1)), "member 'a' .*encrypted"),
        (spoilt(compression=(10, 9)), "member 'a' .*compression"),
        (spoilt(compression=(10, 99)), "member 'a' .*compression"),
        (b"PK\5\6" + bytes(10), "File is not a zip file"),
    ],
)
def test_damaged_zips(tmp_path, content, message):
    path = write(tmp_path, content)
    for use in (lambda: read(path), lambda: extract(path, tmp_path / "out")):
        with pytest.raises(DataError, match=rf"x\.archive is corrupt or truncated.*{message}.*{REMEDY}"):
            use()
    assert untouched(tmp_path)
    assert damage(path, name="x.ZIP").startswith("corrupt")


def test_absent_archives_and_members(tmp_path):
    for use in (zip_members, extract, lambda path: list(tar_stream(path))):
        with pytest.raises(DataError, match=r"x\.zip is absent; download it"):
            use(tmp_path / "x.zip", *([tmp_path / "out"] if use is extract else []))
    path = write(tmp_path, zipped(("a", b"")))
    with zip_members(path) as members:
        assert list(members) == ["a"] and len(members) == 1 and members["a"].file_size == 0
        with pytest.raises(DataError, match=r"x\.archive has no member 'b': it is incomplete"):
            members.read("b")


def test_a_folder_that_cannot_be_written(tmp_path):
    path = write(tmp_path, zipped(("n" * 300, b"")))
    with pytest.raises(DataError, match=r"x\.archive cannot be read or unpacked at or after member .*name too long"):
        extract(path, tmp_path / "out")


def test_damage_of_other_files(tmp_path):
    path = write(tmp_path, gzip.compress(b"content"))
    assert damage(path, name="x.gz") is None and damage(path, name="x.csv") is None
    assert "corrupt or truncated" in damage(path, name="x.zip")
    path.write_bytes(path.read_bytes()[:-1])
    assert "corrupt or truncated" in damage(path, name="x.gz") and damage(path, name="x.png") is None


SAMPLES = [
    zipped(("a/b.txt", b"text " * 50), ("c.bin", bytes(range(256))), ("d/", b"")),
    ZIP,
    TAR[:4096],
    tarred(("n" * 150, b"long"), ("é", b"x"), format=tarfile.PAX_FORMAT)[:8192],
    tarred(("n" * 150, b"long"), format=tarfile.GNU_FORMAT)[:4096],
    tarred(("sparse", b"long"), kind=tarfile.GNUTYPE_SPARSE)[:4096],
    gzip.compress(tarred(("a/b.txt", b"text " * 50)), mtime=0),
    lzma.compress(TAR),
    bz2.compress(TAR),
]


def signed(content):
    """Give a tar's first headers sums that fit, so that damage reaches what reads their fields."""
    for at in range(0, len(content) - 511, 512):
        block = bytes(content[at : at + 512])
        if any(block) and at < 1536:
            total = sum(block[:148]) + sum(block[156:]) + 8 * 32
            content[at + 148 : at + 156] = b"%06o\0 " % total


@examples(400)
@given(data=st.data())
def test_no_damage_ends_in_a_traceback_or_writes_outside(data):
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()) and not content.startswith((b"PK", b"\x1f", b"BZ", b"\xfd")):
        signed(content)
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), bytes(content))
        for use in (lambda: read(path), lambda: extract(path, Path(folder) / "in/out", limit=1 << 20)):
            try:
                use()
            except DataError as error:
                assert str(path) in str(error) and "\n" not in str(error)
        assert {p.name for p in Path(folder).iterdir()} <= {"x.archive", "in"}
        assert {p.name for p in Path(folder).glob("in/*")} <= {"out"}
        for name in ("x.zip", "x.tar", "x.gz"):
            assert damage(path, name=name) is None or "corrupt" in damage(path, name=name)
