"""With what a number is made: versions, device, vector instructions and commit. Light: it imports nothing at once.

A record is a dictionary of short texts, ``{"Python": "3.11.7", "torch": "2.15.0", ..., "commit": "1a2b3c4d5e6f"}``. It
names the packages that the process has imported, so that a step without diffusers does not name it. Nothing depends on
a record: it is written beside results, and no step is run again because of it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("jointdiff", "baselines", "rules", "workflow_scripts", "Snakefile")  # what of the project changes numbers
CPUINFO = Path("/proc/cpuinfo")
GIT_SECONDS = 20  # that git may take, on a slow disk

# Packages that compute, by the names of their modules.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "timm": "timm",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "captum": "captum",
    "torchmetrics": "torchmetrics",
}
NAMES = ("Python", *PACKAGES.values(), "device", "threads", "instructions", "commit")  # of a record, in this order
UNKNOWN = {"commit": "unknown"}  # the record of a result that was made before records were kept
THEN = " then "


def environment() -> dict[str, str]:
    """Return the record of this process, as it is now."""
    record = {"Python": platform.python_version()}
    for module, name in PACKAGES.items():
        if version := getattr(sys.modules.get(module), "__version__", None):
            record[name] = str(version)
    if torch := sys.modules.get("torch"):
        if torch.cuda.is_initialized():
            record["device"] = torch.cuda.get_device_name().replace(",", " ")
        else:
            record |= {"device": "CPU", "threads": str(torch.get_num_threads())}
    return record | {"instructions": instructions(), "commit": commit()}


def instructions() -> str:
    """Return the vector instructions that torch uses, or would use, under its names: AVX512, AVX2 or DEFAULT."""
    if torch := sys.modules.get("torch"):
        return torch.backends.cpu.get_cpu_capability()
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return "DEFAULT"
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    for name, needed in (("AVX512", "avx512f avx512bw avx512dq avx512vl fma"), ("AVX2", "avx2 fma")):
        if flags.issuperset(needed.split()):
            return name
    return "DEFAULT"


@cache
def commit() -> str:
    """Return the commit of the project's code, 12 digits, with "(changed)" where the code is not its; or "unknown".

    It comes from the repository of the project's folder, from what the package was built with (``hatch_build.py``), or
    from what pip recorded on installing from a repository (PEP 610).
    """
    if (ROOT / ".git").exists():
        return commit_of(ROOT) or _unknown()
    if (built := ROOT / "jointdiff" / "COMMIT").is_file():
        return built.read_text(encoding="utf-8").strip()
    try:
        package = distribution("jointdiff-bench")
        origin = json.loads(package.read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return _unknown()
    if Path(str(package.locate_file(""))).resolve() != ROOT:  # a copy runs, not what is installed
        return _unknown()
    return origin.get("vcs_info", {}).get("commit_id", "")[:12] or _unknown()


def _unknown() -> str:
    try:
        return f"unknown (version {distribution('jointdiff-bench').version})"
    except PackageNotFoundError:
        return "unknown"


def commit_of(folder: Path) -> str:
    """Return the commit of a repository's folder with "(changed)" behind it; an empty text where git cannot say."""
    if not (folder / ".git").exists():  # the repository around it is somebody else's
        return ""
    command = ["git", "-C", str(folder)]
    # The code of this folder is running already, so that its owner is trusted, whoever that is.
    command += ["-c", f"safe.directory={folder}", "-c", "core.fsmonitor=false", "-c", "core.fileMode=false"]
    command += ["status", "--porcelain=v2", "--branch", "--untracked-files=normal", "--", *CODE]
    # Variables of git, as in a hook of some other repository, would lead to that one.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command,
            env=variables | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a disk that hangs
        return ""
    lines = done.stdout.splitlines()
    found = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    if done.returncode or not found or found == "(initial)":
        return ""
    return found[:12] + (" (changed)" if any(not line.startswith("#") for line in lines) else "")


def joined(*records: Mapping[str, str]) -> dict[str, str]:
    """Join the records of steps that follow each other: "2.14.1 then 2.15.0" where they differ."""
    values = {
        name: dict.fromkeys(value for record in records if name in record for value in record[name].split(THEN))
        for name in NAMES
    }
    return {name: THEN.join(found) for name, found in values.items() if found}


def to_text(record: Mapping[str, str]) -> str:
    """Write a record in a line: "Python 3.11.7, torch 2.15.0, ..., commit 1a2b3c4d5e6f"."""
    return ", ".join(f"{name} {record[name]}" for name in NAMES if name in record)


def from_text(text: str) -> dict[str, str]:
    """Read what ``to_text`` wrote; of an empty text nothing is known."""
    parts = (part.partition(" ") for part in text.split(", ") if part)
    return {name: value for name, _, value in parts} or dict(UNKNOWN)


def read_environment(path: Path | str) -> dict[str, str]:
    """Return the record that a Parquet file or an .npz archive carries; of an older one nothing is known."""
    if Path(path).suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as archive:
            return json.loads(str(archive["environment"])) if "environment" in archive else dict(UNKNOWN)
    import pyarrow.parquet as pq

    stored = (pq.read_schema(path).metadata or {}).get(b"environment")
    return json.loads(stored) if stored else dict(UNKNOWN)
