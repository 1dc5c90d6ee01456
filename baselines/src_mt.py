"""SRC-MT, sample relation consistency with Mean Teacher (Liu et al. 2020, IEEE TMI 39:3429, arXiv 2005.07377)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses


class SRCMT(ClassifierMethod):
    """Agree with the moving average of oneself on each image, and on how alike the images of a batch are.

    Two things differ from the authors' program: the teacher answers in evaluation mode, as every average does here, and
    classes weigh the same in the consistency, where theirs weigh inversely to how often they occur in ISIC 2018.
    """

    class Settings(ClassifierMethod.Settings):
        """The authors' released settings; the teacher is the loop's average."""

        ema: float = 0.99
        unlabelled_ratio: int = Field(3, ge=1)  # 12 labelled images in a batch of 48
        weight: float = 1.0  # lambda, of both consistencies
        relation_weight: float = 1.0  # beta, of the relations among them
        warmup: float = 0.3  # share of the training over which the weight grows: 30 of 100 epochs

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: ClassifierMethod) -> Losses:
        """Return the supervised loss and the squared distances to the teacher's probabilities and relations.

        Both are of all images, the labelled ones included.
        """
        images = torch.cat([batch.labelled, batch.unlabelled])
        features = self.net.features(views.weak(images))
        logits = self.net.head(features)
        with torch.no_grad():
            teacher_features = averaged.net.features(views.weak(images))
            teacher = self.task.probabilities(averaged.net.head(teacher_features))
        distance = (self.task.probabilities(logits) - teacher).square().sum(dim=1).mean()
        relation = (relations(features) - relations(teacher_features)).square().sum(dim=1).mean()
        # The sigmoid-shaped ramp of Laine & Aila (2017), from exp(-5) to 1.
        weight = self.settings.weight * math.exp(-5.0 * (1.0 - batch.ramp(self.settings.warmup)) ** 2)
        return {
            "supervised": self.task.labelled_loss(logits[: len(batch.labels)], batch.labels).mean(),
            "consistency": weight * distance,
            "relation": weight * self.settings.relation_weight * relation,
        }


def relations(features: Tensor) -> Tensor:
    """Return how each image relates to all (N, N): the Gram matrix of features (N, D), rows of length 1."""
    with torch.autocast(features.device.type, enabled=False):  # half the bits would drown what differs
        features = features.float()
        return F.normalize(features @ features.T, dim=1)


METHOD = SRCMT
