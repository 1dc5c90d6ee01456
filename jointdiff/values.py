"""Values of a configuration that YAML reads as something else than was meant: names as numbers, numbers as words."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def as_name(value: Any) -> str:
    """Return the text that a plain value stands for: a whole number its digits.

    Raises:
        ValueError: it may have been written in several ways, as `no` or `off`, `1.0` or `1.00`.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    read = "nothing" if value is None else str(value).lower()
    raise ValueError(f"YAML reads a value here as {read}, where text is wanted; put it in quotes")


def fitted(value: Any, kinds: Collection[str | None]) -> Any:
    """Return a number or truth value for a text, where JSON Schema's types ``kinds`` want one and it reads as one.

    YAML 1.1 takes `1e-3` for a word, and what `--config` of Snakemake holds in brackets is all text.
    """
    if not isinstance(value, str) or "string" in kinds:
        return value
    if re.fullmatch(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?", value, flags=re.IGNORECASE):
        for kind, number in (("integer", int), ("number", float)):
            with suppress(ValueError):
                if kind in kinds:
                    return number(value)
    return WORDS.get(value.lower(), value) if "boolean" in kinds else value
