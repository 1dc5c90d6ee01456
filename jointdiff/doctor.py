"""What this machine offers, and which step each missing piece affects."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from jointdiff.addresses import without_secrets
from jointdiff.complaints import ConfigError
from jointdiff.paths import check_folders, inception_weights

TEX_PACKAGES = ("booktabs", "caption", "geometry", "graphicx", "lmodern", "siunitx")  # of the paper
SKEW = 2.0  # seconds between this machine and its disk's server, from which dates of new files mislead
SPACE_GIB = 5.0  # what the default experiment and its environment take, generously


@dataclass(frozen=True)
class Finding:
    """One thing looked for."""

    what: str
    found: str
    state: Literal["good", "absent", "bad"] = "good"  # absent: something optional is missing; bad: nothing will run
    affects: str = ""  # which step, and the way out


def examine(results: Path | str = "results") -> list[Finding]:
    """Look at everything in turn; a check that fails is a finding too."""
    results = Path(results)
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("torch", _torch),
        ("device", _device),
        ("Snakemake", lambda: _package("Snakemake", "snakemake", "everything: run `uv sync`", state="bad")),
        ("TeX", _tex),
        ("Slurm", _slurm),
        ("browser", _browser),
        ("mirror", _mirror),
        ("Inception weights", _inception),
        ("tracking store", lambda: _tracking(results)),
        ("free space", lambda: _space(results)),
        ("project folder", lambda: _project(Path.cwd())),
    ]
    findings = []
    for what, check in checks:
        try:
            findings.append(check())
        except Exception as error:  # a broken driver or mount must not hide the other findings
            findings.append(Finding(what, f"could not be examined: {error}", "absent"))
    return findings


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    affects = "" if good else "everything: Python 3.11 or newer is needed"
    return Finding("Python", f"{platform.python_version()}, {os.cpu_count()} cores", "good" if good else "bad", affects)


def _package(what: str, name: str, affects: str, *, state: Literal["absent", "bad"] = "absent") -> Finding:
    try:
        return Finding(what, version(name))
    except PackageNotFoundError:
        return Finding(what, "not installed", state, affects)


def _torch() -> Finding:
    return _package("torch", "torch", "training, inference and everything after them: run `uv sync`", state="bad")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        affects = "training: config/experiments/*_small.yaml are cut for 2 cores; the paper sizes want a GPU"
        return Finding("device", "CPU alone, no GPU that torch can use", "absent", affects)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Finding("device", f"{len(names)} GPU(s): {', '.join(sorted(set(names)))}, {memory:.0f} GiB")


def missing_tex() -> str | None:
    """Return what keeps tables from being compiled to a PDF: pdflatex or a package; None where nothing is missing."""
    if shutil.which("pdflatex") is None:
        return "pdflatex"
    if shutil.which("kpsewhich") is None:
        return None  # it cannot be asked; pdflatex itself will say
    packages = [f"{name}.sty" for name in TEX_PACKAGES]
    found = subprocess.run(["kpsewhich", *packages], capture_output=True, text=True).stdout.split()
    return next((name for name in packages if not any(path.endswith(f"/{name}") for path in found)), None)


def _tex() -> Finding:
    missing = missing_tex()
    if missing is None:
        return Finding("TeX", str(shutil.which("pdflatex")))
    affects = "compile_paper: tables are written as .tex and .csv, paper.pdf is not (packages: .ci/run)"
    return Finding("TeX", f"no {missing}", "absent", affects)


def _slurm() -> Finding:
    found = shutil.which("sbatch")
    return (
        Finding("Slurm", found) if found else Finding("Slurm", "no sbatch", "absent", "none: jobs run on this machine")
    )


def _browser() -> Finding:
    import webbrowser

    try:
        return Finding("browser", webbrowser.get().__class__.__name__)
    except webbrowser.Error:
        affects = "reading report.html and MLflow: copy the report, or forward port 5000, to a machine with a screen"
        return Finding("browser", "none", "absent", affects)


def _mirror() -> Finding:
    named = os.environ.get("JOINTDIFF_MIRROR")
    if not named:
        affects = "download_dataset: files come from their publishers; the phantom needs none (set JOINTDIFF_MIRROR)"
        return Finding("mirror", "none named in JOINTDIFF_MIRROR", "absent", affects)
    from jointdiff.data.transfer import is_url

    if is_url(named) or Path(named).is_dir():
        return Finding("mirror", without_secrets(named))
    return Finding("mirror", f"{named} is no folder", "absent", "download_dataset: correct JOINTDIFF_MIRROR")


def _inception() -> Finding:
    found = inception_weights(None, mirror=os.environ.get("JOINTDIFF_MIRROR"))
    if found:
        return Finding("Inception weights", str(found))
    affects = "score_generation: FID is a gap with its reason, the Frechet distance is not (evaluation.inception)"
    return Finding("Inception weights", "not in the mirror", "absent", affects)


def _tracking(results: Path) -> Finding:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return Finding("tracking store", f"{without_secrets(uri)} (MLFLOW_TRACKING_URI)")
    database = results / "mlflow.db"
    return Finding("tracking store", str(database) if database.is_file() else f"{database}, made by the first run")


def _space(results: Path) -> Finding:
    folder = next(parent for parent in (results.resolve(), *results.resolve().parents) if parent.exists())
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{free:.1f} GiB in {folder}"
    if free >= SPACE_GIB:
        return Finding("free space", found)
    affects = f"all steps that write: {SPACE_GIB:.0f} GiB are wanted; `pathvars` in the config moves results"
    return Finding("free space", found, "absent", affects)


def _project(folder: Path) -> Finding:
    """Look at the name of the folder, and by a file in it at what its disk can do."""
    what, found = "project folder", repr(str(folder))
    try:
        check_folders(folder)
    except ConfigError as error:
        return Finding(what, found, "bad", f"everything: {error}")
    try:
        with tempfile.TemporaryDirectory(prefix=".jointdiff-", dir=folder) as name:
            probe = Path(name, "probe")
            probe.touch()
            skew = probe.stat().st_mtime - time.time()
            if abs(skew) > SKEW:
                said = f"its disk's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
                return Finding(what, f"{found}: {said}", "absent", "what is up to date: set both clocks by one server")
            if Path(name, "PROBE").exists():
                affects = "images and results whose names differ in case alone: name them otherwise"
                return Finding(what, f"{found}: its disk ignores case", "absent", affects)
            with probe.open("rb") as stream:
                os.fsync(stream.fileno())
    except OSError as error:
        affects = "all steps that write: make the folder writable, or run in another (`--directory`)"
        return Finding(what, f"{found} cannot be written: {error.strerror}", "absent", affects)
    ahead = [path.name for path in folder.iterdir() if path.lstat().st_mtime > time.time() + SKEW]
    if ahead:
        affects = "nothing that you read in; of workflow and results Snakemake takes it for newer than all: touch it"
        return Finding(what, f"{found}: {ahead[0]!r} is dated ahead of the clock", "absent", affects)
    return Finding(what, found)
