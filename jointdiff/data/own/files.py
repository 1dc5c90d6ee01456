"""A user's files, in a folder or a zip; nothing is unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from jointdiff.config import ConfigError
from jointdiff.data.archives import ZipMembers, zip_members
from jointdiff.data.source import DataError

LARGEST = 1 << 28  # bytes of one file, as of a member of an archive


class Files:
    """The files of a folder or a zip by their paths with ``/``; hidden ones do not count. Nothing is unpacked.

    Raises:
        ConfigError: there is nothing at this path.
        DataError: the zip is damaged, encrypted or unsafe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: ZipMembers | None = None
        if path.is_dir():
            self._places = {name: str(path / name) for name in _walk(path)}
        elif path.is_file() and path.suffix.lower() != ".zip":
            raise ConfigError(f"path: {path} is neither a folder nor a .zip")
        elif path.is_file():
            self._zip = zip_members(path)
            if any(info.flag_bits & 1 for info in self._zip.values()):
                raise DataError(f"{path} is encrypted; unpack it with its password and name the folder")
            shown = [name for name in self._zip if not _hidden(name)]
            tops = {name.partition("/")[0] for name in shown}
            # Archives often hold all their files in one folder, which tables do not know of.
            top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in shown) else ""
            self._places = {name.removeprefix(top): name for name in shown}
        else:
            raise ConfigError(f"path: there is no folder or zip {path}; a relative one starts at {Path.cwd()}")
        self._near: dict[str, str] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def name(self, file: str) -> str:
        """Say in a message which file is meant."""
        return str(self.path / file) if self._zip is None else f"{self.path}: {file}"

    def read(self, file: str) -> bytes:
        """Return a file's content.

        Raises:
            DataError: it is absent, unreadable or too large.
        """
        if file not in self._places:
            raise DataError(f"{self.name(file)} is absent; add it, or remove what names it")
        if self._zip is not None:
            return self._zip.read(self._places[file], limit=LARGEST)
        return read_bounded(Path(self._places[file]))

    def paths(self, files: Iterable[str]) -> list[Path]:
        """Return where files lie; none of a zip's."""
        return [] if self._zip is not None else [Path(self._places[file]) for file in files]

    def nearest(self, file: str) -> str | None:
        """Return the file that was probably meant: other case, other folder or no ending."""
        if self._near is None:
            self._near = {}
            for name in self._places:
                for key in (
                    name,
                    PurePosixPath(name).name,
                    PurePosixPath(name).stem,
                    str(PurePosixPath(name).with_suffix("")),
                ):
                    self._near.setdefault(key.casefold(), name)
        for key in (file, PurePosixPath(file).name, PurePosixPath(file).stem):
            if found := self._near.get(key.casefold()):
                return found
        return None


def _walk(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        relative = Path(place).relative_to(folder)
        yield from (str(PurePosixPath(relative / name)) for name in sorted(names) if not _hidden(name))


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) or part == "Thumbs.db" for part in PurePosixPath(name).parts)


def read_bounded(path: Path) -> bytes:
    """Read a file of at most ``LARGEST`` bytes.

    Raises:
        DataError: it is larger, cannot be read, or is a pipe or a device.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer for good
        raise DataError(f"{path} is no regular file; remove it, or what names it")
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise DataError(f"{path} has more than {LARGEST} bytes; it is no single image or table")
    return data
