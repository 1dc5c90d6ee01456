"""What the files behind a result were when they were last looked at, so that a change of one is seen. Light: no torch.

A look asks files for their size and times. It reads a file again only where its size is the same and its times are not,
and a digest of its earlier content is known: a copied or touched file is no change, and one of another date no trouble.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jointdiff.complaints import DataError
from jointdiff.config import digest
from jointdiff.files import DamagedError, atomic_path, check_sum, read_json, sha256
from jointdiff.progress import Progress

TICK = 2_000_000_000  # ns; a change so shortly before a look can leave the times as they were (FAT counts 2 seconds)
BATCH = 500  # files that a thread looks at in turn
THREADS = 16  # more than processors: a look waits for the disk or the network


class Entry(NamedTuple):
    """One file as it was."""

    size: int  # bytes
    modified: int  # ns
    changed: int  # ns, of content, name or rights; unlike the time before it, no program can set it
    sha256: str | None = None  # of the content, where it was read


@dataclass(frozen=True)
class Manifest:
    """Files as they were at one look."""

    state: str  # 16 hex digits; the same as long as no content changes
    looked: int  # ns
    files: Mapping[str, Entry]

    @classmethod
    def read(cls, path: Path | str) -> Manifest | None:
        """Read what ``write`` wrote; None where there is nothing, or nothing of use."""
        try:
            content = read_json(path)
            files = {name: Entry(*entry) for name, entry in content["files"].items()}
            return cls(content["state"], content["looked"], files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def write(self, path: Path | str) -> None:
        """Write it as JSON, whole or not at all."""
        text = json.dumps({"state": self.state, "looked": self.looked, "files": self.files})
        with atomic_path(path) as aside:
            aside.write_text(text, encoding="utf-8")

    def with_sums(self, label: str) -> Manifest:
        """Return it with the SHA-256 of every file, of which those without one are read."""
        sums = _sums([name for name, entry in self.files.items() if entry.sha256 is None], label=label)
        files = {name: entry._replace(sha256=sums.get(name, entry.sha256)) for name, entry in self.files.items()}
        return replace(self, files=files)

    def same_as(self, other: Manifest) -> None:
        """Check that these are the same files, unchanged.

        Raises:
            DataError: some are not, which are named.
        """
        changed = [name for name, was in self.files.items() if other.files.get(name, was[:0])[:3] != was[:3]]
        if changed := changed or sorted(other.files.keys() - self.files.keys()):
            raise DataError(
                f"{_listed(changed)} changed while the data set was prepared: leave its files as they are, and give "
                "the same command again"
            )


def look(paths: Iterable[Path | str], known: Manifest | None = None, *, label: str = "own files") -> Manifest:
    """Look at files, and at all files of folders; the state is that of ``known`` where no content has changed.

    Raises:
        DataError: one of them is not there.
    """
    looked = time.time_ns()
    now = _look_at(map(str, paths))
    before = known.files if known else {}
    doubtful = [
        name
        for name, entry in now.items()
        if (was := before.get(name)) and was.sha256 and was.size == entry.size
        and (was[:3] != entry[:3] or (known and was.changed > known.looked - TICK))
    ]  # fmt: skip
    sums = _sums(doubtful, label=label)
    files, same = {}, known is not None and now.keys() == before.keys()
    for name, entry in now.items():
        was = before.get(name)
        unchanged = was is not None and (sums[name] == was.sha256 if name in sums else was[:3] == entry[:3])
        files[name] = entry._replace(sha256=sums.get(name, was.sha256 if was and unchanged else None))
        same = same and unchanged
    if known and same:
        return known if not doubtful else Manifest(known.state, looked, files)
    content = [(name, entry.sha256 or (entry.size, entry.modified)) for name, entry in sorted(files.items())]
    return Manifest(digest(content), looked, files)


def watch(paths: Iterable[Path | str], record: Path | str, *, name: str) -> str:
    """Return the state of files, which changes with their content, and say what changed since a record of them.

    The record is what a store was made from, and whoever makes the store writes it. Here alone the times in it follow,
    where the content is the same, so that a copied folder is read once.

    Args:
        paths: files, and folders that stand for all files in them.
        record: what ``Manifest.write`` wrote, if it is there.
        name: of the data set, for what is said of changes.

    Raises:
        DataError: a file is not there.
    """
    known = Manifest.read(record)
    now = look(paths, known, label=f"read what has another date of {name}")
    if known and now.state != known.state:
        print(f"{name}: {difference(known, now)} since it was last prepared", file=sys.stderr)
    elif known and now is not known:
        _keep(now, record)
    return now.state


def difference(before: Manifest, after: Manifest) -> str:
    """Say how many files changed, are new and are gone, with names of some."""
    kinds = {
        "changed": [
            name
            for name, was in before.files.items()
            if (entry := after.files.get(name))
            and (entry.sha256 != was.sha256 if entry.sha256 and was.sha256 else entry[:3] != was[:3])
        ],
        "new": sorted(after.files.keys() - before.files.keys()),
        "gone": sorted(before.files.keys() - after.files.keys()),
    }
    said = [f"{len(names):,} {kind} ({_listed(names)})" for kind, names in kinds.items() if names]
    return f"of {len(before.files):,} files " + ", ".join(said)


def content_of(path: Path | str, record: Path | str) -> str:
    """Digest a file or a folder, of which only what changed since the last call is read; ``record`` remembers the rest.

    Raises:
        DataError: it is not there.
    """
    known = Manifest.read(record)
    now = look([path], known).with_sums(f"digest {path}")
    if now != known:
        _keep(now, record)
    return digest([[os.path.relpath(name, path), entry.sha256] for name, entry in sorted(now.files.items())])


def _keep(manifest: Manifest, record: Path | str) -> None:
    with suppress(OSError):  # then the files are read again
        manifest.write(record)


def check_downloads(raw: Path) -> None:
    """Check that downloaded files are those that were downloaded; only those that changed since are read.

    Raises:
        DataError: one is another.
    """
    record = raw / "downloads.json"
    if not record.is_file():
        return
    noted = record.stat().st_mtime_ns
    for name, known in read_json(record).items():
        path = raw / name
        if not path.is_file():
            continue  # removed to make room; who needs it says so
        now = path.stat()
        if now.st_size == known.get("bytes") and max(now.st_mtime_ns, now.st_ctime_ns) <= noted:
            continue
        try:
            check_sum(path, known.get("sha256"), remedy="")
        except DamagedError:
            raise DataError(
                f"{path} is not the file that was downloaded, whose SHA-256 is in {record}: bring that one back, or "
                "remove both, so that it is downloaded again"
            ) from None


def _look_at(paths: Iterable[str]) -> dict[str, Entry]:
    todo = list(paths)
    batches = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress("look for changes", total=len(todo), unit="files", patience=5) as progress,
    ):
        found: dict[str, Entry] = {}
        for batch, entries in zip(batches, pool.map(lambda batch: list(_entries(batch)), batches), strict=True):
            found.update(entries)
            progress.advance(len(batch))
    return found


def _entries(paths: Iterable[str]) -> Iterator[tuple[str, Entry]]:
    for path in paths:
        try:
            info = Path(path).stat()
        except OSError as error:
            said = f"{path} cannot be read ({error.strerror}): bring it back, or remove what names it"
            raise DataError(said) from None
        if stat.S_ISDIR(info.st_mode):
            with os.scandir(path) as inside:
                yield from _entries([entry.path for entry in inside if not entry.name.startswith(".")])
        else:
            yield path, Entry(info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _sums(names: list[str], *, label: str) -> dict[str, str]:
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Progress(label, total=len(names), unit="files", patience=5) as progress,
    ):
        sums = {}
        for name, value in zip(names, pool.map(sha256, names), strict=True):
            sums[name] = value
            progress.advance()
    return sums


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
