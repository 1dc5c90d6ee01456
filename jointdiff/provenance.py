"""Which code a result depends on, as a digest that ignores comments and docstrings. Light: it reads files alone."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Modules that watch, move or name results and never change them: editing one of them re-runs nothing. What
# jointdiff.config holds reaches every step as a value, and the registry imports by name what the rules name themselves.
OBSERVERS = frozenset(
    f"jointdiff.{name}"
    for name in (
        "config",
        "data.manifest",
        "environment",
        "files",
        "logs",
        "paths",
        "progress",
        "provenance",
        "registry",
        "tracking",
    )
)


@cache
def code_version(*modules: str) -> str:
    """Digest the code of modules and of everything of their packages' authors' that they import, to 12 hex digits.

    Imports are followed wherever they stand, inside functions too, into the top-level packages of ``modules`` and into
    ``jointdiff``; imports for type checkers alone are not. Comments, docstrings and layout do not count.

    Raises:
        ValueError: there is no such module.
    """
    packages = {"jointdiff", *(name.partition(".")[0] for name in modules)}
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or name in OBSERVERS:
            continue
        path = _file(name)
        if path is None:
            raise ValueError(f"there is no module {name!r} whose code could be digested")
        seen[name], imported = _read(path, name)
        for candidate in imported:
            if candidate.partition(".")[0] in packages and _file(candidate) is not None:
                waiting.append(candidate)
    content = "\n".join(f"{name} {seen[name]}" for name in sorted(seen))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def _file(module: str) -> Path | None:
    """Return the file of a module, or None where the name is no module (but, say, a class in one).

    Only the top-level package is imported: asking the import system for a submodule would import all above it.
    """
    top, *rest = module.split(".")
    spec = find_spec(top)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@cache
def _read(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return a module's digest and the names that it imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported = tuple(dict.fromkeys(_imports(tree, package)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), imported


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)  # a module, where it is no class or function
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package)
