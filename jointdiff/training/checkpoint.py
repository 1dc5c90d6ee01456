"""Resumable state of a training in one safetensors file: everything or nothing, no pickles."""

from __future__ import annotations

import json
import logging
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jointdiff.files import atomic_path
from jointdiff.method import Trainable

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that a training is, between two steps."""

    method: Trainable
    averaged: Trainable
    optimiser: torch.optim.Optimizer | None
    best: dict[str, Tensor]  # averaged weights of the best validation so far
    progress: dict[str, Any]  # plain numbers: step, best score, seconds so far
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the terms since the last line of metrics.jsonl


def save_checkpoint(path: Path, state: TrainingState, *, key: str) -> None:
    """Write the state aside and rename it. ``key`` says what run and code it belongs to.

    Raises:
        WriteError: the disk is full or forbids it; an earlier checkpoint is untouched.
    """
    tensors = {f"method/{name}": value for name, value in state.method.state_dict().items()}
    tensors |= {f"averaged/{name}": value for name, value in state.averaged.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    tensors |= {f"sums/{name}": value for name, value in state.sums.items()}
    if state.optimiser is not None:
        for index, values in state.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in values.items()}
    # Cloned, since safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"key": key, "progress": json.dumps({**state.progress, "terms": list(state.sums)})}
    with atomic_path(path) as aside:
        save_file(tensors, aside, metadata={**metadata, "crc32": _checksum(tensors, **metadata)})


def restore_checkpoint(path: Path, state: TrainingState, *, key: str) -> bool:
    """Bring ``state`` to where the checkpoint left it; say whether there was one for this run and code.

    One that is damaged, or of another run or code, is not read, and the log says why: the training starts anew.
    """
    if not path.is_file():
        return False
    try:
        tensors, metadata = read_checkpoint(path)
    except ValueError as error:
        log.warning("The checkpoint %s is damaged (%s): the training starts anew.", path, error)
        return False
    if metadata["key"] != key:
        log.warning(
            "The checkpoint %s was written under other settings, code, images or split (its key is %r, not %r): the "
            "training starts anew.", path, metadata["key"], key,
        )  # fmt: skip
        return False

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.method.load_state_dict(under("method/"))
    state.averaged.load_state_dict(under("averaged/"))
    device = next(iter(state.method.state_dict().values())).device
    state.best = {name: value.to(device) for name, value in under("best/").items()}
    if state.optimiser is not None:
        weights = [weight for group in state.optimiser.param_groups for weight in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in under("optimiser/").items():
            index, entry = name.split("/", 1)
            weight = weights[int(index)]
            if value.shape == weight.shape:  # fused optimisers walk weights and moments in one memory order
                value = torch.empty_like(weight, requires_grad=False).copy_(value)
            moments.setdefault(int(index), {})[entry] = value
        state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.progress = json.loads(metadata["progress"])
    state.sums = {name: tensors[f"sums/{name}"].to(device) for name in state.progress["terms"]}  # in their order
    return True


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a checkpoint's tensors and its metadata: ``key`` and ``progress``.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, UnicodeError) as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    known = {name: (metadata or {}).get(name, "") for name in ("key", "progress")}
    if (metadata or {}).get("crc32") != _checksum(tensors, **known):
        raise ValueError("its content does not have its checksum")
    return tensors, known


def _checksum(tensors: dict[str, Tensor], *, key: str, progress: str) -> str:
    """Return the CRC-32 of all that a checkpoint holds: a few GB/s, and enough against accidents."""
    crc = zlib.crc32(f"{key} {progress}".encode())
    for name, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
