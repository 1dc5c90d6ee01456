"""MixMatch (Berthelot et al. 2019, arXiv 1905.02249)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines._classifier import ClassifierMethod, fixed_statistics, sharpened
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class MixMatch(ClassifierMethod):
    """Train on mixtures of images, labelled and unlabelled, towards the same mixtures of labels and guesses."""

    class Settings(ClassifierMethod.Settings):
        """USB's classic-CV settings."""

        unlabelled_ratio: int = Field(1, ge=1)
        views: int = Field(2, ge=1)  # K: views of an unlabelled image, whose answers are averaged
        temperature: float = 0.5  # T: sharpens that average
        alpha: float = Field(0.5, ge=0.1)  # of the Beta distribution of the mixing share
        weight: float = 100.0  # lambda_u, of the squared difference of probabilities
        warmup: float = 0.4  # share of the training over which the weight grows from 0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the cross-entropy of mixed labelled images, the squared error of mixed others (Eq. 3-4)."""
        seen = [views.weak(batch.unlabelled) for _ in range(self.settings.views)]
        with torch.no_grad(), fixed_statistics(self.net):
            answers = self.task.distributions(self.logits(torch.cat(seen)))
            average = answers.view(self.settings.views, -1, *answers.shape[1:]).mean(dim=0)
        guess = self.task.as_labels(sharpened(average, self.settings.temperature))
        images, targets = self.mix(
            torch.cat([views.weak(batch.labelled), *seen]),
            torch.cat([batch.labels, *[guess] * self.settings.views]),
        )
        count = len(batch.labelled)
        labelled, unlabelled = self.logits_of(images[:count], images[count:])
        distance = (self.task.probabilities(unlabelled) - targets[count:]).square().nanmean()
        return {
            "supervised": self.task.labelled_loss(labelled, targets[:count]).mean(),
            "consistency": self.settings.weight * batch.ramp(self.settings.warmup) * distance,
        }

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (N, C, H, W) and their targets (N, K) with those of a random other one, each itself the more.

        What is unknown of one of the two is unknown of the mixture.
        """
        alpha = torch.full((len(images),), self.settings.alpha, device=images.device)
        drawn = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        share = torch.maximum(drawn, 1.0 - drawn)  # Eq. 9
        other = torch.randperm(len(images), device=images.device)
        mixed = torch.lerp(images[other], images, share[:, None, None, None])
        return mixed, torch.lerp(targets[other], targets, share[:, None])


METHOD = MixMatch
