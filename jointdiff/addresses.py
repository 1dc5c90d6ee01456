"""Addresses as they may be shown: what stands in a log, a message or a file lets nobody in."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

# Variables whose values MLflow and PostgreSQL's client take for secrets.
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")

# The user of an address and a password, which may hold a slash or an @ that should be quoted; a port is none.
_USER = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/:?#]+:(?!\d*(?:[/?#\s]|$))[^\s@]*)@")
_PASSWORD = re.compile(r"://[^\s/:?#@]*:(?!\d*(?:[/?#]|$))\S*@")
_TOKEN = re.compile(
    r"([?&;][^=&\s]*(?:token|key|sig|secret|passw|pwd|credential|auth)[^=&\s]*=)[^&\s#]*", re.IGNORECASE
)


def holds_password(address: str) -> bool:
    """Say whether an address bears a password or token, before its host or among its options."""
    return bool(_PASSWORD.search(address) or _TOKEN.search(address))


def without_secrets(text: str) -> str:
    """Return a text without the users and tokens of the addresses in it, and without the environment's secrets."""
    text = _TOKEN.sub(r"\1***", _USER.sub("***@", text))
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return text
