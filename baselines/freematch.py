"""FreeMatch (Wang et al. 2023, arXiv 2205.07246)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses, Method


class FreeMatch(ClassifierMethod):
    """FixMatch whose thresholds follow the confidence of the model, and whose answers are kept diverse."""

    class Settings(ClassifierMethod.Settings):
        """USB's classic-CV settings for CIFAR-10."""

        unlabelled_ratio: int = Field(7, ge=1)
        momentum: float = 0.999  # lambda, of the running means
        weight: float = 1.0
        fairness_weight: float = 0.001  # of the self-adaptive fairness term

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")

    confidence: Tensor  # (M,): running mean of the largest probability (Eq. 5)
    expected: Tensor  # (M, C): running mean of the probabilities (Eq. 6)
    answered: Tensor  # (M, C): running share of each outcome among the answers (Eq. 10)

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        contests, outcomes = len(self.task.contests), len(self.task.contests[0])
        self.register_buffer("confidence", torch.full((contests,), 1.0 / outcomes))
        self.register_buffer("expected", torch.full((contests, outcomes), 1.0 / outcomes))
        self.register_buffer("answered", torch.full((contests, outcomes), 1.0 / outcomes))

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the supervised loss, the consistency of strong views, and how unevenly these are answered."""
        labelled, weak, strong = self.logits_of(
            views.weak(batch.labelled), views.weak(batch.unlabelled), views.strong(batch.unlabelled)
        )
        p = self.task.distributions(weak.detach())
        self.follow(p)
        confidence, answer = p.max(dim=2)
        threshold = self.thresholds().expand(len(p), -1, -1).gather(2, answer[:, :, None])[:, :, 0]
        passed = (confidence >= threshold).float()
        target, _ = self.task.pseudo_labels(weak.detach(), threshold=0.0)
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            "consistency": self.settings.weight * self.task.loss(strong, target, passed).mean(),
            "fairness": self.settings.fairness_weight * self.unfairness(self.task.distributions(strong), passed),
        }

    def follow(self, p: Tensor) -> None:
        """Move the running means towards those of distributions (N, M, C)."""
        rate = 1.0 - self.settings.momentum
        self.confidence.lerp_(p.amax(dim=2).mean(dim=0), rate)
        self.expected.lerp_(p.mean(dim=0), rate)
        self.answered.lerp_(_answers(p).mean(dim=0), rate)

    def thresholds(self) -> Tensor:
        """Return the self-adaptive threshold (M, C) of each outcome (Eq. 7)."""
        return self.confidence[:, None] * self.expected / self.expected.amax(dim=1, keepdim=True)

    def unfairness(self, p: Tensor, passed: Tensor) -> Tensor:
        """Return -H(expected / answered, the same of strong views p (N, M, C) that passed (N, M)) (Eq. 11)."""
        number = passed.sum(dim=0)[:, None]
        chosen = _answers(p) * passed[:, :, None]
        share = chosen.sum(dim=0) / number.clamp(min=1.0)
        mean = (p * passed[:, :, None]).sum(dim=0) / number.clamp(min=1.0)
        cross = _per(self.expected, self.answered) * (_per(mean, share) + 1e-12).log()
        # Where nothing passed there is nothing to be fair about.
        return torch.where(number > 0, cross, 0.0).sum(dim=1).mean()


def _answers(p: Tensor) -> Tensor:
    """Return 1 at the likeliest outcome of distributions (N, M, C), else 0; one_hot would look at the values first."""
    return torch.zeros_like(p).scatter_(2, p.argmax(dim=2, keepdim=True), 1.0)


def _per(p: Tensor, share: Tensor) -> Tensor:
    """Return p / share (M, C), which sum to 1 over the outcomes that occur."""
    ratio = torch.where(share > 0, p / share.clamp(min=1e-12), 0.0)
    return ratio / ratio.sum(dim=1, keepdim=True).clamp(min=1e-12)


METHOD = FreeMatch
