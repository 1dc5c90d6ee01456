"""Fetch published files: from a mirror first, verified, whole or not at all.

A mirror is a folder or an address laid out as ``<mirror>/<data set>/<file name>``; see docs/mirror.md.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from jointdiff.data.source import DataError, File, Source
from jointdiff.files import atomic_path, read_json, sha256, write_json

RECORD = "downloads.json"
ATTEMPTS = 3  # per place, where the failure may pass
WAIT = 2.0  # seconds before the second attempt; doubled from then on
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20


class DownloadError(DataError):
    """A file that no place could provide whole, with what each place answered and the way out."""


def mirror_from(configured: str | None) -> str | None:
    """Return the mirror to use: JOINTDIFF_MIRROR where it is set, else the configured one."""
    return os.environ.get("JOINTDIFF_MIRROR") or configured or None


def download(source: Source, folder: Path | str, *, mirror: str | None = None) -> None:
    """Bring every file of a data set to ``folder`` and write their sha256 to ``downloads.json`` there.

    A file that is already there is kept if it is whole. Each file is checked against the published checksum; where
    none is published, against the one that its first download left in ``downloads.json``.

    Raises:
        DownloadError: a file that is not optional is nowhere to be had, or is not the one it should be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    for file in source.files:
        first = record.get(file.name, {}).get("sha256")
        origin = fetch(file, folder / file.name, dataset=source.name, mirror=mirror, recorded=first)
        if origin is None:
            continue
        record[file.name] = {
            "sha256": sha256(folder / file.name),
            "bytes": (folder / file.name).stat().st_size,
            "from": record.get(file.name, {}).get("from", "found") if origin == "found" else origin,
            "checked": "published checksum" if file.sha256 or file.md5 else "first download",
        }
        # Written after every file, so that a first checksum outlives a later failure.
        write_json(folder / RECORD, record)
    write_json(folder / RECORD, record)


def fetch(
    file: File, path: Path, *, dataset: str, mirror: str | None = None, recorded: str | None = None
) -> str | None:
    """Bring one file to ``path`` and return where it came from: a place, or "found" where it was there already.

    Returns None where an optional file is nowhere. ``recorded`` is the sha256 of its first download, if known.

    Raises:
        DownloadError: no place has the file whole.
    """
    answers: list[str] = []
    if path.is_file():
        fault = _fault(path, file, recorded)
        if fault is None:
            _say(f"{dataset}/{file.name}: already there")
            return "found"
        answers.append(f"{path}: {fault}")
    places = places_of(file, dataset=dataset, mirror=mirror)
    damaged = bool(answers)
    for place in places:
        try:
            with atomic_path(path) as aside:
                _copy(place, aside, label=f"{dataset}/{file.name}")
                fault = _fault(aside, file, recorded)
                if fault is not None:
                    damaged = True
                    raise _PlaceError(fault)
        except _PlaceError as error:
            answers.append(f"{place}: {error}")
            continue
        return place
    if file.optional and not damaged:
        _say(f"{dataset}/{file.name}: optional and not to be had; going on without it")
        return None
    tried = "; ".join(answers) or "no place is known for it"
    raise DownloadError(
        f"{dataset}: no whole copy of {file.name} could be had. Tried {tried}. Put the right file at "
        f"<mirror>/{dataset}/{file.name} and name the mirror, a folder or URL, by JOINTDIFF_MIRROR or the key `mirror`"
        + (f"; if the publisher replaced the file on purpose, delete {path.parent / RECORD}" if recorded else "")
    )


def places_of(file: File, *, dataset: str, mirror: str | None) -> list[str]:
    """List where a file may be, the mirror first."""
    places = list(file.urls)
    if mirror:
        if _is_url(mirror):
            name = urllib.parse.quote(f"{dataset}/{file.name}")
            places.insert(0, f"{mirror.rstrip('/')}/{name}")
        else:
            places.insert(0, str(Path(mirror).expanduser() / dataset / file.name))
    return places


class _PlaceError(Exception):
    """One place that did not give the file."""


def _is_url(place: str) -> bool:
    return "://" in place


def _copy(place: str, aside: Path, *, label: str) -> None:
    """Copy from a path or URL; failures that may pass are tried again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _copy_once(place, aside, label=label)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise _PlaceError(f"HTTP {error.code} {error.reason}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except FileNotFoundError as error:
            raise _PlaceError("no such file") from error
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            if not _is_url(place):
                raise _PlaceError(reason) from error
        except ValueError as error:
            raise _PlaceError(str(error)) from error
        if attempt < ATTEMPTS:
            wait = WAIT * 2 ** (attempt - 1)
            _say(f"{label}: {reason}; trying {place} again in {wait:.0f} s")
            time.sleep(wait)
    raise _PlaceError(f"{reason} ({ATTEMPTS} attempts)")


def _copy_once(place: str, aside: Path, *, label: str) -> None:
    from tqdm import tqdm

    if _is_url(place):
        request = urllib.request.Request(place, headers={"User-Agent": "jointdiff"})
        incoming = urllib.request.urlopen(request, timeout=TIMEOUT)
        length = incoming.headers.get("Content-Length")
        expected = int(length) if length else None
    else:
        incoming = Path(place).open("rb")  # noqa: SIM115 - closed below, as the other kind is
        expected = Path(place).stat().st_size
    _say(f"{label}: from {place}" + (f", {expected / 1e6:.1f} MB" if expected else ""))
    received, shown = 0, time.monotonic()
    # A bar on a terminal; in a log a plain line now and then.
    bar = tqdm(total=expected, unit="B", unit_scale=True, desc=label, disable=not sys.stderr.isatty(), leave=False)
    with incoming, aside.open("wb") as out, bar:
        started = time.monotonic()
        while block := incoming.read(BLOCK):
            out.write(block)
            received += len(block)
            bar.update(len(block))
            now = time.monotonic()
            if bar.disable and now - shown > 10:
                shown, rate = now, received / (now - started)
                left = f", {(expected - received) / rate:.0f} s left" if expected else ""
                _say(f"{label}: {received / 1e6:.1f} MB, {rate / 1e6:.2f} MB/s{left}")
    if expected is not None and received != expected:
        raise OSError(f"truncated: {received} of {expected} bytes came")


def _fault(path: Path, file: File, recorded: str | None) -> str | None:
    """Say what is wrong with a file, or None."""
    for kind, expected in (("sha256", file.sha256), ("md5", file.md5)):
        if expected:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, kind).hexdigest()
            if found != expected.lower():
                return f"wrong checksum: {kind} is {found}, published is {expected}"
    if file.sha256 or file.md5:
        return None
    if recorded:
        found = sha256(path)
        return None if found == recorded else f"wrong checksum: sha256 is {found}, the first download's was {recorded}"
    return _damage(path, file.name)


def _damage(path: Path, name: str) -> str | None:
    """Read an archive for which no checksum is known from end to end, or return what is wrong with it."""
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"corrupt: its member {bad} fails its own checksum" if bad else None
        if name.endswith((".gz", ".tgz")):
            with gzip.open(path) as stream:
                while stream.read(BLOCK):
                    pass
        elif name.endswith(".tar"):
            with tarfile.open(path) as archive_tar:
                archive_tar.getmembers()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, NotImplementedError) as error:
        return f"corrupt or truncated: {error}"
    return None


def extract(archive: Path | str, folder: Path | str) -> None:
    """Unpack a zip or tar archive to ``folder``, whole or not at all.

    Raises:
        DownloadError: the archive is damaged, or a member would leave the folder or is a link or device.
    """
    archive = Path(archive)
    try:
        with atomic_path(folder) as aside:
            aside.mkdir(parents=True)
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(aside, members=list(safe_members(opened, name=str(archive))))
            else:
                with tarfile.open(archive) as opened_tar:
                    members = list(safe_members(opened_tar, name=str(archive)))
                    opened_tar.extractall(aside, members=members, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DownloadError(f"{archive} is corrupt or truncated ({error}); remove it and download it again") from error


def safe_members(archive: Any, *, name: str) -> Iterator[Any]:
    """Yield the members of an open ZipFile or TarFile, all of which stay inside the folder they are unpacked to.

    Raises:
        DownloadError: a member is absolute, climbs out of the folder, or is neither a file nor a folder.
    """
    members = archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive.getmembers()
    for member in members:
        if isinstance(member, zipfile.ZipInfo):
            path, kind = member.filename, member.external_attr >> 28  # file type bits of the Unix mode
            ordinary = kind in (0, 0o10, 0o04)
        else:
            path, ordinary = member.name, member.isfile() or member.isdir()
        plain = PurePosixPath(path.replace("\\", "/"))
        leaves = plain.is_absolute() or ".." in plain.parts or (plain.parts and plain.parts[0].endswith(":"))
        if leaves or not ordinary:
            what = "would be written outside its folder" if leaves else "is a link or a device"
            raise DownloadError(f"{name}: member {path!r} {what}; the archive is refused. Use the publisher's own file")
        yield member


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
