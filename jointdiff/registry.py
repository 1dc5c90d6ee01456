"""The names behind the contracts: every module of a registered package is a method or a data set. Light: no torch.

Packages are named by the entry points ``jointdiff.methods`` and ``jointdiff.sources``; a file added to one of them is
found by its name, and imported only when it is used.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jointdiff.config import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from jointdiff.data.source import Source
    from jointdiff.method import Method


@cache
def _modules(group: str) -> dict[str, str]:
    """Map short names to module paths without importing the modules."""
    found = {}
    for entry in entry_points(group=group):
        spec = find_spec(entry.value)
        for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else None):
            if not module.name.startswith("_"):
                found[module.name] = f"{entry.value}.{module.name}"
    return dict(sorted(found.items()))


def methods() -> dict[str, str]:
    """Map the name of every method to its module."""
    return _modules("jointdiff.methods")


def sources() -> dict[str, str]:
    """Map the name of every data set to its module."""
    return _modules("jointdiff.sources")


def load_source(name: str) -> ModuleType:
    """Import a data set's module, which holds ``SOURCE`` and ``read``.

    Raises:
        ConfigError: there is no data set of this name.
    """
    return importlib.import_module(_find(name, sources(), "data set"))


def describe_source(name: str, options: Mapping[str, Any] | None = None) -> Source:
    """Return a data set's facts as these options make them.

    Raises:
        ConfigError: the data set or an option is unknown, or what an option names is not there.
    """
    from jointdiff.data.source import describe

    return describe(load_source(name), options)[0]


def load_method(name: str) -> type[Method]:
    """Import a method's class, named ``METHOD`` in its module.

    Raises:
        ConfigError: there is no method of this name.
    """
    module: Any = importlib.import_module(_find(name, methods(), "method"))
    return module.METHOD


def _find(name: str, known: dict[str, str], kind: str) -> str:
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise ConfigError(f"unknown {kind} {name!r}: did you mean {nearest[0]!r}? Known: {', '.join(known)}")
