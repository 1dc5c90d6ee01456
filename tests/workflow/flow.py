"""Snakemake on a copy of the workflow, for the tests of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

WORKFLOW = ["Snakefile", "rules", "workflow_scripts", "config", "profiles", "docs", "jointdiff", "baselines"]
SMOKE = "config/smoke.yaml"


def command(tree: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", str(tree / "Snakefile"), *arguments]


def environment(tree: Path, **more: str) -> dict[str, str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "JOINTDIFF_MIRROR"))}
    return {**known, "PYTHONPATH": str(tree), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def snakemake(tree: Path, *arguments: str, fails: bool = False, where: Path | None = None, **more: str) -> str:
    """Run Snakemake on a copy of the workflow and return all that it said."""
    done = subprocess.run(
        command(tree, *arguments),
        cwd=where or tree, env=environment(tree, **more), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-8000:]
    return done.stdout


def copy_tree(folder: Path) -> Path:
    for name in WORKFLOW:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def small(folder: Path, **changes: Any) -> Path:
    """Write the smoke configuration with changes, for one classifier alone."""
    config = yaml.safe_load((ROOT / SMOKE).read_text(encoding="utf-8"))
    config |= {"name": "small", "methods": {"supervised": {"settings": {"depth": 10, "width": 1}}}, **changes}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
