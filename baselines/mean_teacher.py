"""Mean Teacher (Tarvainen & Valpola 2017, arXiv 1703.01780)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class MeanTeacher(ClassifierMethod):
    """Agree with the moving average of oneself on another view of the same image (Eq. 1)."""

    class Settings(ClassifierMethod.Settings):
        """USB's classic-CV settings; the teacher is the loop's average with decay ``ema``."""

        ema: float = 0.999
        unlabelled_ratio: int = Field(1, ge=1)
        weight: float = 50.0  # of the squared difference of probabilities
        warmup: float = 0.4  # share of the training over which the weight grows from 0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and the squared distance to the teacher's probabilities."""
        labelled, student = self.logits_of(views.weak(batch.labelled), views.weak(batch.unlabelled))
        with torch.no_grad():
            teacher = averaged.predict(views.weak(batch.unlabelled))
        distance = (self.task.probabilities(student) - teacher).square().mean()
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * batch.ramp(self.settings.warmup) * distance,
        }


METHOD = MeanTeacher
