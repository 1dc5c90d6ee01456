"""One document of all tables and figures with a page of protocol, compiled by pdflatex where there is one."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from jointdiff.evaluate.scores import Row, parse_protocol, read_rows
from jointdiff.files import atomic_path
from jointdiff.letters import font_of, pieces
from jointdiff.questions import QUESTIONS
from jointdiff.report.environments import environments_of, tell
from jointdiff.report.layout import NAMES, NOTE, PREAMBLE
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import budget_name, dataset_name, method_name, tex

log = logging.getLogger(__name__)

FONTS = "jointdiff-fonts"  # the file that gives words of other scripts their fonts
OF_PAPER = ("Latin Modern Roman", "DejaVu Serif", "DejaVu Sans")
SECONDS = 120  # that one run of pdflatex or xelatex may take

SECTIONS = (
    ("Which classifier with few labels?", ("classification", "ranks"), ("auroc", "ranks", "loss")),
    ("Which system does what?", ("systems",), ()),
    ("How many votes are enough?", ("votes",), ("votes",)),
    ("Does it show the right place?", ("localisation", "counterfactual"), ("change",)),
    ("Are its images useful and safe to share?", ("joint", "usefulness", "images"), ()),
    ("Can its probabilities be trusted?", ("trust",), ("reliability", "risk")),
    ("Which part is worth what?", ("ablation",), ()),
    ("What does it cost?", ("cost",), ()),
)
# The metric without which a figure only says that there is nothing to draw; a table is asked itself.
NEEDS = {"auroc": "auroc", "votes": "vote_calls", "change": "change_inside"}
CAPTIONS = {
    "auroc": "Macro AUROC against the label budget; bars are bootstrap intervals over groups, averaged over seeds.",
    "ranks": "Mean ranks by macro AUROC over the budgets of all data sets, 1 the best; bars join methods that the "
    "Nemenyi test cannot tell apart (Demsar 2006). In each budget methods are ranked by their mean over seeds, which "
    "are no independent blocks; budgets of one data set share their images and are hardly independent either. With few "
    "blocks the critical difference is wide.",
    "loss": "Training loss (each method its own, so only shapes compare) and macro AUROC on validation images at the "
    "largest budget; thin lines are further seeds, dashed lines use all labels.",
    "change": "Mean absolute change inside and outside the marked region when a finding is removed, plain and with the "
    "unguided control subtracted (hatched); lines are bootstrap intervals, averaged over seeds.",
    "votes": "Macro AUROC of findings, or accuracy of classes, against the network calls per image of diffusion "
    "classifiers, by rule and rising number N of trials: the condition that is best in most of them, the least mean "
    "error, and the race, which stops trying conditions that are beaten beyond doubt. Bands are bootstrap intervals, "
    "averaged over seeds; the arrow leads from the majority of all trials to the race over them.",
    "risk": "Error among the cases kept when the least certain answers are left out, against the share kept, at the "
    "largest budget, mean over seeds and findings. AURC: area under the curve. Certainty is the "
    "largest probability of a class, or the distance of a finding's probability from .5.",
    "reliability": "How often what is predicted with a probability is so, pooled over seeds and findings; on the "
    "diagonal a method is calibrated. ECE: expected calibration error.",
}


class TexMissingError(RuntimeError):
    """There is no pdflatex, or it lacks a package."""


class TexError(ValueError):
    """LaTeX refused a document."""


def compile_paper(
    tables: Path | str,
    figures: Path | str,
    out: Path | str,
    *,
    scores: Path | str,
    title: str,
    grids: Mapping[str, Path] | None = None,
    strips: Mapping[str, Path] | None = None,
) -> None:
    """Write ``out`` (paper.pdf) and its source beside it (paper.tex) from the folders of tables and figures.

    ``grids`` and ``strips`` are pictures by caption. The source uses paths relative to its own folder where it can.

    Raises:
        TexMissingError: pdflatex or one of its packages is missing; the source is written all the same.
        TexError: LaTeX refused the source; quotes its line.
    """
    out = Path(out)
    source = write_source(
        out.with_suffix(".tex"),
        Path(tables),
        Path(figures),
        rows=read_rows(scores),
        title=title,
        pictures={**(grids or {}), **(strips or {})},
    )
    compile_tex(source, out)


def write_source(
    path: Path, tables: Path, figures: Path, *, rows: Sequence[Row], title: str, pictures: Mapping[str, Path]
) -> Path:
    """Write the document's LaTeX source to ``path`` and return it."""
    near = path.parent
    # Neither the time nor the folder of the run becomes part of the PDF.
    same = r"\ifdefined\pdftrailerid\pdftrailerid{}\pdfsuppressptexinfo=-1 \fi"
    lines = [r"\documentclass[a4paper]{article}", r"\usepackage[margin=2.2cm]{geometry}", PREAMBLE.rstrip(), same]
    lines += [r"\renewcommand{\textfraction}{0.05}", r"\renewcommand{\topfraction}{0.95}"]
    lines += [r"\renewcommand{\floatpagefraction}{0.7}", rf"\title{{{tex(title)}}}", r"\date{}", r"\begin{document}"]
    lines += [r"\maketitle", *_protocol(Scores(row for row in rows if row["run_id"]))]  # what was not run has none
    measured = {row["metric"] for row in rows if not math.isnan(row["value"])}
    for heading, of_tables, of_figures in sorted(SECTIONS, key=lambda section: QUESTIONS.index(section[0])):
        parts = [tables / f"{name}.tex" for name in of_tables]
        content = [rf"\input{{{_relative(part, near)}}}" for part in parts if _has_numbers(part)]
        content += [
            _picture(figures / f"{name}.pdf", CAPTIONS[name], near, name)
            for name in of_figures
            if NEEDS.get(name) in {None, *measured}
            # A figure of a table's name shows what the table holds.
            and (name not in of_tables or _has_numbers(tables / f"{name}.tex"))
        ]
        if content:
            lines += [r"\clearpage", rf"\section{{{tex(heading)}}}", *content]
    if pictures:
        lines += [r"\clearpage", r"\section{Pictures}"]
        lines += [_picture(picture, caption, near) for caption, picture in pictures.items()]
    text = "\n".join([*lines, r"\end{document}", ""])
    if r"\jointdiffname" in text:
        text = text.replace(r"\begin{document}", NAMES + r"\begin{document}", 1)
        text = text.replace(r"\maketitle", r"\maketitle" + NOTE, 1)
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def _has_numbers(table: Path) -> bool:
    """Say whether a file of tables holds one that is more than the sentence that there is none."""
    return r"\begin{tabular}" in table.read_text(encoding="utf-8")


def _picture(path: Path, caption: str, near: Path, label: str = "") -> str:
    name = rf"\label{{fig:{label}}}" if label else ""
    return (
        "\\begin{figure}[htbp]\n\\centering\n"
        # Never enlarged: a small figure keeps its size of letters. A tall one leaves room for its caption.
        f"\\sbox0{{\\includegraphics{{{_relative(path, near)}}}}}%\n"
        "\\ifdim\\wd0>\\linewidth\\sbox0{\\resizebox{\\linewidth}{!}{\\usebox0}}\\fi\n"
        "\\ifdim\\ht0>0.85\\textheight\\sbox0{\\resizebox{!}{0.85\\textheight}{\\usebox0}}\\fi\n"
        "\\usebox0\n"
        f"\\caption{{{tex(caption)}}}{name}\n\\end{{figure}}"
    )


def _relative(path: Path, near: Path) -> str:
    return Path(os.path.relpath(path.resolve(), near.resolve())).as_posix()


def _protocol(rows: Scores) -> list[str]:
    """Write what was compared, on what, and what else changes the numbers, as far as the rows say it."""
    lines = [r"\section{Protocol}", "Every number is computed from the score rows and from nothing else."]
    lines += [r"\subsection*{Data and budgets}", r"\begin{description}"]
    for dataset in rows.distinct("dataset"):
        own = [row for row in rows.rows if row["dataset"] == dataset]
        budgets = ", ".join(budget_name(labels) for labels in rows.distinct("labels", dataset=dataset))
        seeds = ", ".join(map(str, sorted({row["seed"] for row in own})))
        tested = sorted({row["n"] for row in own if row["metric"] == "auroc" and row["finding"] == "macro"})
        facts = next((parse_protocol(row["protocol"]) for row in own if row["metric"] == "auroc"), {})
        text = f"{budgets}; seeds {seeds}; test images {_range(tested)} in {facts.get('groups', '?')} groups"
        size = f"; {facts['size']} px" if "size" in facts else ""
        lines.append(rf"\item[{tex(dataset_name(dataset))}] {tex(text + size)}.")
    lines.append(r"\end{description}")
    changing = []
    for what, metric in (
        ("Classification", "sensitivity"),
        ("Generation", "frechet_distance"),
        ("FID", "fid"),
        ("Counterfactuals", "change_inside"),
        ("Cost", "train_seconds"),
    ):
        found = [parse_protocol(row["protocol"]) for row in rows.rows if row["metric"] == metric]
        constant = _shared(found)
        if constant:
            changing.append(rf"\item[{what}] {tex('; '.join(f'{k} = {v}' for k, v in constant.items()))}.")
    if changing:
        lines += [r"\subsection*{What changes the values}", r"\begin{description}", *changing, r"\end{description}"]
    if made_with := environments_of(rows.rows):
        lines += [r"\subsection*{Environment}", tex(f"Everything was made with {tell(made_with)}.")]
    lines += [r"\subsection*{Methods}", r"\begin{description}"]
    for method in rows.distinct("method"):
        versions = ", ".join(rows.distinct("code_version", method=method))
        lines.append(rf"\item[{tex(method_name(method))}] variant \texttt{{{tex(method)}}}, code {tex(versions)}.")
    return [*lines, r"\end{description}"]


def _range(numbers: Sequence[int]) -> str:
    return "?" if not numbers else str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _shared(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the facts on which all rows agree, but for what tables name and what has a part of its own."""
    first, apart = facts[0] if facts else {}, ("map", "groups", "environment")
    return {k: v for k, v in first.items() if k not in apart and all(f.get(k) == v for f in facts)}


def compile_tex(source: Path | str, out: Path | str, *, runs: int = 2) -> None:
    """Compile a LaTeX file to a PDF in a temporary folder; shell escape is off and the dates are fixed.

    Words beyond the Latin alphabet are set in their own letters where XeLaTeX and fonts that have them are installed,
    and in Latin ones where not.

    Raises:
        TexMissingError: pdflatex or a package is missing, with the remedy.
        TexError: LaTeX stopped; quotes its message and the line.
    """
    source, out = Path(source).resolve(), Path(out)
    if shutil.which("pdflatex") is None:
        raise TexMissingError(
            f"pdflatex was not found, so {source.name} is not compiled: install TeX Live (packages texlive-latex-extra "
            "and texlive-science), or do without the PDF; the tables are complete as .tex, .csv, .md and .html"
        )
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("xelatex") and _provide_fonts(_names(source), Path(folder)):
            document = rf"\AtBeginDocument{{\input{{{FONTS}}}}}\input{{{source.name}}}"
            try:
                return _compile("xelatex", document, source, out, Path(folder), runs)
            except (TexMissingError, TexError) as error:
                log.warning("words of other scripts are written in Latin letters, since XeLaTeX failed: %s", error)
        return _compile("pdflatex", source.name, source, out, Path(folder), runs)


def _compile(program: str, document: str, source: Path, out: Path, folder: Path, runs: int) -> None:
    command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error"]
    # Relative inputs are found from the source's folder, where LaTeX runs and writes nothing.
    command += [f"-output-directory={folder}", f"-jobname={source.stem}", document]
    fixed = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1", "max_print_line": "1000"}
    found = {name: f"{folder}:{os.environ.get(name, '')}" for name in ("TEXINPUTS", "OPENTYPEFONTS", "TTFONTS")}
    for _ in range(runs):
        done = subprocess.run(
            command,
            cwd=source.parent,
            env={**os.environ, **fixed, **found},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise _tex_error(source, done.stdout)
    with atomic_path(out) as aside:
        shutil.copyfile(folder / f"{source.stem}.pdf", aside)


def _names(source: Path) -> list[str]:
    """List the words beyond the Latin alphabet in a LaTeX file and in those that it reads."""
    text = source.read_text(encoding="utf-8")
    parts = [source.parent / name for name in re.findall(r"^\\input\{(.+)\}$", text, flags=re.MULTILINE)]
    whole = "".join([text, *(part.read_text(encoding="utf-8") for part in parts)])
    return sorted(set(re.findall(r"\\jointdiffname\{([^{}]+)\}", whole)))


def _provide_fonts(names: Sequence[str], folder: Path) -> bool:
    """Put fonts and definitions for names into a folder that XeLaTeX looks into; say whether there are any."""
    fonts = {piece: font_of(piece, first=OF_PAPER) for name in names for piece in pieces(name) if not piece.isascii()}
    files = sorted({font.fname for font in fonts.values() if font})
    macros = {file: r"\jointdifffont" + "i" * place for place, file in enumerate(files, start=1)}
    # The trailer's identity would be made of the folder's name.
    lines = [r"\TeXXeTstate=1", rf"\special{{pdf:trailerid [ <{'0' * 32}> <{'0' * 32}> ]}}"]
    for file, macro in macros.items():
        link = folder / f"{macro[1:]}{Path(file).suffix}"
        link.symlink_to(file)
        lines.append(rf"\newfontfamily{macro}{{{link.name}}}")
    for name in names:
        parts = [(piece, fonts.get(piece)) for piece in pieces(name)]
        if all(font or piece.isascii() for piece, font in parts):
            shown = "".join(f"{{{macros[font.fname]} {piece}}}" if font else piece for piece, font in parts)
            if unicodedata.bidirectional(name[0]) in ("R", "AL"):
                shown = rf"\beginR {shown}\endR{{}}"
            lines.append(rf"\expandafter\def\csname jointdiff/{name}\endcsname{{{shown}}}")
    lines.append(
        r"\DeclareRobustCommand\jointdiffname[2]{\ifcsname jointdiff/\detokenize{#1}\endcsname"
        r"\csname jointdiff/\detokenize{#1}\endcsname\else#2\fi}"
    )
    if all(fonts.values()):
        lines.append(r"\DeclareRobustCommand\jointdiffnote[1]{}")
    (folder / f"{FONTS}.tex").write_text("\n".join(lines), encoding="utf-8")
    return bool(macros)


def _tex_error(source: Path, log: str) -> Exception:
    lines = log.splitlines()
    if missing := re.search(r"File [`']([^']+\.(?:sty|cls))' not found", log):
        return TexMissingError(
            f"{source.name}: LaTeX lacks {missing[1]}; install texlive-latex-extra and texlive-science (or your "
            "distribution's packages that hold it)"
        )
    at = next((i for i, line in enumerate(lines) if line.startswith("!") or re.match(r"\S+:\d+: ", line)), None)
    if at is None:
        return TexError(f"{source}: pdflatex failed without a message; its last line is {lines[-1:]}")
    where = next((line for line in lines[at:] if re.match(r"l\.\d+", line)), "")
    return TexError(f"{source}: LaTeX stopped at {' '.join([lines[at], where]).strip()}")
