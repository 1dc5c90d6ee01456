"""The moving average of a method's weights, which alone is evaluated and sampled from."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch

from jointdiff.method import Trainable

T = TypeVar("T", bound=Trainable)


def averaged_copy(method: T) -> T:
    """Return a frozen copy in evaluation mode, without what is kept of every training image."""
    averaged = copy.deepcopy(method).eval().requires_grad_(False)
    for name in method.memory:
        setattr(averaged, name, getattr(averaged, name)[:0])
    return averaged


@torch.no_grad()
def update_average(averaged: Trainable, method: Trainable, *, decay: float, step: int) -> None:
    """Move the average towards the weights after optimiser step ``step`` (counted from 1).

    The decay grows as (1 + step) / (10 + step) up to ``decay``, so that a short training is not mostly its
    initialisation (as in TensorFlow's ExponentialMovingAverage). Running statistics are averaged like weights; whole
    numbers, such as counters, are copied.
    """
    decay = min(decay, (1.0 + step) / (10.0 + step))
    floats: tuple[list, list] = ([], [])
    for mean, now in zip(_tensors(averaged), _tensors(method), strict=True):
        if isinstance(now, torch.nn.Parameter) and not now.requires_grad:
            continue  # frozen, so equal
        if mean.is_floating_point():
            floats[0].append(mean)
            floats[1].append(now)
        else:
            mean.copy_(now)
    if floats[0]:
        torch._foreach_lerp_(floats[0], floats[1], 1.0 - decay)


def _tensors(method: Trainable) -> list[torch.Tensor]:
    return [*method.parameters(), *(buffer for name, buffer in method.named_buffers() if name not in method.memory)]
