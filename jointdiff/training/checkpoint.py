"""Resumable state of a training in one safetensors file: everything or nothing, no pickles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from jointdiff.files import atomic_path
from jointdiff.method import Trainable


@dataclass
class TrainingState:
    """All that a training is, between two steps."""

    method: Trainable
    averaged: Trainable
    optimiser: torch.optim.Optimizer | None
    best: dict[str, Tensor]  # averaged weights of the best validation so far
    progress: dict[str, Any]  # plain numbers: step, best score, seconds so far


def save_checkpoint(path: Path, state: TrainingState, *, key: str) -> None:
    """Write the state aside and rename it. ``key`` says what run and code it belongs to."""
    tensors = {f"method/{name}": value for name, value in state.method.state_dict().items()}
    tensors |= {f"averaged/{name}": value for name, value in state.averaged.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    if state.optimiser is not None:
        for index, values in state.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in values.items()}
    # Cloned, since safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as aside:
        save_file(tensors, aside, metadata={"key": key, "progress": json.dumps(state.progress)})


def restore_checkpoint(path: Path, state: TrainingState, *, key: str) -> bool:
    """Bring ``state`` to where the checkpoint left it; say whether there was one for this run and code."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        if metadata["key"] != key:
            return False
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - safe_open is no dict

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
    return True
