"""What tests share: tools and data that not every machine has."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests import properties as properties  # the profile of property tests

# As in a job of the workflow. Threads of several processes on few cores spend their time waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Start anew in UTF-8 mode where the locale has another encoding, as the project's own commands do."""
    if sys.getfilesystemencoding() != "utf-8":
        config.pluginmanager.getplugin("capturemanager").stop_global_capturing()  # what is said goes to the terminal
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell


def require(tool: str) -> str:
    """Return a program's path; where it is missing skip the test, or fail it under JOINTDIFF_REQUIRE_TOOLS."""
    found = shutil.which(tool)
    if found is None:
        missing(f"{tool} is not installed")
    return str(found)


def missing(what: str) -> None:
    """Skip, or fail under JOINTDIFF_REQUIRE_TOOLS, as continuous integration sets it."""
    if os.environ.get("JOINTDIFF_REQUIRE_TOOLS"):
        pytest.fail(f"{what}, and JOINTDIFF_REQUIRE_TOOLS is set")
    pytest.skip(what)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow in which the smoke grid has run, shared by all tests that look at what it leaves."""
    from tests.workflow import flow

    folder = flow.copy_tree(tmp_path_factory.mktemp("tree"))
    started = time.monotonic()
    said = flow.snakemake(folder, "--configfile", flow.SMOKE)
    print(f"smoke grid: {time.monotonic() - started:.0f} s")
    assert "(100%) done" in said
    return folder


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Folder of real data, named by JOINTDIFF_MIRROR."""
    folder = Path(os.environ.get("JOINTDIFF_MIRROR", ""))
    if not folder.name or not folder.is_dir():
        pytest.skip("no mirror of real data; name its folder in JOINTDIFF_MIRROR")
    return folder


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own stores out of the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
