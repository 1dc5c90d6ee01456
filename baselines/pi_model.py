"""Pi-model (Laine & Aila 2017, arXiv 1610.02242)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class PiModel(ClassifierMethod):
    """Agree with oneself on two views of the same image (section 2.1)."""

    class Settings(ClassifierMethod.Settings):
        """USB's classic-CV settings."""

        unlabelled_ratio: int = Field(1, ge=1)
        weight: float = 10.0  # of the squared difference of probabilities
        warmup: float = 0.4  # share of the training over which the weight grows from 0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and the squared distance between the answers about two views."""
        labelled, one, other = self.logits_of(
            views.weak(batch.labelled), views.weak(batch.unlabelled), views.weak(batch.unlabelled)
        )
        distance = (self.task.probabilities(other) - self.task.probabilities(one).detach()).square().mean()
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * batch.ramp(self.settings.warmup) * distance,
        }


METHOD = PiModel
