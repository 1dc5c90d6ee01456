"""Frozen diffusion features (DDAE: Xiang et al. 2023, arXiv 2303.09769; Baranchuk et al. 2022, arXiv 2112.03126)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.diffusion.method import UNetMethod
from jointdiff.diffusion.process import STEPS, noise_for
from jointdiff.method import Batch, Losses, validation_auroc
from jointdiff.nets.codecs import Codec


class DiffusionFeatures(UNetMethod):
    """A U-Net that learns from denoising alone, and probes on its pooled maps, of which validation chooses one.

    There is a probe for every map of the encoder, the middle and the decoder, at every noise level. All of them learn
    from the maps of the averaged U-Net, which is the one that is evaluated, and none changes it. In the last part of
    the training the U-Net rests, so that the probes end on features that no longer move; weights of before are not
    chosen, however lucky one of the many probes was on few validation images.
    """

    class Settings(UNetMethod.Settings):
        """The U-Net of ``joint``, and little noise, at which both papers find the best features."""

        noise_levels: tuple[Annotated[int, Field(ge=0, lt=STEPS)], ...] = Field((0, 50, 100, 200), min_length=1)
        probe: Literal["linear", "mlp"] = "linear"  # mlp: one hidden layer, as wide as what is pooled
        pooling: Literal["avg", "max", "both"] = "avg"  # of each map; Xiang et al. average
        probe_learning_rate: float = 1e-3
        probe_share: float = Field(0.25, gt=0, lt=1)  # of the training, at its end: the U-Net rests

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "probe_learning_rate")
    resting: Tensor  # (), 1 once the U-Net rests
    chosen: Tensor  # (2,): which map, in the order of computation, and which of the noise levels

    def __init__(self, data: DataInfo, settings: Settings, codec: Codec | None = None) -> None:
        super().__init__(data, settings, codec)
        sides, self.levels = 2 if settings.pooling == "both" else 1, len(settings.noise_levels)
        self.probes = nn.ModuleList(
            Probes(
                sides * width,
                levels=self.levels,
                outputs=self.task.outputs,
                hidden=settings.probe == "mlp",
            )
            for width in (*self.unet.map_widths, *self.unet.decoder_widths)
        )
        # Whole numbers, which the average copies.
        self.register_buffer("resting", torch.zeros((), dtype=torch.long))
        self.register_buffer("chosen", torch.zeros(2, dtype=torch.long))

    def learning_rates(self) -> dict[str, float]:
        """Name the parts that learn at another rate."""
        return {"probes": self.settings.probe_learning_rate}

    # --- Training ---------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, views: Views, averaged: DiffusionFeatures) -> Losses:
        """Return the denoising term while the U-Net learns, and the mean classification loss of all probes."""
        terms, resting = {}, batch.progress >= 1.0 - self.settings.probe_share
        self.resting.fill_(resting)
        if not resting:
            codes = self.codes_of(views.flip(batch.unlabelled))
            steps = torch.randint(STEPS, (len(codes),), device=codes.device)
            noise = torch.randn_like(codes)
            output = self.unet(self.process.add_noise(codes, noise, steps), steps)
            terms["denoising"] = (output.float() - self.process.target(codes, noise, steps)).square().mean()

        with torch.no_grad():  # no label reaches the U-Net
            codes = self.codes_of(views.weak(batch.labelled)).repeat_interleave(self.levels, dim=0)
            features = [self.pool(m) for m in averaged.maps(codes, noise=torch.randn_like(codes))]
        logits = self.judge(features).flatten(0, 2)
        labels = batch.labels.repeat_interleave(len(logits) // len(batch.labels), dim=0)
        terms["probing"] = self.task.labelled_loss(logits, labels).mean()
        return terms

    # --- Features ---------------------------------------------------------------------------------------------------

    def maps(self, codes: Tensor, *, noise: Tensor, levels: tuple[int, ...] | None = None) -> Iterator[Tensor]:
        """Yield every map (N, D, h, w) of codes (N, c, h, w) noised at each of the levels in turn."""
        levels = levels or self.settings.noise_levels
        steps = torch.tensor(levels, device=codes.device).repeat(len(codes) // len(levels))
        encoding = self.unet.encode(self.process.add_noise(codes, noise, steps), steps)
        yield from encoding.maps
        yield from self.unet.decoder_maps(encoding)

    def pool(self, values: Tensor) -> Tensor:
        """Return the pooled vector (N, D), or (N, 2 D), of a map (N, D, h, w)."""
        values = values.flatten(2).float()
        kinds = {"avg": [values.mean(dim=2)], "max": [values.amax(dim=2)]}
        kinds["both"] = kinds["avg"] + kinds["max"]
        return torch.cat(kinds[self.settings.pooling], dim=1)

    def noise_at(self, levels: tuple[int, ...], codes: Tensor) -> Tensor:
        """Return the noise (L, c, h, w) of each level that every image gets when it is asked about."""
        return noise_for(torch.tensor(levels), tuple(codes.shape[1:]), purpose="features").to(codes)

    def judge(self, features: list[Tensor]) -> Tensor:
        """Return the logits (N, M, L, K) of all probes for pooled maps, each (N * L, D), image by image."""
        each = [probe(x.unflatten(0, (-1, self.levels))) for probe, x in zip(self.probes, features, strict=True)]
        return torch.stack(each, dim=1)

    # --- Classification ---------------------------------------------------------------------------------------------

    def candidates(self, codes: Tensor) -> Tensor:
        """Return the logits (N, M, L, K) of all probes for codes, each noise level with its fixed noise."""
        noise = self.noise_at(self.settings.noise_levels, codes).repeat(len(codes), 1, 1, 1)
        repeated = codes.repeat_interleave(self.levels, dim=0)
        return self.judge([self.pool(m) for m in self.maps(repeated, noise=noise)])

    def validate(self, batches: Iterable[Tensor], labels: np.ndarray) -> dict[str, float]:
        """Choose the probe of the greatest macro AUROC, of equals the one of the least loss; return its AUROC.

        While the U-Net learns, another value comes first, which is less than any that follows.
        """
        # In parts, since every image is asked about at every noise level.
        parts = (part for batch in batches for part in self.codes_of(batch).tensor_split(self.levels))
        logits = torch.cat([self.candidates(part) for part in parts if len(part)])
        known = torch.from_numpy(labels).to(logits)

        def worth(place: tuple[int, int]) -> tuple[float, float]:
            answers = logits[:, place[0], place[1]]
            auroc = validation_auroc(self.task.probabilities(answers), labels)["auroc"]
            return auroc, -self.task.loss(answers, known).mean().item()

        best = max(np.ndindex(logits.shape[1], logits.shape[2]), key=worth)
        self.chosen.copy_(torch.tensor(best))
        level = self.settings.noise_levels[best[1]]
        found = {"auroc": worth(best)[0], "probed_map": float(best[0]), "noise_level": float(level)}
        return found if self.resting else {"resting": 0.0, **found}

    def probabilities(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) of the chosen probe; nothing behind its map is computed."""
        place, level = self.chosen.tolist()
        levels = (self.settings.noise_levels[level],)
        maps = self.maps(codes, noise=self.noise_at(levels, codes).expand_as(codes), levels=levels)
        features = self.pool(next(islice(maps, place, None)))
        return self.task.probabilities(self.probes[place](features[:, None], slice(level, level + 1))[:, 0])

    # --- Generation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, *, steps: int, sampler: str, guidance: float) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1] that follow no label: what was learnt from denoising alone has none.

        ``labels`` and ``guidance`` are ignored.
        """
        return self.draw(seeds, self.unet, steps=steps, sampler=sampler)

    def calls_per_step(self, guidance: float) -> int:
        """Return 1, whatever the guidance."""
        return 1


class Probes(nn.Module):
    """One probe of a map for each noise level, side by side: standardise, then one or two layers.

    Standardising without weights lets features of any scale learn at one rate (as He et al. 2022, MAE, probe).

    Args:
        width: of the features.
        levels: number of noise levels.
        outputs: number of logits K.
        hidden: whether there is a hidden layer, as wide as the features.
    """

    mean: Tensor  # (L, D), running
    variance: Tensor  # (L, D), running

    def __init__(self, width: int, *, levels: int, outputs: int, hidden: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(levels, width))
        self.register_buffer("variance", torch.ones(levels, width))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for wide in (width, outputs) if hidden else (outputs,):
            # A hidden layer begins as nn.Linear does, the answers begin without an opinion.
            scale = width**-0.5 if len(self.weights) < hidden else 0.0
            self.weights.append(nn.Parameter(torch.empty(levels, width, wide).uniform_(-scale, scale)))
            self.biases.append(nn.Parameter(torch.zeros(levels * wide)))  # flat, since what is flat is not decayed

    def forward(self, features: Tensor, levels: slice = slice(None)) -> Tensor:
        """Return logits (N, L, K) of features (N, L, D) at some of the levels."""
        running = self.mean[levels].flatten(), self.variance[levels].flatten()
        x = F.batch_norm(features.flatten(1), *running, training=self.training).view_as(features)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.leaky_relu(x) if index else x
            x = torch.einsum("nld,ldk->nlk", x, weight[levels]) + bias.view(len(weight), -1)[levels]
        return x


METHOD = DiffusionFeatures
