"""Parts of saved models as pipelines of diffusers call them, where diffusers has no class of its own for them.

Importing this takes as long as importing diffusers; nothing but its pipelines does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d import UNet2DOutput
from safetensors.torch import load_file
from torch import Tensor, nn

from jointdiff.files import read_json
from jointdiff.nets.codecs import HaarWavelet
from jointdiff.nets.dit import DiT
from jointdiff.nets.stable_diffusion import StableDiffusion


class _Component(ModelMixin, ConfigMixin):
    """What reads its own folder and says in ``config`` what pipelines look at."""

    config_name: Any = "config.json"

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refuse: the model folder that it came from is what can be read again.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{type(self).__name__} does not save itself: copy the model folder that it was read from")


class ConditionalDenoiser(_Component):
    """The network of a diffusion classifier, for pipelines that know of no condition: its own decides.

    Without one it draws as the unlabelled images are; conditions are counted as the model card does.
    """

    def __init__(self, net: nn.Module, *, channels: int, size: int, conditions: int) -> None:
        super().__init__()
        self.register_to_config(in_channels=channels, sample_size=size)
        self.net = net
        self.nothing = conditions - 1
        self.condition = self.against = self.nothing
        self.guidance = 0.0

    @classmethod
    def from_pretrained(cls, folder: Path | str, **_: Any) -> Self:
        """Read a U-Net, DiT or Stable Diffusion that a diffusion classifier saved."""
        folder = Path(folder)
        config = read_json(folder / cls.config_name)
        net: nn.Module
        if config["_class_name"] == "DiT":
            channels, size, conditions = (config[key] for key in ("channels", "size", "conditions"))
            net = DiT(**{key: value for key, value in config.items() if not key.startswith("_")})
            net.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        else:
            channels, size = config["in_channels"], config["sample_size"]
            if config["_class_name"] == "UNet2DModel":
                net = _Conditioned(UNet2DModel.from_pretrained(folder, use_safetensors=True))
                conditions = config["num_class_embeds"]
            else:
                net = StableDiffusion.from_saved(folder)
                conditions = len(net.prompts)
        return cls(net.eval(), channels=channels, size=size, conditions=conditions)

    def ask_for(self, condition: int, *, against: int | None = None, guidance: float = 0.0) -> None:
        """Draw under a condition c from now on, by c + guidance (c - against), where nothing is the usual rival.

        Raises:
            ValueError: there is no such condition.
        """
        against = self.nothing if against is None else against
        if wrong := [c for c in (condition, against) if not 0 <= c <= self.nothing]:
            raise ValueError(f"there is no condition {wrong[0]}: 0 to {self.nothing}, of which the last is none")
        self.condition, self.against, self.guidance = condition, against, guidance

    def forward(self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True) -> UNet2DOutput:
        """Return the estimate (N, c, h, w) for noisy codes at one step."""
        steps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))

        def under(condition: int) -> Tensor:
            return self.net(sample, steps, steps.new_full(steps.shape, condition, dtype=torch.long))

        told = under(self.condition)
        if self.guidance:
            told = told + self.guidance * (told - under(self.against))
        return UNet2DOutput(sample=told)


class WaveletDecoder(_Component):
    """The Haar wavelets in the place of an autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.register_to_config(scaling_factor=1.0)
        self.register_buffer("place", torch.empty(0))  # pipelines ask each part on which device it is

    @classmethod
    def from_pretrained(cls, folder: Path | str, **_: Any) -> Self:
        """Return it; there is nothing to read."""
        return cls()

    def decode(self, codes: Tensor) -> DecoderOutput:
        """Return images (N, C, 2 h, 2 w) of codes (N, 4 C, h, w)."""
        return DecoderOutput(sample=HaarWavelet.compose(codes))


class _Conditioned(nn.Module):
    """diffusers' U-Net, called as ours is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, codes: Tensor, steps: Tensor, conditions: Tensor) -> Tensor:
        return self.net(codes, steps, class_labels=conditions).sample
