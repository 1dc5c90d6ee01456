"""A diffusion transformer: a plain vision transformer on patches, steered by adaptive layer normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from jointdiff.nets.unet import TimeEmbedding

# Peebles & Xie 2023, table 1. A name such as DiT-B/4 adds the side of the patches.
SIZES = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
FREQUENCIES = 256  # cosines and sines of the noise level


class DiT(nn.Module):
    """Estimate what a diffusion asks for with transformer blocks of the kind adaLN-Zero (Peebles & Xie 2023).

    Unlike the published one it estimates no variances: it has as many channels out as in.

    Args:
        channels: of the codes.
        size: side of the codes.
        patch: side of the patches, each of which is one token.
        width: of the tokens.
        depth: number of blocks.
        heads: of the attention.
        conditions: what the estimate may be conditioned on, "nothing", the last, included.

    Raises:
        ValueError: the patches do not fill the codes, or the width does not suit heads or position embedding.
    """

    def __init__(
        self, *, channels: int, size: int, patch: int, width: int, depth: int, heads: int, conditions: int
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch {patch} does not divide the side {size} of the codes: use a divisor of {size}")
        if width % heads or width % 4:
            raise ValueError(f"width {width} of the transformer must be a multiple of 4 and of heads {heads}")
        self.config: dict[str, Any] = {
            "_class_name": "DiT",
            "channels": channels,
            "size": size,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "conditions": conditions,
        }
        published = {tuple(size.values()): f"-{letter}" for letter, size in SIZES.items()}
        self.name = f"DiT{published.get((depth, width, heads), f' {depth} x {width}')}/{patch}"
        self.patch = patch
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("positions", position_embedding(size // patch, width), persistent=False)
        self.time_embedding = TimeEmbedding(FREQUENCIES, width)
        self.condition_embedding = nn.Embedding(conditions, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Start every block as the identity and the output at zero; the spreads are those of the paper's code."""
        for name, weight in self.named_parameters():
            if name.endswith("bias") or "modulation" in name or name.startswith("out."):
                nn.init.zeros_(weight)
            elif "embedding" in name:
                nn.init.normal_(weight, std=0.02)
            else:
                nn.init.xavier_uniform_(weight.flatten(1))  # a view: to a linear layer, a patch is a row

    def forward(self, codes: Tensor, steps: Tensor, conditions: Tensor) -> Tensor:
        """Return the estimate (N, c, s, s) for noisy codes at steps (N,) in [0, 1000] under conditions (N,)."""
        tokens = self.patches(codes)
        n, _, h, w = tokens.shape
        tokens = tokens.flatten(2).transpose(1, 2) + self.positions  # (N, h w, D)
        embedding = F.silu(self.time_embedding(steps, dtype=codes.dtype) + self.condition_embedding(conditions))
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        pixels = self.out(_modulate(self.norm(tokens), shift, scale))  # (N, h w, c p p)
        return F.pixel_shuffle(pixels.transpose(1, 2).reshape(n, -1, h, w), self.patch)

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights in diffusers' style."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def position_embedding(side: int, width: int) -> Tensor:
    """Return sines and cosines of column and row (side^2, width) for tokens in reading order.

    The frequencies are those of Vaswani et al. 2017 (section 3.5), for each axis in half of the width.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    places = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    return torch.cat([places.repeat(side, 1), places.repeat_interleave(side, dim=0)], dim=1).float()


class _Block(nn.Module):
    """Attention and two layers, each with shift, scale and gate made from the embedding (figure 3, adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Return tokens (N, T, D), given the activated embedding (N, D)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        tokens = tokens + gate_1 * self.attention(_modulate(self.norm1(tokens), shift_1, scale_1))
        return tokens + gate_2 * self.mlp(_modulate(self.norm2(tokens), shift_2, scale_2))

    def attention(self, tokens: Tensor) -> Tensor:
        """Return what each token sees of all."""
        n, t, d = tokens.shape
        q, k, v = self.to_qkv(tokens).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


def _modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return tokens * (1.0 + scale) + shift
