"""The contract between methods and everything that trains, evaluates or shows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from jointdiff.task import Task, task_for

if TYPE_CHECKING:
    from jointdiff.data.augment import Views
    from jointdiff.data.source import DataInfo

Losses = dict[str, Tensor]


class MethodSettings(BaseModel):
    """Hyper-parameters of a method, declared in its file with their source. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: to 7/16 pi, as USB
    ema: float = 0.999  # decay of the averaged weights, which alone are evaluated
    unlabelled_ratio: int = 1  # unlabelled images per labelled image; 0 for a method that uses none


@dataclass(frozen=True)
class Batch:
    """What one step sees, already on the device."""

    labelled: Tensor  # (B, C, H, W) in [-1, 1]
    labels: Tensor  # (B, K) in {0, 1}; one-hot for one-of-K
    unlabelled: Tensor  # (ratio * B, C, H, W) in [-1, 1]
    step: int  # optimiser steps done before this one
    steps: int  # optimiser steps in all

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1)."""
        return self.step / max(self.steps, 1)


class Method(nn.Module, ABC):
    """A competitor: named losses to train on and probabilities to be judged by.

    A subclass declares ``Settings`` and builds its networks in ``__init__``. The loop owns devices, precision,
    the optimiser, averaged weights, checkpoints and logging; a method never sees them.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, data: DataInfo, settings: MethodSettings) -> None:
        super().__init__()
        self.data = data
        self.settings = settings
        self.task: Task = task_for(data.labels)

    @abstractmethod
    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return scalar terms whose sum is minimised.

        ``views`` augments images as the data set allows; ``averaged`` is the moving average of this method
        (evaluation mode, no gradients), which is the teacher of teacher-student methods.
        """

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) in [0, 1] for images (N, C, H, W) in [-1, 1]; gradients may flow."""

    def diffusers_parts(self) -> dict[str, SavedPart]:
        """Name the parts that get a folder of their own in a saved model, in the layout of diffusers."""
        return {}

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Method:
        """Load a model folder in evaluation mode; the class is the one named in its config.json."""
        from jointdiff.models import load_model

        return load_model(folder)

    def forward(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the losses (so that a data-parallel wrapper sees the training step)."""
        return self.losses(batch, views, averaged)


@dataclass(frozen=True)
class Counterfactuals:
    """Edited images and the same reconstruction without guidance, both (N, C, H, W) in [-1, 1]."""

    images: Tensor
    control: Tensor
    calls: int  # network evaluations per image


class SavedPart(Protocol):
    """A network or a diffusion process that writes itself as diffusers does."""

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights into a folder."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A method that draws images."""

    def sample(self, labels: Tensor, seeds: Tensor, *, steps: int, sampler: str, guidance: float) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1] for labels (N, K), one integer seed per image."""
        ...


@runtime_checkable
class Explainer(Protocol):
    """A method that edits a finding away or in."""

    def counterfactual(
        self,
        images: Tensor,
        finding: int,
        target: float,
        seeds: Tensor,
        *,
        noise_level: int,
        steps: int,
        guidance: float,
    ) -> Counterfactuals:
        """Return each image as it would look with ``finding`` absent (target 0) or present (target 1)."""
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """A classifier whose last feature maps can be looked at."""

    def feature_layer(self) -> nn.Module:
        """Return the module whose output (N, D, h, w) Grad-CAM weighs and whose pooled output is the feature vector."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D)."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Return scores (N, K) before the sigmoid or softmax."""
        ...


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 images (N, H, W, C) or (N, C, H, W) to float in [-1, 1], keeping the layout."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> Tensor:
    """Map float images in [-1, 1] to uint8, rounding to nearest and clipping."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
