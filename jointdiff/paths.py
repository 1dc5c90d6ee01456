"""Where results lie, and files of the package. Light: the rules and all that walks over results share these lines.

``<results>``, ``<resources>`` and ``<logs>`` are Snakemake's path variables; the key ``pathvars`` of a configuration
moves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jointdiff.complaints import ConfigError

SPLIT = "<results>/{dataset}/labels-{labels}"  # one draw of roles per seed
CELL = SPLIT + "/{method}/seed-{seed}"  # one training and everything made from it
FIRST_STAGE = "<results>/{dataset}/autoencoders/{autoencoder}/seed-{seed}"  # one autoencoder and its latents
TRIAL = CELL + "/tuning/trial-{trial}"  # one training of a search, of which only numbers are kept
INCEPTION = "<resources>/inception/inception-2015-12-05.pt"  # where clean-fid's weights are downloaded to
TAG = "{dataset}-{labels}-{method}-{seed}"  # the same cell in the name of a log or benchmark
PUBLISHED = Path(__file__).parent / "report" / "published.csv"  # numbers of papers

# How each part of a path may look, so that no part swallows another.
WILDCARDS = {
    "dataset": r"[A-Za-z0-9_]+",
    "raw": r"[A-Za-z0-9_]+",
    "prepared": r"[A-Za-z0-9_]+-\d+(-[0-9a-f]{6})?",
    "labels": r"all|[0-9.]+(-per-class)?|list-[A-Za-z0-9_]+",
    "method": r"[A-Za-z0-9_]+",
    "autoencoder": r"[A-Za-z0-9_]+",
    "seed": r"\d+",
    "trial": r"\d+",
}


def snakefile() -> Path:
    """Return the workflow's Snakefile: a wheel holds a copy in the package, a source tree has it beside the package.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(__file__).parent
    candidates = [package / "workflow" / "Snakefile", package.parent / "Snakefile"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"there is no {' and no '.join(map(str, candidates))}: install jointdiff-bench anew")


def check_folders(project: Path | str, pathvars: Mapping[str, str] | None = None) -> None:
    """Refuse folders for the project and for what it writes that Snakemake cannot work with.

    Raises:
        ConfigError: a name holds a line break, or that of a folder to write to holds braces.
    """
    folders = {"the project's folder": (str(project), "\r\n")}
    folders |= {f"pathvars.{key}": (str(path), "\r\n{}") for key, path in (pathvars or {}).items()}
    for what, (path, refused) in folders.items():
        if found := sorted(set(refused) & set(path)):
            letters = " or ".join(map(repr, found))
            raise ConfigError(f"{what}: {path!r} has {letters} in its name, which Snakemake cannot take; rename it")


def cell(results: Path | str, dataset: str, labels: str, method: str, seed: int) -> Path:
    """Return the folder of one cell."""
    return Path(results) / dataset / f"labels-{labels}" / method / f"seed-{seed}"


def find_cells(results: Path | str) -> list[Path]:
    """List the folders of all finished cells below a results folder, sorted."""
    return sorted(run.parent for run in Path(results).glob("*/labels-*/*/seed-*/run.json"))


def find_first_stages(results: Path | str) -> list[Path]:
    """List the folders of all finished autoencoders below a results folder, sorted."""
    return sorted(made.parent for made in Path(results).glob("*/autoencoders/*/seed-*/autoencoder.json"))


def relative_if_below(path: Path | str) -> str:
    """Return a path relative to the working directory where it lies below that, so that a moved project holds it too.

    Any other path comes back absolute.
    """
    path, here = Path(path).resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) and path != here else path)


def describe(path: Path | str) -> str:
    """Name the cell that a file lies in, in words."""
    dataset, labels, method, seed = Path(path).parent.parts[-4:]
    words = f"{method} on {dataset}, {labels.removeprefix('labels-')} labels, {seed.replace('-', ' ')}"
    return words.replace("_", " ")


def inception_weights(named: str | None, *, mirror: str | None) -> str | None:
    """Return the file of clean-fid's Inception weights: the one named, one to be downloaded, or the mirror's."""
    if named == "download":
        return INCEPTION
    if named:
        return named
    found = Path(mirror, "inception", Path(INCEPTION).name) if mirror else None
    return str(found) if found and found.is_file() else None
