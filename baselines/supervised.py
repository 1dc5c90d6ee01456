"""The lower control (few labels) and, with every label, the upper one."""

from __future__ import annotations

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class Supervised(ClassifierMethod):
    """Train on the labelled images alone."""

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the classification loss of weak views."""
        return {"supervised": self.task.labelled_loss(self.logits(views.weak(batch.labelled)), batch.labels).mean()}


METHOD = Supervised
