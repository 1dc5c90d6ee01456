"""Joint diffusion: one U-Net that generates, classifies and explains.

On pixels it is JointDiffusion (Deja et al. 2023, arXiv 2301.13622; Kaleta et al. 2025, CMIG 124:102619), in the latents
of an autoencoder Mediffusion (Kaleta et al. 2024, arXiv 2411.09434).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from jointdiff.config import Explanation
from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.diffusion.editing import edit, in_turn
from jointdiff.diffusion.method import UNetMethod
from jointdiff.diffusion.process import STEPS
from jointdiff.method import Batch, Counterfactuals, Losses
from jointdiff.nets.codecs import Codec
from jointdiff.nets.heads import PooledHead
from jointdiff.nets.unet import Encoding
from jointdiff.pseudo_labels import FixedThreshold, SoftThreshold


class JointDiffusion(UNetMethod):
    """L = mean (eps_hat - eps)^2 + w L_cls(g(h(x_0, t = 0)), y), both terms from one encoder."""

    class Settings(UNetMethod.Settings):
        """Defaults: the released commands of JointDiffusion for 32-px images, but for the shorter average."""

        learning_rate: float = 1e-4
        head_learning_rate: float | None = None  # of the head alone, where it differs
        ema: float = 0.9999
        head_dropout: float = 0.0
        head_width: int | None = None  # of the head's hidden layer; half of what it sees by default
        pooling: Literal["avg", "max", "both"] = "avg"
        pooled_maps: tuple[int, ...] = ()  # which maps the head sees, in encoder order; () is all of them
        # Which maps guidance moves; () is all of them, as in the paper. In small networks the shallow skips hold z_t
        # itself: moved towards a finding, they make the decoder take the finding for noise and remove it.
        guided_maps: tuple[int, ...] = ()
        # v in eps' = eps(h) + v (eps(h') - eps(h)): 1 decodes h' as the paper does. A far h' is one that no image has;
        # a near one, its effect enlarged, asks as strongly and leaves the images in order.
        guidance_reach: float = 1.0
        classification_weight: float = 0.001  # w
        classification_warmup: float = 0.0  # share of the training over which w grows from 0
        classification_every: int = 1  # steps from one with the classification term to the next
        # clean: the head sees x_0 at t = 0, as the paper's; noisy: x_t at a random t; both: one of each. Guidance in
        # representation space asks the head about x_t: a head that has seen x_0 alone is refused there.
        classifier_input: Literal["clean", "noisy", "both"] = "both"
        # Agreement of the head with confident answers of the averaged weights about the same unlabelled images.
        consistency: Literal["none", "fixmatch", "softmatch"] = "none"
        # strong: about a strongly augmented view; noise: about the noisy images that the denoising term encodes
        # anyway, where they keep at least half of their variance.
        consistency_view: Literal["strong", "noise"] = "strong"
        consistency_weight: float = 1.0  # times classification_weight
        consistency_threshold: float = 0.95  # of fixmatch, and, but with softmatch, of what the decoder is told
        # Tell the decoder what is in the image, as far as the averaged weights are sure of it; sampling is then guided
        # by the difference this makes (Ho & Salimans 2022; pseudo-labels as in You et al. 2023, arXiv 2302.10586).
        conditional: bool = False
        label_dropout: float = 0.15  # share of the images whose label the decoder is not told

    settings: Settings
    tunable: ClassVar[tuple[str, ...]] = ("learning_rate", "classification_weight")

    def __init__(self, data: DataInfo, settings: Settings, codec: Codec | None = None) -> None:
        super().__init__(data, settings, codec)
        widths = self.unet.map_widths
        self.pooled = settings.pooled_maps or tuple(range(len(widths)))
        self.guided = settings.guided_maps or self.pooled
        for name, chosen in {"pooled_maps": self.pooled, "guided_maps": self.guided}.items():
            if unknown := set(chosen) - set(range(len(widths))):
                raise ValueError(f"{name} {sorted(unknown)}: the encoder has only {len(widths)} maps, counted from 0")
        self.head = PooledHead(
            [widths[i] for i in self.pooled],
            outputs=self.task.outputs,
            hidden=settings.head_width,
            pooling=settings.pooling,
            dropout=settings.head_dropout,
        )
        if settings.conditional:
            # Presence and absence of each finding: what is unknown adds nothing, and nothing known is no condition.
            self.told = nn.Linear(2 * self.task.outputs, self.unet.embedding_width, bias=False)
        if settings.consistency == "softmatch":
            self.trust: FixedThreshold | SoftThreshold = SoftThreshold(self.task)
        else:
            self.trust = FixedThreshold(self.task, settings.consistency_threshold)
        if settings.consistency != "none" and settings.consistency_view == "strong" and self.codec.costly:
            raise ValueError("consistency_view strong: latents cannot be augmented; use consistency_view: noise")

    # --- Training ---------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, views: Views, averaged: JointDiffusion) -> Losses:
        """Return the denoising, classification and consistency terms, from one encoder pass over all images."""
        images = views.flip(batch.unlabelled)
        codes = self.codes_of(images)
        steps = torch.randint(STEPS, (len(codes),), device=codes.device)
        noise = torch.randn_like(codes)
        parts, at = [self.process.add_noise(codes, noise, steps)], [steps]

        labels = batch.labels
        classified = batch.step % self.settings.classification_every == 0
        if classified:
            shown, shown_steps, labels = self._classifier_inputs(self.codes_of(views.weak(batch.labelled)), labels)
            parts, at = [*parts, shown], [*at, shown_steps]
        consistent = classified and self.settings.consistency != "none"
        strong = consistent and self.settings.consistency_view == "strong"
        if strong:
            parts, at = [*parts, self.codes_of(views.strong(batch.unlabelled))], [*at, torch.zeros_like(steps)]
        nothing = codes[:0]
        asked = consistent or self.settings.conditional
        answers, trusted = self._pseudo_labels(codes, averaged) if asked else (nothing, nothing)

        encodings = self.unet.encode(torch.cat(parts), torch.cat(at)).split(*map(len, parts))
        decoded = encodings[0]
        if self.settings.conditional:
            decoded = self._tell(decoded, self._drop(torch.where(trusted > 0.5, answers, torch.nan)))
        target = self.process.target(codes, noise, steps)
        terms = {"denoising": (self.unet.decode(decoded).float() - target).square().mean()}
        weight = self._weight(batch.progress)
        if classified:
            terms["classification"] = weight * self.task.labelled_loss(self.classify(encodings[1]), labels).mean()
        if consistent:
            if not strong:
                # At less than half of the variance left, a finding may be gone: nothing should be said of it.
                trusted = trusted * (self.process.signal(steps) >= 0.5)[:, None]
            logits = self.classify(encodings[2] if strong else encodings[0])
            agreement = self.task.loss(logits, answers, trusted).mean()
            terms["consistency"] = weight * self.settings.consistency_weight * agreement
        return terms

    def _classifier_inputs(self, codes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        if self.settings.classifier_input == "clean":
            return codes, zero, labels
        steps = torch.randint(STEPS, (len(codes),), device=codes.device)
        noisy = self.process.add_noise(codes, torch.randn_like(codes), steps)
        if self.settings.classifier_input == "noisy":
            return noisy, steps, labels
        return torch.cat([codes, noisy]), torch.cat([zero, steps]), torch.cat([labels, labels])

    def _weight(self, progress: float) -> float:
        ramp = self.settings.classification_warmup
        return self.settings.classification_weight * (min(progress / ramp, 1.0) if ramp else 1.0)

    @torch.no_grad()
    def _pseudo_labels(self, codes: Tensor, averaged: JointDiffusion) -> tuple[Tensor, Tensor]:
        """Return what the averaged weights say of codes (N, K), and how far each of it is trusted (N, 1) or (N, K)."""
        return self.trust(averaged.logits(codes))

    def _drop(self, labels: Tensor) -> Tensor:
        dropped = torch.rand(len(labels), 1, device=labels.device) < self.settings.label_dropout
        return labels.masked_fill(dropped, torch.nan)

    def _tell(self, encoding: Encoding, labels: Tensor) -> Encoding:
        """Tell the decoder labels (N, K) in [0, 1], NaN where unknown."""
        known = ~labels.isnan()
        presence = labels.nan_to_num(0.0)
        told = self.told(torch.cat([presence, (1.0 - presence) * known], dim=1).to(encoding.embedding.dtype))
        return encoding.with_embedding(encoding.embedding + told)

    def learning_rates(self) -> dict[str, float]:
        """Name the parts that learn at another rate."""
        return {"head": self.settings.head_learning_rate} if self.settings.head_learning_rate is not None else {}

    # --- Classification ---------------------------------------------------------------------------------------------

    def classify(self, encoding: Encoding) -> Tensor:
        """Return g(h), logits (N, K)."""
        maps = encoding.maps
        return self.head([maps[i] for i in self.pooled])

    def logits(self, codes: Tensor) -> Tensor:
        """Return logits (N, K) of clean codes."""
        steps = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        return self.classify(self.unet.encode(codes, steps))

    def probabilities(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) of clean codes in one encoder pass."""
        return self.task.probabilities(self.logits(codes))

    def image_logits(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images."""
        return self.logits(self.codec.encode(images))

    def feature_layer(self) -> nn.Module:
        """Return the end of the encoder: the smallest of the maps that the head sees, and the last to be made.

        Raises:
            ValueError: the head does not see it (``pooled_maps``).
        """
        last = len(self.unet.map_widths) - 1
        if last not in self.pooled:
            raise ValueError(
                f"pooled_maps {list(self.pooled)}: Grad-CAM looks at the encoder's last map, {last}, which this head "
                "does not see; remove grad_cam and grad_cam_plus_plus from this method's explain list"
            )
        return self.unet.mid_block.resnets[1]

    # --- Generation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, *, steps: int, sampler: str, guidance: float) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1] guided towards labels (N, K).

        Every step moves maps of the encoder down the classification loss, h' = h - alpha grad_h CE(g(h), y), and
        decodes from h' (Deja et al. 2023, section 3.3). ``guidance`` is alpha; 0 ignores the labels. The setting
        ``guidance_reach`` enlarges what that changes. A conditional decoder is told the labels instead, and
        ``guidance`` is how much more than once the difference counts.

        Raises:
            ValueError: maps would be moved by a head that was trained on clean images alone.
        """
        conditional = self.settings.conditional
        if guidance and not conditional:
            self._check_head_knows_noise("generation.guidance: 0, which ignores the labels")

        def output(z: Tensor, at: Tensor) -> Tensor:
            encoding = self.unet.encode(z, at)
            if conditional and guidance:
                plain = self.unet.decode(encoding)
                return torch.lerp(plain, self.unet.decode(self._tell(encoding, labels)), 1.0 + guidance)
            loss = lambda logits: self.task.loss(logits, labels)  # noqa: E731
            return self._guided(encoding, loss, scale=guidance)[1]

        return self.draw(seeds, output, steps=steps, sampler=sampler)

    def calls_per_step(self, guidance: float) -> int:
        """Return 1 for the U-Net, 2 where its decoder runs a second time."""
        twice = self.settings.conditional or self.settings.guidance_reach != 1.0
        return 2 if guidance and twice else 1

    def _check_head_knows_noise(self, instead: str) -> None:
        if self.settings.classifier_input == "clean":
            raise ValueError(
                "classifier_input clean: this head has never seen a noisy image, so that its gradient on the maps of "
                f"one guides nowhere; use {instead}, or train with `classifier_input: both` or `conditional: true`"
            )

    def _guided(self, encoding: Encoding, loss: Any, *, scale: float) -> tuple[Tensor, Tensor]:
        """Return the U-Net's outputs of an encoding, as it is (where that is needed) and guided."""
        if scale == 0.0:
            plain = self.unet.decode(encoding)
            return plain, plain
        moved = self.unet.decode(self.guide(encoding, loss, scale=scale))
        if self.settings.guidance_reach == 1.0:
            return moved, moved
        plain = self.unet.decode(encoding)
        return plain, torch.lerp(plain, moved, self.settings.guidance_reach)

    def guide(self, encoding: Encoding, loss: Any, *, scale: float) -> Encoding:
        """Return the encoding moved by ``-scale`` times the gradient of each image's ``loss`` (logits -> (N,))."""
        maps = [m.detach() for m in encoding.maps]
        leaves = [maps[i].requires_grad_() for i in self.guided]
        with torch.enable_grad():
            total = loss(self.classify(encoding.with_maps(maps))).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        for i, gradient in zip(self.guided, gradients, strict=True):
            maps[i] = maps[i].detach() if gradient is None else maps[i].detach() - scale * gradient
        return encoding.with_maps(maps)

    # --- Explanation ------------------------------------------------------------------------------------------------

    def counterfactual(
        self, images: Tensor, finding: int, target: float, seeds: Tensor, *, how: Explanation
    ) -> Counterfactuals:
        """Show each image with ``finding`` absent (target 0) or present (1), beside its unguided reconstruction.

        ``how.guide`` image: eps' = eps_hat + s s_t grad_{z_t} L, where L is the classification loss of the estimate of
        z_0 (Mediffusion). representation: the estimate is decoded from moved maps, as in sampling. label: a conditional
        decoder is told that the finding is absent or present, and nothing of the others; the control is told the other.
        Of classes, that it is this one or another one, the others in turn over the draws of noise.

        Raises:
            ValueError: ``how.guide`` is label and the decoder is not conditional, or it is representation and the head
                was trained on clean images alone.
        """
        if how.guide == "label" and not self.settings.conditional:
            raise ValueError("explanation.guide: label needs a method trained with `conditional: true`; use image")
        if how.guide == "representation":
            self._check_head_knows_noise("explanation.guide: image, which asks about the estimate of the clean image")
        goal = lambda logits: self.task.finding_loss(logits, finding, target)  # noqa: E731

        def on_image(z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                output = self.unet(z, steps).float()
                clean = self.process.clean_from(output, z, steps)
                (gradient,) = torch.autograd.grad(goal(self.logits(clean)).sum(), z)
            _, s = self.process.scales(steps)
            plain = output.detach()
            return plain, self.process.with_more_noise(plain, how.guidance * s * gradient, steps)

        def on_maps(z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            encoding = self.unet.encode(z, steps)
            plain = self.unet.decode(encoding)
            moved = self.unet.decode(self.guide(encoding, goal, scale=how.guidance))
            return plain, torch.lerp(plain, moved, self.settings.guidance_reach)

        wanted, against = (
            self.task.labels_of(in_turn(self.task.conditions_for(finding, answer), seeds, how))
            for answer in (target, 1.0 - target)
        )

        def told(encoding: Encoding, labels: Tensor) -> Tensor:
            return self.unet.decode(self._tell(encoding, labels)).float()

        def by_label(z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            # Held against what was, not against nothing: that stands for images of which nobody is sure.
            encoding = self.unet.encode(z, steps)
            unguided = told(encoding, against)
            return unguided, torch.lerp(unguided, told(encoding, wanted), 1.0 + how.guidance)

        def untold(z: Tensor, steps: Tensor) -> Tensor:
            return self.unet(z, steps).float()

        def told_otherwise(z: Tensor, steps: Tensor) -> Tensor:
            return told(self.unet.encode(z, steps), against)

        guides = {
            "image": (on_image, untold),
            "representation": (on_maps, untold),
            "label": (by_label, told_otherwise),
        }
        guide, plain = guides[how.guide]
        return edit(
            images,
            seeds,
            plain=plain,
            guide=guide,
            guide_calls=2,  # the U-Net once, and once more its encoder or its decoder, which is counted as a whole
            codec=self.codec,
            process=self.process,
            how=how,
        )


METHOD = JointDiffusion
