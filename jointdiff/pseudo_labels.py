"""How far a pseudo-label is trusted: rules that weigh each by the confidence behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointdiff.task import Task


class FixedThreshold(nn.Module):
    """Trust what reaches a confidence, and nothing else (FixMatch, Sohn et al. 2020, Eq. 4)."""

    def __init__(self, task: Task, threshold: float) -> None:
        super().__init__()
        self.task, self.threshold = task, threshold

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return hard targets (N, K) and their weights (N, 1) or (N, K), 0 or 1."""
        return self.task.pseudo_labels(logits, threshold=self.threshold)


class SoftThreshold(nn.Module):
    """Trust all, less so the further a confidence lies below the mean (SoftMatch, Chen et al. 2023, Eq. 5-7).

    The weight is a Gaussian of the confidence, truncated above its running mean; mean and variance are kept for each
    finding, or over all classes.

    Args:
        task: one-of-K or multi-label.
        momentum: of the running mean and variance.
        deviations: the Gaussian's width is the standard deviation over this.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, task: Task, *, momentum: float = 0.999, deviations: float = 2.0) -> None:
        super().__init__()
        self.task, self.momentum, self.deviations = task, momentum, deviations
        contests = len(task.contests)
        # At first, a guess is right by chance.
        self.register_buffer("mean", torch.full((contests,), contests / task.conditions))
        self.register_buffer("variance", torch.ones(contests))

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return hard targets (N, K) and their weights (N, 1) or (N, K) in (0, 1]; in training, learn from them."""
        target, _ = self.task.pseudo_labels(logits, threshold=0.0)
        return target, self.weigh(self.task.distributions(logits))

    def weigh(self, distributions: Tensor) -> Tensor:
        """Return the weights (N, M) in (0, 1] of the likeliest outcomes of (N, M, C); in training, learn from them."""
        confidence = distributions.amax(dim=2)
        if self.training:
            self.mean.lerp_(confidence.mean(0), 1.0 - self.momentum)
            # Of a single image there is no unbiased variance.
            self.variance.lerp_(confidence.var(0, correction=min(1, len(confidence) - 1)), 1.0 - self.momentum)
        below = (confidence - self.mean).clamp(max=0.0)
        return torch.exp(-below.square() / (2.0 * self.variance / self.deviations**2))


class UniformAlignment(nn.Module):
    """Divide by what was answered on average, so that no outcome is trusted for being frequent (SoftMatch, Eq. 9).

    Args:
        task: one-of-K or multi-label.
        momentum: of the running mean.
    """

    mean: Tensor

    def __init__(self, task: Task, *, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        contests, outcomes = len(task.contests), len(task.contests[0])
        self.register_buffer("mean", torch.full((contests, outcomes), 1.0 / outcomes))

    def forward(self, distributions: Tensor) -> Tensor:
        """Return distributions (N, M, C) whose mean is nearly uniform; in training, learn from them."""
        if self.training:
            self.mean.lerp_(distributions.mean(dim=0), 1.0 - self.momentum)
        aligned = distributions / (self.mean + 1e-6)
        return aligned / aligned.sum(dim=2, keepdim=True)
