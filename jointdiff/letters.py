"""Which installed fonts have the letters of a text, and Latin letters for those that no font has."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from anyascii import anyascii

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry
    from matplotlib.text import Text

JOINERS = "\u200c\u200d"  # invisible, and yet they shape Persian, Hindi and emoji
SELECTORS = range(0xFE00, 0xFE10)  # choose a variant of the letter before, and need no sign of their own
SAMPLES = {
    "Cyrillic": "Жя",
    "Greek": "Ωή",
    "Chinese": "肺炎",
    "Japanese": "かジ",
    "Korean": "폐렴",
    "Arabic": "رئة",
    "Hebrew": "ריאה",
    "Devanagari": "फेफड़ा",
    "Thai": "ปอด",
}
OF_FIGURES = ("DejaVu Sans",)
NOTE = "Words in letters that no installed font has are in Latin letters here."


def composed(text: str) -> str:
    """Return text with composed letters (NFC), without controls and invisible marks."""
    return "".join(
        letter
        for letter in unicodedata.normalize("NFC", text)
        if letter.isspace() or letter in JOINERS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
    )


def in_latin(text: str) -> str:
    """Transliterate text to ASCII; what is like nothing there becomes its code points, such as U+E000."""
    text = composed(text)
    letters = [anyascii(letter) or (_code_point(letter) if _unassigned(letter) else "") for letter in text]
    return "".join(letters) or " ".join(map(_code_point, text))


def _unassigned(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cn", "Co")


def _code_point(letter: str) -> str:
    return f"U+{ord(letter):04X}"


def pieces(text: str) -> list[str]:
    """Cut text where ASCII begins or ends, which not every font of another script has."""
    return [piece for piece in re.split(r"([\x00-\x7f]+)", text) if piece]


def font_of(text: str, *, first: Sequence[str]) -> FontEntry | None:
    """Return an installed font that has every letter of a text; None where there is none.

    Args:
        text: a piece of a text, see ``pieces``.
        first: families that are asked before the others.
    """
    wanted = {ord(letter) for letter in text if not letter.isspace()} - {*SELECTORS}
    places = {family: place for place, family in enumerate(first)}
    fonts = sorted(_fonts(), key=lambda font: places.get(font.name, len(places)))
    return next((font for font in fonts if wanted <= _letters(font.fname)), None)


def scripts_without_font() -> list[str]:
    """List which of the scripts in ``SAMPLES`` no installed font has."""
    return [script for script, sample in SAMPLES.items() if font_of(composed(sample), first=OF_FIGURES) is None]


@cache
def _fonts() -> tuple[FontEntry, ...]:
    """List the upright fonts of normal weight, by name."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:  # installed since matplotlib made its list
            with suppress(Exception):  # whatever FreeType raises at a file that is no font
                fontManager.addfont(path)
    upright = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    # Matplotlib's last resort has a box for every letter.
    return tuple(sorted((f for f in upright if "Last Resort" not in f.name), key=lambda f: (f.name, f.fname)))


@cache
def _letters(path: str) -> frozenset[int]:
    """Return the code points for which a font has outlines."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def settle(figure: Figure) -> None:
    """Give each text of a figure fonts that have its letters; what no font has is written in Latin, and this is said.

    Matplotlib itself draws a box for a letter that its font lacks.
    """
    from matplotlib.text import Text

    latin = 0
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        labels = axis.get_ticklabels()
        if changed := sum(map(_settle, labels)):
            axis.set_ticks(axis.get_ticklocs(), labels=[label.get_text() for label in labels])
            latin += changed
    latin += sum(map(_settle, figure.findobj(Text)))
    if latin:
        letters_a_line = int(19 * figure.get_figwidth())  # at the size below
        figure.supxlabel(textwrap.fill(NOTE, letters_a_line), fontsize=7, color="#555555")


def _settle(text: Text) -> bool:
    """Set one text; say whether some of it is in Latin now."""
    if text.get_text().isascii():
        return False
    parts = pieces(composed(text.get_text()))
    fonts = [font_of(part, first=OF_FIGURES) for part in parts]
    text.set_text("".join(part if font else in_latin(part) for part, font in zip(parts, fonts, strict=True)))
    text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *(font.name for font in fonts if font)])))
    return not all(fonts)
