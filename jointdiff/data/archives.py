"""Read and unpack zip and tar archives that may be damaged or hostile: in bounds, or with one clear message."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

from jointdiff.data.source import DataError
from jointdiff.files import atomic_path

MEMBERS = 1_000_000  # the most an archive may hold
EXPANSION = 20  # times an archive's size is what it may expand to,
SPARE = 1 << 30  # and these bytes
MEMBER = 256 << 20  # the most bytes of one member that is read into memory
HEADER = 1 << 20  # the most bytes of one name or extended header; tarfile reads them into memory
EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
BLOCK = 1 << 20
REMEDY = "remove it and download it again"

# What the readers raise on damaged bytes. ValueError and below come from numbers in headers that make no sense.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # an encrypted member
    MemoryError,
)


def extract(archive: Path | str, folder: Path | str, *, limit: int | None = None, members: int = MEMBERS) -> None:
    """Unpack a zip or tar archive to ``folder``, whole or not at all. Modes and owners of members are not taken over.

    Args:
        archive: a .zip, or a .tar that may be compressed.
        folder: replaced if it exists.
        limit: the most bytes that may be written (default: 20 times the archive's size and 1 GiB).
        members: the most members there may be.

    Raises:
        DataError: the archive is damaged, has a member that is unsafe, or expands beyond the limit.
    """
    archive = _present(archive)
    room = _Room(archive, EXPANSION * archive.stat().st_size + SPARE if limit is None else limit)
    with atomic_path(folder) as aside:
        aside.mkdir(parents=True)
        with _told(archive) as at, _opened(archive) as opened:
            for at.member, info in safe_members(opened, name=str(archive), members=members):
                target = aside / at.member
                if _is_folder(info):
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                room.expect(_size(info))
                target.parent.mkdir(parents=True, exist_ok=True)
                with _content(opened, info) as stream, target.open("xb") as out:
                    while block := stream.read(BLOCK):
                        room.take(len(block))
                        out.write(block)


def safe_members(
    archive: zipfile.ZipFile | tarfile.TarFile, *, name: str, members: int = MEMBERS
) -> Iterator[tuple[str, Any]]:
    """Yield path and info of the members of an open archive, all of which stay inside the folder they are unpacked to.

    Raises:
        DataError: a member is absolute, climbs out of the folder, is neither a file nor a folder, or clashes with
            another; or there are too many.
    """
    # Names as a file system that ignores case sees them.
    seen: set[str] = set()
    files: set[str] = set()
    folders: set[str] = set()
    for count, info in enumerate(_infos(archive), 1):
        # Of a zip the name before the library cut it at NUL.
        published = info.orig_filename if isinstance(info, zipfile.ZipInfo) else info.name
        folder, path = _is_folder(info), PurePosixPath(published.replace("\\", "/"))
        key, above = str(path).casefold(), {str(parent).casefold() for parent in path.parents}
        if "\0" in published or not (path.parts or folder):
            fault = "has no valid name"
        elif path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:|[^/]*:(/|$)", str(path)):
            fault = "would be written outside its folder"
        elif not (folder or _is_file(info)):
            fault = "is a link or a device"
        elif key in seen or (not folder and key in folders):
            fault = "has a name that is there already, or differs from it in case alone"
        elif above & files:
            fault = "lies in a folder that is a file"
        elif count > members:
            fault = f"is one too many: {members} may be there"
        else:
            seen.add(key)
            folders |= above
            if not folder:
                files.add(key)
            yield str(path), info
            continue
        raise DataError(f"{name}: member {published!r} {fault}; the archive is refused. Use the publisher's own file")


class ZipMembers(Mapping[str, zipfile.ZipInfo]):
    """The files of an open zip archive that is read in place, by their paths. A context manager."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> None:
        self.path, self.archive, self._infos = path, archive, infos

    def __getitem__(self, name: str) -> zipfile.ZipInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __enter__(self) -> ZipMembers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.archive.close()

    def read(self, name: str, *, limit: int = MEMBER) -> bytes:
        """Return a member's content.

        Raises:
            DataError: it is absent, damaged, encrypted, or larger than ``limit`` bytes.
        """
        if name not in self._infos:
            raise DataError(f"{self.path} has no member {name!r}: it is incomplete; {REMEDY}")
        with _told(self.path, name), _content(self.archive, self._infos[name]) as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise _too_large(self.path, name, limit)
        return content


def zip_members(path: Path | str, *, members: int = MEMBERS) -> ZipMembers:
    """Open a zip archive to be read in place: a mapping of its files' paths, with ``read(name)``.

    Raises:
        DataError: the archive is absent, damaged, or has an unsafe member.
    """
    path = _present(path)
    with _told(path):
        archive = zipfile.ZipFile(path)
        try:
            safe = safe_members(archive, name=str(path), members=members)
            return ZipMembers(path, archive, {name: info for name, info in safe if not _is_folder(info)})
        except BaseException:
            archive.close()
            raise


def tar_stream(path: Path | str, *, limit: int = MEMBER, members: int = MEMBERS) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the files of a tar archive, in the archive's order and one at a time.

    Args:
        path: a .tar, .tar.gz, .tar.bz2 or .tar.xz.
        limit: the most bytes one member may have.
        members: the most members there may be.

    Raises:
        DataError: the archive is absent, damaged, or has a member that is unsafe or too large.
    """
    path = _present(path)
    with _told(path) as at, _open_tar(path) as tar:
        for at.member, info in safe_members(tar, name=str(path), members=members):
            if _is_folder(info):
                continue
            if info.size > limit:
                raise _too_large(path, at.member, limit)
            with _content(tar, info) as stream:
                content = stream.read()
            if len(content) != info.size:
                raise EOFError("unexpected end of data")
            yield at.member, content


def damage(path: Path, *, name: str | None = None) -> str | None:
    """Read an archive from end to end, and return what is wrong with it or None; other files are taken as they are.

    Args:
        path: the file.
        name: what it is called, where ``path`` has another suffix.
    """
    name = (name or path.name).lower()
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"corrupt: its member {bad!r} fails its own checksum" if bad else None
        if re.search(r"\.(tar|tgz|tar\.(gz|bz2|xz))$", name):
            with _open_tar(path) as tar:
                for _ in _infos(tar):
                    pass
        elif name.endswith(".gz"):
            with gzip.open(path) as stream:
                while stream.read(BLOCK):
                    pass
    except DAMAGE as error:
        return f"corrupt or truncated: {_text(error)}"
    return None


class _Room:
    """What is left of the bytes that an archive may expand to."""

    def __init__(self, archive: Path, limit: int) -> None:
        self.archive, self.limit, self.left = archive, limit, limit

    def expect(self, size: int) -> None:
        """Refuse what says itself that it does not fit."""
        if size > self.left:
            raise DataError(
                f"{self.archive} expands to more than {self.limit} bytes; the archive is refused. "
                "Use the publisher's own file"
            )

    def take(self, size: int) -> None:
        """Count written bytes: what a header says need not be true."""
        self.expect(size)
        self.left -= size


def _present(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is absent; download it")
    return path


def _too_large(path: Path, name: str, limit: int) -> DataError:
    return DataError(
        f"{path}: member {name!r} has more than {limit} bytes; the archive is refused. Use the publisher's own file"
    )


@dataclass
class _Place:
    """Where a reader is."""

    member: str | None


@contextmanager
def _told(path: Path, member: str | None = None) -> Iterator[Any]:
    """Turn what readers raise on damaged bytes into one message; the block notes the member it is at."""
    at = _Place(member)
    try:
        yield at
    except DataError:
        raise
    except DAMAGE as error:
        where = f" at or after member {at.member!r}" if at.member else ""
        if isinstance(error, OSError) and error.errno:  # of the system, not of the bytes
            raise DataError(f"{path} cannot be read or unpacked{where}: {error.strerror}") from error
        raise DataError(f"{path} is corrupt or truncated{where} ({_text(error)}); {REMEDY}") from error


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


class _Header(tarfile.TarInfo):
    """A member's header. A bad one is an error: tarfile takes it for the archive's end unless it is the first."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it has no end mark") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"bad header: {error}") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in EXTENSIONS and header.size > HEADER):
            raise tarfile.ReadError(f"bad header: a size of {header.size} bytes")
        return header


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    # By the beginning: the end of a tar file that holds a zip file looks like a zip file's.
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"PK"
    with zipfile.ZipFile(path) if zipped else _open_tar(path) as archive:
        yield archive


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive as a stream; after the last member the checksum of its compression is verified."""
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        # Not tarfile's own decompression: on streams it neither checks sums nor minds a missing end.
        stream: Any = raw
        if start.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=raw)
        elif start.startswith(b"BZh"):
            stream = bz2.BZ2File(raw)
        elif start == b"\xfd7zXZ\0":
            stream = lzma.LZMAFile(raw)  # noqa: SIM115 - closed below, as the others are
        with stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
            yield tar
            while stream.read(BLOCK):
                pass


def _infos(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[zipfile.ZipInfo | tarfile.TarInfo]:
    if isinstance(archive, zipfile.ZipFile):
        yield from archive.infolist()
        return
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every one
        yield info


def _is_folder(info: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    # Not ZipInfo.is_dir, which fails on a name that is empty.
    return info.filename.endswith("/") if isinstance(info, zipfile.ZipInfo) else info.isdir()


def _is_file(info: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    if isinstance(info, zipfile.ZipInfo):
        return info.external_attr >> 28 in (0, 0o10)  # the file type in a Unix mode, where there is one
    return info.isfile()


def _size(info: zipfile.ZipInfo | tarfile.TarInfo) -> int:
    return info.file_size if isinstance(info, zipfile.ZipInfo) else info.size


def _content(archive: zipfile.ZipFile | tarfile.TarFile, info: Any) -> IO[bytes]:
    stream = archive.open(info) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(info)
    assert stream is not None, "safe_members lets files through, and folders"
    return stream
