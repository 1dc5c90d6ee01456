"""The backward pass of one step, cut into shares of its batch: in turn in one process, at once in several, or both.

A batch is cut into ``training.micro_batches`` shares of equal size, and what is done with them does not depend on who
does it: two processes with a share each give what one process gives with both, to rounding. The loss is the mean over
shares. Noise and views are drawn, batches normalised and running means followed within a share; so the number of
shares belongs to an experiment, the number of processes does not.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from jointdiff.config import ConfigError
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Trainable
from jointdiff.training.feed import seed_step

log = logging.getLogger(__name__)
T = TypeVar("T")


class Shares:
    """How the batches of a training are cut, and the gradients, buffers and terms of a whole step.

    Args:
        trained: what is trained, whose buffers are kept equal in all processes.
        accelerator: of this process.
        seed: of the training.
        count: shares of a step.
        batch_size: labelled images of a step, of which each share has as many.

    Raises:
        ConfigError: the processes cannot have as many shares each, or the method keeps a record of every image, which
            shares would write at the same time.
    """

    def __init__(self, trained: Trainable, *, accelerator: Accelerator, seed: int, count: int, batch_size: int) -> None:
        self.trained, self.accelerator, self.seed = trained, accelerator, seed
        self.wrapped: Any = trained
        assert batch_size % count == 0, (batch_size, count)
        self.count, self.batch_size = count, batch_size
        processes = accelerator.num_processes
        if count % processes:
            raise ConfigError(
                f"training.micro_batches: {count} cannot be shared among {processes} processes; use a multiple of "
                f"{processes}. It is part of the experiment, since each part has its own noise and batch statistics"
            )
        if count > 1 and trained.memory:
            raise ConfigError(
                f"training.micro_batches: {type(trained).__name__} keeps a record of every image, which parts of a "
                "batch cannot share; use 1, and one process"
            )
        self.buffers: list[Tensor] = []
        self.before: list[Tensor] = []

    def prepare(self, optimiser: torch.optim.Optimizer) -> Any:
        """Wrap what is trained for the processes there are, and return the optimiser for it."""
        self.wrapped, prepared = self.accelerator.prepare(self.trained, optimiser)
        # Only now, since a wrapper may put other tensors in their places.
        self.buffers = [] if self.trained.memory else list(self.trained.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]
        return prepared

    def backward(
        self, step: int, batch_of: Callable[[int, int], Batch], views: Views, averaged: Any
    ) -> dict[str, Tensor]:
        """Leave the gradient of a step in the weights and return its terms and their sum, ``loss``, on the device.

        ``batch_of`` gives a share of the step's batch, out of so many.

        Raises:
            ConfigError: the device has not enough memory for a single image.
        """
        return self.fitting(lambda: self._backward(step, batch_of, views, averaged))

    def fitting(self, action: Callable[[], T]) -> T:
        """Do what needs memory; where the device has not enough, with smaller shares from now on, which is said."""
        _copy(self.buffers, self.before)
        while True:
            try:
                return action()
            except torch.OutOfMemoryError as error:
                said = str(error).partition("\n")[0]
            # Only here has the exception let go of what it held.
            self.trained.zero_grad(set_to_none=True)
            _copy(self.before, self.buffers)
            gc.collect()
            torch.cuda.empty_cache()
            self._use_smaller(said)

    def _use_smaller(self, said: str) -> None:
        size = self.batch_size // self.count
        if self.accelerator.num_processes > 1 or self.trained.memory or size == 1:
            raise ConfigError(
                f"training.batch_size: the device has not enough memory for {size} labelled image(s) at a time and "
                f"what the method adds to them ({said}); raise training.micro_batches where the method allows it, or "
                "use a smaller batch or network"
            )
        self.count = next(n for n in range(2 * self.count, self.batch_size + 1) if self.batch_size % n == 0)
        log.warning(
            "The device has not enough memory for %d labelled images at a time and what the method adds to them. A "
            "step goes on to learn from %d, in %d parts of %d. `training.micro_batches: %d` says so from the start.",
            size, self.batch_size, self.count, self.batch_size // self.count, self.count,
        )  # fmt: skip

    def _backward(
        self, step: int, batch_of: Callable[[int, int], Batch], views: Views, averaged: Any
    ) -> dict[str, Tensor]:
        each = self.count // self.accelerator.num_processes
        first = self.accelerator.process_index * each
        sums: dict[str, Tensor] = {}
        moved: list[Tensor] = []  # how far the shares so far have moved the buffers, added up
        for share in range(first, first + each):
            if share > first:  # each finds the running means as the step before left them
                _copy(self.before, self.buffers)
            seed_step(self.seed, step, share if self.count > 1 else None)
            last = share == first + each - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                terms = self.wrapped(batch_of(share, self.count), views, averaged)
                loss = torch.stack(list(terms.values())).sum()
                self.accelerator.backward(loss / each)
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            if self.count > 1:
                moves = [now.detach() - before for now, before in self._running()]
                moved = [sum_ + move for sum_, move in zip(moved, moves, strict=True)] if moved else moves
        if self.count == 1:
            return sums
        *moved, terms_sum = self._mean([*moved, torch.stack([value.float() for value in sums.values()])])
        for (now, before), move in zip(self._running(), moved, strict=True):
            now.copy_(before + move)
        return dict(zip(sums, terms_sum.unbind(), strict=True))

    def _running(self) -> list[tuple[Tensor, Tensor]]:
        """Pair the buffers that are averaged with what they were before the step; whole numbers are the same in all."""
        return [(now, old) for now, old in zip(self.buffers, self.before, strict=True) if now.is_floating_point()]

    def _mean(self, sums: list[Tensor]) -> list[Tensor]:
        """Return the means over all shares of what this process has added up, one message for all."""
        flat = torch.cat([value.flatten().float() for value in sums])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(flat)
        parts = (flat / self.count).split([value.numel() for value in sums])
        return [part.view_as(value).to(value.dtype) for part, value in zip(parts, sums, strict=True)]


@torch.no_grad()
def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    if values:
        torch._foreach_copy_(into, values)
