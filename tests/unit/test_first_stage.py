"""Autoencoder, latents, and a method that works in them."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, LDMPipeline

from jointdiff.batches import answers, image_batches
from jointdiff.config import ConfigError, Explanation, FirstStage, Training
from jointdiff.data.store import open_store
from jointdiff.files import read_json
from jointdiff.models import load_model
from jointdiff.nets.autoencoder import Autoencoder
from jointdiff.training.first_stage import build_autoencoder, encode_latents, make_first_stage
from jointdiff.training.loop import train
from tests.tiny import tiny_phantoms, tiny_run

SETTINGS = {"width": 8, "multipliers": [1, 1], "blocks": 1, "latent_channels": 2, "learning_rate": 0.003}


def spec(**changes) -> FirstStage:
    training = Training(steps=40, batch_size=8, device="cpu", precision="fp32", validate_every=20, log_every=20)
    known = {"name": "kl", "seed": 0, "pretrained": None, "settings": SETTINGS, "training": training}
    return FirstStage(**{**known, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=16, validation=8, unlabelled=12, test=12)


@pytest.fixture(scope="module")
def stage(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage")
    make_first_stage(spec(), **data, out=out, state=out / "state")
    encode_latents(out / "model", store=data["store"], out=out / "latents.npy", batch_size=5, device="cpu")
    return out


def test_the_model_is_one_of_diffusers_and_its_latents_have_unit_variance(data, stage):
    store = open_store(data["store"])
    report = read_json(stage / "autoencoder.json")
    assert report["held_out"]["psnr"] > 8
    assert AutoencoderKL.from_pretrained(stage / "model").config.scaling_factor == 1.0
    latents = np.load(stage / "latents.npy")
    assert latents.shape == (48, 8, 8, 2)
    assert latents.dtype == np.float16
    trained = store.split_rows(data["split"])["labelled"]  # where the scale was measured
    channels = latents[trained].astype(np.float32).reshape(-1, 2)
    np.testing.assert_allclose(channels.mean(0), 0.0, atol=0.01)
    np.testing.assert_allclose(channels.std(0), 1.0, atol=0.01)
    codec = Autoencoder(stage / "model", store.info)
    (images,) = image_batches(store.images, np.arange(3), batch_size=3, device=torch.device("cpu"))
    np.testing.assert_allclose(
        latents[:3], codec.encode(images).permute(0, 2, 3, 1).detach().numpy(), atol=2e-3, rtol=2e-3
    )
    assert (stage / "reconstructions.png").is_file()
    assert not list((stage / "state").iterdir())


def test_training_it_never_looks_at_test_images(data, monkeypatch, tmp_path):
    from jointdiff.training import loop

    seen = set()
    original = loop.Feed.images

    def spy(self, rows):
        seen.update(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(loop.Feed, "images", spy)
    make_first_stage(spec(), **data, out=tmp_path, state=tmp_path / "state")
    roles = open_store(data["store"]).split_rows(data["split"])
    assert not seen & set(roles["test"].tolist())
    assert set(roles["unlabelled"].tolist()) <= seen


def test_a_pretrained_one_is_fetched_and_scaled(data, stage, tmp_path):
    make_first_stage(spec(pretrained=str(stage / "model")), **data, out=tmp_path, state=tmp_path / "state")
    ours, theirs = (read_json(folder / "autoencoder.json") for folder in (tmp_path, stage))
    assert ours["latents"]["overall_std"] == pytest.approx(1.0, abs=0.01)
    assert ours["held_out"]["psnr"] == pytest.approx(theirs["held_out"]["psnr"], rel=1e-5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def train_in_latents(run, data, stage, out):
    state, latents = out / "state", stage / "latents.npy"
    train(run, **data, out=out, state=state, autoencoder=stage / "model", latents=latents)


@pytest.mark.parametrize("method", ["joint", "diffusion_classifier"])
def test_a_method_learns_from_cached_latents_and_answers_about_images(data, stage, tmp_path, method, monkeypatch):
    run = tiny_run(method, steps=4, validate_every=2)
    encoded = []
    original = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, images: encoded.append(1) or original(self, images))
    train_in_latents(run, data, stage, tmp_path)
    assert not encoded, "no training step encodes an image"
    model = load_model(tmp_path / "model")
    assert isinstance(model.codec, Autoencoder)
    store = open_store(data["store"])
    rows = np.arange(6)
    by_images = answers(model.predict, store.images, rows, batch_size=4, device=torch.device("cpu"))
    latents = torch.from_numpy(np.load(stage / "latents.npy")[rows].astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        by_latents = model.predict_codes(latents.contiguous()).numpy()
    np.testing.assert_allclose(by_images, by_latents, atol=0.02)
    drawn = model.sample(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([1]), steps=2, sampler="dpm++", guidance=1.0)
    assert drawn.shape == (1, 1, 16, 16)
    assert drawn.abs().max() <= 1


def test_an_edit_in_latents_is_an_image_that_guidance_alone_makes_differ_from_its_control(data, stage, tmp_path):
    train_in_latents(tiny_run("joint", steps=4), data, stage, tmp_path)
    model, store = load_model(tmp_path / "model"), open_store(data["store"])
    (images,) = image_batches(store.images, np.arange(4), batch_size=4, device=torch.device("cpu"))
    how = Explanation(noise_level=300, steps=3, noises=2)

    def edit(target, guidance):
        asked = how.model_copy(update={"guidance": guidance})
        return model.counterfactual(images, 1, target, torch.arange(4), how=asked)

    plain, absent, present = edit(1.0, 0.0), edit(0.0, 1000.0), edit(1.0, 1000.0)
    torch.testing.assert_close(plain.images, plain.control)
    for answer in (absent, present):
        torch.testing.assert_close(answer.control, plain.control)
        assert answer.images.shape == images.shape
        assert max(answer.images.abs().max(), answer.control.abs().max()) <= 1
        assert ((answer.images - answer.control).abs().amax(dim=(1, 2, 3)) > 0.02).all()
    with torch.no_grad():
        scores = [model.predict(shown)[:, 1] for shown in (absent.images, plain.images, present.images)]
    assert (scores[0] < scores[1]).all()
    assert (scores[1] < scores[2]).all()


def test_diffusers_draws_from_a_joint_model_of_latents(data, stage, tmp_path):
    train_in_latents(tiny_run("joint", steps=2), data, stage, tmp_path)
    pipeline = LDMPipeline.from_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    theirs = pipeline(batch_size=1, generator=generator, num_inference_steps=3, output_type="np").images
    z = torch.randn((1, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    solver = model.process.solver("ddim", 3)
    with torch.no_grad():
        for t in solver.times:
            at = torch.full((1,), t)
            z = solver.step(model.process.clean_from(model.unet(z, at), z, at), t, z)
        ours = model.codec.decode(z).clamp(-1, 1).permute(0, 2, 3, 1).numpy() / 2 + 0.5
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["_class_name"] == "LDMPipeline"


def test_unfit_settings_are_one_clear_error(data):
    store = open_store(data["store"])
    with pytest.raises(ConfigError, match=r"autoencoders.kl.settings: images of 16 px cannot be halved 5 times"):
        build_autoencoder(spec(settings={**SETTINGS, "multipliers": [1] * 6}), store)
    with pytest.raises(ConfigError, match="widht"):
        build_autoencoder(spec(settings={"widht": 8}), store)


def test_what_works_on_images_refuses_latents(data, stage, tmp_path):
    with pytest.raises(ConfigError, match="works on images: remove `autoencoder`"):
        train(
            tiny_run("supervised", steps=1),
            **data,
            out=tmp_path,
            state=tmp_path / "state",
            autoencoder=stage / "model",
            latents=stage / "latents.npy",
        )
