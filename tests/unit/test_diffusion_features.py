import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from torch.nn import functional as F

from baselines.diffusion_features import DiffusionFeatures
from jointdiff.config import ConfigError
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.diffusion.process import STEPS
from jointdiff.method import Batch
from jointdiff.models import load_model, save_model
from jointdiff.training.averaging import averaged_copy
from jointdiff.training.loop import build_method, train
from tests.tiny import SMALL, tiny_phantoms, tiny_run

KINDS = {"one_of_k": ("a", "b", "c"), "multi_label": ("a", "b")}
LEVELS = (0, 50, 400)


def info(kind="multi_label"):
    return DataInfo(
        name="toy",
        title="toy",
        labels=LabelSpec(kind, KINDS[kind]),
        channels=1,
        size=16,
        augmentations=Augmentations(max_shift=0.0),
        samples=10,
        digest="",
        has_regions=False,
    )


def build(kind="multi_label", **settings):
    """Return a method whose probes have opinions."""
    torch.manual_seed(0)
    method = DiffusionFeatures.build(info(kind), {**SMALL["diffusion_features"], "noise_levels": LEVELS, **settings})
    for probes in method.probes:
        torch.nn.init.normal_(probes.weights[-1], std=0.2)
    return method


def batch(method, step=0, labelled=6):
    labels = torch.eye(method.task.outputs)[torch.arange(labelled) % method.task.outputs]
    shape = (labelled, 1, 16, 16)
    return Batch(torch.rand(shape) * 2 - 1, labels, torch.rand(shape) * 2 - 1, step, 100)


def views(method):
    return Views(method.data.augmentations)


def every_map(method, noisy, steps):
    """Return the maps in order, by hooks on the layers that make them."""
    unet, maps = method.unet, []
    made = [unet.conv_in, *(x for level in unet.down_blocks for x in (*level.resnets, *level.downsamplers))]
    made += [unet.mid_block.resnets[1], *(x for level in unet.up_blocks for x in level.resnets)]
    hooks = [module.register_forward_hook(lambda *call: maps.append(call[2])) for module in made]
    with torch.no_grad():
        unet(noisy, steps)
    for hook in hooks:
        hook.remove()
    assert len(maps) == len(made)
    return maps


@pytest.mark.parametrize("pooling", ["avg", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_probe_at_a_time(kind, pooling):
    method, teacher = build(kind, pooling=pooling).train(), averaged_copy(build(kind, pooling=pooling))
    with torch.no_grad():
        for weight in teacher.unet.parameters():
            weight.mul_(1.1)  # the probes see the average, not what is being trained
    seen = batch(method)
    torch.manual_seed(3)
    terms = method.losses(seen, views(method), teacher)

    torch.manual_seed(3)
    steps, noise = torch.randint(STEPS, (6,)), torch.randn_like(seen.unlabelled)
    estimate = method.unet(method.process.add_noise(seen.unlabelled, noise, steps), steps)
    torch.testing.assert_close(terms["denoising"], F.mse_loss(estimate, noise))

    noise, found = torch.randn(6, 3, 1, 16, 16), []
    for i, level in enumerate(LEVELS):
        at = torch.full((6,), level)
        for j, seen_map in enumerate(every_map(teacher, teacher.process.add_noise(seen.labelled, noise[:, i], at), at)):
            kinds = [seen_map.mean((2, 3)), seen_map.amax((2, 3))]
            x = torch.cat(kinds if pooling == "both" else kinds[:1], dim=1)
            x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
            logits = x @ method.probes[j].weights[0][i]  # biases begin at 0
            if kind == "one_of_k":
                found.append(F.cross_entropy(logits, seen.labels.argmax(1)))
            else:
                found.append(F.binary_cross_entropy_with_logits(logits, seen.labels))
    torch.testing.assert_close(terms["probing"], torch.stack(found).mean(), atol=1e-4, rtol=1e-4)


def test_no_label_reaches_the_unet_and_every_probe_learns():
    method = build().train()
    terms = method.losses(batch(method), views(method), method)
    terms["probing"].backward()
    assert all(weight.grad is None for weight in method.unet.parameters())
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in method.probes.parameters())
    method.zero_grad()
    method.losses(batch(method), views(method), method)["denoising"].backward()
    assert all(weight.grad is not None for weight in method.unet.parameters())
    assert all(weight.grad is None for weight in method.probes.parameters())


def test_the_unet_rests_in_the_last_part_of_the_training():
    method = build(probe_share=0.3).train()
    named = {step: set(method.losses(batch(method, step), views(method), method)) for step in (0, 69, 70, 99)}
    assert named[0] == named[69] == {"denoising", "probing"}
    assert named[70] == named[99] == {"probing"}


def test_weights_from_before_the_rest_are_never_chosen(tmp_path):
    """The loop keeps the weights with the greatest first value: all of the U-Net's training is to be in them."""
    plan = {"steps": 8, "validate_every": 1, "log_every": 1}
    run = tiny_run("diffusion_features", settings={"probe_share": 0.5, "noise_levels": LEVELS}, **plan)
    folders = tiny_phantoms(tmp_path, labelled=12, validation=8, unlabelled=16, test=12)
    train(run, **folders, out=tmp_path / "out", state=tmp_path / "state")
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    firsts = [list(line.items())[3] for line in lines if line["split"] == "validation"]
    # The fifth step is the first without the U-Net.
    assert [name for name, _ in firsts] == ["resting"] * 4 + ["auroc"] * 4
    assert all(value == 0 for name, value in firsts if name == "resting")
    best = max(range(4, 8), key=lambda i: (firsts[i][1], i)) + 1
    assert json.loads((tmp_path / "out/run.json").read_text())["cost"]["best_step"] == best
    assert load_model(tmp_path / "out/model").resting == 1


@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_a_probe_is_standardised_layers(probe):
    method = build(probe=probe)
    probes = method.probes[3].train()
    features = torch.randn(8, 3, probes.mean.shape[1]) * 3 + 5
    for bias in probes.biases:
        torch.nn.init.normal_(bias)
    found = probes(features)
    for level in range(3):
        width, outputs = probes.weights[0][level].shape[0], 2
        layers = [torch.nn.BatchNorm1d(width, affine=False)]
        for i, (weight, bias) in enumerate(zip(probes.weights, probes.biases, strict=True)):
            layer = torch.nn.Linear(*weight[level].shape)
            layer.weight.data, layer.bias.data = weight[level].T, bias.view(3, -1)[level]
            layers += [torch.nn.LeakyReLU(), layer] if i else [layer]
        reference = torch.nn.Sequential(*layers)
        torch.testing.assert_close(found[:, level], reference(features[:, level]), atol=1e-5, rtol=1e-4)
        # The running statistics moved as those of the layer did, and answer when it is no longer trained.
        one = probes.eval()(features[:2, level : level + 1], slice(level, level + 1))
        torch.testing.assert_close(one[:, 0], reference.eval()(features[:2, level]), atol=1e-5, rtol=1e-4)
        assert one.shape == (2, 1, outputs)


def test_validation_chooses_the_probe_that_ranks_and_prediction_asks_it_alone(tmp_path):
    method = averaged_copy(build())
    images = torch.rand(12, 1, 16, 16) * 2 - 1
    place, level = len(method.probes) - 2, 1
    steps = torch.full((12,), LEVELS[level])
    noise = method.noise_at(LEVELS, images)[level].expand_as(images)
    feature = every_map(method, method.process.add_noise(images, noise, steps), steps)[place].mean((2, 3))[:, 0]
    labels = torch.stack([feature > feature.median(), feature <= feature.quantile(0.3)], dim=1).float()
    with torch.no_grad():  # of all probes only one has an opinion, which is right
        for probes in method.probes:
            probes.weights[0].zero_()
        method.probes[place].weights[0][level, 0] = torch.tensor([1.0, -1.0])
        scores = method.validate(images.split(5), labels.numpy())
    assert scores == {"resting": 0.0, "auroc": 1.0, "probed_map": place, "noise_level": LEVELS[level]}
    assert method.chosen.tolist() == [place, level]

    with torch.no_grad():
        every = method.task.probabilities(method.candidates(images))
        for other in [(place, level), (0, 0), (3, 2), (len(method.probes) - 1, 1)]:
            method.chosen.copy_(torch.tensor(other))
            torch.testing.assert_close(method.predict(images), every[:, other[0], other[1]], atol=1e-5, rtol=1e-4)
    method.chosen.copy_(torch.tensor([place, level]))
    run = tiny_run("diffusion_features", settings={"noise_levels": LEVELS})
    save_model(method, tmp_path / "model", run=run)
    assert load_model(tmp_path / "model").chosen.tolist() == [place, level]


def test_of_probes_that_rank_alike_the_one_of_least_loss_is_chosen(monkeypatch):
    method = build().eval()
    labels = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=np.float32)
    right = torch.from_numpy(labels) * 2 - 1
    logits = torch.zeros(4, 5, 3, 2)
    logits[:, 1, 0], logits[:, 4, 2], logits[:, 2, 1] = 0.1 * right, 3.0 * right, -9.0 * right
    monkeypatch.setattr(method, "candidates", lambda codes: logits[: len(codes)])
    method.levels = 1  # one part, as the logits are made for all images at once
    assert method.validate([torch.zeros(4, 1, 16, 16)], labels)["auroc"] == 1.0
    assert method.chosen.tolist() == [4, 2]


def test_each_image_is_seen_at_each_level_with_that_levels_own_noise(monkeypatch):
    method, seen = build().eval(), []
    encode = method.unet.encode
    monkeypatch.setattr(method.unet, "encode", lambda z, at: seen.append((z, at)) or encode(z, at))
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        method.candidates(images)
    ((noisy, steps),) = seen
    assert steps.tolist() == [*LEVELS, *LEVELS]
    a, s = method.process.scales(steps)
    noise = ((noisy - a * images.repeat_interleave(3, dim=0)) / s).unflatten(0, (2, 3))
    torch.testing.assert_close(noise[0], noise[1], atol=1e-3, rtol=1e-3)
    assert (noise[0, 1] - noise[0, 2]).abs().max() > 0.5
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)


def test_it_draws_without_labels_and_diffusers_reads_it(tmp_path):
    method, seeds = build().eval(), torch.tensor([1, 2])
    plan = {"steps": 3, "sampler": "ddim", "guidance": 2.0}
    one, other = (method.sample(torch.full((2, 2), label), seeds, **plan) for label in (0.0, 1.0))
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert method.calls_per_step(2.0) == method.calls_per_step(0.0) == 1
    save_model(method, tmp_path / "model", run=tiny_run("diffusion_features"))
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    noisy, steps = torch.randn(2, 1, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(noisy, steps).sample, method.unet(noisy, steps), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", [[], [1000], [-1]])
def test_noise_levels_that_are_none_are_refused(levels):
    with pytest.raises(ConfigError, match="noise_levels"):
        build_method(tiny_run("diffusion_features", settings={"noise_levels": levels}), info())
