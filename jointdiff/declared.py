"""What built-in methods declare, read from the schema file that knows it, so that a check needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jointdiff.complaints import ConfigError, check_known
from jointdiff.values import fitted

SCHEMA = Path(__file__).with_name("schema.json")  # `jointdiff schema` writes it


@cache
def declared() -> dict[str, Any]:
    """Return what the schema says of methods and autoencoders.

    Raises:
        ConfigError: the file is missing; without it no method could be checked, and rules would be left out.
    """
    try:
        return json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    except FileNotFoundError:
        raise ConfigError(f"{SCHEMA} is missing: install jointdiff-bench anew") from None


def declared_methods() -> dict[str, Any]:
    """Map every built-in method to the schema of its settings."""
    return declared()["methods"]


@cache
def abilities(method: str) -> frozenset[str]:
    """Return what a method can do: generate, vote, latents, label_free, and explanations.

    Raises:
        ConfigError: there is no method of this name.
    """
    if method in declared_methods():
        return frozenset(declared_methods()[method]["x-can"])
    from jointdiff.schema import abilities_of  # imports torch, for a method of the user's own alone

    return frozenset(abilities_of(method))


def tunable(method: str) -> tuple[str, ...] | None:
    """Return the settings of a built-in method that a search multiplies; None for a method of the user's own."""
    schema = declared_methods().get(method)
    return None if schema is None else tuple(schema["x-tunable"])


def check_settings(settings: dict[str, Any], schema: dict[str, Any], prefix: str) -> None:
    """Check settings against the schema of a method or autoencoder, and make numbers of those written as text.

    ``prefix`` says where they stand.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    for name in settings:
        check_known(name, schema["properties"], f"{prefix}{name}: unknown key {name!r}")
        settings[name] = _fitted(settings[name], schema["properties"][name])
    if settings:
        from jsonschema import Draft202012Validator

        for error in Draft202012Validator(schema).iter_errors(settings):
            raise ConfigError(f"{prefix}{'.'.join(map(str, error.path))}: {error.message}")


def _fitted(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_fitted(item, schema.get("items", {})) for item in value]
    return fitted(value, {part.get("type") for part in (schema, *schema.get("anyOf", ()))})
