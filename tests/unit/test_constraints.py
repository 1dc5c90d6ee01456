"""Versions that are known to work: pinned for pip and uv alike, without an address, and installed here."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import missing

ROOT = Path(__file__).parents[2]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned() -> dict[str, str]:
    """Return the pins that hold on this platform and Python: version by name."""
    here = [pin for pin in map(Requirement, PINS) if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}


def asked_for(project: dict) -> dict[str, Requirement]:
    """Return what the project itself names, with its extras and groups."""
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    named = [*project["project"]["dependencies"], *(line for lines in (*extras, *groups) for line in lines)]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, named)}


def test_uv_reads_the_same_pins_as_pip() -> None:
    remedy = "run `uv run .ci/refresh_constraints.py`"
    assert PYPROJECT["tool"]["uv"]["constraint-dependencies"] == PINS, remedy


def test_a_pin_is_a_name_and_a_version() -> None:
    for requirement in map(Requirement, PINS):
        assert not requirement.url and not requirement.extras, requirement
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(requirement.specifier)), requirement  # also no local version


def test_every_package_is_pinned_once_within_what_the_project_asks_for() -> None:
    here = [pin for pin in map(Requirement, PINS) if pin.marker is None or pin.marker.evaluate()]
    assert len({canonicalize_name(pin.name) for pin in here}) == len(here)
    for name, requirement in asked_for(PYPROJECT).items():
        assert pinned()[name] in requirement.specifier, name


def test_what_is_installed_is_what_is_pinned() -> None:
    others = []
    for name in asked_for(PYPROJECT).keys() & pinned().keys():
        try:
            found = version(name).partition("+")[0]  # a build of torch names its CUDA behind the plus
        except PackageNotFoundError:  # of an extra or group that is not installed here
            continue
        if found != pinned()[name]:
            others.append(f"{name} {found} instead of {pinned()[name]}")
    if others:
        missing(f"this environment has versions of its own choice: {', '.join(sorted(others))}")
