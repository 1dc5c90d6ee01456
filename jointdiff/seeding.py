"""Counter-based randomness: a number depends on what it is for, never on what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for one purpose, such as ``derive(0, "noise", step)``."""
    text = "/".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a generator for one purpose, independent of every other one."""
    return np.random.Generator(np.random.Philox(derive(seed, *purpose)))
