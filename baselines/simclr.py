"""SimCLR (Chen et al. 2020, arXiv 2002.05709) with a linear probe."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses


class SimCLR(ClassifierMethod):
    """Tell two views of an image from those of all others, and answer by a linear probe of these features.

    No label reaches the encoder: the probe learns from features that are constants to it, its gradient is clipped on
    its own, and the last weights are kept. So other methods may ``start`` from it, whatever labels it was given.
    """

    class Settings(ClassifierMethod.Settings):
        """Appendix B.9 of the paper, on CIFAR-10.

        LARS, the paper's optimiser, is for batches of thousands. USB's SGD (0.03, decay 5e-4, cosine) is also what Chen
        & He (2021, arXiv 2011.10566, appendix D) train contrasts of a few hundred images with.
        """

        unlabelled_ratio: int = Field(7, ge=1)  # as FixMatch: 224 images by default, each in two views, and so its cost
        temperature: float = Field(0.5, gt=0)  # tau: the best of three on CIFAR-10, whatever the batch
        projection: int = Field(128, ge=1)  # outputs of the projection head

    settings: Settings
    encoder_sees_labels: ClassVar[bool] = False

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        width = self.net.head.in_features
        # In training only: what it forgets (colour, place) the features before it keep (section 4.2 of the paper).
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, settings.projection))

    def losses(self, batch: Batch, views: Views, averaged: SimCLR) -> Losses:
        """Return the contrast of unlabelled images and the classification loss of the probe."""
        pairs = views.contrastive(torch.cat([batch.unlabelled, batch.unlabelled]))
        one, other = self.projection(self.net.features(pairs)).chunk(2)
        # The averaged encoder's, which is the one that is asked; it has no gradient and learns no statistics from them.
        features = averaged.features(views.weak(batch.labelled)).detach()
        return {
            "contrast": nt_xent(one, other, temperature=self.settings.temperature),
            "probe": self.task.labelled_loss(self.net.head(features), batch.labels).mean(),
        }

    def clipped_together(self) -> list[list[nn.Parameter]]:
        """Return the probe and the rest: one norm of both would carry the labels to the encoder."""
        probe = list(self.net.head.parameters())
        return [probe, [weight for name, weight in self.named_parameters() if not name.startswith("net.head.")]]


def nt_xent(one: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of N pairs of projections (N, D) (Eq. 1).

    That is the library's supervised contrast (Khosla et al. 2020, arXiv 2004.11362) with each image a class of its own.
    Its ``NTXentLoss`` gives the same but holds all negatives of each pair, 1.5 GB for 224 pairs, and is far slower.
    """
    from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss  # slow to import

    with torch.autocast(one.device.type, enabled=False):  # exponentials of similarities that are nearly equal
        return SelfSupervisedLoss(SupConLoss(temperature=temperature))(one.float(), other.float())


METHOD = SimCLR
