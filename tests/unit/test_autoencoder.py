import copy
import json
import math

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.method import Batch
from jointdiff.nets.autoencoder import (
    CONFIG,
    WEIGHTS,
    Autoencoder,
    KLAutoencoder,
    fetch_pretrained,
    measure_latents,
    set_scale,
    standardise,
)
from jointdiff.nets.perceptual import Perceptual

VIEWS = Views(Augmentations())


def info(channels=1, size=16):
    return DataInfo(
        name="toy",
        title="toy",
        labels=LabelSpec("multi_label", ("a", "b")),
        channels=channels,
        size=size,
        augmentations=Augmentations(),
        samples=10,
        digest="",
        has_regions=False,
    )


def build(channels=1, size=16, **settings):
    torch.manual_seed(0)
    small = {"width": 8, "multipliers": (1, 1), "blocks": 1, **settings}
    return KLAutoencoder(info(channels, size), KLAutoencoder.Settings(**small))


def batch(images, step=0, steps=10):
    return Batch(torch.full_like(images[:1], torch.nan), torch.zeros(1, 2), images, step, steps)


def blobs(n=64, channels=1, size=16):
    """Return smooth images: one bright blob each, at a place and of a width of its own."""
    generator = torch.Generator().manual_seed(0)
    y, x, width, tint = torch.rand(4, n, channels, 1, 1, generator=generator)
    at = torch.linspace(0, 1, size)
    squared = (at[:, None] - y).square() + (at - x).square()
    return (0.5 + tint) * torch.exp(-squared / (0.05 + 0.1 * width)) - 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a saved autoencoder with a scaling factor that is not 1."""
    path = tmp_path_factory.mktemp("autoencoder") / "vae"
    build(channels=3).save_pretrained(path)
    set_scale(path, 0.5)
    return path


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """Return the file of a SqueezeNet of random weights, as torchvision would save it."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_terms_are_those_of_the_paper_per_pixel_value(reconstruction):
    model, images = build(reconstruction=reconstruction, kl_weight=0.1), blobs(4)
    torch.manual_seed(3)
    terms = model.losses(batch(images), VIEWS, model)
    posterior = model.autoencoder.encode(images).latent_dist
    torch.manual_seed(3)
    made = model.autoencoder.decode(posterior.sample()).sample
    distance = (made - images).abs() if reconstruction == "l1" else (made - images).square()
    torch.testing.assert_close(terms["reconstruction"], distance.mean())
    torch.testing.assert_close(terms["kl"], 0.1 * posterior.kl().mean() / 16**2)
    assert set(terms) == {"reconstruction", "kl"}


def test_labelled_images_are_not_looked_at_and_views_flip():
    model, images = build(), blobs(4)

    class Mirror(Views):
        def flip(self, images):
            return images.flip(3)

    torch.manual_seed(3)
    flipped = model.losses(batch(images), Mirror(Augmentations()), model)
    torch.manual_seed(3)
    expected = model.losses(batch(images.flip(3)), VIEWS, model)
    assert flipped["reconstruction"].isfinite()  # the labelled images are NaN
    assert torch.equal(flipped["reconstruction"], expected["reconstruction"])


@pytest.mark.parametrize("adversarial_weight", [0.0, 0.1])
@pytest.mark.parametrize("step", [0, 9])
def test_every_weight_receives_a_gradient(adversarial_weight, step):
    model = build(channels=3, adversarial_weight=adversarial_weight)
    terms = model.losses(batch(blobs(2, channels=3), step=step), VIEWS, model)
    assert all(term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(name.startswith("discriminator") for name in model.state_dict()) == bool(adversarial_weight)


def test_each_player_learns_from_its_own_term_alone():
    model = build(adversarial_weight=0.1)
    players = {
        "generator": list(model.autoencoder.parameters()),
        "discriminator": list(model.discriminator.parameters()),
    }
    for mine, other in (("generator", "discriminator"), ("discriminator", "generator")):
        terms = model.losses(batch(blobs(4), step=5), VIEWS, model)
        model.zero_grad(set_to_none=True)
        terms[mine].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in players[mine])
        assert all(p.grad is None for p in players[other])


def test_adversarial_terms_are_the_hinge_loss_and_count_late():
    model, images = build(adversarial_weight=0.1, adversarial_from=0.5), blobs(4)
    early = model.losses(batch(images, step=4), VIEWS, model)
    assert early["generator"] == 0.0 and early["discriminator"] == 0.0
    made = []
    model.autoencoder.decoder.register_forward_hook(lambda *call: made.append(call[-1]))
    late = model.losses(batch(images, step=5), VIEWS, model)
    real, fake = model.discriminator(images), model.discriminator(made[0])
    torch.testing.assert_close(late["generator"], -0.1 * fake.mean())
    hinge = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    torch.testing.assert_close(late["discriminator"], hinge)


@pytest.mark.parametrize(("size", "patch"), [(8, 16), (16, 16), (28, 16), (32, 34), (64, 70), (256, 70)])
def test_the_patches_of_the_discriminator_fit_the_image(size, patch):
    discriminator = build(size=size, adversarial_weight=1.0).discriminator
    reach, jump = 1, 1
    for layer in discriminator:
        if isinstance(layer, torch.nn.Conv2d):
            reach += (layer.kernel_size[0] - 1) * jump
            jump *= layer.stride[0]
    assert reach == patch
    images = torch.randn(3, 1, size, size)
    scores = discriminator(images)
    assert scores.shape[:2] == (3, 1)
    torch.testing.assert_close(discriminator(images[:1]), scores[:1])


def test_training_raises_psnr():
    model, images = build(learning_rate=3e-3), blobs()
    optimiser = torch.optim.AdamW(model.parameters(), lr=model.settings.learning_rate)
    with torch.no_grad():
        before = model.validate([images], None)["psnr"]
    for step in range(60):
        torch.manual_seed(step)
        sum(model.losses(batch(images, step=step, steps=60), VIEWS, model).values()).backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        after = model.validate([images[:48], images[48:]], None)["psnr"]
    assert after > before + 8.0


def test_psnr_is_the_mean_over_images_of_clamped_reconstructions():
    model, images = build().eval(), blobs(3)
    with torch.no_grad():
        made = model.autoencoder.decode(model.autoencoder.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        each = [10 * math.log10(4 / (a - b).square().mean()) for a, b in zip(images, made, strict=True)]
        assert model.validate([images[:2], images[2:]], None) == {"psnr": pytest.approx(sum(each) / 3, rel=1e-5)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 18, "multipliers": (1, 1, 1)}, "18 px cannot be halved 2 times"),
        ({"width": 6}, "width 6 of the autoencoder must be a multiple of 4"),
    ],
)
def test_unfit_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_diffusers_reads_what_is_saved(tmp_path):
    model, images = build(multipliers=(1, 2)).eval(), blobs(2)
    model.save_pretrained(tmp_path)
    theirs, about = AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(about.values())
    with torch.no_grad():
        expected = model.reconstruct(images)
        made = theirs.eval()(images, sample_posterior=False).sample.clamp(-1, 1)
    torch.testing.assert_close(made, expected)
    assert theirs.config.scaling_factor == 1.0
    assert theirs.config.block_out_channels == [8, 16]


def test_channels_last_and_averaged_copies_are_saved_alike(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "a")
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    copied.save_pretrained(tmp_path / "b")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_codes_are_scaled_modes_as_in_diffusers_pipelines(folder):
    codec, images = Autoencoder(folder, info(channels=3)), blobs(3, channels=3)
    theirs = AutoencoderKL.from_pretrained(folder).eval()
    assert (codec.channels, codec.size, codec.scale) == (4, 8, 2.0)
    assert codec.costly
    assert not codec.bounded
    with torch.no_grad():
        codes = codec.encode(images)
        torch.testing.assert_close(codes, theirs.encode(images).latent_dist.mode() * theirs.config.scaling_factor)
        # LDMPipeline: latents / scaling_factor, then decode.
        expected = theirs.decode(codes / theirs.config.scaling_factor).sample
        torch.testing.assert_close(codec.decode(codes), expected)
    assert codes.shape == (3, 4, 8, 8)


def test_grey_images_pass_through_an_autoencoder_of_colours(folder):
    grey, colour = Autoencoder(folder, info(channels=1)), Autoencoder(folder, info(channels=3))
    images = blobs(2)
    with torch.no_grad():
        codes = colour.encode(images.repeat(1, 3, 1, 1))
        torch.testing.assert_close(grey.encode(images), codes)
        torch.testing.assert_close(grey.decode(codes), colour.decode(codes).mean(1, keepdim=True))
    assert grey.decode(codes).shape == images.shape


def test_gradients_reach_codes_and_images_but_no_weight(folder):
    codec = Autoencoder(folder, info(channels=3))
    images = blobs(1, channels=3).requires_grad_()
    codec.decode(codec.encode(images)).sum().backward()
    assert images.grad.abs().sum() > 0
    net = codec._net
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_weights_are_read_when_needed_and_copies_work(folder):
    codec = Autoencoder(folder, info(channels=3))
    assert codec._net is None
    codes = torch.randn(1, 4, 8, 8)
    copied = copy.deepcopy(codec)
    assert torch.equal(copied.decode(codes), codec.decode(codes))
    assert torch.equal(copy.deepcopy(codec).decode(codes), codec.decode(codes))

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.codec = codec

    assert not Holder().state_dict()


def test_a_codec_copies_its_folder(folder, tmp_path):
    codec = Autoencoder(folder, info(channels=3))
    codec.save_pretrained(tmp_path / "model" / "vae")
    again = Autoencoder(tmp_path / "model" / "vae", info(channels=3))
    codes = torch.randn(1, 4, 8, 8)
    assert torch.equal(again.decode(codes), codec.decode(codes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (info(channels=3, size=15), "15 px cannot be made 2 times smaller"),
        (info(channels=4), r"from 3 to 3 channel\(s\) does not fit images of 4"),
    ],
)
def test_unfit_data_are_refused(folder, data, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(folder, data)


def test_broken_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is no autoencoder"):
        Autoencoder(tmp_path, info())
    Autoencoder(folder, info(channels=3)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if k != "post_quant_conv.bias"}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"lacks post_quant_conv\.bias"):
        Autoencoder(tmp_path, info(channels=3)).decode(torch.randn(1, 4, 8, 8))
    save_file({**tensors, "post_quant_conv.bias": torch.zeros(7)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not fit its {CONFIG}"):
        Autoencoder(tmp_path, info(channels=3)).decode(torch.randn(1, 4, 8, 8))
    (tmp_path / WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not fit its {CONFIG}"):
        Autoencoder(tmp_path, info(channels=3)).decode(torch.randn(1, 4, 8, 8))
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="is no autoencoder"):
        Autoencoder(tmp_path, info(channels=3))


@pytest.mark.parametrize("place", ["", "vae", "vqvae"])
def test_pretrained_autoencoders_are_copied_from_folders(folder, tmp_path, place):
    Autoencoder(folder, info(channels=3)).save_pretrained(tmp_path / "pipeline" / place)
    fetch_pretrained(str(tmp_path / "pipeline"), tmp_path / "out")
    codes = torch.randn(1, 4, 8, 8)
    made = Autoencoder(tmp_path / "out", info(channels=3)).decode(codes)
    assert torch.equal(made, Autoencoder(folder, info(channels=3)).decode(codes))
    assert str(tmp_path) not in (tmp_path / "out" / CONFIG).read_text()


def test_pretrained_autoencoders_are_copied_from_the_hub(folder, tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, *, allow_patterns):
        asked[name] = allow_patterns
        Autoencoder(folder, info(channels=3)).save_pretrained(tmp_path / "cache" / "vae")
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fetch_pretrained("someone/pipeline", tmp_path / "out")
    assert Autoencoder(tmp_path / "out", info(channels=3)).scale == 2.0
    files = [p + f for p in ("", "vae/", "vqvae/") for f in ("config.json", "diffusion_pytorch_model.safetensors")]
    assert asked == {"someone/pipeline": files}


def test_a_wrong_name_is_one_clear_error(folder, tmp_path, monkeypatch):
    def offline(name, *, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"autoencoders\.NAME\.pretrained: 'no/such' is neither.*\(no network\)"):
        fetch_pretrained("no/such", tmp_path / "out")
    # Weights in a pickle are no weights.
    AutoencoderKL.from_pretrained(folder).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ValueError, match="is neither"):
        fetch_pretrained(str(tmp_path / "pickled"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_measures_equal_those_of_all_latents_at_once(folder):
    codec, images = Autoencoder(folder, info(channels=3)), blobs(7, channels=3)
    measured = measure_latents(codec, iter(images.split(3)))
    with torch.no_grad():
        modes = codec.encode(images).double() / codec.scale
        made = codec.decode(codec.encode(images)).clamp(-1, 1)
    assert measured["images"] == 7
    assert measured["mean"] == pytest.approx(modes.mean((0, 2, 3)).tolist())
    assert measured["std"] == pytest.approx(modes.std((0, 2, 3), correction=0).tolist())
    assert measured["overall_std"] == pytest.approx(modes.std(correction=0).item())
    assert measured["l1"] == pytest.approx((made - images).abs().mean().item(), rel=1e-5)
    each = 10 * (4 / (made - images).square().mean((1, 2, 3))).log10()
    assert measured["psnr"] == pytest.approx(each.mean().item(), rel=1e-5)
    json.dumps(measured)
    with pytest.raises(ValueError, match="without images"):
        measure_latents(codec, [])


def test_latents_have_unit_variance_after_scaling(tmp_path):
    build(multipliers=(1, 2, 2)).save_pretrained(tmp_path)
    before, images = json.loads((tmp_path / CONFIG).read_text()), blobs(8)
    set_scale(tmp_path, measure_latents(Autoencoder(tmp_path, info()), [images])["overall_std"])
    codes = Autoencoder(tmp_path, info()).encode(images)
    assert codes.std(correction=0).item() == pytest.approx(1.0, rel=1e-4)
    after = json.loads((tmp_path / CONFIG).read_text())
    assert {**after, "scaling_factor": 1.0} == before
    # Measured anew, the deviation is that of the unscaled modes still.
    again = measure_latents(Autoencoder(tmp_path, info()), [images])["overall_std"]
    assert again == pytest.approx(1 / after["scaling_factor"], rel=1e-5)
    for std in (0.0, math.nan):
        with pytest.raises(ValueError, match="cannot be scaled"):
            set_scale(tmp_path, std)


@pytest.mark.parametrize("kind", ["vgg", "alex", "squeeze"])
def test_lpips_equals_torchmetrics(kind, tmp_path):
    import torchvision
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    theirs = _LPIPS(pretrained=True, pnet_rand=True, net=kind)
    name = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}[kind]
    with torch.device("meta"):
        names = [key for key in getattr(torchvision.models, name)().state_dict() if key.startswith("features.")]
    # torchmetrics keeps the order of the layers.
    tensors = dict(zip(names, theirs.net.state_dict().values(), strict=True))
    save_file(tensors, tmp_path / "weights.safetensors")
    ours = Perceptual(tmp_path / "weights.safetensors")
    a, b = torch.rand(2, 2, 3, 70, 70) * 2 - 1
    torch.testing.assert_close(ours(a, b), theirs(a, b).flatten())


def test_lpips_is_a_distance(squeezenet):
    lpips = Perceptual(squeezenet).train()
    images, others = blobs(3), blobs(6)[3:]
    distances = lpips(images, others)
    assert distances.shape == (3,)
    assert (distances > 0).all()
    assert (lpips(images, images) == 0).all()
    assert torch.equal(lpips(images, others), distances), "dropout stays off"
    torch.testing.assert_close(lpips(images.repeat(1, 3, 1, 1), others.repeat(1, 3, 1, 1)), distances)
    larger = [torch.nn.functional.interpolate(x, (64, 64), mode="bilinear") for x in (images, others)]
    torch.testing.assert_close(lpips(*larger), distances)


def test_lpips_gives_gradients_to_the_image_alone(squeezenet):
    lpips, images = Perceptual(squeezenet), blobs(1).requires_grad_()
    lpips(images, -blobs(1)).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_lpips_trains_an_autoencoder_but_is_no_part_of_it(squeezenet):
    plain = build()
    model = build(perceptual_weights=str(squeezenet), perceptual_weight=0.5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    made = []
    model.autoencoder.decoder.register_forward_hook(lambda *call: made.append(call[-1]))
    term = model.losses(batch(blobs(2)), VIEWS, model)["perceptual"]
    torch.testing.assert_close(term, 0.5 * Perceptual(squeezenet)(made[0], blobs(2)).mean())
    term.backward()
    assert model.autoencoder.encoder.conv_in.weight.grad.abs().sum() > 0
    assert "perceptual" not in build(perceptual_weights=str(squeezenet), perceptual_weight=0.0).losses(
        batch(blobs(2)), VIEWS, None
    )


def test_files_that_are_no_backbone_are_refused(tmp_path, squeezenet):
    with pytest.raises(ValueError, match=r"perceptual_weights: .*absent\.pth .* cannot be read"):
        build(perceptual_weights=str(tmp_path / "absent.pth"))
    for name in ("nonsense.pth", "nonsense.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=f"{name} .* cannot be read"):
            Perceptual(tmp_path / name)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")  # a pickle that would run code
    with pytest.raises(ValueError, match=r"module\.pth .* cannot be read"):
        Perceptual(tmp_path / "module.pth")
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors .* none of them"):
        Perceptual(tmp_path / "other.safetensors")
    tensors = torch.load(squeezenet, weights_only=True)
    del tensors["features.3.squeeze.weight"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth .* does not fit squeeze.*features\.3\.squeeze\.weight"):
        Perceptual(tmp_path / "part.pth")


def test_standardised_latents_give_the_same_images(tmp_path):
    torch.manual_seed(0)
    model = KLAutoencoder(info(), KLAutoencoder.Settings(width=8, multipliers=(1, 1), blocks=1, latent_channels=3))
    model.save_pretrained(tmp_path)
    images = torch.rand(6, 1, 16, 16) * 2 - 1
    before = Autoencoder(tmp_path, info())
    measured = measure_latents(before, [images])
    standardise(tmp_path, mean=measured["mean"], std=measured["std"])
    after = Autoencoder(tmp_path, info())
    codes = after.encode(images)
    torch.testing.assert_close(codes.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(codes.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.decode(codes), before.decode(before.encode(images)), atol=1e-4, rtol=1e-3)

    posterior = AutoencoderKL.from_pretrained(tmp_path).encode(images).latent_dist
    model.autoencoder.eval()
    std = model.autoencoder.encode(images).latent_dist.std / torch.tensor(measured["std"])[:, None, None]
    torch.testing.assert_close(posterior.std, std, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="cannot be scaled"):
        standardise(tmp_path, mean=[0.0] * 3, std=[1.0, 0.0, 1.0])
