"""The floor: scores that know nothing of the image."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from torch import Tensor

from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses, Method, MethodSettings


class RandomScores(Method):
    """Answer every image with probabilities drawn from its bytes and the run's seed."""

    tunable: ClassVar[tuple[str, ...]] = ()  # nothing is trained
    seed: Tensor  # drawn with the weights, and saved like them

    def __init__(self, data: DataInfo, settings: MethodSettings) -> None:
        super().__init__(data, settings)
        self.register_buffer("seed", torch.randint(2**62, ()))

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return nothing: there is nothing to train."""
        return {}

    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) that are the same for the same image in any batch."""
        drawn = []
        for image in images.float().cpu():
            content = hashlib.blake2b(image.numpy().tobytes(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int(self.seed) ^ int.from_bytes(content, "little"))
            drawn.append(torch.randn(self.task.outputs, generator=generator))
        return self.task.probabilities(torch.stack(drawn).to(images.device))


METHOD = RandomScores
