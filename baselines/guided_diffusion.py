"""A diffusion model and a classifier apart: classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from jointdiff.config import Explanation
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.diffusion.editing import edit
from jointdiff.diffusion.method import UNetMethod
from jointdiff.diffusion.process import STEPS
from jointdiff.method import Batch, Counterfactuals, Losses
from jointdiff.nets.codecs import Codec
from jointdiff.nets.heads import PooledHead
from jointdiff.nets.unet import UNetEncoder


class GuidedDiffusion(UNetMethod):
    """An unconditional U-Net and a noise-aware classifier that share no weight; the one draws, the other guides it.

    The classifier is the encoder of such a U-Net with the head of ``joint``, so that what sets the two methods apart is
    the sharing. Dhariwal & Nichol likewise take the downsampling trunk, with attention for a head.
    """

    class Settings(UNetMethod.Settings):
        """The networks of ``joint``, twice."""

        classifier_learning_rate: float | None = None  # where it differs from that of the U-Net
        classifier_width: int | None = None  # channels of its first level; the U-Net's by default
        head_dropout: float = 0.0
        head_width: int | None = None  # of the head's hidden layer; half of what it sees by default
        pooling: Literal["avg", "max", "both"] = "avg"

    settings: Settings

    def __init__(self, data: DataInfo, settings: Settings, codec: Codec | None = None) -> None:
        super().__init__(data, settings, codec)
        self.classifier = NoiseAwareClassifier(
            self.shape | {"width": settings.classifier_width or settings.width},
            outputs=self.task.outputs,
            hidden=settings.head_width,
            pooling=settings.pooling,
            dropout=settings.head_dropout,
        )

    @property
    def network(self) -> str:
        """Name both networks."""
        return f"{self.unet.name} and the encoder of {self.classifier.encoder.name}"

    # --- Training ---------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, views: Views, averaged: GuidedDiffusion) -> Losses:
        """Return the denoising term of the U-Net, and the classifier's loss on labelled images, clean and noisy."""
        codes = self.codes_of(views.flip(batch.unlabelled))
        noisy, noise, steps = self._noised(codes)
        target = self.process.target(codes, noise, steps)
        denoising = (self.unet(noisy, steps).float() - target).square().mean()

        codes = self.codes_of(views.weak(batch.labelled))
        noisy, _, steps = self._noised(codes)
        logits = self.classifier(torch.cat([codes, noisy]), torch.cat([torch.zeros_like(steps), steps]))
        classification = self.task.labelled_loss(logits, batch.labels.repeat(2, 1)).mean()
        return {"denoising": denoising, "classification": classification}

    def _noised(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes at random steps, and their noise and steps (N,)."""
        steps = torch.randint(STEPS, (len(codes),), device=codes.device)
        noise = torch.randn_like(codes)
        return self.process.add_noise(codes, noise, steps), noise, steps

    def learning_rates(self) -> dict[str, float]:
        """Name the parts that learn at another rate."""
        rate = self.settings.classifier_learning_rate
        return {} if rate is None else {"classifier": rate}

    # --- Classification ---------------------------------------------------------------------------------------------

    def probabilities(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) of clean codes; the diffusion model has no say."""
        return self.task.probabilities(self._logits(codes))

    def image_logits(self, images: Tensor) -> Tensor:
        """Return the classifier's logits (N, K) of images."""
        return self._logits(self.codec.encode(images))

    def feature_layer(self) -> nn.Module:
        """Return the end of the classifier's encoder: the last of the maps that its head sees."""
        return self.classifier.encoder.mid_block.resnets[1]

    def _logits(self, codes: Tensor) -> Tensor:
        return self.classifier(codes, torch.zeros(len(codes), dtype=torch.long, device=codes.device))

    # --- Generation and explanation ---------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, *, steps: int, sampler: str, guidance: float) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1] guided towards labels (N, K), unknown ones being NaN.

        eps' = eps_hat - s s_t grad_{z_t} log p(y | z_t, t), where s is ``guidance`` (Algorithm 2); a ``guidance`` of 0
        ignores the labels. The probability of several findings is the product of theirs.
        """
        wanted = self.task.as_distributions(labels).nan_to_num(0.0)

        def surprise(logits: Tensor) -> Tensor:
            return -(wanted * self.task.log_distributions(logits)).sum(dim=(1, 2))

        def output(z: Tensor, at: Tensor) -> Tensor:
            plain = self.unet(z, at).float()
            return self._guided(plain, z, at, surprise, scale=guidance) if guidance else plain

        return self.draw(seeds, output, steps=steps, sampler=sampler)

    def calls_per_step(self, guidance: float) -> int:
        """Return 1 for the U-Net, and under guidance 1 for the classifier, which is counted as a whole network."""
        return 2 if guidance else 1

    def _guided(self, output: Tensor, z: Tensor, steps: Tensor, loss: Any, *, scale: float) -> Tensor:
        """Return the U-Net's output for z with the noise estimate larger by scale s_t grad_{z_t} loss (logits -> (N,)).

        Taking away more noise of this kind makes the loss smaller.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(self.classifier(z, steps)).sum(), z)
        _, s = self.process.scales(steps)
        return self.process.with_more_noise(output, scale * s * gradient, steps)

    def counterfactual(
        self, images: Tensor, finding: int, target: float, seeds: Tensor, *, how: Explanation
    ) -> Counterfactuals:
        """Show each image with ``finding`` absent (target 0) or present (1), beside its unguided reconstruction.

        A noised image is rebuilt under the same guidance as samples, towards the answer about one finding. DiME
        (Jeanneret et al. 2022, arXiv 2203.15636) explains a classifier of clean images so, and rebuilds the image anew
        for every gradient; one that knows the noise can be asked about z_t itself.

        Raises:
            ValueError: ``how.guide`` is not image.
        """
        if how.guide != "image":
            raise ValueError(f"explanation.guide: {how.guide} needs the joint model's networks; use image")

        def plain(z: Tensor, steps: Tensor) -> Tensor:
            return self.unet(z, steps).float()

        def goal(logits: Tensor) -> Tensor:
            return self.task.finding_loss(logits, finding, target)

        def guide(z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            unguided = plain(z, steps)
            return unguided, self._guided(unguided, z, steps, goal, scale=how.guidance)

        return edit(
            images,
            seeds,
            plain=plain,
            guide=guide,
            guide_calls=2,  # the U-Net and the classifier
            codec=self.codec,
            process=self.process,
            how=how,
        )


class NoiseAwareClassifier(nn.Module):
    """The encoder of a U-Net and a head on all of its maps, told how noisy the image is.

    Args:
        shape: what the encoder is built from.
        outputs: number of logits K.
        head: what else ``PooledHead`` takes.
    """

    def __init__(self, shape: dict[str, Any], *, outputs: int, **head: Any) -> None:
        super().__init__()
        self.encoder = UNetEncoder(**shape)
        self.head = PooledHead(self.encoder.map_widths, outputs=outputs, **head)

    def forward(self, codes: Tensor, steps: Tensor) -> Tensor:
        """Return logits (N, K) of noisy codes (N, c, h, w) at steps (N,)."""
        return self.head(self.encoder.encode(codes, steps).maps)


METHOD = GuidedDiffusion
