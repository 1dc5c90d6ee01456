"""Fetch published files: from a mirror first, verified, whole or not at all.

A mirror is a folder or an address laid out as ``<mirror>/<data set>/<file name>``; see docs/mirror.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jointdiff.addresses import without_secrets
from jointdiff.data.archives import damage
from jointdiff.data.source import DataError, File, Source
from jointdiff.data.transfer import (
    Meter,
    PlaceError,
    StorageError,
    drop_part,
    is_url,
    part_of,
    read_text,
    receive,
    say,
    size_of,
    size_text,
)
from jointdiff.files import atomic_path, read_json, sha256, write_json

RECORD = "downloads.json"
SUMS = "SHA256SUMS"
LISTED = f"the mirror's {SUMS}"
UNPUBLISHED = "first download"
WORKERS = 4  # files fetched at once
SPARE = 0.05  # of what is to be fetched, free beyond it


class DownloadError(DataError):
    """A file that no place could provide whole, with what each place answered and the way out."""


def mirror_from(configured: str | None) -> str | None:
    """Return the mirror to use: JOINTDIFF_MIRROR where it is set, else the configured one."""
    return os.environ.get("JOINTDIFF_MIRROR") or configured or None


def download(source: Source, folder: Path | str, *, mirror: str | None = None) -> None:
    """Bring every file of a data set to ``folder`` and write their sha256 to ``downloads.json`` there.

    A file that is already there is kept if it is whole, and one that came in part is continued. Each file is checked
    against the mirror's ``SHA256SUMS`` if it comes from there and is listed, and against the published checksum; where
    none is published, against the one that its first download left in ``downloads.json``.

    Raises:
        DownloadError: files that are not optional are nowhere to be had, or are not what they should be, or do not
            fit on the disk. The others are there.
    """
    failures = _bring_all(source, Path(folder), mirror=mirror)
    if failures:
        raise DownloadError(_message(source.name, failures, Path(folder)))


def places_of(file: File, *, dataset: str, mirror: str | None) -> list[str]:
    """List where a file may be, the mirror first."""
    return [_in_mirror(mirror, f"{dataset}/{file.name}"), *file.urls] if mirror else list(file.urls)


@dataclass(frozen=True)
class MirrorReport:
    """What a mirror holds after it was filled: one line per data set, and whether nothing is missing."""

    lines: tuple[str, ...]
    complete: bool

    def __str__(self) -> str:
        return "\n".join(self.lines)


def mirror_datasets(sources: Sequence[Source], destination: Path | str) -> MirrorReport:
    """Fill a mirror: every file of the data sets, verified, under ``destination``, and ``SHA256SUMS`` over them.

    Files come from the mirror that JOINTDIFF_MIRROR names, if it is another one, and from the publishers. What they
    do not give is reported, and the other data sets go on. Files that a person put there are checked and listed; one
    that ``SHA256SUMS`` lists already is kept even where the published checksum is another. Run again, it continues.
    """
    destination = Path(destination)
    mirror = mirror_from(None)
    if mirror and not is_url(mirror) and Path(mirror).expanduser().resolve() == destination.resolve():
        mirror = None
    _make(destination)
    listing = _listing(str(destination))
    lines, complete = [], True
    for source in sources:
        folder = destination / source.name
        vouched = {file.name: listing.get(f"{source.name}/{file.name}") for file in source.files}
        failures: dict[str, _FileError] = {}
        problem = ""
        if source.files:
            try:
                failures = _bring_all(source, folder, mirror=mirror, vouched=vouched)
            except ValueError as error:  # the disk, or a record that is no JSON: the other data sets go on
                problem = str(error)
        record = _read_record(folder) if source.files and not problem else {}
        there = [file for file in source.files if file.name in record and (folder / file.name).is_file()]
        if not problem:
            for file in source.files:
                listing.pop(f"{source.name}/{file.name}", None)
            listing.update({f"{source.name}/{file.name}": record[file.name]["sha256"] for file in there})
            _write_listing(destination, listing)
        complete = complete and not failures and not problem
        lines.append(_report_line(source, folder, there, failures, problem))
    return MirrorReport(tuple(lines), complete)


def _report_line(
    source: Source, folder: Path, there: Sequence[File], failures: Mapping[str, _FileError], problem: str
) -> str:
    if not source.files:
        return f"{source.name}: needs no file"
    if problem:
        return f"{source.name}: FAILED: {problem}"
    size = sum((folder / file.name).stat().st_size for file in there)
    wanted = [file for file in source.files if not file.optional or file in there]
    line = f"{source.name}: {len(there)} of {len(wanted)} files, {size_text(size)}"
    by_hand = [file.name for file in source.files if file.name in failures and not file.urls]
    broken = [f"{name} ({failure})" for name, failure in failures.items() if name not in by_hand]
    if broken:
        line += f"; FAILED: {'; '.join(broken)}"
    if by_hand:
        wrong = [f"{name} ({failures[name]})" if failures[name].wrong else name for name in by_hand]
        line += f"; fetch by hand into {folder}: {', '.join(wrong)}"
    return line + (f"; access: {source.access}" if failures and source.access else "")


class _FileError(Exception):
    """One file that could not be had: what each place answered."""

    def __init__(self, text: str, *, wrong: bool = False, full: bool = False, recorded: bool = False) -> None:
        super().__init__(text)
        self.wrong = wrong  # some place has it, but not whole or another one
        self.full = full  # our disk is why
        self.recorded = recorded  # a first download says what it should be


@dataclass(frozen=True)
class _Got:
    """A file that is there, and why it is believed."""

    place: str
    sha256: str
    checked: str
    modified: bool = False


def _bring_all(
    source: Source, folder: Path, *, mirror: str | None, vouched: Mapping[str, str | None] | None = None
) -> dict[str, _FileError]:
    """Bring all files and return those that failed; ``vouched`` are the sha256 of files kept whatever is published."""
    _make(folder)
    failures: dict[str, _FileError] = {}
    with _alone(folder), ThreadPoolExecutor(WORKERS) as pool:
        record = _read_record(folder)

        def note(name: str, got: _Got) -> None:
            record[name] = {
                "sha256": got.sha256,
                "bytes": (folder / name).stat().st_size,
                "from": without_secrets(got.place),
                "checked": got.checked,
                "modified": got.modified,
            }
            _write_record(source.name, folder, record)

        def find(file: File) -> tuple[_Got | None, str]:
            return _find(
                file, folder / file.name, entry=record.get(file.name, {}), vouched=(vouched or {}).get(file.name)
            )

        missing: dict[File, list[str]] = {}  # with what is wrong with the file that is there, if any
        for file, (there, fault) in zip(source.files, pool.map(find, source.files), strict=True):
            if there is None:
                missing[file] = [f"{folder / file.name}: {fault}"] if fault else []
            else:
                say(f"{source.name}/{file.name}: already there")
                drop_part(folder / file.name)
                note(file.name, there)
        meter = Meter(source.name)
        if missing:
            sizes = dict(zip(missing, pool.map(lambda file: _size(file, source.name, mirror), missing), strict=True))
            _check_space(source.name, folder, sizes)
            for file, size in sizes.items():
                meter.at(f"{source.name}/{file.name}", _part_size(folder / file.name, size), size)
        listing = _listing(mirror) if missing else {}
        running = {
            pool.submit(
                _fetch,
                file,
                folder / file.name,
                dataset=source.name,
                mirror=mirror,
                recorded=record.get(file.name, {}).get("sha256"),
                listing=listing,
                answers=answers,
                meter=meter,
            ): file
            for file, answers in missing.items()
        }
        try:
            for done in as_completed(running):
                name = running[done].name
                try:
                    # Noted after every file, so that a first checksum outlives a later failure.
                    if (got := done.result()) is not None:
                        note(name, got)
                except _FileError as error:
                    say(f"{source.name}/{name}: FAILED: {error}")
                    failures[name] = error
        except BaseException:
            meter.stop.set()  # else Ctrl-C would wait for gigabytes
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            meter.close()
        if not failures:
            _write_record(source.name, folder, record)
    return {file.name: failures[file.name] for file in source.files if file.name in failures}


def _find(file: File, path: Path, *, entry: Mapping[str, Any], vouched: str | None = None) -> tuple[_Got | None, str]:
    """Look for a whole file that is there already: what is known of it, or what is wrong with it, if it is there."""
    if not path.is_file():
        return None, ""
    recorded = entry.get("sha256")
    kept = vouched or (recorded if entry.get("modified") is True else None)
    got, fault = _judge(path, file, place=str(entry.get("from", "found")), recorded=recorded or vouched, vouched=kept)
    if got is not None and got.checked == UNPUBLISHED and "checked" in entry:
        got = replace(got, checked=str(entry["checked"]))
    return got, fault


def _judge(
    path: Path, file: File, *, place: str, recorded: str | None, vouched: str | None = None, listed: str | None = None
) -> tuple[_Got | None, str]:
    """Decide on a file: why it is believed, or what is wrong with it.

    Args:
        path: where its bytes are.
        file: what is published of it.
        place: where it came from.
        recorded: the sha256 of its first download, binding where none is published.
        vouched: a sha256 with which it is taken whatever is published.
        listed: a sha256 that it must have.
    """
    found = sha256(path)
    if listed and found != listed:
        return None, f"wrong checksum: sha256 is {found}, the mirror's {SUMS} says {listed}"
    fault = _published_fault(path, file, found)
    if file.sha256 or file.md5:
        if fault is None:
            return _Got(place, found, "published checksum"), ""
        return (_Got(place, found, LISTED, modified=True), "") if found == vouched else (None, fault)
    if recorded and found != recorded:
        return None, f"wrong checksum: sha256 is {found}, the first download's was {recorded}"
    if not recorded and (fault := damage(path, name=file.name)):
        return None, fault
    return _Got(place, found, LISTED if found == vouched else UNPUBLISHED), ""


def _fetch(
    file: File,
    path: Path,
    *,
    dataset: str,
    mirror: str | None,
    recorded: str | None,
    listing: Mapping[str, str],
    answers: list[str],
    meter: Meter,
) -> _Got | None:
    """Bring one file from the first place that has it whole; None where an optional one is nowhere."""
    label, part = f"{dataset}/{file.name}", part_of(path)[0]
    wrong = bool(answers)
    for number, place in enumerate(places_of(file, dataset=dataset, mirror=mirror)):
        listed = listing.get(label) if mirror and number == 0 else None
        try:
            checked = bool(file.sha256 or file.md5 or listed or recorded)
            for last in (False, True):
                resumed = receive(place, path, label=label, meter=meter, checked=checked)
                got, fault = _judge(part, file, place=place, recorded=recorded, vouched=listed, listed=listed)
                if got is not None:
                    part.replace(path)
                    drop_part(path)
                    if got.modified:
                        say(
                            f"WARNING: {label} from {without_secrets(place)} IS NOT THE PUBLISHED FILE. It is taken "
                            f"because the mirror's {SUMS} lists it; results are those of modified data"
                        )
                    return got
                drop_part(path)
                if last or not resumed:
                    break
                say(f"{label}: {fault}; its pieces may not belong together: fetching it anew")
            wrong = True
            answers.append(f"{without_secrets(place)}: {fault}")
        except PlaceError as error:
            answers.append(f"{without_secrets(place)}: {error}")
        except (StorageError, OSError) as error:  # no other place helps
            raise _FileError(f"{path.parent} cannot be written: {error}", full=True) from error
    # Bytes that came show that it is to be had: that is no file to go on without.
    if file.optional and not wrong and not part.exists():
        say(f"{label}: optional and not to be had; going on without it")
        return None
    raise _FileError("; ".join(answers) or "no place is known for it", wrong=wrong, recorded=bool(recorded))


def _published_fault(path: Path, file: File, found: str) -> str | None:
    if file.sha256 and found != file.sha256.lower():
        return f"wrong checksum: sha256 is {found}, published is {file.sha256}"
    if file.md5:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != file.md5.lower():
            return f"wrong checksum: md5 is {found}, published is {file.md5}"
    return None


def _message(dataset: str, failures: Mapping[str, _FileError], folder: Path) -> str:
    """Return one message for all files that failed, with the way out."""
    names = ", ".join(failures)
    if len(failures) == 1:
        tried = f"Tried {failures[names]}"
    else:
        tried = ". ".join(f"{name}: tried {failure}" for name, failure in failures.items())
    text = f"{dataset}: no whole copy of {names} could be had. {tried}. "
    if any(failure.full for failure in failures.values()):
        return text + f"Free space in {folder}, or make it writable, and start again: what came is kept and continued"
    which = names if len(failures) == 1 else "<file>"
    text += (
        f"Put the right file at <mirror>/{dataset}/{which} and name the mirror, a folder or URL, by JOINTDIFF_MIRROR "
        "or the key `mirror`"
    )
    if any(failure.recorded for failure in failures.values()):
        text += f"; if the publisher replaced the file on purpose, delete {folder / RECORD}"
    return text


# The mirror


def _in_mirror(mirror: str, name: str) -> str:
    if not is_url(mirror):
        return str(Path(mirror).expanduser() / name)
    parts = urllib.parse.urlsplit(mirror)  # a query, such as a token, stays behind the path
    return parts._replace(path=f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}").geturl()


def _listing(mirror: str | None) -> dict[str, str]:
    """Read the checksums that a mirror's keeper vouches for, by ``<data set>/<file>``."""
    if not mirror:
        return {}
    place = _in_mirror(mirror, SUMS)
    try:
        text = read_text(place)
    except PlaceError as error:
        say(f"WARNING: {without_secrets(place)} could not be read ({error}); published checksums alone are binding")
        return {}
    listing: dict[str, str] = {}
    for number, line in enumerate((text or "").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)*(.+)", line)
        if not match or listing.setdefault(match[2], match[1].lower()) != match[1].lower():
            raise DownloadError(
                f"{without_secrets(place)}, line {number}: "
                + (f"lists {match[2]} a second time" if match else "is not `<sha256>  <data set>/<file>`")
                + f"; write it anew at the top of the mirror: sha256sum */* > {SUMS}"
            )
    return listing


def _write_listing(destination: Path, listing: Mapping[str, str]) -> None:
    with atomic_path(destination / SUMS) as aside:
        aside.write_text("".join(f"{listing[name]}  {name}\n" for name in sorted(listing)), encoding="utf-8")


# The folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot make the folder {folder} ({error.strerror}); choose another") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another process that fills the same folder, and then find its files there."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that downloads to {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(handle)


def _size(file: File, dataset: str, mirror: str | None) -> int | None:
    """Return how many bytes a file has, as the first place that knows it says."""
    sizes = (size_of(place) for place in places_of(file, dataset=dataset, mirror=mirror))
    return next((size for size in sizes if size is not None), None)


def _part_size(path: Path, size: int | None) -> int:
    part = part_of(path)[0]
    have = part.stat().st_size if part.exists() else 0
    return have if size is None else min(have, size)


def _check_space(dataset: str, folder: Path, sizes: Mapping[File, int | None]) -> None:
    """Refuse to start what will not fit; files of unknown size count nothing."""
    needed = sum(size - _part_size(folder / file.name, size) for file, size in sizes.items() if size is not None)
    needed, free = int(needed * (1 + SPARE)), shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{dataset}: {folder} has {free} bytes ({size_text(free)}) free and needs {needed} ({size_text(needed)}, "
            f"{SPARE:.0%} to spare among them); nothing was fetched. Free space, or choose a folder on another disk"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict) or not all(isinstance(entry, dict) for entry in record.values()):
        raise DownloadError(f"{path} is no record of downloads; delete it")
    return record


def _write_record(dataset: str, folder: Path, record: Mapping[str, Any]) -> None:
    try:
        write_json(folder / RECORD, record)
    except OSError as error:
        raise DownloadError(
            f"{dataset}: {folder / RECORD} cannot be written ({error.strerror}); free space in {folder} and start again"
        ) from error
