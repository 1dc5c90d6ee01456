"""What the diffusion methods share: the space in which they work, and the way from its noise to images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from jointdiff.data.source import DataInfo
from jointdiff.diffusion.process import DiscreteProcess, Process, noise_for
from jointdiff.method import Method, MethodSettings, SavedPart
from jointdiff.nets.codecs import Codec, HaarWavelet, Identity
from jointdiff.nets.unet import UNet

COMPONENTS = "jointdiff.nets.components"  # parts for which diffusers has no class
CODECS: dict[str, type[Identity] | type[HaarWavelet]] = {"identity": Identity, "wavelet": HaarWavelet}


class DiffusionMethod(Method):
    """A method whose network sees codes: pixels, wavelets, or the latents of an autoencoder."""

    class Settings(MethodSettings):
        """What every diffusion method can be told."""

        codec: Literal["identity", "wavelet"] = "identity"  # without effect where the entry names an autoencoder

    settings: Settings
    process: Process
    works_in_latents: ClassVar[bool] = True
    denoiser: ClassVar[tuple[str, str]]  # module and class with which pipelines of diffusers read the network
    unet: Any  # the network, whatever it is, by the name that pipelines of diffusers give it

    def __init__(self, data: DataInfo, settings: Settings, codec: Codec | None = None) -> None:
        super().__init__(data, settings)
        self.codec = codec or CODECS[settings.codec](data)

    def codes_of(self, inputs: Tensor) -> Tensor:
        """Return the codes of what the training loop hands over, which are codes already where they cost much."""
        return inputs if self.codec.costly else self.codec.encode(inputs)

    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities (N, K) of images."""
        return self.probabilities(self.codec.encode(images))

    def predict_codes(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) of what the training loop hands over."""
        return self.probabilities(self.codes_of(codes))

    @abstractmethod
    def probabilities(self, codes: Tensor) -> Tensor:
        """Return probabilities (N, K) of codes."""

    @torch.no_grad()
    def draw(self, seeds: Tensor, output: Callable[[Tensor, Tensor], Tensor], *, steps: int, sampler: str) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1] from one seed each; ``output`` is the network's, of z at steps (N,)."""
        solver = self.process.solver(sampler, steps)
        z = noise_for(seeds, (self.codec.channels, self.codec.size, self.codec.size))
        for t in solver.times:
            at = torch.full((len(seeds),), t, device=seeds.device)
            z = solver.step(self.process.clean_from(output(z, at), z, at), t, z)
        return self.codec.decode(self.process.clipped(z)).clamp(-1.0, 1.0)

    def diffusers_parts(self) -> dict[str, SavedPart]:
        """Name the parts that are saved in diffusers' layout, by the names that its pipelines give them."""
        decoder: dict[str, Any] = {} if isinstance(self.codec, Identity) else {"vqvae": self.codec}
        return {"unet": self.unet, "scheduler": self.process, **decoder}

    def pipeline(self) -> dict[str, Any]:
        """Return the index of the pipeline that draws from this model: of pixels, or of latents or wavelets."""
        parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": list(self.denoiser)}
        if isinstance(self.codec, Identity):
            return {"_class_name": "DDIMPipeline", **parts}
        wavelets = isinstance(self.codec, HaarWavelet)
        decoder = [COMPONENTS, "WaveletDecoder"] if wavelets else ["diffusers", "AutoencoderKL"]
        return {"_class_name": "LDMPipeline", **parts, "vqvae": decoder}


class UNetMethod(DiffusionMethod):
    """A method around one U-Net that estimates noise, saved as a pipeline of diffusers."""

    class Settings(DiffusionMethod.Settings):
        """Defaults: the released commands of JointDiffusion for 32-px images."""

        unlabelled_ratio: int = Field(1, ge=1)  # noisy images per labelled one; drawn from all training images
        width: int = 128  # channels of the first level
        multipliers: tuple[int, ...] = (1, 2, 2, 2)
        blocks: int = 3  # residual blocks per level
        attention_at: tuple[int, ...] = (16, 8)  # sides of the maps with self-attention, pixels
        dropout: float = 0.0  # in the U-Net
        noise_schedule: Literal["linear", "cosine"] = "linear"
        # What the U-Net says: the noise, as in the paper, or v, which weighs all noise levels alike. Near pure noise,
        # the noise hardly says what the image is, so that a short training follows labels less.
        prediction: Literal["noise", "v"] = "noise"

    settings: Settings
    unet: UNet
    denoiser: ClassVar[tuple[str, str]] = ("diffusers", "UNet2DModel")

    def __init__(self, data: DataInfo, settings: Settings, codec: Codec | None = None) -> None:
        super().__init__(data, settings, codec)
        self.unet = UNet(**self.shape)
        self.process = DiscreteProcess(
            settings.noise_schedule,
            prediction="v" if settings.prediction == "v" else "epsilon",
            clip=self.codec.bounded,
        )

    @property
    def network(self) -> str:
        """Name the U-Net."""
        return self.unet.name

    @property
    def shape(self) -> dict[str, Any]:
        """Return what a U-Net on these codes, or its encoder, is built from."""
        chosen = ("width", "multipliers", "blocks", "attention_at", "dropout")
        return {"channels": self.codec.channels, "size": self.codec.size} | {
            name: getattr(self.settings, name) for name in chosen
        }
