"""What the discriminative comparators share: a backbone and USB's reference settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from jointdiff.config import ConfigError
from jointdiff.data.source import DataInfo
from jointdiff.method import Method, MethodSettings
from jointdiff.nets.classifier import WIDE_RESNET, TimmClassifier, WideResNet
from jointdiff.nets.codecs import Codec


class ClassifierMethod(Method):
    """A classifier network trained from images and labels."""

    class Settings(MethodSettings):
        """Classic-CV settings of USB (Wang et al. 2022, arXiv 2208.07204)."""

        optimiser: Literal["adamw", "sgd"] = "sgd"  # Nesterov, momentum 0.9
        learning_rate: float = 0.03
        weight_decay: float = 5e-4
        schedule: Literal["constant", "cosine"] = "cosine"
        ema: float = 0.999
        unlabelled_ratio: int = Field(0, ge=0)
        backbone: str = WIDE_RESNET  # or a classifier of timm: densenet121, resnet18, vit_small_patch16_224, ...
        depth: int = 28  # of the wide ResNet: WRN-28-2
        width: int = 2
        pretrained: str | None = None  # timm's: folder or hub id of weights to start from, as timm/resnet18.a1_in1k

    settings: Settings
    net: WideResNet | TimmClassifier

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        sizes = {"channels": data.channels, "outputs": self.task.outputs}
        if settings.backbone != WIDE_RESNET:
            self.net = TimmClassifier(settings.backbone, size=data.size, **sizes)
        elif settings.pretrained is None:
            self.net = WideResNet(depth=settings.depth, width=settings.width, **sizes)
        else:
            raise ValueError(f"pretrained: {WIDE_RESNET} has no published weights; name a backbone of timm beside it")

    @classmethod
    def build(
        cls, data: DataInfo, settings: dict[str, Any], codec: Codec | None = None, saved: Path | None = None
    ) -> Self:
        """Return a new one, with pretrained weights where the settings name some; a saved one has its own."""
        method = super().build(data, settings, codec, saved)
        if saved is None and method.settings.pretrained is not None:
            assert isinstance(method.net, TimmClassifier)
            method.net.load_pretrained(method.settings.pretrained)
        return method

    @property
    def network(self) -> str:
        """Name the backbone, and say where it did not start from scratch."""
        return self.net.name + (", pretrained" if self.settings.pretrained else "")

    def start_from(self, other: Method) -> None:
        """Take over the network of another classifier, all but its head.

        Raises:
            ConfigError: it has no such network, or one of another kind or size.
        """
        if not isinstance(other, ClassifierMethod):
            super().start_from(other)
            return
        mine, theirs = _body(self.net), _body(other.net)
        if {name: value.shape for name, value in mine.items()} != {name: value.shape for name, value in theirs.items()}:
            raise ConfigError(
                f"{type(self).__name__} ({self.net.name}) cannot start from {type(other).__name__} ({other.net.name}): "
                "their networks differ; give both entries the same network in their settings"
            )
        self.net.load_state_dict(theirs, strict=False)

    def logits(self, images: Tensor) -> Tensor:
        """Return scores (N, K) before the sigmoid or softmax."""
        return self.net(images)

    def image_logits(self, images: Tensor) -> Tensor:
        """Return scores (N, K) of images, which are all that it ever sees."""
        return self.logits(images)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D)."""
        return self.net.features(images)

    def feature_layer(self) -> nn.Module:
        """Return the module behind the last maps (N, D, h, w)."""
        return self.net.maps

    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K)."""
        return self.task.probabilities(self.logits(images))

    def logits_of(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of several batches from one pass, so that normalisation sees them together."""
        return self.logits(torch.cat(parts)).split([len(part) for part in parts])


def _body(net: nn.Module) -> dict[str, Tensor]:
    """Return all of a network's state but its head's."""
    return {name: value for name, value in net.state_dict().items() if not name.startswith("head.")}


@contextmanager
def fixed_statistics(net: nn.Module) -> Iterator[None]:
    """Let batch normalisation see a batch without remembering it, for images that nobody would ask about."""
    norms = [(module, module.momentum) for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for module, _ in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in norms:
            module.momentum = momentum


def sharpened(distributions: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) / sum p^(1/T) of distributions (N, M, C): all on the likeliest outcome as T falls to 0."""
    powered = (distributions / distributions.amax(dim=2, keepdim=True)) ** (1.0 / temperature)
    return powered / powered.sum(dim=2, keepdim=True)
