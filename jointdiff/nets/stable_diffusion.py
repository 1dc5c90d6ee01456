"""Stable Diffusion as the conditional network of a diffusion classifier, conditioned on one text per label.

Favero et al. 2025 use a foundation model as it is, or fine-tune it. Of a pipeline in diffusers' layout this reads the
U-Net, what its scheduler says of the diffusion, and the text encoder, which encodes the few texts once and is dropped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jointdiff.data.source import LabelSpec
from jointdiff.diffusion.process import Prediction

Tuning = Literal["full", "lora", "none"]
Schedule = Literal["linear", "cosine", "stable_diffusion"]

PROMPTS = "prompts.safetensors"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of every attention
# What of a scheduler decides the schedule, as diffusers' own schedulers have it where a configuration is silent.
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
LINEAR, SCALED, COSINE = ("linear", 1e-4, 0.02), ("scaled_linear", 8.5e-4, 0.012), "squaredcos_cap_v2"


class StableDiffusion(nn.Module):
    """Estimate what Stable Diffusion's U-Net does (Rombach et al. 2022), under one of a few texts.

    ``load`` makes one from a pipeline, ``from_saved`` from what ``save_pretrained`` wrote.

    Args:
        unet: diffusers' ``UNet2DConditionModel``, with adapters where it has been given any.
        embeddings: of the texts (P, L, D), from the text encoder; the last is that of the empty one.
        prompts: the P texts.
        prediction: what the network estimates.
        schedule: how much noise its steps stand for, by the name it has in ``DiscreteProcess``.

    Attributes:
        channels: of the latents.
        size: side of the latents it was trained on; it takes others too.
        config: of the U-Net.
    """

    name = "Stable Diffusion"
    unet: Any  # diffusers' classes hide most of what they have from a type checker
    embeddings: Tensor

    def __init__(
        self,
        unet: Any,
        embeddings: Tensor,
        *,
        prompts: Sequence[str],
        prediction: Prediction,
        schedule: Schedule,
    ) -> None:
        super().__init__()
        assert len(prompts) == len(embeddings)
        self.unet = unet
        self.register_buffer("embeddings", embeddings)
        self.prompts, self.prediction, self.schedule = tuple(prompts), prediction, schedule
        self.config: dict[str, Any] = dict(unet.config)
        self.channels, self.size = int(self.config["in_channels"]), int(self.config["sample_size"])

    @classmethod
    def load(cls, pretrained: str, prompts: Sequence[str], *, tuning: Tuning, lora_rank: int = 8) -> StableDiffusion:
        """Read a pipeline and encode the texts, one per condition and the empty one last.

        Args:
            pretrained: a folder in diffusers' layout, or the id of one on the hub; safetensors, no pickles.
            prompts: as ``prompts_for`` makes them, all different.
            tuning: whether all of the U-Net trains, low-rank additions to its attentions (Hu et al. 2022), or nothing.
            lora_rank: of these additions.

        Raises:
            ValueError: the pipeline cannot be read or is of another kind, or a text is too long or there twice.
        """
        from diffusers import DDIMScheduler, UNet2DConditionModel

        scheduler = _read(pretrained, "scheduler", DDIMScheduler.load_config)
        prediction, schedule = _process(pretrained, scheduler)
        unet = _weights(pretrained, "unet", UNet2DConditionModel.from_pretrained, torch_dtype=torch.float32)
        if unet.config.in_channels != unet.config.out_channels or unet.config.addition_embed_type:
            raise ValueError(
                f"settings.pretrained: the U-Net of {pretrained} asks for more than noisy latents and a text; use a "
                "text-to-image pipeline of Stable Diffusion 1 or 2"
            )
        unet.requires_grad_(tuning == "full")
        if tuning == "lora":
            from peft import LoraConfig

            unet.add_adapter(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=list(PROJECTIONS)))
        embeddings = _encode(pretrained, prompts)
        return cls(unet, embeddings, prompts=prompts, prediction=prediction, schedule=schedule)

    @classmethod
    def from_saved(cls, folder: Path) -> StableDiffusion:
        """Read what ``save_pretrained`` wrote, for use: nothing of it trains.

        Raises:
            ValueError: the folder holds no such model.
        """
        from diffusers import UNet2DConditionModel

        if not (folder / PROMPTS).is_file():
            raise ValueError(f"{folder} is no saved Stable Diffusion: it has no {PROMPTS}; train this cell again")
        with safe_open(folder / PROMPTS, framework="pt") as stored:
            facts, embeddings = stored.metadata(), stored.get_tensor("embeddings")
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
        return cls(
            unet.requires_grad_(False),
            embeddings,
            prompts=json.loads(facts["prompts"]),
            prediction=facts["prediction"],
            schedule=facts["schedule"],
        )

    def forward(self, codes: Tensor, steps: Tensor, conditions: Tensor) -> Tensor:
        """Return the estimate (N, c, s, s) for noisy latents at steps (N,) in [0, 1000] under conditions (N,)."""
        return self.unet(codes, steps, encoder_hidden_states=self.embeddings[conditions]).sample

    def save_pretrained(self, folder: Path) -> None:
        """Write the U-Net as diffusers reads it, low-rank additions added, and the texts beside it."""
        unet = self.unet
        if getattr(unet, "peft_config", None):
            unet = copy.deepcopy(unet)
            unet.fuse_lora()
            unet.unload_lora()
        unet.register_to_config(_name_or_path="")  # where it was read from concerns nobody else
        unet.save_pretrained(folder)
        facts = {"prompts": json.dumps(self.prompts), "prediction": self.prediction, "schedule": self.schedule}
        embeddings = self.embeddings.contiguous().cpu()
        save_file({"embeddings": embeddings}, folder / PROMPTS, metadata={"format": "pt", **facts})


def prompts_for(labels: LabelSpec, *, present: str, absent: str) -> list[str]:
    """Return a text for each condition of the labels' task, in its order, and the empty text for none of them.

    Args:
        labels: one-of-K has a text per class, multi-label one for absence and one for presence of each finding.
        present: text with ``{label}`` where the name goes.
        absent: the same; multi-label alone uses it.

    Raises:
        ValueError: a text that is used has no place for the name.
    """
    used = {"present": present} if labels.kind == "one_of_k" else {"absent": absent, "present": present}
    for key, template in used.items():
        if "{label}" not in template:
            raise ValueError(f"settings.{key}: {template!r} is the same for every label; put {{label}} into it")
    names = [name.replace("_", " ") for name in labels.names]  # for a text encoder, an underscore is a word
    return [*(template.replace("{label}", name) for name in names for template in used.values()), ""]


def _read(pretrained: str, part: str, read: Callable[..., Any], **options: Any) -> Any:
    try:
        return read(pretrained, subfolder=part, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"settings.pretrained: cannot read `{part}` of {pretrained!r}; give a folder in diffusers' layout with "
            f"safetensors weights, or the id of one on the hub that can be reached from here ({error})"
        ) from error


def _weights(pretrained: str, part: str, read: Callable[..., Any], **options: Any) -> Any:
    """Return a network of the pipeline; its libraries would fill what is missing with random numbers."""
    network, info = _read(pretrained, part, read, use_safetensors=True, output_loading_info=True, **options)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"settings.pretrained: `{part}` of {pretrained} lacks weights ({missing}); fetch it again")
    return network


@torch.no_grad()
def _encode(pretrained: str, prompts: Sequence[str]) -> Tensor:
    """Return the last hidden states (P, L, D) of the pipeline's text encoder, for each text padded to L tokens."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = _read(pretrained, "tokenizer", CLIPTokenizer.from_pretrained)
    encoder = _weights(pretrained, "text_encoder", CLIPTextModel.from_pretrained, dtype=torch.float32)
    # Where files are missing transformers makes a tokenizer without words rather than an error.
    if len(tokenizer) < encoder.config.vocab_size:
        raise ValueError(
            f"settings.pretrained: the tokenizer of {pretrained} has {len(tokenizer)} tokens and its text encoder "
            f"{encoder.config.vocab_size}; complete the files in its folder `tokenizer`"
        )
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    for prompt in prompts:
        count = len(tokenizer(prompt).input_ids)
        if count > length:
            raise ValueError(f"the text {prompt!r} has {count} tokens, more than {length}; shorten its template")
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt").input_ids
    if len(tokens.unique(dim=0)) < len(tokens):
        raise ValueError(f"two of these texts are the same to the text encoder: {', '.join(map(repr, prompts))}")
    return torch.cat([encoder.eval()(row[None]).last_hidden_state for row in tokens])  # one by one, to spare memory


def _process(pretrained: str, scheduler: Mapping[str, Any]) -> tuple[Prediction, Schedule]:
    """Return what the network of a pipeline estimates, and the schedule, as its scheduler's configuration has them."""
    kinds: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise ValueError(
            f"settings.pretrained: {pretrained} predicts {kind!r}; use a pipeline whose prediction_type is 'epsilon' "
            "or 'v_prediction'"
        )
    name, start, end = (scheduler.get(key, default) for key, default in BETAS.items())
    schedules: dict[Any, Schedule] = {LINEAR: "linear", SCALED: "stable_diffusion"}
    schedule: Schedule | None = "cosine" if name == COSINE else schedules.get((name, start, end))
    if schedule is None or scheduler.get("trained_betas") or scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"settings.pretrained: the noise schedule of {pretrained} ({name}, {start} to {end}) is none of "
            "linear, cosine and Stable Diffusion's; use a pipeline that has one of them"
        )
    return kinds[kind], schedule
