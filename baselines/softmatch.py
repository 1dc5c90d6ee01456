"""SoftMatch (Chen et al. 2023, arXiv 2301.10921)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses, Method
from jointdiff.pseudo_labels import SoftThreshold, UniformAlignment


class SoftMatch(ClassifierMethod):
    """FixMatch that uses every answer, weighted by a truncated Gaussian of its confidence (Eq. 5-9)."""

    class Settings(ClassifierMethod.Settings):
        """Those of the paper, as in USB."""

        unlabelled_ratio: int = Field(7, ge=1)
        deviations: float = 2.0  # n_sigma: the Gaussian's width is the standard deviation over this
        momentum: float = 0.999  # of the running means
        weight: float = 1.0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        self.trust = SoftThreshold(self.task, momentum=settings.momentum, deviations=settings.deviations)
        self.align = UniformAlignment(self.task, momentum=settings.momentum)

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss and the weighted consistency of strong views with weak ones."""
        labelled, weak, strong = self.logits_of(
            views.weak(batch.labelled), views.weak(batch.unlabelled), views.strong(batch.unlabelled)
        )
        # Alignment decides how far an answer is trusted, not what the answer is.
        weights = self.trust.weigh(self.align(self.task.distributions(weak.detach())))
        target, _ = self.task.pseudo_labels(weak.detach(), threshold=0.0)
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * self.task.loss(strong, target, weights).mean(),
        }


METHOD = SoftMatch
