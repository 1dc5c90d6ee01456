"""Which texts people mean to be the same: ids, names of classes and columns, words. Pure text, no table."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import combinations

# Invisible, though of no category of its own: joiners, variation selectors, fillers.
_INVISIBLE = {0x034F, *range(0xFE00, 0xFE10), 0x115F, 0x1160, 0x3164, 0xFFA0, 0x2800}
_QUOTES = str.maketrans("’‘ʼ′´`“”„″", "''''''\"\"\"\"")
# Cyrillic and Greek letters that look like Latin ones in one case or the other, after casefolding.
_TWINS = str.maketrans("авеікмнорстухјѕαβεζηικμνορτυχ", "abeikmhopctyxjsabezhikmnoptyx")
_SCIENTIFIC = re.compile(r"-?\d+(?:[.,]\d+)?e\+\d{1,2}")  # what a spreadsheet makes of a long number
_DIGITS_KEPT = 15  # by a spreadsheet; it writes zeros for the others


@lru_cache(maxsize=1 << 18)
def canonical(text: str) -> str:
    """Return the form that is equal for texts which people mean to be the same.

    What does not count: case, Unicode form, look-alike letters of other alphabets, invisible characters, quotation
    marks around the text, zeros in front of a whole number, ``.0`` behind it, how a number is written (1E+05), and
    blanks, dashes and underscores. Between two digits these three separate: ``1-1`` and ``1 1`` are alike, ``11`` is
    another. Zeros behind a decimal point count: ``1.1``, ``1.01`` and ``1.10`` are three.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(letter for letter in text if not _invisible(letter))
        text = unicodedata.normalize("NFC", text).translate(_QUOTES)
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(map(_plain_letter, text)).translate(_TWINS)
    text = text.casefold().strip()
    if quoted := re.fullmatch(r"=?([\"'])(.*)\1|'([^']*)", text):  # ="007" and '007 keep a spreadsheet from counting
        text = (quoted[2] or quoted[3] or "").strip()
    text = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", _between, text)
    text = re.sub(r"\s+", "", text)
    if _SCIENTIFIC.fullmatch(text):
        text = f"{Decimal(text.replace(',', '.')):f}"
    text = re.sub(r"(?<!\d)(?<!\d[.,])0+(?=\d)", "", text)
    return whole[1] if (whole := re.fullmatch(r"(-?\d+)[.,]0*", text)) else text


def _invisible(letter: str) -> bool:
    if letter.isspace():
        return False
    return unicodedata.category(letter) in ("Cc", "Cf") or ord(letter) in _INVISIBLE


def _plain_letter(letter: str) -> str:
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    return "-" if unicodedata.category(letter) == "Pd" or letter in "\u2212\u2043\u02d7" else letter  # minus signs


def _between(run: re.Match[str]) -> str:
    before, behind = run.string[run.start() - 1], run.string[run.end()]
    minus = behind.isdecimal() and re.search(r"\s-$", run[0])  # "grade -1" is not "grade 1"
    return "-" if minus or (before.isdecimal() and behind.isdecimal()) else ""


def alike(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the sets of two or more different texts that people may mean to be the same, in order."""
    forms: dict[str, dict[str, None]] = {}
    for text in texts:
        forms.setdefault(canonical(text), {})[text] = None
    return [tuple(found) for found in forms.values() if len(found) > 1]


def told_apart(texts: Sequence[str]) -> dict[str, str]:
    """Return each text as a message shows it: with escapes where two would look the same."""
    looks = {text: unicodedata.normalize("NFC", text).casefold().translate(_TWINS) for text in texts}
    times = Counter(looks.values())
    return {text: ascii(text) if times[looks[text]] > 1 else repr(text) for text in texts}


def rounded(texts: Iterable[str]) -> list[str]:
    """Return the numbers that a spreadsheet has probably rounded: 1.23457E+11, or zeros behind the 15th digit."""
    texts = list(texts)
    long = [text for text in texts if re.fullmatch(r"\d{16,}", text)]
    cut = [text for text in long if not text[_DIGITS_KEPT:].strip("0")]
    lost = [text for text in texts if _SCIENTIFIC.fullmatch(text.casefold()) and _digits_lost(text.casefold())]
    return lost + (cut if len(cut) > len(long) / 2 else [])  # by chance, few end in zeros


def _digits_lost(text: str) -> bool:
    mantissa, _, power = text.replace(",", ".").partition("e+")
    return len(mantissa.partition(".")[2]) < int(power)


def misspelt(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of which one is a likely slip: one longer word differs by one letter, or two swapped."""
    words = {name: re.findall(r"[^\W\d_]+|\d+", name.casefold()) for name in names}
    for one, two in combinations(names, 2):
        pairs = [pair for pair in zip(words[one], words[two], strict=False) if pair[0] != pair[1]]
        if len(words[one]) == len(words[two]) and len(pairs) == 1 and _slip(*pairs[0]):
            yield one, two


def _slip(one: str, two: str) -> bool:
    short, long = sorted((one, two), key=len)
    if len(short) < 4 or short[0] != long[0] or len(long) - len(short) > 1:
        return False
    first = next((index for index, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest, other = short[first:], long[first:]
    if len(short) < len(long):
        return rest == other[1:]
    return rest[1:] == other[1:] or (rest[:2] == other[1::-1] and rest[2:] == other[2:])


class Names:
    """Finds which of some names a text means: the equal one, or else the only one that is alike."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = dict.fromkeys(names)
        forms: dict[str, list[str]] = {}
        for name in self.names:
            forms.setdefault(canonical(name), []).append(name)
        self._alike = {form: found[0] for form, found in forms.items() if len(found) == 1}

    def find(self, text: str) -> str | None:
        """Return the name that is meant, or None."""
        return text if text in self.names else self._alike.get(canonical(text))

    def hint(self, text: str) -> str:
        """Suggest the nearest name, or nothing."""
        nearest = difflib.get_close_matches(text, self.names, n=1)
        return f" (did you mean {nearest[0]!r}?)" if nearest else ""
