"""FixMatch (Sohn et al. 2020, arXiv 2001.07685)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class FixMatch(ClassifierMethod):
    """Train on confident pseudo-labels of weak views with strong views (Eq. 3-4)."""

    class Settings(ClassifierMethod.Settings):
        """Section 4 and table 4 of the paper, as in USB."""

        unlabelled_ratio: int = Field(7, ge=1)  # mu: unlabelled images per labelled image
        threshold: float = 0.95  # tau: confidence from which a pseudo-label counts
        weight: float = 1.0  # lambda_u

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and the consistency of strong views with confident weak ones."""
        labelled, weak, strong = self.logits_of(
            views.weak(batch.labelled), views.weak(batch.unlabelled), views.strong(batch.unlabelled)
        )
        target, confident = self.task.pseudo_labels(weak.detach(), threshold=self.settings.threshold)
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * self.task.loss(strong, target, confident).mean(),
        }


METHOD = FixMatch
