"""Names in every script: in LaTeX, in the paper, in pictures; never left out."""

import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from jointdiff import letters
from jointdiff.letters import composed, font_of, in_latin, pieces, settle
from jointdiff.pictures import save_grid
from jointdiff.report import paper
from jointdiff.report.figures._drawing import panels
from jointdiff.report.layout import Cell, Column, Line, Section, Table, write_latex, write_markdown
from jointdiff.report.paper import compile_tex
from jointdiff.report.statistics import Summary
from jointdiff.report.wording import tex
from tests.conftest import missing, require
from tests.properties import examples


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("пневмония", r"\jointdiffname{пневмония}{pnevmoniya}"),
        ("острая пневмония, 2-я", r"\jointdiffname{острая пневмония}{ostraya pnevmoniya}, 2-\jointdiffname{я}{ya}"),
        ("ατελεκτασία", r"\jointdiffname{ατελεκτασία}{atelektasia}"),
        ("肺炎2型", r"\jointdiffname{肺炎2型}{FeiYan2Xing}"),
        ("폐렴", r"\jointdiffname{폐렴}{PyeLyeom}"),
        ("ذات الرئة", r"\jointdiffname{ذات الرئة}{dht lri'h}"),
        ("फेफड़ा_1", r"\jointdiffname{फेफड़ा}{phephd'a}\_1"),
        ("Lungeno\u0308dem, naïve", "Lungenödem, naïve"),
        ("Ħamrun Tất", r"\jointdiffname{Ħamrun Tất}{Hamrun Tat}"),
        ("37 °C, ½ µm, x², “a” €5", "37 °C, ½ µm, x², “a” €5"),
        ("😷&#", r"\jointdiffname{😷}{:mask:}\&\#"),
        ("𝑝 < .05", r"\jointdiffname{𝑝}{p} \textless{} .05"),
        ("zero\u200bwidth\u202e", "zerowidth"),
        ("\ue000", "\\jointdiffname{\ue000}{U+E000}"),
        ("a ± 1", r"a \ensuremath{\pm} 1"),
    ],
)
def test_latex_has_a_name_in_its_own_letters_and_in_latin_ones(name, written):
    assert tex(name) == written


@examples(200)
@given(st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12))
@example("½ ﬁ №")
@example("\u0301")
def test_nothing_visible_is_left_out_and_latin_letters_are_ascii(name):
    latin = in_latin(name)
    assert latin.isascii()
    assert latin.strip() or not name.strip() or not composed(name).strip()
    assert "".join(pieces(name)) == name
    assert tex(name).strip() or not name.strip()


def test_a_font_has_every_letter_or_is_none():
    from matplotlib.ft2font import FT2Font

    for word in ("пневмония", "ατελεκτασία", "Lungenödem"):  # Matplotlib brings a font for these
        font = font_of(word, first=("DejaVu Sans",))
        assert font and font.name == "DejaVu Sans" and {*map(ord, word)} <= {*FT2Font(font.fname).get_charmap()}
    assert font_of("\U0010fffd", first=()) is None, "a last resort with a box for every letter does not count"


@pytest.fixture
def no_chinese(monkeypatch):
    """Take fonts of Chinese away."""
    fonts = [font for font in letters._fonts() if ord("肺") not in letters._letters(font.fname)]
    monkeypatch.setattr(letters, "_fonts", lambda: fonts)


def test_a_figure_shows_letters_that_a_font_has_and_latin_ones_for_others_and_says_so(no_chinese):
    figure, (axis,) = panels(["肺炎 и плеврит"])
    axis.set_yticks([0, 1], labels=["肺炎", "пневмония"])
    settle(figure)
    assert axis.get_title(loc="left") == "FeiYan и плеврит"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["FeiYan", "пневмония"]
    assert " ".join(figure._supxlabel.get_text().split()) == letters.NOTE
    figure, (axis,) = panels(["пневмония"])
    settle(figure)
    assert axis.get_title(loc="left") == "пневмония" and figure._supxlabel is None


@pytest.mark.parametrize(
    "name", ["пневмония", "肺炎2型", "폐렴", "ذات الرئة", "फेफड़ा", "Lungeno\u0308dem", "😷", "\ue000"]
)
def test_no_picture_lacks_a_letter(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns of a letter that its fonts lack
        save_grid(np.zeros((1, 8, 8, 1), np.uint8), tmp_path / "g.png", rows=[name], per_row=1, title=name)
    assert Image.open(tmp_path / "g.png").size[0] > 100


def table_of(names: list[str], path: Path) -> Path:
    lines = tuple(Line(name, (Cell(Summary(mean=0.5)),)) for name in names)
    write_latex([Table("t", "Caption", "", (Column("AUROC", "auroc"),), (Section("", lines),))], path)
    return path


def test_tables_say_where_the_own_letters_are_and_ascii_ones_say_nothing(tmp_path):
    text = table_of(["пневмония"], tmp_path / "t.tex").read_text()
    assert r"\providecommand\jointdiffname[2]{#2}" in text and r"\jointdiffnote{" in text
    assert "jointdiffname" not in table_of(["pneumonia"], tmp_path / "t.tex").read_text()
    write_markdown([Table("t", "肺炎", "пневмония")], tmp_path / "t.md")
    assert "肺炎" in (tmp_path / "t.md").read_text()


LATIN_1 = "".join(letter for code in range(0xA1, 0x180) if tex(letter := chr(code)) == letter) + "ȘșȚț‘’‚“”„•…‰‹›€™"


def printed(source: Path, out: Path) -> str:
    compile_tex(source, out, runs=1)
    done = subprocess.run([require("pdftotext"), "-layout", out, "-"], check=True, capture_output=True)
    return composed(done.stdout.decode())


@pytest.mark.tex
def test_pdflatex_has_all_that_is_left_to_it_and_latin_letters_for_the_rest(tmp_path, monkeypatch):
    require("pdflatex")
    which = paper.shutil.which
    monkeypatch.setattr(paper.shutil, "which", lambda name: None if name == "xelatex" else which(name))
    text = printed(table_of([LATIN_1, "пневмония", "肺炎", "Lungenödem"], tmp_path / "t.tex"), tmp_path / "t.pdf")
    assert {"pnevmoniya", "FeiYan", "Lungenödem"} <= {*text.split()}
    assert "in Latin letters here" in text
    assert {*"°µ½ñßŁő€"} <= {*text}


@pytest.mark.tex
def test_xelatex_has_each_name_in_its_own_letters_where_a_font_has_them(tmp_path):
    require("xelatex")
    names = ["острая пневмония", "ατελεκτασία", "Lungenödem", "Ħamrun"]
    text = printed(table_of(names, tmp_path / "t.tex"), tmp_path / "t.pdf")
    assert all(name in text for name in names) and "Latin letters" not in text
    first = (tmp_path / "t.pdf").read_bytes()
    compile_tex(tmp_path / "t.tex", tmp_path / "t.pdf", runs=1)
    assert (tmp_path / "t.pdf").read_bytes() == first, "no time and no folder is part of it"
    if font_of("肺炎", first=()) is None:
        missing("a font for Chinese is not installed")
    text = printed(table_of(["肺炎2型", "\U0010fffd"], tmp_path / "t.tex"), tmp_path / "t.pdf")
    assert "肺炎2型" in text and "U+10FFFD" in text and "Latin letters" in text


@pytest.mark.tex
def test_where_xelatex_fails_the_paper_is_made_in_latin_letters(tmp_path, monkeypatch):
    require("pdflatex")
    require("xelatex")
    monkeypatch.setattr(paper, "FONTS", "no/such")
    monkeypatch.setattr(paper, "_provide_fonts", lambda names, folder: True)
    assert "pnevmoniya" in printed(table_of(["пневмония"], tmp_path / "t.tex"), tmp_path / "t.pdf")
