"""Text as people and their programs write it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable

INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202c\u2060\ufeff"  # zero-width marks that copying brings along


def decode_text(data: bytes, *, name: str) -> str:
    """Return the text of a file without its byte order mark.

    It is UTF-8, or UTF-16 where the mark says so, as in the "Unicode text" of spreadsheets.

    Raises:
        UnicodeError: it is neither; the message names file and line.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise UnicodeError(f"{name}, row {line}: this is no UTF-8; save it as UTF-8, a table as 'CSV UTF-8'") from None


def composed(text: str) -> str:
    """Return a text with letters and their accents in one (NFC): an e with an accent is one letter or two in files."""
    return unicodedata.normalize("NFC", text)


def by_letters(names: Iterable[str]) -> dict[str, str | None]:
    """Map each name, composed, to itself as it is written; to None where two differ in nothing else."""
    found: dict[str, str | None] = {}
    for name in names:
        key = composed(name)
        found[key] = None if key in found else name
    return found


def bare(text: str) -> str:
    """Return what is left of a text for the eye, in small letters: to find what was meant, never to decide."""
    return unicodedata.normalize("NFKC", text.translate(dict.fromkeys(map(ord, INVISIBLE)))).casefold().strip()
