"""JointDiffusion: one U-Net that generates and classifies (Deja et al. 2023, arXiv 2301.13622; Kaleta et al. 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.diffusion.process import STEPS, DiffusionProcess, noise_for
from jointdiff.method import Batch, Counterfactuals, Losses, Method, MethodSettings, SavedPart
from jointdiff.nets.heads import PooledHead
from jointdiff.nets.unet import Encoding, UNet


class JointDiffusion(Method):
    """L = mean (eps_hat - eps)^2 + w L_cls(g(h(x_0, t = 0)), y), both terms from one encoder."""

    class Settings(MethodSettings):
        """Defaults: the released commands for 32-px images, but for the shorter average."""

        learning_rate: float = 1e-4
        ema: float = 0.9999
        unlabelled_ratio: int = 1  # noisy images per clean labelled one; drawn from all training images
        width: int = 128  # channels of the first level
        multipliers: tuple[int, ...] = (1, 2, 2, 2)
        blocks: int = 3  # residual blocks per level
        attention_at: tuple[int, ...] = (16, 8)  # sides of the maps with self-attention, pixels
        dropout: float = 0.0  # in the U-Net
        head_dropout: float = 0.0
        pooling: Literal["avg", "max", "both"] = "avg"
        pooled_maps: tuple[int, ...] = ()  # which maps the head sees, in encoder order; () is all of them
        # Which maps guidance moves; () is all of them, as in the paper. In small networks the shallow skips hold z_t
        # itself: moved towards a finding, they make the decoder take the finding for noise and remove it.
        guided_maps: tuple[int, ...] = ()
        # v in eps' = eps(h) + v (eps(h') - eps(h)): 1 decodes h' as the paper does. A far h' is one that no image has;
        # a near one, its effect enlarged, asks as strongly and leaves the images in order.
        guidance_reach: float = 1.0
        noise_schedule: Literal["linear", "cosine"] = "linear"
        classification_weight: float = 0.001  # w
        classification_warmup: float = 0.0  # share of the training over which w grows from 0
        # clean: the head sees x_0 at t = 0; noisy: x_t at a random t; both: one of each. Guidance in representation
        # space asks the head about x_t, which only the latter two have trained it for.
        classifier_input: Literal["clean", "noisy", "both"] = "clean"

    settings: Settings

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        self.unet = UNet(
            channels=data.channels,
            size=data.size,
            width=settings.width,
            multipliers=settings.multipliers,
            blocks=settings.blocks,
            attention_at=settings.attention_at,
            dropout=settings.dropout,
        )
        widths = self.unet.map_widths
        self.pooled = settings.pooled_maps or tuple(range(len(widths)))
        self.guided = settings.guided_maps or self.pooled
        for name, chosen in {"pooled_maps": self.pooled, "guided_maps": self.guided}.items():
            if unknown := set(chosen) - set(range(len(widths))):
                raise ValueError(f"{name} {sorted(unknown)}: the encoder has only {len(widths)} maps, counted from 0")
        self.head = PooledHead(
            [widths[i] for i in self.pooled],
            outputs=self.task.outputs,
            pooling=settings.pooling,
            dropout=settings.head_dropout,
        )
        self.process = DiffusionProcess(settings.noise_schedule)

    def classify(self, encoding: Encoding) -> Tensor:
        """Return g(h), logits (N, K)."""
        maps = encoding.maps
        return self.head([maps[i] for i in self.pooled])

    def losses(self, batch: Batch, views: Views, averaged: Method) -> Losses:
        """Return the denoising and the classification term, from one encoder pass over noisy and labelled images."""
        images = views.flip(batch.unlabelled)
        steps = torch.randint(STEPS, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        noisy = self.process.add_noise(images, noise, steps)

        labelled = views.weak(batch.labelled)
        shown, shown_steps, labels = self._classifier_inputs(labelled, batch.labels)
        encoding = self.unet.encode(torch.cat([noisy, shown]), torch.cat([steps, shown_steps]))
        of_noisy, of_shown = encoding.split(len(noisy))
        estimate, logits = self.unet.decode(of_noisy), self.classify(of_shown)
        return {
            "denoising": (estimate.float() - noise).square().mean(),
            "classification": self._weight(batch.progress) * self.task.loss(logits, labels).mean(),
        }

    def _classifier_inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros(len(images), dtype=torch.long, device=images.device)
        if self.settings.classifier_input == "clean":
            return images, zero, labels
        steps = torch.randint(STEPS, (len(images),), device=images.device)
        noisy = self.process.add_noise(images, torch.randn_like(images), steps)
        if self.settings.classifier_input == "noisy":
            return noisy, steps, labels
        return torch.cat([images, noisy]), torch.cat([zero, steps]), torch.cat([labels, labels])

    def _weight(self, progress: float) -> float:
        ramp = self.settings.classification_warmup
        return self.settings.classification_weight * (min(progress / ramp, 1.0) if ramp else 1.0)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of clean images."""
        steps = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return self.classify(self.unet.encode(images, steps))

    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) of clean images in one encoder pass."""
        return self.task.probabilities(self.logits(images))

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, *, steps: int, sampler: str, guidance: float) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1] guided in representation space towards labels (N, K).

        Every step moves maps of the encoder down the classification loss, h' = h - alpha grad_h CE(g(h), y), and
        decodes from h' (Deja et al. 2023, section 3.3). ``guidance`` is alpha; 0 ignores the labels. The setting
        ``guidance_reach`` enlarges what that changes.
        """
        solver = self.process.solver(sampler, steps)
        z = noise_for(seeds, (self.data.channels, self.data.size, self.data.size))
        for t in solver.times:
            encoding = self.unet.encode(z, torch.full_like(seeds, t))
            z = solver.step(self._guided_noise(encoding, labels, scale=guidance), t, z)
        return z.clamp(-1.0, 1.0)

    def _guided_noise(self, encoding: Encoding, labels: Tensor, *, scale: float) -> Tensor:
        if scale == 0.0:
            return self.unet.decode(encoding)
        moved = self.unet.decode(self.guide(encoding, labels, scale=scale))
        if self.settings.guidance_reach == 1.0:
            return moved
        return torch.lerp(self.unet.decode(encoding), moved, self.settings.guidance_reach)

    def guide(self, encoding: Encoding, labels: Tensor, *, scale: float) -> Encoding:
        """Return the encoding moved by ``-scale`` times the gradient of each image's classification loss."""
        maps = [m.detach() for m in encoding.maps]
        leaves = [maps[i].requires_grad_() for i in self.guided]
        with torch.enable_grad():
            loss = self.task.loss(self.classify(encoding.with_maps(maps)), labels).sum()
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for i, gradient in zip(self.guided, gradients, strict=True):
            maps[i] = maps[i].detach() if gradient is None else maps[i].detach() - scale * gradient
        return encoding.with_maps(maps)

    @torch.no_grad()
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
        """Show each image with ``finding`` absent (target 0) or present (1), beside its unguided reconstruction.

        Noise to ``noise_level`` of 1000, then ``steps`` DDIM steps with eps' = eps_hat + s s_t grad_{z_t} L, where L is
        the classification loss of the estimate of z_0 (Mediffusion, Kaleta et al. 2024, arXiv 2411.09434).
        """
        solver = self.process.solver("ddim", steps, start=noise_level)
        noise = noise_for(seeds, tuple(images.shape[1:]))
        edited = self.process.add_noise(images, noise, torch.full_like(seeds, solver.times[0]))
        control = edited
        for t in solver.times:
            step = torch.full_like(seeds, t)
            with torch.enable_grad():
                z = edited.detach().requires_grad_()
                noise_estimate = self.unet(z, step).float()
                clean = self.process.remove_noise(z, noise_estimate, step).clamp(-1.0, 1.0)
                loss = self.task.finding_loss(self.logits(clean), finding, target).sum()
                (gradient,) = torch.autograd.grad(loss, z)
            _, s = self.process.scales(step)
            edited = solver.step(noise_estimate.detach() + guidance * s * gradient, t, edited)
            control = solver.step(self.unet(control, step).float(), t, control)
        return Counterfactuals(edited.clamp(-1, 1), control.clamp(-1, 1), calls=3 * steps)

    def diffusers_parts(self) -> dict[str, SavedPart]:
        """Name the parts that are saved in diffusers' layout, so that its pipelines read the model folder."""
        return {"unet": self.unet, "scheduler": self.process}


METHOD = JointDiffusion
