"""Pipelines of diffusers, called themselves, draw from saved models what the models' own networks say."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DiffusionPipeline, LDMPipeline

from jointdiff.methods.diffusion_classifier import DiffusionClassifier
from jointdiff.methods.joint import JointDiffusion
from jointdiff.models import load_model, save_model
from jointdiff.nets.autoencoder import Autoencoder
from jointdiff.nets.components import ConditionalDenoiser
from tests.tiny import tiny_run
from tests.unit.test_diffusion_classifier import info
from tests.unit.test_stable_diffusion import save_pipeline

TRANSFORMER = {"backbone": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
FOUNDATION = {"backbone": "stable_diffusion", "tuning": "full", "present": "a {label}", "absent": "no {label}"}


def save(folder, cls=DiffusionClassifier, *, kind="one_of_k", **settings):
    """Save an untrained model of images of 16 px, whose every weight is drawn at random, and read it back."""
    names = {DiffusionClassifier: "diffusion_classifier", JointDiffusion: "joint"}
    run = tiny_run(names[cls], dataset="toy", settings=settings)
    data = info(kind, ("a", "b", "c"), size=16)
    codec = Autoencoder(settings["pretrained"] + "/vae", data) if "pretrained" in settings else None
    method = cls.build(data, run.settings, codec)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in method.unet.named_parameters():
            weight.add_(torch.randn_like(weight) * (0.3 if "embedding" in name else 0.05))
    save_model(method, folder, run=run)
    return load_model(folder)


def draw(folder, **options):
    """Let diffusers find the pipeline by the folder's index and draw two images in four steps."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    asked = options.pop("ask", None)
    if asked:
        pipeline.unet.ask_for(**asked)
    generator = torch.Generator().manual_seed(5)
    images = pipeline(batch_size=2, generator=generator, num_inference_steps=4, output_type="np", **options).images
    return pipeline, torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def by_hand(model, output, *, clipped, decode=None):
    """Return what DDIM makes of the same start; the noise beside a clipped estimate is the network's, or what is left.

    The signals are the process's own, so that the betas which diffusers was given are checked as well.
    """
    z = torch.randn((2, model.codec.channels, *[model.codec.size] * 2), generator=torch.Generator().manual_seed(5))
    for t in (999.0, 749.0, 499.0, 249.0):
        at = torch.full((2,), t)
        a, s = model.process.scales(at)
        said = output(z, at)
        clean = model.process.clean_from(said, z, at)
        noise = (z - a * clean) / s if clipped else model.process.noise_from(said, z, at)
        a, s = model.process.scales(at - 250.0) if t > 249.0 else (1.0, 0.0)
        z = a * clean + s * noise
    return (decode or model.codec.decode)(z).clamp(-1, 1)


def under(model, condition):
    return lambda z, at: model.unet(z, at, torch.full((2,), condition))


@pytest.mark.parametrize("settings", [{}, TRANSFORMER], ids=["unet", "dit"])
def test_a_diffusion_classifier_in_pixels(tmp_path, settings):
    model = save(tmp_path / "model", **settings)
    pipeline, nothing = draw(tmp_path / "model", use_clipped_model_output=True)
    assert isinstance(pipeline, DDIMPipeline)
    torch.testing.assert_close(nothing, by_hand(model, under(model, 3), clipped=True), atol=1e-3, rtol=1e-3)
    ask = {"condition": 1, "guidance": 1.5}
    _, one = draw(tmp_path / "model", use_clipped_model_output=True, ask=ask)
    guided = lambda z, at: torch.lerp(under(model, 3)(z, at), under(model, 1)(z, at), 2.5)  # noqa: E731
    torch.testing.assert_close(one, by_hand(model, guided, clipped=True), atol=1e-3, rtol=1e-3)
    assert (one - nothing).abs().max() > 0.01


@pytest.mark.parametrize("settings", [{}, TRANSFORMER], ids=["unet", "dit"])
def test_a_diffusion_classifier_in_wavelets(tmp_path, settings):
    model = save(tmp_path / "model", codec="wavelet", **settings)
    pipeline, images = draw(tmp_path / "model", ask={"condition": 2, "against": 0, "guidance": 1.0})
    assert isinstance(pipeline, LDMPipeline)
    guided = lambda z, at: 2.0 * under(model, 2)(z, at) - under(model, 0)(z, at)  # noqa: E731
    torch.testing.assert_close(images, by_hand(model, guided, clipped=False), atol=1e-3, rtol=1e-3)


def test_a_joint_model_in_wavelets(tmp_path):
    model = save(tmp_path / "model", JointDiffusion, codec="wavelet")
    _, images = draw(tmp_path / "model")
    torch.testing.assert_close(images, by_hand(model, model.unet, clipped=False), atol=1e-3, rtol=1e-3)


def test_a_foundation_model_in_latents(tmp_path):
    save_pipeline(tmp_path / "sd")
    model = save(tmp_path / "model", kind="multi_label", pretrained=str(tmp_path / "sd"), **FOUNDATION)
    pipeline, images = draw(tmp_path / "model", ask={"condition": 5})
    assert isinstance(pipeline, LDMPipeline)
    # An autoencoder of colours: our codec averages them, diffusers hands them out.
    colours = AutoencoderKL.from_pretrained(tmp_path / "sd/vae")
    decode = lambda codes: colours.decode(codes / model.codec.scale).sample  # noqa: E731
    theirs = by_hand(model, under(model, 5), clipped=False, decode=decode)
    torch.testing.assert_close(images, theirs, atol=1e-3, rtol=1e-3)


def test_the_card_counts_the_conditions(tmp_path):
    save(tmp_path / "model", kind="multi_label")
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert "DDIMPipeline.from_pretrained(FOLDER)" in card
    assert "0 a=absent, 1 a=present, 2 b=absent" in card
    assert "6 nothing" in card


def test_an_unknown_condition_is_one_clear_error(tmp_path):
    save(tmp_path / "model")
    denoiser = ConditionalDenoiser.from_pretrained(tmp_path / "model/unet")
    with pytest.raises(ValueError, match="no condition 4: 0 to 3"):
        denoiser.ask_for(4)
    with pytest.raises(ValueError, match="no condition -1"):
        denoiser.ask_for(0, against=-1)


def test_what_was_read_for_a_pipeline_is_not_saved_from_it(tmp_path):
    save(tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="copy the model folder"):
        pipeline.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "model/model_index.json").read_text())["unet"][1] == "ConditionalDenoiser"
