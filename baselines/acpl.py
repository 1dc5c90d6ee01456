"""ACPL, anti-curriculum pseudo-labelling (Liu et al. 2022, CVPR, arXiv 2111.12918)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from baselines._classifier import ClassifierMethod
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.method import Batch, Losses

LEVELS = 3  # of information content: low, medium and high (section 3.1)
AT_ONCE = 1024  # images compared with all others at once, which bounds the memory


class ACPL(ClassifierMethod):
    """Label the unlabelled images that are least like what is known, in stages, by answers and neighbours.

    A stage looks at all images without a label or pseudo-label. Their density is the mean similarity to the nearest
    anchors, and a mixture of three Gaussians tells which of them are informative: those of low density (section 3.1,
    cross-distribution sample informativeness). These get a pseudo-label for good, mixed from the model's answer and
    their neighbours' labels (3.2, informative mixup), and those that are the neighbours of the fewest of their anchors
    become anchors themselves (3.3, anchor set purification). From then on they are trained on like labelled images.

    Where this differs from the paper and the authors' program:

    - The averaged weights look at each image, without augmentation, when it comes by in training, and what they made of
      it last is remembered; the authors go through all images before each stage. What has not come by is not selected.
    - One training with one schedule runs through warm-up and stages; the authors start from new weights at each stage,
      and train each until it validates best. So the warm-up is longer here: what a stage says is for good, and in short
      trainings the first pseudo-labels after the authors' share are guesses.
    - The batch is half of labelled images and half of any, of which those without a label count nothing; the authors
      draw from labelled and pseudo-labelled images alike. So labelled images weigh more here.
    - With few anchors a fixed number of neighbours would be all of them, whose labels say nothing of an image, so that
      it is held to a share of the anchors.
    """

    class Settings(ClassifierMethod.Settings):
        """Those of the paper and of the authors' command for 2 % of ChestX-ray14."""

        unlabelled_ratio: int = Field(1, ge=1)
        neighbours: int = Field(200, ge=1)  # K
        neighbour_share: float = Field(0.12, gt=0.0, le=1.0)  # of the anchors, at most: 200 of 1,730, which are the 2 %
        stages: int = Field(5, ge=1)  # T
        warmup: float = Field(0.5, ge=0.0, lt=1.0)  # share of the training before the first; theirs: 20 of 70 epochs
        weight: float = 1.0  # of the loss of pseudo-labelled images

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "weight")
    memory: ClassVar[tuple[str, ...]] = ("directions", "answers", "targets", "anchors")

    # Of all N training images, the labelled ones first, as they stand in the unlabelled stream.
    directions: Tensor  # (N, D): features as unit vectors, NaN before an image came by
    answers: Tensor  # (N, K): the model's probabilities, likewise
    targets: Tensor  # (N, K): labels and pseudo-labels, NaN where there is none
    anchors: Tensor  # (N,): whether an image is one of those that others are held against

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        self.register_buffer("directions", torch.empty(0, self.net.head.in_features))
        self.register_buffer("answers", torch.empty(0, self.task.outputs))
        self.register_buffer("targets", torch.empty(0, self.task.outputs))
        self.register_buffer("anchors", torch.empty(0, dtype=torch.bool))

    def prepare(self, labels: Tensor, unlabelled: int = 0) -> None:
        """Begin with the labelled images for anchors, and nothing known of any other."""
        super().prepare(labels, unlabelled)
        assert unlabelled >= len(labels), "the unlabelled stream holds the labelled images too"
        self.directions, self.answers, self.targets = (
            torch.full((unlabelled, width), torch.nan, device=labels.device)
            for width in (self.directions.shape[1], self.task.outputs, self.task.outputs)
        )
        self.targets[: len(labels)] = labels
        self.anchors = ~self.targets.isnan().all(dim=1)

    def losses(self, batch: Batch, views: Views, averaged: ClassifierMethod) -> Losses:
        """Return the supervised loss and that of the unlabelled stream's images which have a target by now."""
        assert batch.labelled_at is not None and batch.unlabelled_at is not None
        if batch.step in self.stage_steps(batch.steps):
            self.select()
        self.remember(batch.unlabelled, batch.unlabelled_at, averaged)
        self.remember(batch.labelled, batch.labelled_at, averaged)
        labelled, unlabelled = self.logits_of(views.weak(batch.labelled), views.weak(batch.unlabelled))
        return {
            "supervised": self.task.labelled_loss(labelled, batch.labels).mean(),
            # Without a target an image's loss is 0.
            "pseudo_label": self.settings.weight * self.task.loss(unlabelled, self.targets[batch.unlabelled_at]).mean(),
        }

    def stage_steps(self, steps: int) -> set[int]:
        """Return the steps that begin a stage: the end of the warm-up, and equal parts of what is left."""
        warmup, stages = self.settings.warmup, self.settings.stages
        return {round(steps * (warmup + (1.0 - warmup) * stage / stages)) for stage in range(stages)}

    @torch.no_grad()
    def remember(self, images: Tensor, places: Tensor, averaged: ClassifierMethod) -> None:
        """Keep what the averaged weights make of images (B, C, H, W) that stand at places (B,)."""
        features = averaged.net.features(images)
        self.directions[places] = F.normalize(features.float(), dim=1)
        self.answers[places] = self.task.probabilities(averaged.net.head(features))

    @torch.no_grad()
    def select(self) -> None:
        """Give the most informative images that came by a pseudo-label, and the lonely ones of them as anchors."""
        seen = ~self.directions[:, 0].isnan()
        pool = (seen & self.targets.isnan().all(dim=1)).nonzero()[:, 0]
        anchors = (seen & self.anchors).nonzero()[:, 0]
        if not len(pool) or not len(anchors):
            return
        share = max(round(self.settings.neighbour_share * len(anchors)), 1)
        count = min(self.settings.neighbours, share, len(pool))
        there, known = self.directions[anchors], self.targets[anchors]
        similarity, near = nearest(self.directions[pool], there, count)
        density = similarity.mean(dim=1)
        # Scaled from 0 to 1, as the authors' program does: of features without negative values all are close to 1.
        density = (density - density.min()) / (density.max() - density.min()).clamp(min=1e-12)
        chosen = least_dense(density)
        pool_of_anchor = nearest(there, self.directions[pool], count)[1]
        pool, near, density = pool[chosen], near[chosen], density[chosen, None]
        if not len(pool):
            return
        # The less dense, the more the neighbours' labels count; where none of them is known, the answer alone.
        votes = torch.cat([known[part].nanmean(dim=1) for part in near.split(AT_ONCE)])
        answers = self.answers[pool]
        self.targets[pool] = torch.where(votes.isnan(), answers, torch.lerp(votes, answers, density))
        links = mutual(chosen, near, pool_of_anchor)
        self.anchors[pool] = links == links.min()


def nearest(queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return similarity and place (Q, count) of the keys (N, D) that are most like the queries (Q, D), unit vectors."""
    with torch.autocast(queries.device.type, enabled=False):  # half the bits would make ties
        found = [(part @ keys.T).topk(count, dim=1) for part in queries.split(AT_ONCE)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def least_dense(density: Tensor) -> Tensor:
    """Return the places (S,) of densities (N,) for which the lowest of three Gaussians is the likeliest.

    None are where there are too few different ones to tell three levels.
    """
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    values = density.double().cpu().numpy()[:, None]
    if len(np.unique(values)) < LEVELS:
        return torch.empty(0, dtype=torch.long, device=density.device)
    # A fixed seed and one thread, whose sums have one order: a resumed training is to select the same images.
    with threadpool_limits(1):
        mixture = GaussianMixture(LEVELS, max_iter=1000, random_state=0).fit(values)
    lowest = mixture.predict(values) == mixture.means_[:, 0].argmin()
    return torch.from_numpy(lowest.nonzero()[0]).to(density.device)


def mutual(places: Tensor, near: Tensor, near_of_anchor: Tensor) -> Tensor:
    """Return how many of their nearest anchors (S, k) have the images at places (S,) among their own nearest (A, k)."""
    anchors = len(near_of_anchor)
    there = places[:, None] * anchors + near  # each pair of image and anchor as one number
    back = near_of_anchor * anchors + torch.arange(anchors, device=near.device)[:, None]
    return torch.isin(there, back).sum(dim=1)


METHOD = ACPL
