"""What is held against what in tests of faults."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file


def assert_same_training(one: Path, other: Path) -> None:
    """Hold weights and curves of two cells against one another, bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    a, b = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    for part in (one / "model").rglob("diffusion_pytorch_model.safetensors"):
        assert part.read_bytes() == (other / part.relative_to(one)).read_bytes()


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)
