"""Pseudo-label (Lee 2013, ICML workshop on challenges in representation learning)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class PseudoLabel(ClassifierMethod):
    """Train on one's own confident answers about unlabelled images, the same view of which was asked about."""

    class Settings(ClassifierMethod.Settings):
        """USB's classic-CV settings."""

        unlabelled_ratio: int = Field(1, ge=1)
        threshold: float = 0.95  # confidence from which an answer counts
        weight: float = 1.0
        warmup: float = 0.4  # share of the training over which the weight grows from 0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and that against confident answers."""
        labelled, unlabelled = self.logits_of(views.weak(batch.labelled), views.weak(batch.unlabelled))
        target, confident = self.task.pseudo_labels(unlabelled.detach(), threshold=self.settings.threshold)
        weight = self.settings.weight * batch.ramp(self.settings.warmup)
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "pseudo_label": weight * self.task.loss(unlabelled, target, confident).mean(),
        }


METHOD = PseudoLabel
