"""The first stage of latent diffusion: an autoencoder to train, and the codec that a trained one is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from jointdiff.data.augment import Views
from jointdiff.data.source import DataInfo
from jointdiff.files import atomic_path, read_json, write_json
from jointdiff.method import Batch, Losses, MethodSettings, Trainable
from jointdiff.nets.codecs import Codec
from jointdiff.nets.groups import groups_of
from jointdiff.nets.perceptual import Perceptual

# The layout of diffusers' AutoencoderKL.
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class KLAutoencoder(Trainable):
    """L = |x - D(z)| + w_p LPIPS + w_KL KL(q(z|x) || N(0, I)) + w_a L_adv (Rombach et al. 2022, appendix G).

    It is the first stage of Mediffusion as well (Kaleta et al. 2024, arXiv 2411.09434). Every term is per pixel value:
    the paper's sums over an image, divided by its number of values, so that weights mean the same at every size.

    Raises:
        ValueError: the image side cannot be halved once per level, the width is no multiple of 4, or the
            file of LPIPS weights does not fit.
    """

    class Settings(MethodSettings):
        """Defaults: the released kl-f8 (github.com/CompVis/latent-diffusion), but for the discriminator."""

        learning_rate: float = 1e-4  # 4.5e-6 per image of its batch of 24
        unlabelled_ratio: int = Field(1, ge=1)  # images per step, times the batch size
        latent_channels: int = 4
        width: int = 128  # channels of the first level
        multipliers: tuple[int, ...] = (1, 2, 4, 4)  # one per level; the side is halved between two of them
        blocks: int = 2  # residual blocks per level
        reconstruction: Literal["l1", "l2"] = "l1"
        kl_weight: float = 1e-6
        perceptual_weight: float = 1.0
        # File with torchvision's vgg16 (as in the paper), alexnet or squeezenet1_1; without one there is no LPIPS term.
        perceptual_weights: str | None = None
        # Of the generator's term. The paper scales 0.5 by a ratio of gradients at every step instead.
        adversarial_weight: float = 0.0
        adversarial_from: float = 0.5  # share of the training after which the discriminator counts

    settings: Settings
    sees_labelled: ClassVar[bool] = False

    def __init__(self, data: DataInfo, settings: Settings) -> None:
        super().__init__(data, settings)
        from diffusers import AutoencoderKL

        levels = len(settings.multipliers)
        if data.size % 2 ** (levels - 1):
            raise ValueError(f"images of {data.size} px cannot be halved {levels - 1} times: use fewer multipliers")
        self.autoencoder: Any = AutoencoderKL(
            in_channels=data.channels,
            out_channels=data.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(settings.width * m for m in settings.multipliers),
            layers_per_block=settings.blocks,
            latent_channels=settings.latent_channels,
            norm_num_groups=groups_of(settings.width, of="autoencoder"),
            sample_size=data.size,
            scaling_factor=1.0,  # until it is measured
        )
        # A weight that no term reaches is not created.
        self.discriminator = _PatchDiscriminator(data) if settings.adversarial_weight else None
        # In a tuple, since what is frozen and has a file of its own belongs into no checkpoint.
        file = settings.perceptual_weights if settings.perceptual_weight else None
        self._perceptual = () if file is None else (Perceptual(file),)

    def losses(self, batch: Batch, views: Views, averaged: Any) -> Losses:
        """Return the terms for the images of ``batch.unlabelled``; the labelled ones are among them.

        One backward pass of their sum serves both players: the discriminator's term sees detached reconstructions, the
        generator's a discriminator with detached weights.
        """
        settings = self.settings
        images = views.flip(batch.unlabelled)
        posterior = self.autoencoder.encode(images).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        # Not randn_like, whose numbers depend on the memory format.
        latents = mean + (log_variance / 2.0).exp() * torch.randn(mean.shape, device=mean.device)
        made = self.autoencoder.decode(latents).sample.float()

        divergence = (mean.square() + log_variance.exp() - 1.0 - log_variance).sum() / 2.0
        distance = F.l1_loss if settings.reconstruction == "l1" else F.mse_loss
        terms = {
            "reconstruction": distance(made, images),
            "kl": settings.kl_weight * divergence / images.numel(),
        }
        for perceptual in self._perceptual:
            terms["perceptual"] = settings.perceptual_weight * perceptual.to(images.device)(made, images).mean()
        if self.discriminator is not None:
            counts = float(batch.progress >= settings.adversarial_from)
            frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
            score = functional_call(self.discriminator, frozen, (made,)).float()
            real, fake = self.discriminator(images).float(), self.discriminator(made.detach()).float()
            terms["generator"] = counts * settings.adversarial_weight * -score.mean()
            # The hinge loss of Lim & Ye 2017.
            terms["discriminator"] = counts * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()) / 2.0
        return terms

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return what the mode of the posterior of images (N, C, H, W) decodes to, of the same shape in [-1, 1]."""
        return self.autoencoder.decode(self.autoencoder.encode(images).latent_dist.mode()).sample.clamp(-1.0, 1.0)

    def validate(self, batches: Iterable[Tensor], labels: np.ndarray) -> dict[str, float]:
        """Return the mean peak signal-to-noise ratio of reconstructions in dB; labels are not looked at."""
        return {"psnr": torch.cat([_psnr(images, self.reconstruct(images)) for images in batches]).mean().item()}

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the autoencoder alone as diffusers does, with a scaling factor of 1."""
        _save(self.autoencoder, Path(folder))


class _PatchDiscriminator(nn.Sequential):
    """Scores of overlapping patches (Isola et al. 2017, section 6.1.2), of 70, 34 or 16 px as the image side allows.

    Instance normalisation stands for their batch normalisation, which is the same for the one image of their batches:
    scores of one image do not depend on others, and there are no running statistics.
    """

    def __init__(self, data: DataInfo) -> None:
        halvings = min(max(int(math.log2(data.size)) - 3, 1), 3)
        layers: list[nn.Module] = [nn.Conv2d(data.channels, 64, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(halvings):
            width, stride = 64 * 2**level, 1 if level == halvings - 1 else 2
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride=stride, padding=1, bias=False),
                nn.InstanceNorm2d(2 * width, affine=True),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(64 * 2**halvings, 1, 4, padding=1))


class Autoencoder(Codec):
    """A trained AutoencoderKL, frozen: codes are modes of the posterior, scaled as diffusers' pipelines expect.

    An autoencoder of colour images takes grey ones too: they are repeated on the way in and averaged on the way out.

    Args:
        folder: what diffusers' ``save_pretrained`` wrote. Its configuration is read at once, its weights when they are
            first needed.
        data: whose images it is given.

    Raises:
        ValueError: the folder holds no AutoencoderKL, or one that does not fit the data.
    """

    bounded = False
    costly = True

    def __init__(self, folder: Path | str, data: DataInfo) -> None:
        self.folder = Path(folder)
        if not _is_autoencoder(self.folder):
            raise ValueError(
                f"{folder} is no autoencoder: it needs {CONFIG} of diffusers' AutoencoderKL and {WEIGHTS}; "
                "train one, or fetch one with `pretrained`"
            )
        config = read_json(self.folder / CONFIG)
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        if data.size % factor:
            raise ValueError(
                f"{self.folder}: images of {data.size} px cannot be made {factor} times smaller; "
                f"choose a size that is a multiple of {factor}, or an autoencoder with fewer levels"
            )
        inputs = config["in_channels"]
        if inputs != config["out_channels"] or (inputs != data.channels and (inputs, data.channels) != (3, 1)):
            raise ValueError(
                f"{self.folder}: an autoencoder from {inputs} to {config['out_channels']} channel(s) does not fit "
                f"images of {data.channels}; choose one for {data.channels} channel(s), or train it on this data set"
            )
        self.inputs, self.averages = inputs, inputs > data.channels
        self.channels, self.size = config["latent_channels"], data.size // factor
        self.scale = float(config.get("scaling_factor", 0.18215))  # as in diffusers, for folders older than the key
        self._net: Any = None

    def encode(self, images: Tensor) -> Tensor:
        """Return the scaled posterior modes of images; gradients flow."""
        images = images.expand(-1, self.inputs, -1, -1)
        return self._on(images.device).encode(images).latent_dist.mode() * self.scale

    def decode(self, codes: Tensor) -> Tensor:
        """Return images, which may leave [-1, 1] a little; gradients flow."""
        images = self._on(codes.device).decode(codes / self.scale).sample
        return images.mean(dim=1, keepdim=True) if self.averages else images

    def save_pretrained(self, folder: Path | str) -> None:
        """Copy the autoencoder to a folder, such as that of a model which needs it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(self.folder / name, Path(folder) / name)

    def _on(self, device: torch.device) -> Any:
        if self._net is None:
            self._net = _load(self.folder).eval().requires_grad_(False)
        return self._net.to(device)


def fetch_pretrained(name: str, out: Path | str) -> None:
    """Copy an AutoencoderKL to the folder ``out``, whole or not at all.

    Args:
        name: a folder or a repository of the Hugging Face hub that is one, or a pipeline with one in ``vae`` or
            ``vqvae``. Pickles are not read.
        out: where it is to be.

    Raises:
        ValueError: there is none of that name.
    """
    folder = Path(name).expanduser()
    places = ("", "vae", "vqvae")
    why: Exception | None = None
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            files = [str(Path(place) / file) for place in places for file in (CONFIG, WEIGHTS)]
            folder = Path(snapshot_download(name, allow_patterns=files))
        except (OSError, ValueError) as error:
            why = error
    found = next((folder / place for place in places if _is_autoencoder(folder / place)), None)
    if found is None:
        reason = f" ({why})" if why else ""
        raise ValueError(
            f"autoencoders.NAME.pretrained: {name!r} is neither a folder nor a repository of the hub that can be "
            f"reached with an AutoencoderKL of diffusers: {CONFIG} and {WEIGHTS}, directly or in `vae` or `vqvae`"
            f"{reason}; correct it, or download it by hand and name the folder"
        ) from why
    with atomic_path(out) as aside:
        _save(_load(found), aside)


@torch.no_grad()
def measure_latents(codec: Autoencoder, batches: Iterable[Tensor]) -> dict[str, Any]:
    """Return what batches of images (N, C, H, W) in [-1, 1] become, as plain numbers.

    ``images`` counts them; ``mean`` and ``std`` are of each channel of the posterior modes before scaling,
    ``overall_std`` is of all channels together; ``psnr`` in dB and ``l1`` are means over images of the clamped
    reconstructions.

    Raises:
        ValueError: there are no images.
    """
    images, values = 0, 0  # values: of each channel
    # Sums in double precision, on the CPU since not every accelerator has it.
    sums = torch.zeros(2, codec.channels, dtype=torch.float64)
    psnr = l1 = 0.0
    for batch in batches:
        codes = codec.encode(batch)
        made = codec.decode(codes).clamp(-1.0, 1.0)
        modes = codes.cpu().double() / codec.scale
        sums += torch.stack([modes.sum((0, 2, 3)), modes.square().sum((0, 2, 3))])
        images, values = images + len(batch), values + modes[:, 0].numel()
        psnr += _psnr(batch, made).sum().item()
        l1 += (batch - made).abs().mean((1, 2, 3)).sum().item()
    if not images:
        raise ValueError("latents cannot be measured without images")
    means, squares = sums / values
    return {
        "images": images,
        "mean": means.tolist(),
        "std": (squares - means.square()).clamp(min=0.0).sqrt().tolist(),
        "overall_std": (squares.mean() - means.mean().square()).clamp(min=0.0).sqrt().item(),
        "psnr": psnr / images,
        "l1": l1 / images,
    }


@torch.no_grad()
def standardise(folder: Path | str, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Shift and scale each latent channel of an autoencoder to mean 0 and variance 1, and its decoder back again.

    Both are 1 x 1 convolutions already, whose weights take them over, so that images come out as before and the folder
    stays one of diffusers'. A single scaling factor would leave channels off their centre, where diffusion begins.

    Raises:
        ValueError: a deviation is no positive number.
    """
    if not all(math.isfinite(value) and value > 0.0 for value in std):
        raise ValueError(f"{folder}: latents with standard deviations of {list(std)} cannot be scaled; train it again")
    net = _load(Path(folder))
    shift, scale = torch.tensor(mean), torch.tensor(std)
    inwards, outwards = net.quant_conv, net.post_quant_conv
    channels = len(scale)
    inwards.bias[:channels] = (inwards.bias[:channels] - shift) / scale
    inwards.weight[:channels] /= scale[:, None, None, None]
    inwards.bias[channels:] -= 2.0 * scale.log()  # the second half are logarithms of variances
    outwards.bias += (outwards.weight[:, :, 0, 0] * shift).sum(dim=1)
    outwards.weight *= scale[None, :, None, None]
    _save(net, Path(folder))


def set_scale(folder: Path | str, std: float) -> None:
    """Write the scaling factor that gives latents of this standard deviation unit variance (Rombach et al., app. G).

    Raises:
        ValueError: the deviation is no positive number.
    """
    if not (math.isfinite(std) and std > 0.0):
        raise ValueError(f"{folder}: latents with a standard deviation of {std} cannot be scaled; train it again")
    path = Path(folder) / CONFIG
    write_json(path, {**read_json(path), "scaling_factor": 1.0 / std})


def _psnr(images: Tensor, made: Tensor) -> Tensor:
    """Return peak signal-to-noise ratios (N,) in dB of images in [-1, 1]; 106 where they are equal."""
    error = (images.float() - made.float()).square().mean((1, 2, 3)).clamp(min=1e-10)
    return 10.0 * (4.0 / error).log10()


def _is_autoencoder(folder: Path) -> bool:
    files = all((folder / name).is_file() for name in (CONFIG, WEIGHTS))
    return files and read_json(folder / CONFIG).get("_class_name") == "AutoencoderKL"


def _load(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    try:
        net, about = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {error}; make the folder again") from error
    if missing := about["missing_keys"]:  # diffusers draws these at random
        raise ValueError(f"{folder / WEIGHTS} lacks {', '.join(sorted(missing)[:3])}; make the folder again")
    return net


def _save(net: Any, folder: Path) -> None:
    """Write a network as diffusers does, but for where it was read from, and whatever its memory format."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in json.loads(net.to_json_string()).items() if key != "_name_or_path"}
    write_json(folder / CONFIG, config)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in net.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
