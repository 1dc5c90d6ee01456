"""What tests share: tools and data that not every machine has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
def mirror() -> Path:
    """Folder of real data: JOINTDIFF_MIRROR, or the one beside the repository."""
    named = os.environ.get("JOINTDIFF_MIRROR")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "mirror"
    if not folder.is_dir():
        pytest.skip(f"no mirror of real data at {folder}; name one in JOINTDIFF_MIRROR")
    return folder


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own stores out of the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
