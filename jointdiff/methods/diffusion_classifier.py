"""A conditional diffusion model as a classifier (Favero et al. 2025, arXiv 2502.03687; Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from jointdiff.config import Explanation
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.diffusion.editing import edit, in_turn
from jointdiff.diffusion.method import COMPONENTS, DiffusionMethod
from jointdiff.diffusion.process import ContinuousProcess, DiscreteProcess, Process, noise_for
from jointdiff.method import Batch, Counterfactuals, Losses, validation_auroc
from jointdiff.nets.codecs import Codec
from jointdiff.nets.dit import DiT
from jointdiff.nets.stable_diffusion import StableDiffusion, prompts_for
from jointdiff.nets.unet import UNet

AT_ONCE = 512  # inputs of the network at most, since every image comes once for each condition


def log_odds(evidence: Tensor) -> Tensor:
    """Return log p - log (1 - p) of p = softmax of ``evidence`` (N, C), which never saturates."""
    own = torch.eye(evidence.shape[1], dtype=torch.bool, device=evidence.device)
    others = evidence[:, None].masked_fill(own, -torch.inf).logsumexp(dim=2)
    return evidence - others


class DiffusionClassifier(DiffusionMethod):
    """Which condition lets the model estimate the noise in an image best? Errors over trials give votes."""

    class Settings(DiffusionMethod.Settings):
        """The authors' settings for 256 px, where the entry asks for the wavelet codec."""

        learning_rate: float = 1e-4
        weight_decay: float = 0.01
        ema: float = 0.9999
        unlabelled_ratio: int = Field(1, ge=0)  # unlabelled images per labelled one; they have no condition
        backbone: Literal["unet", "dit", "stable_diffusion"] = "unet"
        width: int = 128  # channels of the U-Net's first level, or of every layer of the DiT
        multipliers: tuple[int, ...] = (1, 2, 4, 4)  # U-Net: channels of each level, times the width
        blocks: int = 2  # U-Net: residual blocks per level
        attention_at: tuple[int, ...] = (32, 16)  # U-Net: sides of the maps with self-attention, pixels
        dropout: float = 0.0  # U-Net: in the residual blocks
        patch: int = 4  # DiT: side of a patch, in pixels of the codes
        depth: int = 12  # DiT: number of layers
        heads: int = 12  # DiT: of each attention
        pretrained: str | None = None  # Stable Diffusion: folder or hub id of the pipeline
        present: str = "an image of {label}"  # Stable Diffusion: the text for a class, or for a finding's presence
        absent: str = "an image without {label}"  # Stable Diffusion: the text for a finding's absence
        tuning: Literal["full", "lora", "none"] = "full"  # Stable Diffusion: what is trained
        lora_rank: int = 16
        label_dropout: float = 0.15  # share of the labelled images whose label is withheld
        snr_limit: float = 5.0  # the loss on the noise is weighted by 1 / (1 + min(SNR, limit))
        quick_trials: int = 16  # trials behind `predict`, which validation and explanations ask

    settings: Settings
    unet: UNet | DiT | StableDiffusion
    denoiser: ClassVar[tuple[str, str]] = (COMPONENTS, "ConditionalDenoiser")
    process: Process

    def __init__(
        self, data: DataInfo, settings: Settings, codec: Codec | None = None, net: StableDiffusion | None = None
    ) -> None:
        if settings.class_balance != "none":
            raise ValueError("class_balance: a diffusion classifier has no loss over labels that could be balanced")
        super().__init__(data, settings, codec)
        channels, size, conditions = self.codec.channels, self.codec.size, self.task.conditions + 1
        self.process = ContinuousProcess(size, clip=self.codec.bounded)
        if settings.backbone == "unet":
            self.unet = UNet(
                channels=channels,
                size=size,
                width=settings.width,
                multipliers=settings.multipliers,
                blocks=settings.blocks,
                attention_at=settings.attention_at,
                dropout=settings.dropout,
                conditions=conditions,
            )
        elif settings.backbone == "dit":
            self.unet = DiT(
                channels=channels,
                size=size,
                patch=settings.patch,
                width=settings.width,
                depth=settings.depth,
                heads=settings.heads,
                conditions=conditions,
            )
        else:
            self.unet = net or self._foundation(settings)
            self.process = DiscreteProcess(self.unet.schedule, prediction=self.unet.prediction, clip=False)

    @classmethod
    def build(
        cls, data: DataInfo, settings: dict[str, Any], codec: Codec | None = None, saved: Path | None = None
    ) -> Self:
        """Return a new one, or a foundation model that was saved, without the pipeline that it came from."""
        checked = cls.Settings.model_validate(settings)
        if saved is not None and checked.backbone == "stable_diffusion":
            return cls(data, checked, codec, StableDiffusion.from_saved(saved / "unet"))
        return cls(data, checked, codec)

    @property
    def network(self) -> str:
        """Name the backbone."""
        return self.unet.name

    # --- Training ---------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, views: Views, averaged: DiffusionClassifier) -> Losses:
        """Return the weighted error of the noise estimate, labelled images under their labels, others under none."""
        # The same views of both: what only labelled images went through, a condition would come to stand for.
        codes = self.codes_of(views.weak(torch.cat([batch.labelled, batch.unlabelled])))
        conditions = self.task.draw_conditions(batch.labels)
        none = self.task.conditions
        dropped = torch.rand(len(conditions), device=codes.device) < self.settings.label_dropout
        conditions = torch.cat(
            [conditions.masked_fill(dropped, none), conditions.new_full((len(batch.unlabelled),), none)]
        )
        steps = self.process.steps_at(torch.rand(len(codes), device=codes.device))
        noise = torch.randn_like(codes)
        noisy = self.process.add_noise(codes, noise, steps)
        estimate = self.process.noise_from(self.unet(noisy, steps, conditions).float(), noisy, steps)
        signal = self.process.signal(steps)
        weight = 1.0 / (1.0 + (signal / (1.0 - signal)).clamp(max=self.settings.snr_limit))
        return {"denoising": ((estimate - noise).square().mean(dim=(1, 2, 3)) * weight).mean()}

    # --- Classification ---------------------------------------------------------------------------------------------

    def trial_errors(self, codes: Tensor, steps: Tensor, noise: Tensor, conditions: Tensor) -> Tensor:
        """Return |eps_hat - eps|^2 (M,), summed, of codes (M, c, h, w) noised at steps (M,) under conditions (M,)."""
        noisy = self.process.add_noise(codes, noise, steps)
        estimate = self.process.noise_from(self.unet(noisy, steps, conditions).float(), noisy, steps)
        return (estimate - noise).square().sum(dim=(1, 2, 3))

    def probabilities(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) by the mean error over a few trials, the same ones for every image."""
        return self.task.outcome([evidence.softmax(dim=1) for evidence in self._evidence(codes)])

    def validate(self, batches: Iterable[Tensor], labels: np.ndarray) -> dict[str, float]:
        """Return the macro AUROC of log odds: probabilities of large images end at 1, where AUROC would see ties."""
        found = [self.task.outcome(list(map(log_odds, self._evidence(self.codes_of(batch))))) for batch in batches]
        return validation_auroc(torch.cat(found), labels)

    def _evidence(self, codes: Tensor) -> list[Tensor]:
        """Return the log likelihoods of each contest's conditions (N, C), but for a constant.

        By the evidence bound (Li et al. 2023), in which a Gaussian's squared error counts half.
        """
        trials, conditions = self.settings.quick_trials, self.task.conditions
        indices = torch.arange(trials, device=codes.device)
        noise = noise_for(indices, tuple(codes.shape[1:]), purpose="quick trial")
        at = self.process.steps_at((indices + 0.5) / trials)
        found = []
        for part in codes.split(max(1, AT_ONCE // conditions)):
            asked, each = (
                part.repeat_interleave(conditions, dim=0),
                torch.arange(conditions, device=codes.device).repeat(len(part)),
            )
            errors = torch.stack(
                [
                    self.trial_errors(asked, at[trial].expand(len(asked)), noise[trial].expand_as(asked), each)
                    for trial in range(trials)
                ]
            ).mean(dim=0)
            found.append(-0.5 * errors.view(len(part), conditions))
        evidence = torch.cat(found)
        return [evidence[:, contest[0] : contest[-1] + 1] for contest in self.task.contests]

    # --- Generation and explanation ---------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, *, steps: int, sampler: str, guidance: float) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1] under labels (N, K) by classifier-free guidance (Ho & Salimans 2022).

        ``guidance`` is w in c + w (c - rival), where the rival of one class of many is no condition, and that of a
        finding's presence its absence: the unlabelled images behind "no condition" may differ in more than the finding.
        Several findings are averaged and their differences added up (Liu et al. 2022, composable diffusion).
        A ``guidance`` of 0 ignores the labels.
        """
        wanted = self.task.conditions_of(labels)
        rivals = [self._rivals(asked, contest) for asked, contest in zip(wanted, self.task.contests, strict=True)]

        def output(z: Tensor, at: Tensor) -> Tensor:
            if guidance == 0.0:
                return self._told(z, at, [torch.full_like(wanted[0], self.task.conditions)])[0]
            told, otherwise = self._told(z, at, [*wanted, *rivals]).view(2, len(wanted), *z.shape)
            return told.mean(0) + guidance * (told - otherwise).sum(0)

        return self.draw(seeds, output, steps=steps, sampler=sampler)

    def calls_per_step(self, guidance: float) -> int:
        """Return one call without guidance, and two for each contest under it."""
        return 2 * len(self.task.contests) if guidance else 1

    def _rivals(self, asked: Tensor, contest: tuple[int, ...]) -> Tensor:
        """Return what conditions (N,) of a contest are held against: the other one of a pair, or no condition."""
        return sum(contest) - asked if len(contest) == 2 else torch.full_like(asked, self.task.conditions)

    def _told(self, z: Tensor, steps: Tensor, asked: list[Tensor]) -> Tensor:
        """Return the outputs (A, N, c, h, w) for z at steps (N,) under each of A lists of conditions (N,)."""
        inputs = z.repeat(len(asked), 1, 1, 1), steps.repeat(len(asked)), torch.cat(asked)
        parts = zip(*(x.split(AT_ONCE) for x in inputs), strict=True)
        return torch.cat([self.unet(*part).float() for part in parts]).view(len(asked), *z.shape)

    def counterfactual(
        self, images: Tensor, finding: int, target: float, seeds: Tensor, *, how: Explanation
    ) -> Counterfactuals:
        """Rebuild each image with ``finding`` absent (target 0) or present (1), by classifier-free guidance.

        (1 + w) eps_wanted - w eps_against; the control is eps_against alone. For a finding these are its absence and
        its presence, for a class the class and another one: the others take turns over the draws of noise, from one
        that the image's seed decides. Against no condition, as Favero et al. have it, guidance also exaggerates all
        that tells labelled from unlabelled images, and loses the place.
        """
        wanted, against = (
            in_turn(self.task.conditions_for(finding, answer), seeds, how) for answer in (target, 1.0 - target)
        )

        def plain(z: Tensor, steps: Tensor) -> Tensor:
            return self._told(z, steps, [against])[0]

        def guide(z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            unguided, asked = self._told(z, steps, [against, wanted])
            return unguided, torch.lerp(unguided, asked, 1.0 + how.guidance)

        return edit(
            images,
            seeds,
            plain=plain,
            guide=guide,
            guide_calls=2,
            codec=self.codec,
            process=self.process,
            how=how,
        )

    # --- The foundation model ----------------------------------------------------------------------------

    def _foundation(self, settings: Settings) -> StableDiffusion:
        if settings.pretrained is None:
            raise ValueError("pretrained: name the folder or hub id of a Stable Diffusion pipeline")
        prompts = prompts_for(self.data.labels, present=settings.present, absent=settings.absent)
        net = StableDiffusion.load(settings.pretrained, prompts, tuning=settings.tuning, lora_rank=settings.lora_rank)
        if net.channels != self.codec.channels:
            raise ValueError(
                f"{settings.pretrained} works on {net.channels} channels, the codes have {self.codec.channels}: "
                "name its own autoencoder under `autoencoder`"
            )
        net.unet.register_to_config(sample_size=self.codec.size)  # what is drawn has the size that it trains at
        return net


METHOD = DiffusionClassifier
