"""Downloads: the mirror first, checked, whole or not at all, with one clear message when nothing helps."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from jointdiff.addresses import without_secrets
from jointdiff.data import download as module
from jointdiff.data import transfer
from jointdiff.data.download import DownloadError, download, mirror_datasets, mirror_from, places_of
from jointdiff.data.source import File, LabelSpec, Source

CONTENT = b"images " * 1000
OTHER = b"IMAGES " * 1000


def digest(content=CONTENT):
    return hashlib.sha256(content).hexdigest()


def source(*files, name="toy"):
    return Source(
        name=name, title="Toy", labels=LabelSpec("multi_label", ("a",)), channels=1, licence="", cite="", files=files
    )


def mirror_with(folder, **files):
    (folder / "mirror/toy").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / "mirror/toy" / name.replace("_", ".")).write_bytes(content)
    return str(folder / "mirror")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.delenv("JOINTDIFF_MIRROR", raising=False)
    monkeypatch.setattr(transfer, "WAIT", 0.0)


class Shelf:
    """What a path of the server holds, and how it answers: one entry of ``then`` per GET, the last for ever."""

    def __init__(self, content=CONTENT, *, tag='"1"', then=()):
        self.content, self.tag, self.then = content, tag, list(then) or [{}]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        shelf = self.server.shelves.get(self.path)
        if shelf is None or self.server.no_head:
            return self.send_error(404 if shelf is None else 405)
        self.send_response(200)
        self.send_header("Content-Length", str(len(shelf.content)))
        return self.end_headers()

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.headers.append(self.headers)
        shelf = self.server.shelves.get(self.path)
        if shelf is None:
            return self.send_error(404)
        how = shelf.then.pop(0) if len(shelf.then) > 1 else shelf.then[0]
        shelf.content, shelf.tag = how.get("content", shelf.content), how.get("tag", shelf.tag)
        start, wanted = 0, self.headers.get("Range")
        fits = self.headers.get("If-Range") in (None, shelf.tag) or how.get("deaf")
        if wanted and fits and how.get("ranges", True):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        status = how.get("status") or (200 if not start else 206 if start < len(shelf.content) else 416)
        self.send_response(status)
        for name, value in how.get("headers", {}).items():
            self.send_header(name, value)
        body = b"" if status >= 300 else shelf.content[start:]
        if status == 206:
            end = f"{len(shelf.content) - 1}/{len(shelf.content)}"
            self.send_header("Content-Range", how.get("says", f"bytes {start}-{end}"))
        if shelf.tag and status < 300:
            self.send_header("ETag", shelf.tag)
        if how.get("length", True):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            if "drip" in how:  # so many bytes at a time, slowly
                for index in range(0, len(body), how["drip"]):
                    self.wfile.write(body[index : index + how["drip"]])
                    time.sleep(0.02)
            else:
                self.wfile.write(body[: how.get("cut", len(body))])
            if "stall" in how:
                self.server.released.wait(20)
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    running.asked, running.headers, running.shelves, running.no_head = [], [], {}, False
    running.released = threading.Event()
    running.address = f"http://127.0.0.1:{running.server_port}"
    running.ranges = lambda: [headers.get("Range") for headers in running.headers]
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.released.set()
    running.shutdown()
    running.server_close()


def published(server, *, name="x.bin", **facts):
    return source(File(name, urls=(f"{server.address}/{name}",), **facts))


def record_of(folder, name="x.bin"):
    return json.loads((folder / "downloads.json").read_text())[name]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_mirror_folder_comes_before_the_publisher(tmp_path, server):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    file = File("x.bin", urls=(f"{server.address}/x.bin",), sha256=hashlib.sha256(CONTENT).hexdigest())
    download(source(file), tmp_path / "raw", mirror=mirror)
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT
    assert not server.asked
    assert record_of(tmp_path / "raw") == {
        "sha256": file.sha256,
        "bytes": len(CONTENT),
        "from": f"{mirror}/toy/x.bin",
        "checked": "published checksum",
        "modified": False,
    }
    assert names(tmp_path / "raw") == ["downloads.json", "x.bin"]


def test_mirror_url_then_publisher(tmp_path, server):
    server.shelves["/pub/x%20y.bin"] = Shelf()
    file = File("x y.bin", urls=(f"{server.address}/pub/x%20y.bin",))
    download(source(file), tmp_path / "raw", mirror=f"{server.address}/m/")
    assert server.asked == ["/m/SHA256SUMS", "/m/toy/x%20y.bin", "/pub/x%20y.bin"]
    assert (tmp_path / "raw/x y.bin").read_bytes() == CONTENT


def test_one_message_names_file_places_and_remedy(tmp_path, server):
    file = File("x.bin", urls=(f"{server.address}/gone.bin", "http://127.0.0.1:9/x.bin"))
    with pytest.raises(DownloadError) as caught:
        download(source(file), tmp_path / "raw", mirror=str(tmp_path / "nowhere"))
    message = str(caught.value)
    assert isinstance(caught.value, ValueError) and "\n" not in message
    for part in ("x.bin", "nowhere/toy/x.bin: no such file", "gone.bin: HTTP 404", "127.0.0.1:9", "JOINTDIFF_MIRROR"):
        assert part in message
    assert server.asked == ["/gone.bin"]  # what is gone is not asked for again


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
    server.shelves["/x.bin"] = Shelf()
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
        ("x_gz", gzip.compress(CONTENT, mtime=0)[:-4]),
        ("x_gz", b"no gzip"),
    ],
)
def test_damaged_archives_are_refused_without_a_checksum(tmp_path, name, content):
    mirror = mirror_with(tmp_path, **{name: content})
    with pytest.raises(DownloadError, match="corrupt"):
        download(source(File(name.replace("_", "."))), tmp_path / "raw", mirror=mirror)
    assert not names(tmp_path / "raw")


def test_the_environment_overrides_the_configured_mirror(monkeypatch):
    monkeypatch.delenv("JOINTDIFF_MIRROR", raising=False)
    assert mirror_from(None) is None and mirror_from("a") == "a"
    monkeypatch.setenv("JOINTDIFF_MIRROR", "b")
    assert mirror_from("a") == "b"
    assert places_of(File("x", urls=("http://p/x",)), dataset="d", mirror="b") == ["b/d/x", "http://p/x"]
    assert places_of(File("x y"), dataset="d", mirror="https://m/a/?sig=1") == ["https://m/a/d/x%20y?sig=1"]


# Going on where a line dropped


def test_dropped_lines_are_continued(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"status": 503}, {"cut": 100}, {}])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT
    assert server.ranges() == [None, None, "bytes=100-"] and server.headers[2]["If-Range"] == '"1"'
    assert names(tmp_path / "raw") == ["downloads.json", "x.bin"]


def test_a_later_run_continues(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 100}, {"status": 503}, {"status": 503}, {}])
    with pytest.raises(DownloadError, match=r"HTTP 503 Service Unavailable \(3 attempts\)"):
        download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/.x.bin.part").read_bytes() == CONTENT[:100]
    notes = json.loads((tmp_path / "raw/.x.bin.part.json").read_text())
    assert notes == {"url": f"{server.address}/x.bin", "validator": '"1"', "length": 7000}
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges()[-1] == "bytes=100-"
    assert names(tmp_path / "raw") == ["downloads.json", "x.bin"]


def test_a_killed_process_is_continued(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(CONTENT * 10, then=[{"drip": 700}, {}])
    script = f"""
from jointdiff.data.download import download
from jointdiff.data.source import File, LabelSpec, Source
download(
    Source(name="toy", title="", labels=LabelSpec("multi_label", ("a",)), channels=1, licence="", cite="",
           files=(File("x.bin", urls=("{server.address}/x.bin",)),)),
    {str(tmp_path / "raw")!r},
)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    part = tmp_path / "raw/.x.bin.part"
    until = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < 7000:
        assert time.monotonic() < until and process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    have = part.stat().st_size
    assert 7000 <= have < 70000 and not (tmp_path / "raw/x.bin").exists()
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT * 10
    assert server.ranges() == [None, f"bytes={have}-"]
    assert names(tmp_path / "raw") == ["downloads.json", "x.bin"]


def test_servers_without_ranges_begin_anew(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 100}, {"ranges": False}])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges() == [None, "bytes=100-"]


@pytest.mark.parametrize("deaf", [False, True])
def test_a_file_that_changed_begins_anew(tmp_path, server, deaf):
    """Also where the server answers with the new file's rest, because it does not know If-Range."""
    changed = {"content": OTHER, "tag": '"2"', "deaf": deaf}
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 100}, changed, changed])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == OTHER
    assert server.ranges() == [None, "bytes=100-"] + ([None] if deaf else [])


def test_a_file_that_became_shorter_begins_anew(tmp_path, server):
    shorter = {"content": CONTENT[:50], "deaf": True}
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 100}, shorter, shorter])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT[:50]
    assert server.ranges() == [None, "bytes=100-", None]  # 416 in between


@pytest.mark.parametrize("says", ["bytes 5-6999/7000", "bytes 100-7999/8000", "nonsense"])
def test_a_rest_that_does_not_fit_begins_anew(tmp_path, server, says):
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 100}, {"says": says}, {}])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges() == [None, "bytes=100-", None]


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_a_validator_a_checksum_is_needed_to_continue(tmp_path, server, tag):
    server.shelves["/x.bin"] = Shelf(tag=tag, then=[{"cut": 100}, {}])
    download(published(server), tmp_path / "unknown")
    assert server.ranges() == [None, None]
    server.shelves["/x.bin"] = Shelf(tag=tag, then=[{"cut": 100}, {}])
    download(published(server, sha256=digest()), tmp_path / "known")
    assert server.ranges()[2:] == [None, "bytes=100-"] and server.headers[-1]["If-Range"] is None
    assert (tmp_path / "known/x.bin").read_bytes() == (tmp_path / "unknown/x.bin").read_bytes() == CONTENT


def test_pieces_that_do_not_belong_together_are_fetched_anew_once(tmp_path, server, capsys):
    server.shelves["/x.bin"] = Shelf(OTHER, tag=None, then=[{"cut": 100}, {"content": CONTENT}])
    download(published(server, sha256=digest()), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges() == [None, "bytes=100-", None]
    assert "may not belong together: fetching it anew" in capsys.readouterr().err
    server.shelves["/x.bin"] = Shelf(OTHER, tag=None, then=[{"cut": 100}, {}])
    server.headers.clear()
    with pytest.raises(DownloadError, match="wrong checksum: sha256 is"):
        download(published(server, sha256=digest()), tmp_path / "wrong")
    assert server.ranges() == [None, "bytes=100-", None] and not names(tmp_path / "wrong")


def test_a_file_that_stays_wrong_is_given_up_though_its_line_drops_each_time(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(OTHER, then=[{"cut": 4000}])
    with pytest.raises(DownloadError, match="wrong checksum: sha256 is"):
        download(published(server, sha256=digest()), tmp_path / "raw")
    assert server.ranges() == [None, "bytes=4000-"] * 2 and not names(tmp_path / "raw")


def test_another_place_continues_a_part_that_a_checksum_covers(tmp_path, server):
    server.shelves["/a"] = Shelf(then=[{"cut": 100}, {"status": 503}, {"status": 503}])
    server.shelves["/b"] = Shelf(tag='"b"')
    file = File("x.bin", urls=(f"{server.address}/a", f"{server.address}/b"), sha256=digest())
    download(source(file), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=100-" and server.headers[-1]["If-Range"] is None
    server.shelves["/a"].then = [{"cut": 100}, {"status": 503}, {"status": 503}]
    download(source(File("x.bin", urls=file.urls)), tmp_path / "unknown")
    assert server.ranges()[-1] is None


@pytest.mark.parametrize("notes", ["", "{", "[]", "{}", '{"url": 1, "validator": 2, "length": "3"}'])
def test_damaged_notes_of_a_part_begin_anew(tmp_path, server, notes):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/.x.bin.part").write_bytes(OTHER[:100])
    (tmp_path / "raw/.x.bin.part.json").write_text(notes)
    server.shelves["/x.bin"] = Shelf()
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges() == [None]


def test_a_whole_part_is_only_checked(tmp_path, server):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/.x.bin.part").write_bytes(CONTENT)
    notes = {"url": f"{server.address}/x.bin", "validator": '"1"', "length": 7000}
    (tmp_path / "raw/.x.bin.part.json").write_text(json.dumps(notes))
    server.shelves["/x.bin"] = Shelf()
    download(published(server, sha256=digest()), tmp_path / "raw")
    assert not server.asked and names(tmp_path / "raw") == ["downloads.json", "x.bin"]


def test_folders_are_continued_too(tmp_path):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    published_at = Path(mirror) / "toy/x.bin"
    (tmp_path / "raw").mkdir()
    part = tmp_path / "raw/.x.bin.part"
    notes = {"url": str(published_at), "validator": str(published_at.stat().st_mtime_ns), "length": 7000}
    for validator, first in ((notes["validator"], b"kept   "), ("0", b"images ")):
        part.write_bytes(b"kept   ")
        part.with_name(part.name + ".json").write_text(json.dumps({**notes, "validator": validator}))
        download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)
        assert (tmp_path / "raw/x.bin").read_bytes() == first + CONTENT[7:]
        (tmp_path / "raw/x.bin").unlink()
        (tmp_path / "raw/downloads.json").unlink()


# Failures that pass, and others


def test_truncated_for_good(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(tag=None, then=[{"cut": 100, "ranges": False}])
    with pytest.raises(DownloadError, match=r"truncated: 100 of 7000 bytes came \(3 attempts\)"):
        download(published(server), tmp_path / "raw")
    assert names(tmp_path / "raw") == [".x.bin.part", ".x.bin.part.json"]


def test_a_stalled_line_is_continued(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 100, "stall": True}, {}])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges() == [None, "bytes=100-"]
    assert "no byte for 0.3 s; trying" in capsys.readouterr().err


def test_a_line_that_drops_all_the_time_gets_there(tmp_path, server, monkeypatch):
    """Attempts are counted anew after enough progress, and only after progress."""
    monkeypatch.setattr(transfer, "STRIDE", 1000)
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 1000}])
    download(published(server), tmp_path / "raw")
    assert len(server.asked) == 7
    server.asked.clear()
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 1500, "ranges": False}])
    with pytest.raises(DownloadError, match="truncated: 1500 of 7000"):
        download(published(server), tmp_path / "never")
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("asked", "waited"), [("7", 7), ("1e9", 2), ("99999", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 2), ("soon", 2)]
)
def test_waiting_doubles_and_heeds_the_server_within_reason(tmp_path, server, monkeypatch, capsys, asked, waited):
    monkeypatch.setattr(transfer, "WAIT", 2.0)
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda event, timeout=None: bool(timeout and waits.append(timeout)))
    busy = {"status": 429, "headers": {"Retry-After": asked}}
    server.shelves["/x.bin"] = Shelf(then=[busy, {"status": 500}, {}])
    transfer.receive(
        f"{server.address}/x.bin", tmp_path / "x.bin", label="x", meter=transfer.Meter("toy"), checked=False
    )
    assert [round(wait) for wait in waits if wait >= 1.5] == [waited, 4]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_does_not_pass_is_not_tried_again(tmp_path, server, status):
    server.shelves["/x.bin"] = Shelf(then=[{"status": status}])
    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        download(published(server), tmp_path / "raw")
    assert len(server.asked) == 1


def test_a_place_without_a_length(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"length": False}])
    server.no_head = True
    download(published(server, sha256=digest()), tmp_path / "raw")
    server.shelves["/x.bin"] = Shelf(then=[{"length": False, "cut": 100}])
    with pytest.raises(DownloadError, match="wrong checksum"):
        download(published(server, sha256=digest()), tmp_path / "cut")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gopher://127.0.0.1/x", "is of no kind that is fetched"),
        ("data://text,x", "is of no kind that is fetched"),
        ("http://127.0.0.1:port/x", "is no valid address"),
        ("http:///x", r"no host given"),
        ("file:///nowhere/x", "no such file"),
        ("/nowhere/x", "no such file"),
    ],
)
def test_addresses_that_are_none(tmp_path, place, message):
    with pytest.raises(DownloadError, match=message):
        download(source(File("x.bin", urls=(place,))), tmp_path / "raw")


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_stay_on_the_web(tmp_path, server, to):
    server.shelves["/x.bin"] = Shelf(then=[{"status": 302, "headers": {"Location": to}}])
    with pytest.raises(DownloadError, match=r"redirects to|is not allowed"):
        download(published(server), tmp_path / "raw")
    assert not names(tmp_path / "raw")


def test_redirects_on_the_web_are_followed(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"status": 302, "headers": {"Location": "/y.bin"}}])
    server.shelves["/y.bin"] = Shelf(then=[{"cut": 100}, {}])
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT and server.ranges()[-1] == "bytes=100-"


def test_file_addresses(tmp_path):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    download(source(File("x.bin")), tmp_path / "raw", mirror=f"file://{mirror}")
    assert (tmp_path / "raw/x.bin").read_bytes() == CONTENT


# Several files


def test_files_come_side_by_side(tmp_path, server):
    """Each answer waits for the other: one after the other would never end."""
    together = threading.Barrier(2)
    files = []
    for name in "ab":
        server.shelves[f"/{name}"] = Shelf(name.encode() * 100)
        files.append(File(name, urls=(f"{server.address}/{name}",)))
    send = Handler.do_GET

    def wait(handler):
        together.wait(20)
        send(handler)

    server.RequestHandlerClass = type("Waiting", (Handler,), {"do_GET": wait})
    download(source(*files), tmp_path / "raw")
    assert names(tmp_path / "raw") == ["a", "b", "downloads.json"]


def test_one_failure_lets_the_others_finish(tmp_path, server):
    for name in ("a", "c", "e"):
        server.shelves[f"/{name}"] = Shelf(name.encode())
    files = [File(name, urls=(f"{server.address}/{name}",)) for name in "abcde"]
    with pytest.raises(DownloadError) as caught:
        download(source(*files), tmp_path / "raw")
    message = str(caught.value)
    assert message.startswith("toy: no whole copy of b, d could be had. b: tried ") and ". d: tried " in message
    assert "<mirror>/toy/<file>" in message and "\n" not in message
    assert sorted(json.loads((tmp_path / "raw/downloads.json").read_text())) == ["a", "c", "e"]


def test_an_interrupt_ends_all_transfers(tmp_path, server, monkeypatch):
    server.shelves["/a"] = Shelf(CONTENT * 1000, then=[{"drip": 700}])  # would take minutes
    server.shelves["/b"] = Shelf()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(source(*(File(name, urls=(f"{server.address}/{name}",)) for name in "ab")), tmp_path / "raw")
    assert (tmp_path / "raw/.a.part").exists()


def test_two_processes_do_not_write_to_the_same_part(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"drip": 700}])
    threads = [threading.Thread(target=download, args=(published(server), tmp_path / "raw")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert server.asked == ["/x.bin"] and (tmp_path / "raw/x.bin").read_bytes() == CONTENT


def test_a_log_gets_plain_lines(capsys):
    meter = transfer.Meter("toy", every=0)
    meter.at("a", 0, 4_000_000)
    meter.at("b", 500_000, 2_000_000)
    meter.at("a", 1_000_000, 4_000_000, moved=1_000_000)
    meter.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("toy: 1.5 MB of 6.0 MB, ") and last.endswith("/s, 00:00 left")


def test_a_terminal_gets_one_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    meter = transfer.Meter("toy", every=0)
    meter._every = 0
    meter.at("a", 1_000_000, 4_000_000, moved=1_000_000)
    transfer.say("a line beside it")
    meter.close()
    assert "1.00M/4.00M" in terminal.getvalue() and "a line beside it\n" in terminal.getvalue()


# The disk


def test_what_does_not_fit_is_not_begun(tmp_path, server, monkeypatch):
    server.shelves["/a"] = Shelf()
    files = [File("a", urls=(f"{server.address}/a",)), File("b")]
    mirror = mirror_with(tmp_path, b=CONTENT)
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=14699))
    with pytest.raises(DownloadError, match=r"raw has 14699 bytes \(14.7 kB\) free and needs 14700 .* nothing was"):
        download(source(*files), tmp_path / "raw", mirror=mirror)
    assert not server.asked and not names(tmp_path / "raw")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=14700))
    download(source(*files), tmp_path / "raw", mirror=mirror)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    download(source(*files), tmp_path / "raw", mirror=mirror)  # all there


def test_what_came_already_needs_no_space(tmp_path, server, monkeypatch):
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 6000}, {"status": 503}, {"status": 503}, {}])
    with pytest.raises(DownloadError):
        download(published(server), tmp_path / "raw")
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=1050))
    download(published(server), tmp_path / "raw")


def test_servers_that_do_not_tell_sizes_are_asked_all_the_same(tmp_path, server, monkeypatch):
    server.no_head = True
    server.shelves["/x.bin"] = Shelf()
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    download(published(server), tmp_path / "raw")
    assert (tmp_path / "raw/x.bin").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_in_one_message(tmp_path, server):
    server.shelves["/x.bin"] = Shelf()
    server.shelves["/other"] = Shelf()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/.x.bin.part").symlink_to("/dev/full")
    file = File("x.bin", urls=(f"{server.address}/x.bin", f"{server.address}/other"))
    with pytest.raises(DownloadError, match=r"raw cannot be written: No space left on device\. Free space in .*raw"):
        download(source(file), tmp_path / "raw")
    assert server.asked == ["/x.bin"]  # no other place helps


def test_a_disk_that_fills_keeps_the_part(tmp_path, server, monkeypatch):
    server.shelves["/x.bin"] = Shelf(then=[{"drip": 700}, {}])
    at = transfer.Meter.at

    def fill(meter, name, have, total, *, moved=0):
        if have > 3000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        at(meter, name, have, total, moved=moved)

    with monkeypatch.context() as patch:
        patch.setattr(transfer.Meter, "at", fill)
        with pytest.raises(DownloadError, match="No space left on device"):
            download(published(server), tmp_path / "raw")
    have = (tmp_path / "raw/.x.bin.part").stat().st_size
    assert have > 3000
    download(published(server), tmp_path / "raw")
    assert server.ranges() == [None, f"bytes={have}-"] and (tmp_path / "raw/x.bin").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(DownloadError, match=r"cannot make the folder .*raw"):
        download(source(File("x.bin")), tmp_path / "raw")
    with pytest.raises(DownloadError, match=r"cannot make the folder .*raw"):
        mirror_datasets([], tmp_path / "raw/m")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[1]", "is no record of downloads; delete")]
)
def test_a_damaged_record(tmp_path, text, message):
    (tmp_path / "downloads.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        download(source(File("x.bin")), tmp_path)


# The mirror's own checksums


def listed(mirror, **contents):
    lines = [f"{digest(content)}  toy/{name.replace('_', '.')}\n" for name, content in contents.items()]
    (Path(mirror) / "SHA256SUMS").write_text("".join(lines))
    return mirror


def test_a_listed_file_must_match_the_listing(tmp_path):
    mirror = listed(mirror_with(tmp_path, x_bin=OTHER), x_bin=CONTENT)
    with pytest.raises(DownloadError, match=rf"sha256 is {digest(OTHER)}, the mirror's SHA256SUMS says {digest()}"):
        download(source(File("x.bin", sha256=digest(OTHER))), tmp_path / "raw", mirror=mirror)


def test_a_listed_file_without_a_published_checksum(tmp_path):
    mirror = listed(mirror_with(tmp_path, x_bin=CONTENT), x_bin=CONTENT)
    for _ in range(2):
        download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)
        record = record_of(tmp_path / "raw")
        assert record["checked"] == "the mirror's SHA256SUMS" and record["modified"] is False


def test_a_modified_file_is_taken_with_a_warning_and_kept_while_it_is_the_same(tmp_path, capsys, server):
    mirror = listed(mirror_with(tmp_path, x_bin=OTHER), x_bin=OTHER)
    server.shelves["/x.bin"] = Shelf()
    file = File("x.bin", urls=(f"{server.address}/x.bin",), sha256=digest())
    download(source(file), tmp_path / "raw", mirror=mirror)
    error = capsys.readouterr().err
    assert "WARNING: toy/x.bin from" in error and "IS NOT THE PUBLISHED FILE" in error
    expected = {"checked": "the mirror's SHA256SUMS", "modified": True, "sha256": digest(OTHER), "bytes": 7000}
    assert expected.items() <= record_of(tmp_path / "raw").items()
    download(source(file), tmp_path / "raw")  # without the mirror
    assert expected.items() <= record_of(tmp_path / "raw").items() and not server.asked
    (tmp_path / "raw/x.bin").write_bytes(b"spoilt")
    download(source(file), tmp_path / "raw")
    assert record_of(tmp_path / "raw")["modified"] is False and (tmp_path / "raw/x.bin").read_bytes() == CONTENT


def test_the_listing_of_an_address(tmp_path, server):
    server.shelves["/m/toy/x.bin"] = Shelf(OTHER)
    server.shelves["/m/SHA256SUMS"] = Shelf(f"# kept by us\n\n{digest(OTHER).upper()} *./toy/x.bin\n".encode())
    download(source(File("x.bin", md5="0" * 32)), tmp_path / "raw", mirror=f"{server.address}/m")
    assert record_of(tmp_path / "raw")["modified"] is True


def test_a_listing_that_cannot_be_read_vouches_for_nothing(tmp_path, server, capsys):
    server.shelves["/m/toy/x.bin"] = Shelf(OTHER)
    server.shelves["/m/SHA256SUMS"] = Shelf(f"{digest(OTHER)}  toy/x.bin\n".encode(), then=[{"cut": 5}])
    with pytest.raises(DownloadError, match=r"wrong checksum: sha256 .* published"):
        download(source(File("x.bin", sha256=digest())), tmp_path / "raw", mirror=f"{server.address}/m")
    assert "SHA256SUMS could not be read (truncated: 5 of 76 bytes came" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>not here</html>\n", r"SHA256SUMS, line 1: is not `<sha256>  <data set>/<file>`; write it anew"),
        (f"{'0' * 64}  toy/x\n{'1' * 64}  toy/x\n", "line 2: lists toy/x a second time"),
        ("0" * 63 + "  toy/x\n", "line 1: is not"),
    ],
)
def test_a_damaged_listing(tmp_path, text, message):
    mirror = mirror_with(tmp_path, x_bin=CONTENT)
    (Path(mirror) / "SHA256SUMS").write_text(text)
    with pytest.raises(DownloadError, match=message):
        download(source(File("x.bin")), tmp_path / "raw", mirror=mirror)


# Secrets


def test_secrets_show_nowhere(tmp_path, server, capsys):
    server.shelves["/m/toy/x.bin?sig=s3cret"] = Shelf(then=[{"cut": 9}, {"status": 503}, {}])
    address = server.address.replace("http://", "http://ann:s3cret@") + "/m?sig=s3cret"
    download(source(File("x.bin")), tmp_path / "raw", mirror=address)
    assert server.headers[-1]["Authorization"] == "Basic YW5uOnMzY3JldA=="
    server.shelves["/m/toy/y.bin?sig=s3cret"] = Shelf(then=[{"cut": 9}])
    hidden = ("https://h.invalid/y?a=1&X-Amz-Signature=s3cret&b=2", "http://ann:s3cret@127.0.0.1:9/y")
    with pytest.raises(DownloadError) as caught:
        download(source(File("y.bin", urls=hidden)), tmp_path / "raw2", mirror=address)
    texts = [str(caught.value), *capsys.readouterr()]
    texts += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(texts) == 5 and not [text for text in texts if "s3cret" in text]
    assert "***@127.0.0.1" in texts[0] and "a=1&X-Amz-Signature=***&b=2" in texts[0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h/x", "https://***@h/x"),
        ("https://u:p@ss@h/x", "https://***@h/x"),
        ("https://u:p/a@h/x", "https://***@h/x"),
        ("https://h:80/a@b", "https://h:80/a@b"),
        ("https://h/a@b?download=1", "https://h/a@b?download=1"),
        ("https://h/x?access_token=t&n=1#f", "https://h/x?access_token=***&n=1#f"),
        ("https://h/x?API-Key=k;v=1", "https://h/x?API-Key=***"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_no_secret_of_an_address_is_shown(text, shown):
    assert without_secrets(text) == shown


# Filling a mirror


def test_a_mirror_is_filled_for_a_site_without_internet(tmp_path, server):
    server.shelves["/x.bin"] = Shelf(then=[{"cut": 10}, {}])
    open_set = source(File("x.bin", urls=(f"{server.address}/x.bin",)), File("more.csv", optional=True), name="open")
    closed = source(File("scans.zip"), File("labels.csv", urls=(f"{server.address}/labels.csv",)), name="closed")
    closed = replace(closed, access="Register at the publisher's, then download.")
    server.shelves["/labels.csv"] = Shelf(b"a,b\n")
    broken = source(File("z.bin", urls=(f"{server.address}/gone",)), name="broken")
    drawn = source(name="drawn")

    report = mirror_datasets([closed, broken, open_set, drawn], tmp_path / "m")
    assert not report.complete and str(report) == "\n".join(report.lines)
    assert report.lines[0] == (
        f"closed: 1 of 2 files, 4 B; fetch by hand into {tmp_path}/m/closed: scans.zip; "
        "access: Register at the publisher's, then download."
    )
    assert report.lines[1].startswith("broken: 0 of 1 files, 0 B; FAILED: z.bin (") and "HTTP 404" in report.lines[1]
    assert report.lines[2:] == ("open: 1 of 1 files, 7.0 kB", "drawn: needs no file")
    sums = (tmp_path / "m/SHA256SUMS").read_text()
    assert sums == f"{digest(b'a,b' + bytes([10]))}  closed/labels.csv\n{digest()}  open/x.bin\n"
    assert server.ranges().count("bytes=10-") == 1

    # What a person fetched is checked and listed, and nothing is fetched twice.
    server.asked.clear()
    (tmp_path / "m/closed/scans.zip").write_bytes(b"PK no zip")
    report = mirror_datasets([closed, open_set], tmp_path / "m")
    assert "by hand" in report.lines[0] and "scans.zip: corrupt or truncated" in report.lines[0]
    (tmp_path / "m/closed/scans.zip").write_bytes(zipped(a=CONTENT))
    report = mirror_datasets([closed, open_set], tmp_path / "m")
    assert report.complete and report.lines[0].startswith("closed: 2 of 2 files") and not server.asked
    assert len((tmp_path / "m/SHA256SUMS").read_text().splitlines()) == 3
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "m", capture_output=True, text=True)
    assert check.returncode == 0, check.stdout

    for each in (closed, open_set):
        download(each, tmp_path / "raw" / each.name, mirror=str(tmp_path / "m"))
    assert not server.asked


def test_a_mirror_is_filled_from_another(tmp_path, monkeypatch):
    mirror = listed(mirror_with(tmp_path, x_bin=OTHER), x_bin=OTHER)
    monkeypatch.setenv("JOINTDIFF_MIRROR", mirror)
    wanted = source(File("x.bin", sha256=digest()))
    assert mirror_datasets([wanted], tmp_path / "m").complete
    assert record_of(tmp_path / "m/toy")["modified"] is True
    monkeypatch.setenv("JOINTDIFF_MIRROR", str(tmp_path / "m"))
    download(wanted, tmp_path / "raw", mirror=str(tmp_path / "m"))
    assert mirror_datasets([wanted], tmp_path / "m").complete  # itself: not asked
    assert (tmp_path / "m/toy/x.bin").read_bytes() == OTHER


def test_a_keepers_own_file_is_kept(tmp_path, server):
    """Without a record, by the listing alone; a file that rotted is no longer the listed one."""
    server.shelves["/x.bin"] = Shelf()
    mirror = listed(mirror_with(tmp_path, x_bin=OTHER, y_bin=OTHER), x_bin=OTHER, y_bin=CONTENT)
    file = File("x.bin", urls=(f"{server.address}/x.bin",), sha256=digest())
    report = mirror_datasets([source(file, File("y.bin"))], mirror)
    assert not server.asked and (Path(mirror) / "toy/x.bin").read_bytes() == OTHER
    assert not report.complete and "y.bin: wrong checksum" in report.lines[0]
    assert (Path(mirror) / "SHA256SUMS").read_text() == f"{digest(OTHER)}  toy/x.bin\n"


def test_a_data_set_that_does_not_fit_lets_the_others_come(tmp_path, server, monkeypatch):
    server.shelves["/big"] = Shelf(CONTENT * 10)
    server.shelves["/small"] = Shelf()
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=10000))
    sets = [source(File(name, urls=(f"{server.address}/{name}",)), name=name) for name in ("big", "small")]
    report = mirror_datasets(sets, tmp_path / "m")
    assert report.lines[0].startswith("big: FAILED: big: ") and "10000 bytes" in report.lines[0]
    assert report.lines[1] == "small: 1 of 1 files, 7.0 kB" and not report.complete
