"""Mistakes of the user, told in one line each: where, what was found, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

# What a configuration may hold, its aliases spelled out: a grid of thousands of cells has some hundred values.
VALUES, DEPTH = 100_000, 50


class ConfigError(ValueError):
    """A mistake in the configuration, with the key and the way out in its message."""


class DataError(ValueError):
    """Data that is absent, damaged or not what it should be, with the file and the way out in its message."""


def check_known(name: str, known: Iterable[str], complaint: str) -> None:
    """Raise the complaint with the nearest known name unless ``name`` is one of them."""
    known = list(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ConfigError(f"{complaint}; {hint}Valid here: {', '.join(known) or 'none'}")


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Say what is wrong in one line per mistake: key path, value and the way out."""
    lines = []
    for mistake in error.errors():
        cause = mistake.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # raised by our own cross-checks, complete as it is
            lines.append(str(cause))
            continue
        path = prefix + ".".join(map(str, mistake["loc"]))
        if mistake["type"] == "extra_forbidden":
            name = str(mistake["loc"][-1])
            try:
                check_known(name, _keys_at(model, mistake["loc"][:-1]), f"{path}: unknown key {name!r}")
            except ConfigError as unknown:
                lines.append(str(unknown))
        elif mistake["type"] == "missing":
            lines.append(f"{path}: this key is required")
        else:
            text = str(cause) if cause else f"{mistake['msg'].lower()}, found {mistake['input']!r}"
            if mistake["type"] == "string_type" and not isinstance(mistake["input"], list | dict | None):
                text += "; put it in quotes"
            lines.append(f"{path}: {text}")
    return "\n".join(lines)


def _keys_at(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """List the valid keys of the record at a place of the configuration."""
    kind: Any = model
    for step in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(step)].annotation
        else:
            kind = get_args(kind)[-1]  # values of a dict, items of a list
    return list(kind.model_fields)


def check_extent(config: Mapping[str, Any]) -> None:
    """Refuse a few lines of aliases that stand for billions of values, before anything walks over them all."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        below = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        seen += 1 + len(below)
        if seen > VALUES or depth > DEPTH:
            raise ConfigError(
                f"more than {VALUES:,} values, or {DEPTH} levels of them: do aliases (*name) name one another?"
            )
        waiting += [(part, depth + 1) for part in below]
