"""What this machine offers, and which step each missing piece affects."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from jointdiff.addresses import without_secrets
from jointdiff.complaints import ConfigError
from jointdiff.environment import instructions
from jointdiff.jobs import group_around
from jointdiff.paths import check_folders, inception_weights

TEX_PACKAGES = ("booktabs", "caption", "geometry", "graphicx", "lmodern", "siunitx")  # of the paper
SKEW = 2.0  # seconds between this machine and its disk's server, from which dates of new files mislead
TEMPORARY_GIB = 1.0  # what an archive that is unpacked and a report take of the temporary folder, generously
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
        ("instructions", _instructions),
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
        ("project folder", lambda: _project(Path.cwd())),
        ("user", _user),
        ("temporary folder", _temporary),
        ("text encoding", _encoding),
        ("launcher", _launcher),
        ("environment", _environment),
        ("proxies", _proxies),
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


def _instructions() -> Finding:
    return Finding("instructions", f"{instructions()}; machines with others differ in the last digits of a sum")


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
    if not database.is_file():
        return Finding("tracking store", f"{database}, made by the first run")
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as opened:
        places = [place for (place,) in opened.execute("SELECT artifact_location FROM experiments")]
    elsewhere = [place for place in places if place.endswith("/mlartifacts")]
    if not elsewhere:
        return Finding("tracking store", str(database))
    affects = "MLflow: from its next use (`jointdiff mlflow`, `track sync`, a run) on, the files are those beside it"
    return Finding("tracking store", f"{database}, an earlier version's, names {elsewhere[0]}", "absent", affects)


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


def _user() -> Finding:
    """Look for what containers often lack: Snakemake ends at once without a home that it can write to."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # neither in the environment nor among the system's users
        name = f"number {os.getuid()}, without a name"
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    found = f"{name}, home {home or 'unknown'}"
    cache = os.environ.get("XDG_CACHE_HOME")
    if home is not None and _writable(Path(cache) if cache else home):
        return Finding("user", found)
    affects = 'the workflow: Snakemake keeps files there; `export HOME="$PWD"`, or another folder that you may write to'
    return Finding("user", f"{found}, which cannot be written to", "bad", affects)


def _writable(folder: Path) -> bool:
    """Say whether files can be made in a folder, or in the nearest one above that exists."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _temporary() -> Finding:
    named = os.environ.get("TMPDIR")
    try:
        folder = Path(tempfile.gettempdir())  # which tries to write there
    except FileNotFoundError as error:
        affects = "all steps: make room in /tmp, or let TMPDIR name a folder that you may write to"
        return Finding("temporary folder", str(error), "bad", affects)
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{folder}, {free:.1f} GiB free"
    if named and Path(named).absolute() != folder.absolute():
        affects = "none now; correct TMPDIR, or unset it"
        return Finding("temporary folder", f"{found}, since TMPDIR={named} cannot be written to", "absent", affects)
    if free < TEMPORARY_GIB:
        affects = f"downloads and reports: {TEMPORARY_GIB:.0f} GiB are wanted; TMPDIR names another folder"
        return Finding("temporary folder", found, "absent", affects)
    return Finding("temporary folder", found)


def _encoding() -> Finding:
    names, shown = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None) or "none"
    if names == "utf-8" and shown.lower().replace("-", "") == "utf8":
        return Finding("text encoding", "UTF-8")
    affects = "names of files and classes beyond its letters: `export PYTHONUTF8=1`, or a locale such as C.UTF-8"
    return Finding("text encoding", f"{names} for names of files, {shown} for the screen", "absent", affects)


def _launcher() -> Finding:
    found = group_around(os.environ)
    if (tasks := os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1":  # this is one of several, as `srun` started them
        found.append(f"SLURM_STEP_NUM_TASKS={tasks}")
    if not found:
        return Finding("launcher", "none: this process is the only one")
    affects = "commands and the workflow pass these over and start processes themselves; start one (`srun --ntasks 1`)"
    return Finding("launcher", ", ".join(found), "absent", affects)


def _environment() -> Finding:
    effects = {
        "MPLBACKEND": "changes no figure",
        "SNAKEMAKE_PROFILE": "changes how jobs run",
        "PYTHONOPTIMIZE": "may leave out the texts of --help",
        "PYTHONPATH": f"decides which code runs: that of {Path(__file__).parent}",
        "MLFLOW_EXPERIMENT_NAME": (passed := "is passed over: runs go to the experiment of their configuration"),
        "MLFLOW_RUN_ID": passed,
        "MLFLOW_REGISTRY_URI": "is passed over: the best models are registered where runs are",
    }
    found = [name for name in effects if os.environ.get(name)]
    if not found:
        return Finding("environment", "nothing of notebooks or other programs")
    values = ", ".join(f"{name}={without_secrets(os.environ[name])}" for name in found)
    affects = "; ".join(f"{name} {effects[name]}" for name in found)
    return Finding("environment", values, "absent", f"{affects}; unset what you did not mean")


def _proxies() -> Finding:
    found = urllib.request.getproxies()
    if not found:
        return Finding("proxies", "none")
    affects = "downloads go through them; an MLflow server on this machine is asked without them"
    shown = ", ".join(f"{scheme}={without_secrets(address)}" for scheme, address in sorted(found.items()))
    return Finding("proxies", shown, "good", affects)
