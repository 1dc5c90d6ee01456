from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from safetensors.torch import load_file
from torch import nn

from jointdiff.nets.dit import SIZES, DiT, position_embedding

SMALL = {"channels": 3, "size": 8, "patch": 2, "width": 24, "depth": 2, "heads": 3, "conditions": 5}


def perturbed(**changes) -> DiT:
    """Return a small network whose gates are open."""
    torch.manual_seed(0)
    dit = DiT(**SMALL | changes).eval()
    with torch.no_grad():
        for weight in dit.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return dit


def batch(n: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 8, 8), torch.linspace(0.0, 1000.0, n), torch.arange(n) % 5


def copy_block(ours, theirs: BasicTransformerBlock) -> None:
    attention = theirs.attn1
    pairs = {
        ours.modulation: theirs.norm1.linear,
        ours.to_out: attention.to_out[0],
        ours.mlp[0]: theirs.ff.net[0].proj,
        ours.mlp[2]: theirs.ff.net[2],
    }
    for source, target in pairs.items():
        target.load_state_dict(source.state_dict())
    weights, biases = ours.to_qkv.weight.chunk(3), ours.to_qkv.bias.chunk(3)
    for target, weight, bias in zip((attention.to_q, attention.to_k, attention.to_v), weights, biases, strict=True):
        target.load_state_dict({"weight": weight, "bias": bias})


def test_a_block_equals_that_of_diffusers():
    block = perturbed().blocks[0]
    reference = BasicTransformerBlock(
        24, 3, 8, activation_fn="gelu-approximate", num_embeds_ada_norm=1, attention_bias=True,
        norm_type="ada_norm_zero", norm_elementwise_affine=False, norm_eps=1e-6,
    ).eval()  # fmt: skip
    copy_block(block, reference)
    tokens, embedding = torch.randn(2, 16, 24), torch.randn(2, 24)
    # It would make the embedding from step and class; what it made is put in its place.
    reference.norm1.emb = nn.Module()
    reference.norm1.emb.forward = lambda *_, **__: embedding
    with torch.no_grad():
        expected = reference(tokens)
        torch.testing.assert_close(block(tokens, nn.functional.silu(embedding)), expected, atol=1e-5, rtol=1e-5)


def test_the_whole_equals_that_of_diffusers():
    dit = perturbed()
    reference = DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=4, norm_eps=1e-6,
    ).eval()  # fmt: skip
    reference.pos_embed.proj.load_state_dict(dit.patches.state_dict())
    for ours, theirs in zip(dit.blocks, reference.transformer_blocks, strict=True):
        copy_block(ours, theirs)
        embedder = theirs.norm1.emb  # each of its blocks has one
        embedder.time_proj.downscale_freq_shift = 0  # it departs from the paper's code here
        embedder.timestep_embedder.load_state_dict(dit.time_embedding.state_dict())
        embedder.class_embedder.embedding_table.load_state_dict(dit.condition_embedding.state_dict())
    reference.proj_out_1.load_state_dict(dit.modulation.state_dict())
    # Its patches hold (row, column, channel), ours (channel, row, column).
    order = torch.arange(12).view(3, 2, 2).permute(1, 2, 0).flatten()
    reference.proj_out_2.load_state_dict({"weight": dit.out.weight[order], "bias": dit.out.bias[order]})
    codes, steps, conditions = batch()
    with torch.no_grad():
        expected = reference(codes, steps, conditions).sample
        torch.testing.assert_close(dit(codes, steps, conditions), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("side", "width"), [(4, 24), (16, 64)])
def test_position_embedding_equals_that_of_diffusers(side, width):
    expected = get_2d_sincos_pos_embed(width, side, base_size=side).float()
    torch.testing.assert_close(position_embedding(side, width), expected, atol=1e-6, rtol=1e-6)


def test_output_is_zero_at_first():
    assert not DiT(**SMALL)(*batch()).any()


def test_blocks_are_the_identity_at_first():
    tokens = torch.randn(2, 16, 24)
    torch.testing.assert_close(DiT(**SMALL).blocks[1](tokens, torch.randn(2, 24)), tokens, atol=0.0, rtol=0.0)


def test_conditions_steps_and_places_matter():
    dit = perturbed()
    codes = torch.randn(1, 3, 8, 8).expand(5, -1, -1, -1)
    with torch.no_grad():
        by_condition = dit(codes, torch.full((5,), 500.0), torch.arange(5))
        by_step = dit(codes, torch.tensor([0.0, 1.0, 1.5, 999.0, 1000.0]), torch.zeros(5, dtype=torch.long))
        uniform = dit(torch.ones(1, 3, 8, 8), torch.tensor([500.0]), torch.tensor([4]))
    for outputs in (by_condition, by_step):
        assert torch.pdist(outputs.flatten(1)).min() > 1e-3
    assert torch.pdist(uniform.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(16, -1)).min() > 1e-3


def test_gradients_reach_every_weight():
    dit = perturbed()
    dit(*batch(5)).square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in dit.parameters())


def test_what_is_saved_is_what_was_in_use(tmp_path):
    dit = perturbed()
    dit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("_class_name") == "DiT"
    again = DiT(**config).eval()
    again.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    inputs = batch()
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs), dit(*inputs), atol=0.0, rtol=0.0)


@pytest.mark.parametrize(
    ("size", "patch", "published"),
    # The first is the "DiT Parameters" that facebookresearch/DiT prints; the others are in the paper's table 4.
    [("XL", 2, 675_129_632), ("S", 2, 33e6), ("B", 4, 130e6), ("L", 2, 458e6)],
)
def test_parameter_count_is_the_published_one(size, patch, published):
    with torch.device("meta"):
        dit = DiT(channels=4, size=32, patch=patch, conditions=1001, **SIZES[size])
    # The published network also estimates variances, and counts its position embedding.
    width = SIZES[size]["width"]
    variances, positions = (width + 1) * 4 * patch**2, (32 // patch) ** 2 * width
    count = sum(weight.numel() for weight in dit.parameters()) + variances + positions
    assert round(count, -6) == published if isinstance(published, float) else count == published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "patch 3 does not divide the side 8"),
        ({"heads": 5}, "width 24 .* multiple of 4 and of heads 5"),
        ({"width": 18}, "width 18 .* multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiT(**SMALL | changes)
