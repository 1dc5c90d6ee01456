"""What this machine offers, and which step each missing piece affects."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from jointdiff.addresses import without_secrets
from jointdiff.paths import inception_weights

TEX_PACKAGES = ("booktabs", "caption", "geometry", "graphicx", "lmodern", "siunitx")  # of the paper
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
        ("other scripts", _scripts),
        ("Slurm", _slurm),
        ("browser", _browser),
        ("mirror", _mirror),
        ("Inception weights", _inception),
        ("tracking store", lambda: _tracking(results)),
        ("free space", lambda: _space(results)),
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


def _scripts() -> Finding:
    from jointdiff.letters import SAMPLES, scripts_without_font

    without = scripts_without_font()
    found = f"fonts for {', '.join(script for script in SAMPLES if script not in without)}"
    engine = [] if shutil.which("xelatex") else ["compile_paper: paper.pdf has all in Latin letters (install xelatex)"]
    fonts = [f"tables and figures: {', '.join(without)} in Latin letters (install a font)"] if without else []
    affects = "; ".join(fonts + engine)
    return Finding("other scripts", found, "absent" if affects else "good", affects)


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
