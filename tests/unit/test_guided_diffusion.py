"""Losses, gradients and calls; what guidance does to images is tested in test_guidance.py, beside that of others."""

import pytest
import torch
from diffusers import DDIMPipeline
from torch.nn import functional as F

from baselines.guided_diffusion import GuidedDiffusion
from jointdiff.config import Explanation
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.diffusion.process import STEPS, noise_for
from jointdiff.method import Batch
from jointdiff.models import save_model
from jointdiff.seeding import derive
from tests.tiny import SMALL, tiny_run

KINDS = {"one_of_k": ("a", "b", "c"), "multi_label": ("a", "b")}


def build(kind="multi_label", **settings):
    torch.manual_seed(0)
    info = DataInfo(
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
    return GuidedDiffusion.build(info, {**SMALL["guided_diffusion"], **settings}).eval()


def losses(method, seed=3):
    labels = torch.eye(method.task.outputs)[torch.arange(4) % method.task.outputs]
    batch = Batch(torch.rand(4, 1, 16, 16) * 2 - 1, labels, torch.rand(6, 1, 16, 16) * 2 - 1, 0, 10)
    torch.manual_seed(seed)
    return batch, method.losses(batch, Views(method.data.augmentations), method)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_two_separate_trainings(kind):
    method = build(kind)
    seen, terms = losses(method)
    torch.manual_seed(3)
    steps, noise = torch.randint(STEPS, (6,)), torch.randn(6, 1, 16, 16)
    estimate = method.unet(method.process.add_noise(seen.unlabelled, noise, steps), steps)
    torch.testing.assert_close(terms["denoising"], F.mse_loss(estimate, noise))

    steps, noise = torch.randint(STEPS, (4,)), torch.randn(4, 1, 16, 16)
    noisy = method.process.add_noise(seen.labelled, noise, steps)
    said = [method.classifier(seen.labelled, torch.zeros(4)), method.classifier(noisy, steps)]
    if kind == "one_of_k":
        each = [F.cross_entropy(logits, seen.labels.argmax(1)) for logits in said]
    else:
        each = [F.binary_cross_entropy_with_logits(logits, seen.labels) for logits in said]
    torch.testing.assert_close(terms["classification"], sum(each) / 2)
    torch.testing.assert_close(method.predict(seen.labelled), method.task.probabilities(said[0]))


def test_no_weight_is_shared():
    method = build()
    parts = {"denoising": method.unet, "classification": method.classifier}
    for name, own in parts.items():
        method.zero_grad()
        losses(method)[1][name].backward()
        reached = {id(weight) for weight in method.parameters() if weight.grad is not None}
        assert reached == {id(weight) for weight in own.parameters()}
    assert build(classifier_width=16).classifier.encoder.map_widths[0] == 16
    assert build(classifier_learning_rate=1e-5).learning_rates() == {"classifier": 1e-5}
    assert method.learning_rates() == {}
    assert method.network == "U-Net 8 x (1, 2) and the encoder of U-Net 8 x (1, 2)"


def log_probability(kind, logits, labels):
    """Return log p(y) (N,): of findings that do not exclude each other, the product."""
    if kind == "one_of_k":
        return -F.cross_entropy(logits, labels.argmax(1), reduction="none")
    return -F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)


@pytest.mark.parametrize("prediction", ["noise", "v"])
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_takes_the_finite_difference_gradient_from_the_noise(kind, prediction, monkeypatch):
    """eps' = eps_hat - s s_t grad log p(y | z_t, t), in which every factor is asked for by itself."""
    method = build(kind, prediction=prediction).double()
    z, steps, scale = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.tensor([700, 40]), 3.0
    labels = torch.eye(method.task.outputs, dtype=torch.float64)[:2]
    monkeypatch.setattr(method, "draw", lambda seeds, output, **plan: output(z, steps))
    plain, guided = (
        method.process.noise_from(
            method.sample(labels, torch.arange(2), steps=1, sampler="ddim", guidance=guidance), z, steps
        )
        for guidance in (0.0, scale)
    )
    _, s = method.process.scales(steps)
    gradient = -(guided - plain) / (scale * s)
    for image, pixel in [(0, (0, 5, 5)), (1, (0, 11, 3))]:
        change = torch.zeros_like(z)
        change[(image, *pixel)] = 1e-5
        with torch.no_grad():
            up, down = (
                log_probability(kind, method.classifier(x, steps), labels).sum() for x in (z + change, z - change)
            )
        assert gradient[(image, *pixel)].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-3, abs=1e-9)
    with torch.no_grad():
        moved = log_probability(kind, method.classifier(z + 0.1 * gradient / gradient.norm(), steps), labels)
        assert moved.sum() > log_probability(kind, method.classifier(z, steps), labels).sum()


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_counterfactual_step_is_that_of_finite_differences(kind, target):
    """One DDIM step from t to 0 gives z_0' = (z_t - s_t eps') / a_t, so edit - control = -s (s_t^2 / a_t) dL/dz_t."""
    method = build(kind)
    images, guidance, t = torch.rand(1, 1, 16, 16) * 0.2, 20.0, torch.tensor([49])
    method.unet.decode = lambda encoding: torch.zeros_like(images)  # so that no estimate is clipped
    how = Explanation(noise_level=50, steps=1, guidance=guidance, noises=1)
    drawn = torch.tensor([derive(4, "noise", 0)])
    z = method.process.add_noise(images, noise_for(drawn, (1, 16, 16)), t)
    answer = method.counterfactual(images, 1, target, torch.tensor([4]), how=how)
    a, s = (x.item() for x in method.process.scales(t))
    gradient = (answer.control - answer.images) * a / (guidance * s**2)
    direction = gradient / gradient.norm()

    def loss(noisy):
        logits = method.classifier(noisy, t)
        p = (logits.softmax(1) if kind == "one_of_k" else logits.sigmoid())[0, 1]
        return -(p if target else 1 - p).log().item()

    with torch.no_grad():
        slope = (loss(z + 0.05 * direction) - loss(z - 0.05 * direction)) / 0.1
    assert gradient.norm().item() == pytest.approx(slope, rel=0.03)


def test_calls_are_those_that_are_made():
    method, calls = build(), []
    for net in (method.unet, method.classifier):
        net.register_forward_hook(lambda net, inputs, output: calls.append(len(inputs[0])))
    labels, seeds = torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    for guidance in (0.0, 2.0):
        calls.clear()
        method.sample(labels, seeds, steps=5, sampler="dpm++", guidance=guidance)
        assert sum(calls) == 5 * method.calls_per_step(guidance)
    for how in (Explanation(), Explanation(start="inversion", steps=3)):
        calls.clear()
        answer = method.counterfactual(torch.rand(1, 1, 16, 16), 0, 0.0, seeds, how=how)
        assert sum(calls) == answer.calls <= 25


def test_without_guidance_labels_do_not_matter_and_edits_are_their_control():
    method, seeds = build(), torch.tensor([1, 2])
    plan = {"steps": 3, "sampler": "ddim"}
    one, other = (torch.tensor([labels] * 2) for labels in ([1.0, 0.0], [0.0, 1.0]))
    assert torch.equal(
        method.sample(one, seeds, guidance=0.0, **plan), method.sample(other, seeds, guidance=0.0, **plan)
    )
    assert not torch.equal(
        method.sample(one, seeds, guidance=5.0, **plan), method.sample(other, seeds, guidance=5.0, **plan)
    )
    unknown = torch.full((2, 2), torch.nan)
    assert torch.equal(
        method.sample(unknown, seeds, guidance=5.0, **plan), method.sample(one, seeds, guidance=0.0, **plan)
    )
    answer = method.counterfactual(torch.rand(2, 1, 16, 16), 1, 0.0, seeds, how=Explanation(guidance=0.0))
    torch.testing.assert_close(answer.images, answer.control)


@pytest.mark.parametrize("guide", ["representation", "label"])
def test_what_cannot_guide_is_refused(guide):
    with pytest.raises(ValueError, match=r"explanation.guide: .* use image"):
        build().counterfactual(torch.rand(1, 1, 16, 16), 0, 0.0, torch.tensor([1]), how=Explanation(guide=guide))


def test_diffusers_reads_the_unconditional_model(tmp_path):
    method = build()
    save_model(method, tmp_path / "model", run=tiny_run("guided_diffusion"))
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    noisy, steps = torch.randn(2, 1, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(noisy, steps).sample, method.unet(noisy, steps), atol=1e-5, rtol=1e-5)
