"""Files that are whole or absent: everything is written aside, brought to the disk and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any

NAME_BYTES = 255  # of a file's name, on the usual file systems
SUMS = "SHA256SUMS"  # of a folder, as `sha256sum` writes and checks it
# What the system may say of a disk, and what to do about it; then the same command goes on where it stopped.
TROUBLES = {
    errno.ENOSPC: "its disk is full; make room",
    errno.EDQUOT: "the quota of its disk is used up; make room",
    errno.EFBIG: "a file may not grow so large here; raise the limit (`ulimit -f`)",
    errno.EROFS: "its disk is mounted read-only; make it writable",
    errno.EACCES: "this user may not write there; change the owner or the permissions of its folder",
    errno.EPERM: "this user may not write there; change the owner or the permissions of its folder",
    errno.EIO: "its disk fails to read or write; look at the system's log, and move to another disk",
}


class WriteError(OSError):
    """A file cannot be written; the message names it and says what to do."""


class DamagedError(ValueError):
    """A file is not what was once written; the message names it and says how to get it back."""


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (same suffix) that replaces it when the block ends without an error.

    The block may create a file or a folder there. After an error the sibling is removed and ``path`` is untouched.
    What replaces it is on the disk before it bears the name, so that a power cut leaves nothing half there.

    Raises:
        WriteError: the disk is full, read-only or broken, or forbids it.
    """
    path = Path(path)
    with explain_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{_marked(path)}.{os.getpid()}{path.suffix}")
        _remove(aside)
        try:
            yield aside
            _bring_to_disk(aside)
            if path.is_dir():
                _remove(path)
            aside.replace(path)
            _bring_to_disk(path.parent, deep=False)
        finally:
            _remove(aside)


def _marked(path: Path) -> str:
    """Return the stem of a file, or its digest where the name of a sibling would be longer than a file's may be."""
    sibling = f".{path.stem}.{2**22}{path.suffix}"  # with the largest number that a process has
    stem = os.fsencode(path.stem)
    return path.stem if len(os.fsencode(sibling)) <= NAME_BYTES else hashlib.sha256(stem).hexdigest()[:16]


@contextmanager
def explain_trouble(path: Path | str) -> Iterator[None]:
    """Name ``path`` and the way out where the block, which writes it, meets a full or forbidden disk.

    Raises:
        WriteError: in place of what the system or a library said.
    """
    try:
        yield
    except Exception as error:
        said = TROUBLES.get(_number(error, Path(path)) or 0)
        if said is None:
            raise
        raise WriteError(f"{path} cannot be written: {said}, then give the same command again") from error


def _number(error: Exception, path: Path) -> int | None:
    """Return the system's number of an error, where it is about what is written to ``path``."""
    if isinstance(error, WriteError):
        return None  # said already, of a part of it
    if not isinstance(error, OSError):
        found = re.search(r"os error (\d+)", str(error))  # as safetensors has it
        return int(found[1]) if found else None
    if error.filename is not None and not str(error.filename).startswith(str(path.parent)):
        return None  # of a file that the block reads
    if error.errno is None and path.parent.is_dir() and not os.statvfs(path.parent).f_bavail:
        return errno.ENOSPC  # numpy and Pillow do not hand the number on
    return error.errno


def _bring_to_disk(path: Path, *, deep: bool = True) -> None:
    parts = [*path.rglob("*"), path] if deep and path.is_dir() else [path]
    if len(parts) > 100:  # as of an archive; one call for all of them
        os.sync()
        return
    for part in parts:
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # of a folder, on file systems that know no such thing
                raise
        finally:
            os.close(handle)


def remove_leftovers(path: Path | str) -> None:
    """Remove what killed processes of this machine left beside ``path`` when they were writing it.

    A file has one writer at a time, which Snakemake's lock of a folder sees to.
    """
    path = Path(path)
    pattern = re.compile(rf"\.{re.escape(_marked(path))}\.(\d+){re.escape(path.suffix)}")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        found = pattern.fullmatch(other.name)
        if found and not _runs(int(found[1])):
            _remove(other)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write plain data as indented JSON, whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON, with its name.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it so that the step is run again") from error


def sha256(path: Path | str) -> str:
    """Return the hex digest of a file's content, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Path | str, pattern: str = "*") -> None:
    """Write the SHA-256 of a folder's files that match to its ``SHA256SUMS``; ``sha256sum -c`` reads it too."""
    folder = Path(folder)
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path | str) -> dict[str, str]:
    """Return the SHA-256 of each file that a folder's ``SHA256SUMS`` lists, by its path in the folder; none without."""
    path = Path(folder) / SUMS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {name: value for value, _, name in (line.partition("  ") for line in lines)}


def check_sum(path: Path, expected: str | None, *, remedy: str) -> None:
    """Hold a file against its SHA-256, once on a machine as long as neither size, time nor place of it change.

    Raises:
        DamagedError: it has another one, or is not there.
    """
    if not path.is_file():
        raise DamagedError(f"{path} is missing: {remedy}")
    known = path.stat()
    what = f"{path.resolve()} {known.st_size} {known.st_mtime_ns} {known.st_ino} {known.st_dev} {expected}"
    checked = Path(gettempdir(), f"jointdiff-{os.getuid()}-checked", hashlib.sha256(what.encode()).hexdigest()[:32])
    if checked.exists():
        return
    if sha256(path) != expected:
        raise DamagedError(f"{path} is damaged, its SHA-256 is not the one that {SUMS} lists: {remedy}")
    with suppress(OSError):  # then it is checked again
        checked.parent.mkdir(mode=0o700, exist_ok=True)
        checked.touch()
