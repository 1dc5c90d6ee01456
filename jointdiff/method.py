"""The contract between methods and everything that trains, evaluates or shows them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from jointdiff.config import ConfigError
from jointdiff.nets.codecs import Codec, Identity
from jointdiff.task import Task, task_for

if TYPE_CHECKING:
    from jointdiff.config import Explanation
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
    unlabelled_ratio: int = Field(1, ge=0)  # unlabelled images per labelled image; 0 for a method that uses none
    # inverse: rare labels weigh more, each class or state the same. logit_adjusted: the labelled loss is that of logits
    # plus the log of how frequent labels are, so that answers are those of a balanced population (Menon et al. 2021,
    # arXiv 2007.07314, Eq. 10 with tau 1).
    class_balance: Literal["none", "inverse", "logit_adjusted"] = "none"


@dataclass(frozen=True)
class Batch:
    """What one step sees, already on the device."""

    labelled: Tensor  # (B, C, H, W) in [-1, 1], or latents
    labels: Tensor  # (B, K) in {0, 1}; one-hot for one-of-K
    unlabelled: Tensor  # (ratio * B, C, H, W), likewise
    step: int  # optimiser steps done before this one
    steps: int  # optimiser steps in all
    labelled_at: Tensor | None = None  # (B,): which of all labelled images each is, for methods that keep a record
    unlabelled_at: Tensor | None = None  # (ratio * B,): likewise of all unlabelled ones, which begin with the labelled

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1)."""
        return self.step / max(self.steps, 1)

    def ramp(self, share: float) -> float:
        """Return a weight in [0, 1] that grows linearly over the first ``share`` of the training."""
        return min(self.progress / share, 1.0) if share else 1.0


class Trainable(nn.Module, ABC):
    """What the training loop trains: named losses, and a number by which to choose among weights.

    A subclass declares ``Settings`` and builds its networks in ``__init__``. The loop owns devices, precision,
    the optimiser, averaged weights, checkpoints and logging; what it trains never sees them.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    sees_labelled: ClassVar[bool] = True  # False: it trains on unlabelled images alone, and none are drawn for it
    # False: its encoder is the same whatever labels it is given. The last weights are then kept, not those that
    # validate best, and methods with fewer labels may begin with it.
    encoder_sees_labels: ClassVar[bool] = True
    # Buffers that hold something of every training image. Checkpoints keep them; the average has them empty, as they
    # are built, and so does a saved model.
    memory: ClassVar[tuple[str, ...]] = ()
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate",)  # settings that a search multiplies (`tuning`)

    def __init__(self, data: DataInfo, settings: MethodSettings) -> None:
        super().__init__()
        self.data = data
        self.settings = settings

    def prepare(self, labels: Tensor, unlabelled: int = 0) -> None:
        """Look at the labels (N, K) of all labelled images and at how many unlabelled ones there are.

        Called once, before training begins or goes on.
        """

    @abstractmethod
    def losses(self, batch: Batch, views: Views, averaged: Any) -> Losses:
        """Return scalar terms whose sum is minimised.

        ``views`` augments images as the data set allows; ``averaged`` is the moving average of this object
        (evaluation mode, no gradients), which is the teacher of teacher-student methods.
        """

    @abstractmethod
    def validate(self, batches: Iterable[Tensor], labels: np.ndarray) -> dict[str, float]:
        """Return what batches of held-out images with labels (N, K) show; the greatest first value wins."""

    @property
    def network(self) -> str:
        """Name the network for tables, as "WRN-28-2"; empty where there is none."""
        return ""

    def learning_rates(self) -> dict[str, float]:
        """Name the parts (attributes) that learn at another rate than the settings say."""
        return {}

    def clipped_together(self) -> list[list[nn.Parameter]]:
        """Return the weights in parts, of each of which the gradient is scaled down to the norm allowed."""
        return [list(self.parameters())]

    def forward(self, batch: Batch, views: Views, averaged: Any) -> Losses:
        """Return the losses (so that a data-parallel wrapper sees the training step)."""
        return self.losses(batch, views, averaged)


class Method(Trainable):
    """A competitor: named losses to train on and probabilities to be judged by.

    One that can work in the latents of an autoencoder says so and takes the codec as a third argument. The loop then
    hands it latents that were computed once, and all others images.
    """

    works_in_latents: ClassVar[bool] = False

    def __init__(self, data: DataInfo, settings: MethodSettings) -> None:
        super().__init__(data, settings)
        self.task: Task = task_for(data.labels)
        self.codec: Codec = Identity(data)

    @classmethod
    def build(
        cls, data: DataInfo, settings: dict[str, Any], codec: Codec | None = None, saved: Path | None = None
    ) -> Self:
        """Return a new one.

        ``saved`` is the model folder that its weights are about to come from, for networks that settings do not build.

        Raises:
            ValueError: settings are unknown or do not fit, or it cannot work in latents.
        """
        checked = cls.Settings.model_validate(settings)
        if codec is None:
            return cls(data, checked)
        if not cls.works_in_latents:
            raise ValueError(f"{cls.__name__} works on images: remove `autoencoder` from its entry")
        return cls(data, checked, codec)  # type: ignore[call-arg]

    def prepare(self, labels: Tensor, unlabelled: int = 0) -> None:
        """Balance the classes where the settings say so."""
        if self.settings.class_balance == "inverse":
            self.task.balance_by(labels)
        elif self.settings.class_balance == "logit_adjusted":
            self.task.adjust_by(labels)

    def start_from(self, other: Method) -> None:
        """Take over what another trained method has learnt, as weights to begin with.

        Raises:
            ConfigError: that is no method to begin with, or its network is another one.
        """
        raise ConfigError(f"{type(self).__name__} cannot start from {type(other).__name__}: remove `start`")

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) in [0, 1] for images (N, C, H, W) in [-1, 1]; gradients may flow."""

    def predict_codes(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) for what the training loop hands over: images, or latents where it has some."""
        return self.predict(codes)

    def validate(self, batches: Iterable[Tensor], labels: np.ndarray) -> dict[str, float]:
        """Return the macro AUROC, 0.5 where no finding can be ranked."""
        return validation_auroc(torch.cat([self.predict_codes(batch) for batch in batches]), labels)

    def diffusers_parts(self) -> dict[str, SavedPart]:
        """Name the parts that get a folder of their own in a saved model, in the layout of diffusers."""
        return {}

    def pipeline(self) -> dict[str, Any] | None:
        """Return the model_index.json with which a pipeline of diffusers reads the saved model, if one does."""
        return None

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Method:
        """Load a model folder in evaluation mode; the class is the one named in its config.json."""
        from jointdiff.models import load_model

        return load_model(folder)


@dataclass(frozen=True)
class Counterfactuals:
    """Edited images and the same reconstruction without guidance, both (N, C, H, W) in [-1, 1]."""

    images: Tensor
    control: Tensor
    spread: Tensor  # (N, H, W): standard deviation of the edit over noises, as a share of the pixel range
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

    def calls_per_step(self, guidance: float) -> int:
        """Return the network evaluations of one sampling step of one image."""
        ...


@runtime_checkable
class Explainer(Protocol):
    """A method that edits a finding away or in."""

    def counterfactual(
        self, images: Tensor, finding: int, target: float, seeds: Tensor, *, how: Explanation
    ) -> Counterfactuals:
        """Return each image as it would look with ``finding`` absent (target 0) or present (target 1)."""
        ...


@runtime_checkable
class Voter(Protocol):
    """A generative classifier, which compares how well each condition explains an image."""

    def trial_errors(self, codes: Tensor, steps: Tensor, noise: Tensor, conditions: Tensor) -> Tensor:
        """Return |eps_hat - eps|^2 (M,), summed, of codes (M, c, h, w) noised at steps (M,) under conditions (M,)."""
        ...


@runtime_checkable
class HasLogits(Protocol):
    """A classifier that answers in one pass, which gradients can follow back to the image."""

    def image_logits(self, images: Tensor) -> Tensor:
        """Return scores (N, K) before the sigmoid or softmax for images (N, C, H, W) in [-1, 1]; gradients flow."""
        ...


@runtime_checkable
class HasMaps(HasLogits, Protocol):
    """A classifier whose last maps can be looked at."""

    def feature_layer(self) -> nn.Module:
        """Return the module whose output (N, D, h, w) Grad-CAM weighs."""
        ...


@runtime_checkable
class HasFeatures(HasMaps, Protocol):
    """A classifier that tells images apart by the mean of its last maps alone."""

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D)."""
        ...


def validation_auroc(scores: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Return the macro AUROC of scores (N, K), 0.5 where no finding can be ranked."""
    from jointdiff.training.selection import macro_auroc

    auroc = macro_auroc(scores.float().cpu().numpy(), labels)
    return {"auroc": auroc if math.isfinite(auroc) else 0.5}


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 images (N, H, W, C) or (N, C, H, W) to float in [-1, 1], keeping the layout."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> Tensor:
    """Map float images in [-1, 1] to uint8, rounding to nearest and clipping."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
