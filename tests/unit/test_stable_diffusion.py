from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from jointdiff.data.source import LabelSpec
from jointdiff.nets.stable_diffusion import StableDiffusion, prompts_for
from jointdiff.task import task_for

CLASSES, FINDINGS = LabelSpec("one_of_k", ("cat", "dog")), LabelSpec("multi_label", ("oedema", "pleural_effusion"))
PROMPTS = prompts_for(CLASSES, present="a {label}", absent="")
START, END = "<|startoftext|>", "<|endoftext|>"
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's
EXACT = {"atol": 0.0, "rtol": 0.0}


def save_pipeline(folder: Path, *, scheduler: dict | None = None, **unet) -> Path:
    """Save a pipeline of random weights with a vocabulary of single letters."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), START, END]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    network = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "norm_num_groups": 8, "attention_head_dim": 8, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**network | unet),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, **(SCHEDULE if scheduler is None else scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pipeline(tmp_path_factory.mktemp("pipeline")))


def batch(side: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 4, side, side), torch.tensor([0.0, 499.0, 999.0]), torch.tensor([0, 1, 2])


@torch.no_grad()
def output(model: StableDiffusion, side: int = 8) -> torch.Tensor:
    return model.eval()(*batch(side))


def train_a_step(model: StableDiffusion) -> None:
    optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=10.0)
    for _ in range(2):  # the second reaches what the first alone would multiply by zero
        optimiser.zero_grad()
        model.train()(*batch()).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("side", [8, 12])
@torch.no_grad()
def test_output_is_that_of_the_pipeline(pipeline, side):
    ours = StableDiffusion.load(pipeline, PROMPTS, tuning="none")
    theirs = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    texts, _ = theirs.encode_prompt(["a cat", "a dog", ""], "cpu", 1, False)
    codes, steps, _ = batch(side)
    expected = theirs.unet(codes, steps, encoder_hidden_states=texts).sample
    torch.testing.assert_close(output(ours, side), expected, atol=1e-6, rtol=1e-5)
    assert (ours.channels, ours.size) == (4, 8)
    assert ours.config["_class_name"] == "UNet2DConditionModel"


def test_every_text_and_the_empty_one_differ(pipeline):
    model = StableDiffusion.load(pipeline, PROMPTS, tuning="none")
    assert model.prompts == ("a cat", "a dog", "")
    codes, steps = batch()[0][:1].expand(3, -1, -1, -1), torch.full((3,), 500.0)
    with torch.no_grad():
        assert torch.pdist(model(codes, steps, torch.arange(3)).flatten(1)).min() > 1e-5


def test_the_text_encoder_is_dropped(pipeline):
    model = StableDiffusion.load(pipeline, PROMPTS, tuning="none")
    assert {name.split(".", 1)[0] for name in model.state_dict()} == {"unet", "embeddings"}


def test_zero_shot_has_nothing_to_train(pipeline):
    model = StableDiffusion.load(pipeline, PROMPTS, tuning="none")
    assert not any(weight.requires_grad for weight in model.parameters())


def test_everything_trains_in_full_tuning(pipeline):
    model = StableDiffusion.load(pipeline, PROMPTS, tuning="full")
    model(*batch()).square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert not model.embeddings.requires_grad


def test_low_rank_additions_alone_train_and_start_at_zero(pipeline):
    base = StableDiffusion.load(pipeline, PROMPTS, tuning="none")
    model = StableDiffusion.load(pipeline, PROMPTS, tuning="lora", lora_rank=2)
    torch.testing.assert_close(output(model), output(base), **EXACT)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in before if "lora_" in name}
    # Two attentions in each block with any, and four projections in each attention.
    attentions = {name.rsplit(".attn", 1)[0] + name.rsplit(".attn", 1)[1][0] for name in trained}
    assert len(trained) == 2 * 4 * len(attentions)
    assert all(min(before[name].shape) == 2 for name in trained)
    train_a_step(model)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == trained


@pytest.mark.parametrize("tuning", ["none", "full", "lora"])
def test_what_is_saved_is_what_was_in_use(pipeline, tmp_path, tuning):
    model = StableDiffusion.load(pipeline, PROMPTS, tuning=tuning, lora_rank=2)
    untouched = output(model)
    if tuning != "none":
        train_a_step(model)
    expected = output(model)
    assert torch.equal(expected, untouched) == (tuning == "none")
    model.save_pretrained(tmp_path / "unet")
    torch.testing.assert_close(output(model), expected, **EXACT)  # saving changes nothing

    again = StableDiffusion.from_saved(tmp_path / "unet")
    torch.testing.assert_close(output(again), expected, atol=1e-5, rtol=1e-4)
    assert (again.prompts, again.prediction, again.schedule) == (model.prompts, "epsilon", "stable_diffusion")
    assert (again.channels, again.size) == (4, 8)
    assert not any(weight.requires_grad for weight in again.parameters())

    unet, info = UNet2DConditionModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert not any(info.values())
    codes, steps, conditions = batch()
    with torch.no_grad():
        by_diffusers = unet(codes, steps, encoder_hidden_states=model.embeddings[conditions]).sample
    torch.testing.assert_close(by_diffusers, expected, atol=1e-5, rtol=1e-4)
    assert "lora" not in (tmp_path / "unet" / "config.json").read_text()


def test_a_checkpoint_is_an_ordinary_state(pipeline):
    model, again = (StableDiffusion.load(pipeline, PROMPTS, tuning="lora", lora_rank=2) for _ in range(2))
    train_a_step(model)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(output(again), output(model), **EXACT)


@pytest.mark.parametrize(
    ("options", "prediction", "schedule"),
    [
        ({"prediction_type": "v_prediction", **SCHEDULE}, "v", "stable_diffusion"),
        ({"prediction_type": "epsilon"}, "epsilon", "linear"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "epsilon", "cosine"),
    ],
)
def test_prediction_and_schedule_are_the_schedulers(tmp_path, options, prediction, schedule):
    folder = save_pipeline(tmp_path, scheduler=options)
    model = StableDiffusion.load(str(folder), PROMPTS, tuning="none")
    assert (model.prediction, model.schedule) == (prediction, schedule)


@pytest.mark.parametrize(
    ("scheduler", "unet", "message"),
    [
        ({"prediction_type": "sample"}, {}, "predicts 'sample'; use a pipeline"),
        ({"beta_end": 0.03}, {}, r"noise schedule .* \(linear, 0.0001 to 0.03\) is none of"),
        ({"rescale_betas_zero_snr": True}, {}, "noise schedule .* is none of"),
        ({}, {"in_channels": 9}, "text-to-image pipeline"),
    ],
)
def test_pipelines_of_other_kinds_are_refused(tmp_path, scheduler, unet, message):
    folder = save_pipeline(tmp_path, scheduler=scheduler, **unet)
    with pytest.raises(ValueError, match=rf"settings.pretrained: .*{message}"):
        StableDiffusion.load(str(folder), PROMPTS, tuning="none")


@pytest.mark.parametrize("pretrained", ["no/such/folder/at/all", "nobody/no-such-pipeline"])
def test_what_cannot_be_read_is_named(monkeypatch, pretrained):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"settings.pretrained: cannot read `scheduler` of '{pretrained}'; give"):
        StableDiffusion.load(pretrained, PROMPTS, tuning="none")


@pytest.mark.parametrize("part", ["scheduler", "unet", "text_encoder"])
def test_a_missing_part_is_named(tmp_path, part):
    folder = save_pipeline(tmp_path)
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=f"settings.pretrained: cannot read `{part}`"):
        StableDiffusion.load(str(folder), PROMPTS, tuning="none")


@pytest.mark.parametrize(("part", "file"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_missing_weights_are_not_made_up(tmp_path, part, file):
    path = save_pipeline(tmp_path) / part / f"{file}.safetensors"
    weights = load_file(path)
    del weights[min(weights)]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"settings.pretrained: .*`{part}` of"):
        StableDiffusion.load(str(tmp_path), PROMPTS, tuning="none")


def test_a_tokenizer_without_words_is_refused(tmp_path):
    folder = save_pipeline(tmp_path)
    (folder / "tokenizer").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"settings.pretrained: the tokenizer .* has 2 tokens and its text encoder 55"):
        StableDiffusion.load(str(folder), PROMPTS, tuning="none")


def test_texts_are_read_from_files_as_published(tmp_path):
    # Those of Stable Diffusion 2 were written by an older library: the text encoder's weights have longer names, there
    # is no tokenizer.json, and of two opinions of the padding "!" is right.
    encoder = CLIPTextModel.from_pretrained(save_pipeline(tmp_path), subfolder="text_encoder")
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in encoder.state_dict().items()
    }
    save_file(weights, tmp_path / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / "tokenizer"
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    special = {"bos_token": START, "eos_token": END, "unk_token": END}
    contents = {
        "vocab.json": vocabulary,
        "tokenizer_config.json": {"model_max_length": 16, "tokenizer_class": "CLIPTokenizer", "pad_token": END}
        | special,
        "special_tokens_map.json": {"pad_token": "!"} | special,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    model = StableDiffusion.load(str(tmp_path), PROMPTS, tuning="none")
    row = [vocabulary[token] for token in (START, "a</w>", "c", "a", "t</w>", END, *["!"] * 10)]
    with torch.no_grad():
        expected = encoder(torch.tensor([row])).last_hidden_state[0]
    torch.testing.assert_close(model.embeddings[0], expected, atol=1e-6, rtol=1e-5)


def test_a_folder_that_was_not_saved_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no saved Stable Diffusion: it has no prompts\.safetensors"):
        StableDiffusion.from_saved(tmp_path)


def test_a_text_that_would_be_cut_off_is_refused(pipeline):
    with pytest.raises(ValueError, match="'a hippopotamuses' has 17 tokens, more than 16; shorten"):
        StableDiffusion.load(pipeline, ["a hippopotamuses", ""], tuning="none")


def test_texts_that_do_not_differ_are_refused(pipeline):
    with pytest.raises(ValueError, match=r"two of these texts are the same .* 'a cat', 'A  cat', ''"):
        StableDiffusion.load(pipeline, ["a cat", "A  cat", ""], tuning="none")


@pytest.mark.parametrize("labels", [CLASSES, FINDINGS])
def test_prompts_are_in_the_order_of_the_conditions(labels):
    prompts, task = prompts_for(labels, present="with {label}", absent="without {label}"), task_for(labels)
    assert len(prompts) == task.conditions + 1
    assert prompts[-1] == ""
    for finding, name in enumerate(labels.names):
        assert prompts[task.conditions_for(finding, 1.0)[0]] == f"with {name.replace('_', ' ')}"
        if labels.kind == "multi_label":
            assert prompts[task.conditions_for(finding, 0.0)[0]] == f"without {name.replace('_', ' ')}"


def test_templates_without_a_label_are_refused():
    with pytest.raises(ValueError, match=r"settings.present: 'an X-ray' .* put \{label\} into it"):
        prompts_for(CLASSES, present="an X-ray", absent="")
    with pytest.raises(ValueError, match=r"settings.absent: '' "):
        prompts_for(FINDINGS, present="{label}", absent="")
