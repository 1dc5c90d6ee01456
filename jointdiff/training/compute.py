"""How long a training of a given number of floating-point operations is, counted on steps that change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.utils.flop_counter import FlopCounterMode

from jointdiff.config import ConfigError, Training
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Trainable
from jointdiff.training.feed import seed_step


def steps_and_gflop(
    trained: Trainable,
    averaged: Trainable,
    views: Views,
    *,
    plan: Training,
    seed: int,
    batch_of: Callable[[int, int], Batch],  # a share of a step's batch, in a training of so many steps
    shares: int = 1,  # of a step
    autocast: Callable[[], AbstractContextManager],
) -> tuple[int, float]:
    """Return the steps of a training, which ``plan.compute`` decides where it is set, and what they take, GFLOP.

    Steps differ where a term grows or comes now and then, so the first, the middle and the last one are counted and
    averaged. They run on copies, from the weights that training begins with: a resumed training counts the same.
    Convolutions, matrix products and attention count, of forward and backward passes and of passes through the average;
    a multiplication and an addition are two operations.

    Raises:
        ConfigError: there is compute to spend on steps that hold nothing that counts.
    """
    copied, teacher = copy.deepcopy((trained, averaged))

    def gflop_of(step: int, steps: int) -> float:
        seed_step(seed, step)
        batch = batch_of(step, steps)
        copied.train().zero_grad()
        with FlopCounterMode(display=False) as counter:
            with autocast():
                terms = copied(batch, views, teacher)
            torch.stack(list(terms.values())).sum().backward()
        return shares * counter.get_total_flops() / 1e9

    if plan.compute is None and plan.steps == 0:
        return 0, 0.0
    # Where steps are to be found, the first one, which is the same in a training of any length, says about how many.
    first = gflop_of(0, 1 if plan.compute is not None else plan.steps)
    steps = plan.steps if plan.compute is None else _steps(plan.compute, first)
    mean = (first + gflop_of(steps // 2, steps) + gflop_of(steps - 1, steps)) / 3.0
    if plan.compute is not None:
        steps = _steps(plan.compute, mean)
    return steps, steps * mean


def _steps(compute: float, each: float) -> int:
    if not each:
        raise ConfigError("training.compute: the method's steps hold no operations that could be counted; use steps")
    return max(1, round(compute / each))
