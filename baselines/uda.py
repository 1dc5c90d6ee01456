"""Unsupervised data augmentation (Xie et al. 2020, arXiv 1904.12848)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines._classifier import ClassifierMethod, sharpened
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class UDA(ClassifierMethod):
    """Answer strong views as sharpened, confident answers about weak ones (section 2)."""

    class Settings(ClassifierMethod.Settings):
        """Those of the paper for CIFAR-10, as in USB."""

        unlabelled_ratio: int = Field(7, ge=1)  # unlabelled images per labelled image
        threshold: float = 0.8  # confidence from which an answer counts
        temperature: float = 0.4  # sharpens the answer
        weight: float = 1.0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and the cross-entropy of strong views with sharpened answers."""
        labelled, weak, strong = self.logits_of(
            views.weak(batch.labelled), views.weak(batch.unlabelled), views.strong(batch.unlabelled)
        )
        answers = self.task.distributions(weak.detach())
        target = self.task.as_labels(sharpened(answers, self.settings.temperature))
        confident = (answers.amax(dim=2) >= self.settings.threshold).float()
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * self.task.loss(strong, target, confident).mean(),
        }


METHOD = UDA
