"""Virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines._classifier import ClassifierMethod, fixed_statistics
from jointdiff.data.augment import Views
from jointdiff.method import Batch, Losses, Method


class VAT(ClassifierMethod):
    """Answer the same where the image is changed a little in the direction that changes the answer most (Eq. 5-8)."""

    class Settings(ClassifierMethod.Settings):
        """USB's classic-CV settings, the radius for images in [-1, 1] of any size."""

        unlabelled_ratio: int = Field(1, ge=1)
        # Root mean square change of a pixel. USB's 6 is the norm over 3,072 values in units of CIFAR's deviation, which
        # is a quarter of the range from 0 to 1: 6 / sqrt(3072) * 0.25 * 2.
        radius: float = 0.054
        finite_step: float = 0.001  # root mean square of the change from which the direction's gradient is taken (xi)
        weight: float = 0.3  # of the divergence
        entropy_weight: float = 0.06  # of the entropy of the answers
        warmup: float = 0.4  # share of the training over which the weight grows from 0

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss, the divergence under the worst small change, and the entropy."""
        labelled = self.logits(views.weak(batch.labelled))
        with fixed_statistics(self.net):
            images = views.weak(batch.unlabelled)
            unlabelled = self.logits(images)
            worst = images + self.settings.radius * self.worst_direction(images, unlabelled.detach())
            divergence = self.divergence(unlabelled.detach(), self.logits(worst)).mean()
        log_p = self.task.log_distributions(unlabelled)
        weight = self.settings.weight * batch.ramp(self.settings.warmup)
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "divergence": weight * divergence,
            "entropy": -self.settings.entropy_weight * (log_p.exp() * log_p).sum(dim=2).mean(),
        }

    def worst_direction(self, images: Tensor, answers: Tensor) -> Tensor:
        """Return a change (N, C, H, W) of unit root mean square, by one step of the power iteration (Eq. 9-12)."""
        start = (self.settings.finite_step * _unit(torch.randn_like(images))).requires_grad_()
        with torch.enable_grad():
            change = self.divergence(answers, self.logits(images + start)).sum()
            (gradient,) = torch.autograd.grad(change, start)
        return _unit(gradient)

    def divergence(self, answers: Tensor, other: Tensor) -> Tensor:
        """Return KL(p || q) of logits (N, K) each, averaged over findings (N,)."""
        log_p, log_q = self.task.log_distributions(answers), self.task.log_distributions(other)
        return (log_p.exp() * (log_p - log_q)).sum(dim=2).mean(dim=1)


def _unit(change: Tensor) -> Tensor:
    """Return changes scaled to a root mean square of 1 for each image."""
    # The largest value first: gradients of sure answers are so small that their squares vanish.
    change = change / change.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
    return change / change.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)


METHOD = VAT
