"""What the diffusion methods share: the space in which they work, and the way from its noise to images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from jointdiff.data.source import DataInfo
from jointdiff.diffusion.process import Process, noise_for
from jointdiff.method import Method, MethodSettings
from jointdiff.nets.codecs import Codec, HaarWavelet, Identity

CODECS: dict[str, type[Identity] | type[HaarWavelet]] = {"identity": Identity, "wavelet": HaarWavelet}


class DiffusionMethod(Method):
    """A method whose network sees codes: pixels, wavelets, or the latents of an autoencoder."""

    class Settings(MethodSettings):
        """What every diffusion method can be told."""

        codec: Literal["identity", "wavelet"] = "identity"  # without effect where the entry names an autoencoder

    settings: Settings
    process: Process
    works_in_latents: ClassVar[bool] = True

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
