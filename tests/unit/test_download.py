"""Downloads: the mirror first, checked, whole or not at all, with one clear message when nothing helps."""

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile

import pytest

from jointdiff.data import download as module
from jointdiff.data.download import DownloadError, download, extract, mirror_from, places_of
from jointdiff.data.source import File, LabelSpec, Source

CONTENT = b"images " * 1000


def source(*files):
    return Source(
        name="toy", title="Toy", labels=LabelSpec("multi_label", ("a",)), channels=1, licence="", cite="", files=files
    )


def mirror_with(folder, **files):
    (folder / "mirror/toy").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / "mirror/toy" / name.replace("_", ".")).write_bytes(content)
    return str(folder / "mirror")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.0)


@pytest.fixture
def server():
    """Serve what ``answers`` says, per path a list of (status, body, claimed length)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            queue = answers.get(self.path) or [(404, b"", 0)]
            status, body, length = queue.pop(0) if len(queue) > 1 else queue[0]
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    asked, answers = [], {}
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.asked, running.answers = asked, answers
    running.address = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


def test_mirror_folder_comes_before_the_publisher(tmp_path, server):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    file = File("x.bin", urls=(f"{server.address}/x.bin",), sha256=hashlib.sha256(CONTENT).hexdigest())
    download(source(file), tmp_path / "raw", mirror=mirror)
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT
    assert not server.asked
    record = json.loads((tmp_path / "raw/downloads.json").read_text())["x.bin"]
    assert record["sha256"] == file.sha256 and record["bytes"] == len(CONTENT)
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["downloads.json", "x.bin"]


def test_mirror_url_then_publisher(tmp_path, server):
    server.answers["/pub/x%20y.bin"] = [(200, CONTENT, len(CONTENT))]
    file = File("x y.bin", urls=(f"{server.address}/pub/x%20y.bin",))
    download(source(file), tmp_path / "raw", mirror=f"{server.address}/m/")
    assert server.asked == ["/m/toy/x%20y.bin", "/pub/x%20y.bin"]
    assert (tmp_path / "raw/x y.bin").read_bytes() == CONTENT


def test_passing_failures_are_tried_again(tmp_path, server):
    server.answers["/x.bin"] = [
        (503, b"", 0),
        (200, CONTENT[:100], len(CONTENT)),  # the line drops
        (200, CONTENT, len(CONTENT)),
    ]
    download(source(File("x.bin", urls=(f"{server.address}/x.bin",))), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and len(server.asked) == 3


def test_truncated_for_good(tmp_path, server):
    server.answers["/x.bin"] = [(200, CONTENT[:100], len(CONTENT))]
    with pytest.raises(DownloadError, match=r"truncated: 100 of 7000 bytes came \(3 attempts\)"):
        download(source(File("x.bin", urls=(f"{server.address}/x.bin",))), tmp_path / "raw")
    assert not list((tmp_path / "raw").iterdir())


def test_one_message_names_file_places_and_remedy(tmp_path, server):
    file = File("x.bin", urls=(f"{server.address}/gone.bin", "http://127.0.0.1:9/x.bin"))
    with pytest.raises(DownloadError) as caught:
        download(source(file), tmp_path / "raw", mirror=str(tmp_path / "nowhere"))
    message = str(caught.value)
    assert isinstance(caught.value, ValueError) and "\n" not in message
    for part in ("x.bin", "nowhere/toy/x.bin: no such file", "gone.bin: HTTP 404", "127.0.0.1:9", "JOINTDIFF_MIRROR"):
        assert part in message
    assert len(server.asked) == 1  # what is gone is not asked for again


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_wrong_published_checksum(tmp_path, kind):
    mirror = mirror_with(tmp_path, x_bin=CONTENT + b"!")
    file = File("x.bin", **{kind: hashlib.new(kind, CONTENT).hexdigest()})
    with pytest.raises(DownloadError, match=f"wrong checksum: {kind} is .* published is"):
        download(source(file), tmp_path / "raw", mirror=mirror)
    assert not (tmp_path / "raw/x.bin").exists()
    mirror_with(tmp_path, x_bin=CONTENT)
    download(source(file), tmp_path / "raw", mirror=mirror)


def test_a_bad_mirror_does_not_hide_a_good_publisher(tmp_path, server):
    server.answers["/x.bin"] = [(200, CONTENT, len(CONTENT))]
    file = File("x.bin", urls=(f"{server.address}/x.bin",), md5=hashlib.md5(CONTENT).hexdigest())
    download(source(file), tmp_path / "raw", mirror=mirror_with(tmp_path, x_bin=b"bad"))
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT


def test_first_download_is_the_checksum_from_then_on(tmp_path):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)
    (tmp_path / "raw/x.bin").write_bytes(b"spoilt")
    download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)  # fetched again, the same
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT
    (tmp_path / "raw/x.bin").unlink()
    mirror_with(tmp_path, x_bin=CONTENT + b"new release")
    with pytest.raises(DownloadError, match=r"the first download's was .*on purpose, delete .*downloads\.json"):
        download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)


def test_what_is_whole_is_kept(tmp_path):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)
    origin = json.loads((tmp_path / "raw/downloads.json").read_text())["x.bin"]["from"]
    download(source(File("x.bin")), tmp_path / "raw", mirror=None)
    assert json.loads((tmp_path / "raw/downloads.json").read_text())["x.bin"]["from"] == origin


def test_optional_files_may_be_absent_but_not_damaged(tmp_path):
    file = File("more.zip", optional=True)
    download(source(file), tmp_path / "raw", mirror=str(tmp_path / "mirror"))
    assert json.loads((tmp_path / "raw/downloads.json").read_text()) == {}
    mirror = mirror_with(tmp_path, more_zip=b"PK no zip")
    with pytest.raises(DownloadError, match=r"more\.zip.*corrupt or truncated"):
        download(source(file), tmp_path / "raw", mirror=mirror)


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x_zip", zipped(a=CONTENT)[:-30]),
        ("x_zip", zipped(a=CONTENT).replace(b"images images", b"images imagos", 1)),
        ("x_gz", gzip.compress(CONTENT)[:-4]),
        ("x_gz", b"no gzip"),
    ],
)
def test_damaged_archives_are_refused_without_a_checksum(tmp_path, name, content):
    mirror = mirror_with(tmp_path, **{name: content})
    with pytest.raises(DownloadError, match="corrupt"):
        download(source(File(name.replace("_", "."))), tmp_path / "raw", mirror=mirror)
    assert not list((tmp_path / "raw").iterdir())


def test_the_environment_overrides_the_configured_mirror(monkeypatch):
    monkeypatch.delenv("JOINTDIFF_MIRROR", raising=False)
    assert mirror_from(None) is None and mirror_from("a") == "a"
    monkeypatch.setenv("JOINTDIFF_MIRROR", "b")
    assert mirror_from("a") == "b"
    assert places_of(File("x", urls=("http://p/x",)), dataset="d", mirror="b") == ["b/d/x", "http://p/x"]


# Archives


def write_zip(path, name, *, link=False):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fine.txt", "fine")
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(member, "../../etc/passwd")


def write_tar(path, name, *, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "../../outside"
        content = b"evil" if kind == tarfile.REGTYPE else b""
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


EVIL = ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil.txt"]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_members_that_leave_the_folder_are_refused(tmp_path, write, name):
    write(tmp_path / "x.archive", name)
    with pytest.raises(DownloadError, match=r"x\.archive: member .*evil.* would be written outside its folder"):
        extract(tmp_path / "x.archive", tmp_path / "out/deep")
    assert [path.name for path in tmp_path.rglob("*")] in (["x.archive", "out"], ["out", "x.archive"])


def test_links_and_devices_are_refused(tmp_path):
    write_zip(tmp_path / "x.zip", "link", link=True)
    with pytest.raises(DownloadError, match="'link' is a link or a device"):
        extract(tmp_path / "x.zip", tmp_path / "out")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        write_tar(tmp_path / "x.tar.gz", "link", kind=kind)
        with pytest.raises(DownloadError, match="'link' is a link or a device"):
            extract(tmp_path / "x.tar.gz", tmp_path / "out")


def test_honest_archives_are_unpacked(tmp_path):
    write_zip(tmp_path / "x.zip", "a/b..txt")
    extract(tmp_path / "x.zip", tmp_path / "zip")
    assert (tmp_path / "zip/a/b..txt").is_file() and (tmp_path / "zip/fine.txt").read_text() == "fine"
    write_tar(tmp_path / "x.tar.gz", "a/b.txt")
    extract(tmp_path / "x.tar.gz", tmp_path / "tar")
    assert (tmp_path / "tar/a/b.txt").read_bytes() == b"evil"


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_truncated_archives_leave_nothing(tmp_path, write):
    path = tmp_path / "x.archive"
    write(path, "a.txt")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DownloadError, match=r"x\.archive is corrupt or truncated"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
