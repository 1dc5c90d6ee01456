"""What a table is, and how it is written: LaTeX, CSV, Markdown and HTML, and as JSON what its numbers come from."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jointdiff.evaluate.scores import Row, write_csv
from jointdiff.files import atomic_path
from jointdiff.report.statistics import LOWER_IS_BETTER, NOTHING, Summary
from jointdiff.report.wording import tex

MAX_LINES = 34  # of one table on a page
CONTINUED = "Continued: "  # before the caption of its further pages

# --- What a table is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of numbers of one metric."""

    name: str
    metric: str
    group: str = ""  # heading above neighbouring columns
    unit: str = ""
    digits: int = 3
    scale: float = 1.0  # shown is value times scale
    ranked: bool = True  # whether one direction is better
    signed: bool = False  # a difference: with its sign, and its interval where there is one


@dataclass(frozen=True)
class Cell:
    """One number as shown."""

    summary: Summary = NOTHING
    rank: int = 0  # 1 best, 2 second, of those that compete in its section
    tied: bool = False  # not significantly different from the best
    different: bool = False  # significantly different from what it is a difference to
    span: int = 1  # columns it covers
    note: str = ""  # footnote: the reason of a gap, or a caution

    @property
    def empty(self) -> bool:
        """Say whether there is no number."""
        return math.isnan(self.summary.mean)

    @property
    def mark(self) -> str:
        """Return the mark of a comparison's outcome."""
        return ("†" if self.tied else "") + ("*" if self.different else "")


@dataclass(frozen=True)
class Line:
    """One line of numbers."""

    name: str
    cells: tuple[Cell, ...]
    competes: bool = True  # controls and reported numbers are never best
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Lines that belong together."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """A table with everything needed to write it down."""

    label: str
    caption: str
    stub: str  # heading of the names
    columns: tuple[Column, ...] = ()
    sections: tuple[Section, ...] = ()
    compact: bool = False  # deviations in brackets, in units of the last digit


def rank(section: Section, columns: Sequence[Column]) -> Section:
    """Mark the best and the second number of each column among the lines that compete, unless they are all equal."""
    lines = [list(line.cells) for line in section.lines]
    for c, column in enumerate(columns):
        sign = -1.0 if column.metric in LOWER_IS_BETTER else 1.0
        competing = {
            i: sign * line.cells[c].summary.mean
            for i, line in enumerate(section.lines)
            if line.competes and c < len(line.cells) and not line.cells[c].empty
        }
        values = sorted(set(competing.values()), reverse=True)[:2]
        if column.ranked and len(values) > 1:
            for i, value in competing.items():
                if value in values:
                    lines[i][c] = replace(lines[i][c], rank=values.index(value) + 1)
    return replace(
        section,
        lines=tuple(replace(line, cells=tuple(cells)) for line, cells in zip(section.lines, lines, strict=True)),
    )


def cell_of(summary: Summary, **more: Any) -> Cell:
    """Return a cell whose footnote is why its number is missing or to be read with care."""
    return Cell(summary, note=summary.reason, **more)


def over(seeds: int, *, spread: bool = True) -> str:
    """Say over what a mean is, as the end of "mean"."""
    return f"{' ± standard deviation' if spread else ''} over {seeds} seeds" if seeds > 1 else " of one seed"


def digits_of(values: Sequence[float]) -> int:
    """Choose digits after the point that show three figures of the median magnitude."""
    sizes = sorted(abs(value) for value in values if not math.isnan(value) and value)
    return max(0, min(3, 2 - math.floor(math.log10(sizes[len(sizes) // 2])))) if sizes else 1


def paged(table: Table) -> Iterator[Table]:
    """Yield a table in parts that fit a page, cut between sections; of one without columns or sections, nothing."""
    pages: list[list[Section]] = []
    room = 0
    for section in table.sections if table.columns else ():
        if not pages or room + len(section.lines) + 1 > MAX_LINES:
            pages.append([])
            room = 0
        pages[-1].append(section)
        room += len(section.lines) + 1
    for page, sections in enumerate(pages):
        part = replace(table, sections=tuple(sections))
        yield replace(part, label=f"{table.label}-{page + 1}", caption=CONTINUED + table.caption) if page else part


def base_caption(table: Table) -> str:
    """Return the caption that all parts of a table share."""
    return table.caption.removeprefix(CONTINUED)


def placed(line: Line, columns: Sequence[Column]) -> Iterator[tuple[Cell, Column]]:
    """Yield each cell with the column at which it starts."""
    start = 0
    for cell in line.cells:
        yield cell, columns[start]
        start += cell.span


# --- How a table is written -------------------------------------------------------------------------------------------


class _Notes:
    """Footnotes of one table: equal texts share a letter."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return _letter(self.texts.index(text))

    def listed(self) -> list[tuple[str, str]]:
        return [(_letter(i), text) for i, text in enumerate(self.texts)]


def _letter(index: int) -> str:
    return ("" if index < 26 else _letter(index // 26 - 1)) + chr(ord("a") + index % 26)


def number(cell: Cell, column: Column, *, compact: bool = False) -> str:
    """Write a number with its deviation: "0.953 ± 0.012", or "0.953 (12)" where ``compact``.

    A difference has its sign and its interval, if any, instead: "+0.012 [+0.004, +0.020]".
    """
    mean, sd = cell.summary.mean * column.scale, cell.summary.sd * column.scale
    if column.signed:
        ends = [column.scale * end for end in (cell.summary.low, cell.summary.high) if not math.isnan(end)]
        numbers = [f"{value:+.{column.digits}f}" for value in (mean, *ends)]
        return f"{numbers[0]} [{', '.join(numbers[1:])}]" if ends else numbers[0]
    text = f"{mean:.{column.digits}f}"
    if math.isnan(sd):
        return text
    return f"{text} ({round(sd * 10**column.digits)})" if compact else f"{text} ± {sd:.{column.digits}f}"


def _headings(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return the groups above columns with how many they cover."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


def _better(column: Column) -> str:
    return "" if not column.ranked else " ↓" if column.metric in LOWER_IS_BETTER else " ↑"


PREAMBLE = r"""\ifdefined\Umathcode
\usepackage{fontspec}
\else
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern}
\usepackage{textcomp}
\fi
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[detect-all]{siunitx}
\usepackage{caption}
\captionsetup{font=small, labelfont=bf, skip=6pt}
"""

# Words that pdflatex's fonts lack stand in a file in their own letters and in Latin ones. The document decides which of
# them appear, since its engine and fonts have to have the former: ``jointdiff.report.paper`` defines both macros anew.
NAMES = r"""% Words of other scripts appear in Latin letters, which every engine has. For their own letters load a font
% that has them (xelatex, lualatex) and say before: \newcommand\jointdiffname[2]{#1}\newcommand\jointdiffnote[1]{}
\providecommand\jointdiffname[2]{#2}
\providecommand\jointdiffnote[1]{#1}
"""
NOTE = (
    r"\jointdiffnote{\par\smallskip\parbox{\linewidth}{\centering\scriptsize "
    "Words of other scripts are in Latin letters here, and as they are in the tables' .csv, .md and .html.}}"
)

# Read inside a document, \@nodocument is \relax; read by itself, the file makes its own document.
_ALONE = (
    r"""\expandafter\ifx\csname @nodocument\endcsname\relax\else
\documentclass[a4paper]{article}
\usepackage[margin=2cm]{geometry}
"""
    + PREAMBLE
    + r"""\def\jointdiffalone{}
\begin{document}
\fi
"""
)


def to_latex(table: Table) -> str:
    """Write one table as a LaTeX float (booktabs, siunitx)."""
    notes = _Notes()
    lines = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{tex(table.caption)}}}"]
    lines += [rf"\label{{tab:{re.sub('[^A-Za-z0-9.-]', '-', table.label)}}}"]
    if not table.sections:
        return "\n".join([*lines, r"\end{table}", ""])
    width = len(table.columns)
    lines += [r"\footnotesize", r"\setlength{\tabcolsep}{4pt}", r"\renewcommand{\arraystretch}{1.15}"]
    # A table wider than the text is scaled down to it.
    lines += [r"\sbox0{%", rf"\begin{{tabular}}{{@{{}}l*{{{width}}}{{r}}@{{}}}}"]
    lines.append(r"\toprule")
    groups = _headings(table.columns)
    if any(name for name, _ in groups):
        lines.append(" & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{tex(name)}}}" for name, n in groups)]) + r" \\")
        rules, start = [], 2
        for name, n in groups:
            if name:
                rules.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
            start += n
        lines.append("".join(rules))
    heads = [rf"\multicolumn{{1}}{{r}}{{{_tex_head(column)}}}" for column in table.columns]
    lines.append(" & ".join([tex(table.stub), *heads]) + r" \\")
    units = [_TEX_UNITS.get(column.unit, tex(column.unit)) for column in table.columns]
    if any(units):
        cells = [rf"\multicolumn{{1}}{{r}}{{({unit})}}" if unit else "" for unit in units]
        lines.append(" & ".join(["", *cells]) + r" \\")
    for section in table.sections:
        lines.append(r"\midrule")
        if section.title:
            lines.append(rf"\multicolumn{{{width + 1}}}{{@{{}}l}}{{\textit{{{tex(section.title)}}}}} \\")
        for line in section.lines:
            name = tex(line.name) + _tex_mark(notes.mark(line.note))
            cells = [_tex_cell(cell, column, notes, table.compact) for cell, column in placed(line, table.columns)]
            lines.append(" & ".join([name, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    lines.append(r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi")
    if remarks := [rf"\textsuperscript{{{letter}}}\,{tex(text)}" for letter, text in notes.listed()]:
        lines.append(r"\par\smallskip")
        lines.append(rf"\parbox{{\linewidth}}{{\centering\scriptsize {'; '.join(remarks)}}}")
    if any(r"\jointdiffname" in line for line in lines):
        lines.append(NOTE)
    return "\n".join([*lines, r"\end{table}", ""])


_TEX_UNITS = {
    "%": r"\si{\percent}",
    "s": r"\si{\second}",
    "ms": r"\si{\milli\second}",
    "MiB": r"\si{\mebi\byte}",
    "10⁻³": r"\num{e-3}",
}


def _tex_head(column: Column) -> str:
    return tex(column.name + _better(column))


def _tex_mark(mark: str) -> str:
    return rf"\textsuperscript{{{mark}}}" if mark else ""


def _tex_cell(cell: Cell, column: Column, notes: _Notes, compact: bool) -> str:
    marks = tex(cell.mark) + notes.mark(cell.note)
    text = "--" if cell.empty else _tex_number(number(cell, column, compact=compact))
    if cell.rank == 1:
        text = rf"{{\bfseries\boldmath {text}}}"
    elif cell.rank == 2:
        text = rf"\underline{{{text}}}"
    text += rf"\rlap{{\textsuperscript{{{marks}}}}}" if marks else ""
    return rf"\multicolumn{{{cell.span}}}{{c}}{{{text}}}" if cell.span > 1 else text


def _tex_number(text: str) -> str:
    """Set both parts by themselves: as one number siunitx would drop a deviation of zero."""
    value, sign, deviation = text.partition(" ± ")
    if sign:
        return rf"\num{{{value}}}\,$\pm$\,\num{{{deviation}}}"
    if text.endswith("]"):
        return re.sub(r"[+-][\d.]+", lambda found: _tex_signed(found[0]), text)
    value, sign, deviation = text.partition(" (")
    number = _tex_signed(value) if value[0] in "+-" else rf"\num{{{value}}}"
    return number + (rf"\,({deviation}" if sign else "")


def _tex_signed(text: str) -> str:
    """Set the sign by itself: siunitx would drop that of a zero and, as it is set up, every plus."""
    return rf"${text[0]}$\num{{{text[1:]}}}"


def write_latex(tables: Sequence[Table], path: Path | str) -> None:
    """Write tables as a file to \\input into a document, which also compiles by itself."""
    head = "% Input this file into a document that loads booktabs, siunitx and caption, or compile it by itself.\n"
    end = "\\ifdefined\\jointdiffalone\\end{document}\\fi\n"
    body = "\n".join(map(to_latex, tables))
    names = NAMES if r"\jointdiffname" in body else ""
    with atomic_path(path) as aside:
        aside.write_text(head + _ALONE + names + body + end, encoding="utf-8")


def write_wide_csv(tables: Sequence[Table], path: Path | str) -> None:
    """Write tables as one CSV: a line per line, for each column its mean, deviation and interval; notes last."""
    heads = list(dict.fromkeys(_full(column) for table in tables for column in table.columns))
    parts = ("", " sd", " low", " high")
    lines = []
    for table in tables:
        for section in table.sections:
            for line in section.lines:
                values: dict[str, float] = {}
                remarks = [line.note]
                for cell, column in placed(line, table.columns):
                    head, s = _full(column), cell.summary
                    scaled = (column.scale * value for value in (s.mean, s.sd, s.low, s.high))
                    values |= {head + part: value for part, value in zip(parts, scaled, strict=True)}
                    state = {1: "best", 2: "second"}.get(cell.rank, "")
                    stands = "not different from best" if cell.tied else "different" if cell.different else ""
                    remarks += [f"{head}: {text}" for text in (state, stands, cell.note) if text]
                numbers = [values.get(head + part) for head in heads for part in parts]
                lines.append([table.label, section.title, line.name, *numbers, "; ".join(filter(None, remarks))])
    write_csv(path, ["table", "section", "line", *(head + part for head in heads for part in parts), "notes"], lines)


def _full(column: Column) -> str:
    return f"{column.group} {column.name}".strip() + (f" ({column.unit})" if column.unit else "")


def write_markdown(tables: Sequence[Table], path: Path | str) -> None:
    """Write tables as Markdown, captions above and footnotes below."""
    text = "\n".join(_markdown(table) for table in tables)
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _markdown(table: Table) -> str:
    notes, lines = _Notes(), [f"**{_md(table.caption)}**", ""]
    if table.sections:
        heads = [_full(column) + _better(column) for column in table.columns]
        lines.append("| " + " | ".join(map(_md, [table.stub, *heads])) + " |")
        lines.append("|" + " :-- |" + " --: |" * len(table.columns))
        for section in table.sections:
            if section.title:
                lines.append(f"| *{_md(section.title)}* |" + " |" * len(table.columns))
            for line in section.lines:
                cells = [_md(line.name) + _md_mark(notes.mark(line.note))]
                for cell, column in placed(line, table.columns):
                    cells += [_md_cell(cell, column, notes, table.compact)] + [""] * (cell.span - 1)
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        lines += [f"<sup>{letter}</sup> {_md(text)}  " for letter, text in notes.listed()]
    return "\n".join([*lines, ""])


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", text)


def _md_mark(mark: str) -> str:
    return f"<sup>{mark}</sup>" if mark else ""


def _md_cell(cell: Cell, column: Column, notes: _Notes, compact: bool) -> str:
    text = "–" if cell.empty else number(cell, column, compact=compact)
    text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    return text + _md_mark(cell.mark.replace("*", "\\*") + notes.mark(cell.note))


_STYLE = """<style>
body { font: 15px/1.4 system-ui, sans-serif; color: #1a1a1a; margin: 1.5rem; }
figure { margin: 0 0 2.5rem; overflow-x: auto; } figcaption { max-width: 60rem; margin-bottom: .6rem; color: #444; }
table { border-collapse: collapse; border-top: 2px solid #1a1a1a; border-bottom: 2px solid #1a1a1a; }
th, td { padding: .25rem .7rem; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 1px solid #1a1a1a; font-weight: 600; }
tr.section td { border-top: 1px solid #bbb; font-style: italic; color: #444; } td.span { text-align: center; }
p { max-width: 60rem; margin: .3rem 0; font-size: 13px; color: #444; }
</style>
"""


def write_html(tables: Sequence[Table], path: Path | str) -> None:
    """Write tables as one self-contained HTML page."""
    body = "\n".join(_html(table) for table in tables)
    with atomic_path(path) as aside:
        aside.write_text(html_page(tables[0].label, body), encoding="utf-8")


def html_page(title: str, body: str) -> str:
    """Return a self-contained HTML page in the style of all tables; ``body`` is markup."""
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
    return f"{head}{_STYLE}</head><body>\n{body}\n</body></html>\n"


def _html(table: Table) -> str:
    notes = _Notes()
    lines = [f"<figure><figcaption>{html.escape(table.caption)}</figcaption>"]
    if table.sections:
        lines.append("<table><thead>")
        groups = _headings(table.columns)
        if any(name for name, _ in groups):
            spans = "".join(f'<th colspan="{n}" class="span">{html.escape(name)}</th>' for name, n in groups)
            lines.append(f"<tr><th></th>{spans}</tr>")
        heads = (
            f"{column.name} {_better(column)}" + (f" ({column.unit})" if column.unit else "")
            for column in table.columns
        )
        lines.append("<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in [table.stub, *heads]) + "</tr>")
        lines.append("</thead><tbody>")
        for section in table.sections:
            if section.title:
                text = html.escape(section.title)
                lines.append(f'<tr class="section"><td colspan="{len(table.columns) + 1}">{text}</td></tr>')
            for line in section.lines:
                cells = [f"<td>{html.escape(line.name)}{_md_mark(notes.mark(line.note))}</td>"]
                for cell, column in placed(line, table.columns):
                    text = "–" if cell.empty else html.escape(number(cell, column, compact=table.compact))
                    text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(cell.rank, text)
                    span = f' colspan="{cell.span}" class="span"' if cell.span > 1 else ""
                    marks = _md_mark(cell.mark + notes.mark(cell.note))
                    runs = f' title="{html.escape(_runs(cell.summary))}"' if cell.summary.rows else ""
                    cells.append(f"<td{span}{runs}>{text}{marks}</td>")
                lines.append("<tr>" + "".join(cells) + "</tr>")
        lines.append("</tbody></table>")
        lines += [f"<p><sup>{letter}</sup> {html.escape(text)}</p>" for letter, text in notes.listed()]
    return "\n".join([*lines, "</figure>"])


def _runs(summary: Summary) -> str:
    """Name the runs behind a number, as a page shows it under the pointer."""
    runs = dict.fromkeys(
        f"{row['method']} {row['labels']} seed {row['seed']}: run {row['run_id'] or 'none'}" for row in summary.rows
    )
    return "\n".join(runs)


def write_sources(tables: Sequence[Table], path: Path | str) -> None:
    """Write, for each number of tables, which score rows it was computed from; a row of many numbers stands once."""
    rows: dict[int, tuple[int, Row]] = {}  # by identity: a table's summaries hold the same rows
    numbers: list[dict[str, Any]] = []
    for table in tables:
        for section in table.sections:
            for line in section.lines:
                for cell, column in placed(line, table.columns):
                    behind = [rows.setdefault(id(row), (len(rows), row))[0] for row in cell.summary.rows]
                    numbers.append(
                        {
                            "table": table.label,
                            "section": section.title,
                            "line": line.name,
                            "column": _full(column),
                            "shown": "–" if cell.empty else number(cell, column),
                            "note": "; ".join(filter(None, (line.note, cell.note))),
                            "rows": behind,
                        }
                    )
    found = [{name: None if value != value else value for name, value in row.items()} for _, row in rows.values()]
    with atomic_path(path) as aside:
        aside.write_text(json.dumps({"rows": found, "numbers": numbers}, allow_nan=False) + "\n", encoding="utf-8")


WRITERS = {
    "tex": write_latex,
    "csv": write_wide_csv,
    "md": write_markdown,
    "html": write_html,
    "json": write_sources,
}
