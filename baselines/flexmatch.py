"""FlexMatch (Zhang et al. 2021, arXiv 2110.08263)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses, Method


class FlexMatch(ClassifierMethod):
    """FixMatch with a lower threshold for what is learnt less well: curriculum pseudo-labelling (Eq. 5-7, 11)."""

    class Settings(ClassifierMethod.Settings):
        """Those of the paper, as in USB: FixMatch's, threshold warm-up, convex mapping."""

        unlabelled_ratio: int = Field(7, ge=1)
        threshold: float = 0.95  # tau, of what is learnt best
        weight: float = 1.0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")
    memory: ClassVar[tuple[str, ...]] = ("answers",)

    answers: Tensor  # (U, M): the last confident answer about each unlabelled image, -1 where there was none

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        self.register_buffer("answers", torch.empty(0, len(self.task.contests), dtype=torch.long))

    def prepare(self, labels: Tensor, unlabelled: int = 0) -> None:
        """Begin with no confident answer about any unlabelled image."""
        super().prepare(labels, unlabelled)
        self.answers = torch.full((unlabelled, len(self.task.contests)), -1, device=labels.device)

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and the consistency of strong views with weak ones that pass their threshold."""
        assert batch.unlabelled_at is not None
        labelled, weak, strong = self.logits_of(
            views.weak(batch.labelled), views.weak(batch.unlabelled), views.strong(batch.unlabelled)
        )
        confidence, answer = self.task.distributions(weak.detach()).max(dim=2)
        passed = confidence >= self.thresholds().expand(len(answer), -1, -1).gather(2, answer[:, :, None])[:, :, 0]
        last = self.answers[batch.unlabelled_at]
        self.answers[batch.unlabelled_at] = torch.where(confidence >= self.settings.threshold, answer, last)
        target, _ = self.task.pseudo_labels(weak.detach(), threshold=0.0)
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * self.task.loss(strong, target, passed.float()).mean(),
        }

    def thresholds(self) -> Tensor:
        """Return the threshold (M, C) of each outcome, by how often it was the confident answer so far."""
        given = self.answers.T + 1  # (M, U), 0 where there is none
        counts = given.new_zeros(len(given), 1 + len(self.task.contests[0]))
        counts.scatter_add_(1, given, torch.ones_like(given))
        # Warm-up: as long as most images have no answer, that is what all are held against (Eq. 11).
        share = counts[:, 1:] / counts.amax(dim=1, keepdim=True).clamp(min=1.0)
        return self.settings.threshold * share / (2.0 - share)  # Eq. 7 with the convex mapping of section 3.3


METHOD = FlexMatch
