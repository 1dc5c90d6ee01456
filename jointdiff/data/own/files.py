"""A user's files, in a folder or a zip, and which of them a name in a table means; nothing is unpacked."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from jointdiff.config import ConfigError
from jointdiff.data.archives import ZipMembers, zip_members
from jointdiff.data.source import DataError
from jointdiff.text import bare, by_letters, composed

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
        self.unlisted: list[str] = []  # folders whose files this user may not list
        if path.is_dir():
            self._places = {name: str(path / name) for name in _walk(path, self.unlisted)}
        elif path.is_file() and path.suffix.lower() != ".zip":
            raise ConfigError(f"path: {path} is neither a folder nor a .zip")
        elif path.is_file():
            self._zip = zip_members(path)
            if any(info.flag_bits & 1 for info in self._zip.values()):
                raise DataError(f"{path} is encrypted; unpack it with its password and name the folder")
            shown = {name: name for name in self._zip if not _hidden(name)}
            for name in [name for name in shown if not self._zip[name].flag_bits & 0x800]:
                shown[_packed(name, taken=shown)] = shown.pop(name)
            tops = {name.partition("/")[0] for name in shown}
            # Archives often hold all their files in one folder, which tables do not know of.
            top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in shown) else ""
            self._places = {name.removeprefix(top): member for name, member in shown.items()}
        else:
            raise ConfigError(f"path: there is no folder or zip {path}; a relative one starts at {Path.cwd()}")

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

    def find(self, text: str) -> str | None:
        """Return the file that a path in a table means, if one does for sure.

        That is the file of exactly this name; or else of this name with ``/`` for backslashes and without ``./``; or
        else the only one whose name is the same letters, with accents composed or decomposed.
        """
        if text in self._places:
            return text
        plain = str(PurePosixPath(text.replace("\\", "/")))
        return plain if plain in self._places else self._composed.get(composed(plain))

    @cached_property
    def _composed(self) -> dict[str, str | None]:
        return by_letters(self._places)

    def nearest(self, text: str) -> str | None:
        """Return the file that was probably meant: other case, other folder, no ending, ``%20`` for a blank."""
        pure = PurePosixPath(urllib.parse.unquote(text.replace("\\", "/")))
        return next((found for key in (str(pure), pure.name, pure.stem) if (found := self._near.get(bare(key)))), None)

    @cached_property
    def _near(self) -> dict[str, str]:
        near: dict[str, str] = {}
        for name in self._places:
            pure = PurePosixPath(name)
            for key in (name, pure.name, pure.stem, str(pure.with_suffix(""))):
                near.setdefault(bare(key), name)
        return near


def _packed(name: str, *, taken: Collection[str]) -> str:
    """Return the name that a file in a zip was meant to have: some programs write UTF-8 and do not say so."""
    try:
        meant = name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name
    return name if meant in taken else meant


def _walk(folder: Path, unlisted: list[str]) -> Iterator[str]:
    """Yield the files of a folder, also those behind links to folders: each of these once, so that circles end."""
    entered: set[Path] = set()

    def enters(path: Path) -> bool:
        if not path.is_symlink():
            return True
        target = path.resolve()
        if target in entered or path.parent.resolve().is_relative_to(target):
            return False
        entered.add(target)
        return True

    def refuse(error: OSError) -> None:
        unlisted.append(str(Path(error.filename).relative_to(folder)))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = sorted(name for name in folders if not _hidden(name) and enters(Path(place, name)))
        relative = Path(place).relative_to(folder)
        yield from (str(PurePosixPath(relative / name)) for name in sorted(names) if not _hidden(name))


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) or part == "Thumbs.db" for part in PurePosixPath(name).parts)


def read_bounded(path: Path) -> bytes:
    """Read a file of at most ``LARGEST`` bytes.

    Raises:
        DataError: it is larger, cannot be read, or is a pipe or a device.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder of no images, or one that this user may not list")
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer for good
            raise DataError(f"{path} is no regular file; remove it, or what names it")
        with path.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise DataError(f"{path} has more than {LARGEST} bytes; it is no single image or table")
    return data
