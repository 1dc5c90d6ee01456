"""Addresses as they may be shown: what stands in a log, a message or a file holds no password."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

# Variables whose values MLflow and PostgreSQL's client take for secrets.
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")

_USER = re.compile(r"(?<=://)(?:[^\s/@:]*:[^\s@]*|[^\s/]*)@")  # a password may hold a slash that should be quoted
_QUERY = re.compile(r"((?:password|passwd|token|secret)=)[^\s&'\"]+", re.IGNORECASE)


def holds_password(address: str) -> bool:
    """Say whether an address bears a password, before its host or among its options."""
    return bool(re.search(r"://[^/@:]*:[^@]*@", address) or _QUERY.search(address))


def without_secrets(text: str) -> str:
    """Return a text without the users and passwords of the addresses in it, and without the environment's secrets."""
    text = _QUERY.sub(r"\1***", _USER.sub("", text))
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return text
