"""The other floor: how often each label occurs, whatever the image shows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses, Method, MethodSettings


class ClassPrior(Method):
    """Answer every image with the frequencies of the labels; AUROC .5, accuracy that of the majority."""

    tunable: ClassVar[tuple[str, ...]] = ()  # nothing is trained
    frequencies: Tensor  # (K,), of the labelled images

    def __init__(self, data: DataInfo, settings: MethodSettings) -> None:
        super().__init__(data, settings)
        contests = self.task.as_distributions(torch.ones(1, self.task.outputs))
        self.register_buffer("frequencies", torch.full((self.task.outputs,), 1.0 / contests.shape[2]))

    def prepare(self, labels: Tensor, unlabelled: int = 0) -> None:
        """Count the labels (N, K), NaN where unknown; what is never known keeps the chance of a guess."""
        super().prepare(labels, unlabelled)
        self.frequencies = torch.where(labels.isnan().all(dim=0), self.frequencies, labels.nanmean(dim=0))

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return nothing: there is nothing to train."""
        return {}

    def predict(self, images: Tensor) -> Tensor:
        """Return the same probabilities (N, K) for every image."""
        return self.frequencies.expand(len(images), -1)


METHOD = ClassPrior
