"""What the files of the ISIC challenges share: photographs in a zip, tables of one-hot classes, all in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from jointdiff.data.archives import zip_members
from jointdiff.data.images import decode_image
from jointdiff.data.source import DataError, File
from jointdiff.data.sources._tables import parse_table

# The bucket that challenge.isic-archive.com/data links to.
PUBLISHER = "https://isic-challenge-data.s3.amazonaws.com"
LICENCE = "CC BY-NC 4.0"


def published(year: int, name: str) -> File:
    """Return a challenge's file, as it stands on the publisher's site."""
    return File(name, urls=(f"{PUBLISHER}/{year}/{name}",))


class Pictures:
    """The pictures of a zip archive by their names without suffix; read in place, by any thread."""

    def __init__(self, path: Path, *, suffix: str = ".jpg") -> None:
        self.path = path
        # Left open on purpose, for as long as a function that reads from it is around.
        self._archive = zip_members(path)
        members = ((PurePosixPath(name), name) for name in self._archive)
        self._members = {
            member.name.removesuffix(suffix): name
            for member, name in members
            if member.name.endswith(suffix) and not member.name.startswith(".")
        }

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, *, mode: str = "RGB") -> np.ndarray:
        """Decode a picture.

        Raises:
            DataError: it is damaged.
        """
        member = self._members[name]
        return decode_image(self._archive.read(member), name=f"{self.path}: {member}", mode=mode)

    def hold(self, names: Iterable[str], *, table: str) -> None:
        """Check that the archive has all the pictures that ``table`` lists.

        Raises:
            DataError: it has not.
        """
        for name in names:
            if name not in self._members:
                raise DataError(
                    f"{self.path} has no picture {name}, which {table} lists; remove both and download them again"
                )

    def only(self, names: Iterable[str], *, table: str) -> None:
        """Check that the archive has no picture beside those that ``table`` lists.

        Raises:
            DataError: it has.
        """
        if extra := self._members.keys() - set(names):
            raise DataError(f"{table} has no row of {min(extra)}, which {self.path} holds; download both again")


def zipped_table(path: Path) -> tuple[str, bytes]:
    """Return name and content of the one CSV file in a zip archive.

    Raises:
        DataError: there is none, or more than one.
    """
    with zip_members(path) as archive:
        tables = [name for name in archive if name.endswith(".csv") and not PurePosixPath(name).name.startswith(".")]
        if len(tables) != 1:
            raise DataError(f"{path} holds {len(tables)} tables instead of one; remove it and download it again")
        return f"{path}: {tables[0]}", archive.read(tables[0])


def ground_truth(content: bytes, *, name: str, classes: Sequence[str]) -> dict[str, int]:
    """Return the class of every image in a table of one-hot rows.

    Raises:
        DataError: a row is not one-hot, or an image has two.
    """
    truth: dict[str, int] = {}
    for where, row in parse_table(content, name=name, columns=("image", *classes)):
        try:
            values = [float(row[name]) for name in classes]
        except ValueError as error:
            raise DataError(f"{where}: {error}; download the table again") from error
        if sorted(values) != [0.0] * (len(classes) - 1) + [1.0]:
            raise DataError(f"{where}: {row['image']} is not of exactly one class; download the table again")
        if row["image"] in truth:
            raise DataError(f"{where}: {row['image']} has a row already; download the table again")
        truth[row["image"]] = values.index(1.0)
    return truth
