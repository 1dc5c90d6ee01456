"""What moves the weights: the optimiser with its groups, and the share of the rate that each step takes."""

from __future__ import annotations

import math

import torch

from jointdiff.method import MethodSettings, Trainable


def build_optimiser(trained: Trainable) -> torch.optim.Optimizer | None:
    """Return the optimiser that the settings name, over all that learns; None where nothing does."""
    settings, other = trained.settings, trained.learning_rates()
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in trained.named_parameters():
        if weight.requires_grad:
            rate = other.get(name.partition(".")[0], settings.learning_rate)
            # Norms and biases are not decayed, as in USB.
            groups.setdefault((rate, settings.weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
    if not groups:
        return None
    kinds = [
        {"params": weights, "lr": rate, "base": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(kinds, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(kinds, fused=True)


def schedule(settings: MethodSettings, *, step: int, steps: int) -> float:
    """Return the share of the learning rate that a step takes."""
    return math.cos(7.0 * math.pi / 16.0 * step / steps) if settings.schedule == "cosine" else 1.0
