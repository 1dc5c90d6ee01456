"""The diffusion classifier against closed forms: for Gaussian classes the ideal network is known."""

import numpy as np
import pytest
import torch
from torch import nn

from jointdiff.config import Explanation, RunSpec, Voting
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.diffusion.process import DiscreteProcess
from jointdiff.evaluate.voting import fixed, replay
from jointdiff.method import Batch
from jointdiff.methods import diffusion_classifier
from jointdiff.methods.diffusion_classifier import DiffusionClassifier, log_odds
from jointdiff.models import load_model, save_model
from jointdiff.nets.autoencoder import Autoencoder
from jointdiff.trials import fractions, hold_trials
from tests.tiny import SMALL, tiny_run
from tests.unit.test_stable_diffusion import save_pipeline

SPREAD = 0.2  # of each class around its mean


def info(kind="one_of_k", names=("a", "b", "c"), size=8):
    return DataInfo(
        name="toy",
        title="toy",
        labels=LabelSpec(kind, names),
        channels=1,
        size=size,
        augmentations=Augmentations(max_shift=0.0),
        samples=10,
        digest="",
        has_regions=False,
    )


def build(kind="one_of_k", names=("a", "b", "c"), size=8, **settings):
    torch.manual_seed(0)
    small = {**SMALL["diffusion_classifier"], **settings}
    return DiffusionClassifier.build(info(kind, names, size), small).eval()


class Ideal(nn.Module):
    """What the best network says when images of a condition are N(mean, SPREAD^2) in every pixel."""

    def __init__(self, method, means):
        super().__init__()
        self.process, self.means = method.process, torch.tensor(means)

    def forward(self, z, steps, conditions):
        a, s = self.process.scales(steps)
        mean = self.means[conditions][:, None, None, None]
        shrunk = (z - a * mean) / (a**2 * SPREAD**2 + s**2)
        clean, noise = mean + a * SPREAD**2 * shrunk, s * shrunk
        return a * noise - s * clean


def ideal(means=(-0.5, 0.0, 0.5, 0.0), kind="one_of_k", names=("a", "b", "c")):
    method = build(kind, names)
    method.unet = Ideal(method, means)
    return method


def images_of(mean, count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mean + SPREAD * torch.randn(count, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("truth", [0, 1, 2])
def test_the_ideal_network_gives_the_bayes_answer(truth):
    method = ideal()
    images = images_of(float(method.unet.means[truth]))
    assert (method.predict(images).argmax(1) == truth).all()
    ballot = hold_trials(method, images, np.arange(len(images)), voting=Voting(trials=25))
    for rule in ("majority", "mean"):
        answer = fixed(ballot.errors, method.task.contests, kind="one_of_k", rule=rule, trials=25)
        assert (answer.winners[:, 0] == truth).all()


def test_a_single_finding_is_asked_as_a_pair():
    method = ideal((-0.5, 0.5, 0.0), kind="multi_label", names=("lesion",))
    assert method.task.contests == ((0, 1),)
    assert method.predict(images_of(0.5)).shape == (20, 1)
    assert (method.predict(images_of(0.5)) > 0.9).all()
    assert (method.predict(images_of(-0.5)) < 0.1).all()


def test_all_conditions_of_a_trial_share_noise_and_level():
    """Where the condition makes no difference, its errors are equal to the last bit."""
    method = ideal((0.1, 0.1, 0.1, 0.1))
    errors = hold_trials(method, images_of(0.0), np.arange(20), voting=Voting(trials=9, block=4)).errors
    assert np.isfinite(errors).all()
    assert (errors == errors[:, :, :1]).all()


def test_trials_are_stratified_in_random_order():
    for seed in range(5):
        at = fractions(seed, 20)
        assert (np.sort((at * 20).astype(int)) == np.arange(20)).all()
        assert not (np.diff(at) > 0).all()
    assert not np.array_equal(fractions(0, 20), fractions(1, 20))


def test_neither_batch_nor_block_changes_an_error():
    method = build()
    images, seeds = torch.rand(6, 1, 8, 8) * 2 - 1, np.arange(6)
    whole = hold_trials(method, images, seeds, voting=Voting(trials=10, block=10, batch_size=1000))
    parts = [
        hold_trials(method, images[i : i + 1], seeds[i : i + 1], voting=Voting(trials=10, block=3, batch_size=7))
        for i in range(6)
    ]
    np.testing.assert_allclose(whole.errors, np.concatenate([p.errors for p in parts]), rtol=2e-4)
    np.testing.assert_array_equal(whole.steps, np.concatenate([p.steps for p in parts]))


@pytest.mark.parametrize("kind", ["one_of_k", "multi_label"])
def test_stopping_early_gives_what_a_replay_of_all_trials_gives(kind):
    means = (-0.2, 0.0, 0.2, 0.0) if kind == "one_of_k" else (-0.2, 0.2, -0.1, 0.1, -0.05, 0.05, 0.0)
    method = ideal(means, kind=kind)
    images = torch.cat([images_of(m, 8, seed=i) for i, m in enumerate((-0.2, 0.03, 0.2))])
    voting = Voting(trials=60, block=4, error=0.1)
    all_trials = hold_trials(method, images, np.arange(24), voting=voting)
    stopped = hold_trials(method, images, np.arange(24), voting=voting.model_copy(update={"stop": True}))
    how = {"kind": kind, "trials": 60, "error": 0.1, "block": 4}
    ours, theirs = (replay(b.errors, method.task.contests, **how) for b in (stopped, all_trials))
    np.testing.assert_array_equal(ours.winners, theirs.winners)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    np.testing.assert_array_equal(stopped.calls, theirs.calls)
    assert stopped.calls.sum() < 0.8 * all_trials.calls.sum()
    kept = np.isfinite(stopped.errors)
    np.testing.assert_allclose(stopped.errors[kept], all_trials.errors[kept], rtol=1e-5)


def test_the_loss_is_that_of_its_formula():
    method = build(label_dropout=0.0, unlabelled_ratio=1)
    labels = torch.eye(3)[[0, 1, 2, 0]]
    batch = Batch(torch.rand(4, 1, 8, 8) * 2 - 1, labels, torch.rand(4, 1, 8, 8) * 2 - 1, 0, 10)
    asked = {}

    class Spy(nn.Module):
        def forward(self, z, steps, conditions):
            asked.update(z=z, steps=steps, conditions=conditions)
            return torch.zeros_like(z)

    method.unet = Spy()
    torch.manual_seed(1)
    (loss,) = method.losses(batch, Views(method.data.augmentations), method).values()
    assert asked["conditions"].tolist() == [0, 1, 2, 0, 3, 3, 3, 3], "unlabelled images have no condition"
    a, s = method.process.scales(asked["steps"])
    codes = torch.cat([batch.labelled, batch.unlabelled])
    noise = (asked["z"] - a * codes) / s
    snr = (a / s).square()
    weight = 1 / (1 + snr.clamp(max=5.0))
    # v = 0 stands for the estimate s z of the noise.
    expected = (weight * (s * asked["z"] - noise).square()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)


def test_labels_are_withheld_at_the_stated_rate():
    method = build(label_dropout=0.15)
    seen = []

    class Spy(nn.Module):
        def forward(self, z, steps, conditions):
            seen.append(conditions)
            return z

    method.unet = Spy()
    batch = Batch(torch.zeros(2000, 1, 8, 8), torch.eye(3)[torch.arange(2000) % 3], torch.zeros(0, 1, 8, 8), 0, 1)
    torch.manual_seed(0)
    method.losses(batch, Views(method.data.augmentations), method)
    assert (seen[0] == 3).float().mean().item() == pytest.approx(0.15, abs=0.03)


def test_conditions_of_findings_are_drawn_among_the_known():
    task = build("multi_label", ("x", "y")).task
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [float("nan")] * 2]).repeat_interleave(200, dim=0)
    drawn = task.draw_conditions(labels).view(3, 200)
    assert set(drawn[0].tolist()) == {1}
    assert set(drawn[1].tolist()) == {0, 3}
    assert set(drawn[2].tolist()) == {4}
    assert 0.35 < (drawn[1] == 0).float().mean() < 0.65


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_samples_of_the_ideal_network_have_the_mean_of_their_class(guidance):
    method = ideal((-0.5, 0.0, 0.5, 0.0))
    labels = torch.eye(3)[torch.arange(60) % 3]
    drawn = method.sample(labels, torch.arange(60), steps=60, sampler="ddim", guidance=guidance).mean(dim=(1, 2, 3))
    means = torch.stack([drawn[k::3].mean() for k in range(3)])
    if guidance:
        # Guidance adds up the differences of the scores: a Gaussian's mean is pushed further out.
        assert means[0] < -0.45
        assert means[2] > 0.45
        assert abs(means[1]) < 0.1
    else:
        torch.testing.assert_close(means, torch.zeros(3), atol=0.05, rtol=0)


def test_a_counterfactual_moves_towards_its_condition_and_its_control_does_not():
    method = ideal((-0.5, 0.5, 0.0), kind="multi_label", names=("lesion",))
    images = images_of(0.3)
    how = Explanation(noise_level=500, steps=6, guidance=1.0, noises=1)
    absent, present = (method.counterfactual(images, 0, t, torch.arange(20), how=how) for t in (0.0, 1.0))
    assert absent.images.mean() < absent.control.mean() < present.images.mean()
    # The control is rebuilt as what the image was: with the finding where it is taken out, without where it is put in.
    assert absent.control.mean() > present.control.mean()
    assert absent.calls == 6 * 2 + 5


def test_what_only_unlabelled_images_have_is_not_taken_for_a_finding():
    """No condition stands for them, and these are far brighter: neither edits nor samples of findings may ask it."""
    method, other = (ideal((-0.5, 0.5, nothing), kind="multi_label", names=("lesion",)) for nothing in (0.0, 5.0))
    how = Explanation(noise_level=500, steps=6, guidance=1.0, noises=1)
    edits = [m.counterfactual(images_of(0.3), 0, 0.0, torch.arange(20), how=how) for m in (method, other)]
    torch.testing.assert_close(edits[0].images, edits[1].images)
    labels, plan = torch.tensor([[0.0], [1.0]]).repeat(10, 1), {"steps": 20, "sampler": "ddim", "guidance": 1.0}
    drawn = [m.sample(labels, torch.arange(20), **plan) for m in (method, other)]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert drawn[0][::2].mean() < -0.4 < 0.4 < drawn[0][1::2].mean()


def test_labelled_and_unlabelled_images_are_seen_alike():
    """Shifts of the labelled images alone would be drawn wherever a condition is asked for."""
    method, asked = build(label_dropout=0.0, unlabelled_ratio=1), {}

    class Spy(nn.Module):
        def forward(self, z, steps, conditions):
            asked.update(z=z)
            return z

    method.unet = Spy()
    method.process.add_noise = lambda codes, noise, steps: codes
    images = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).repeat(40, 1, 1, 1)
    batch = Batch(images, torch.eye(3)[torch.arange(40) % 3], images, 0, 10)
    method.losses(batch, Views(Augmentations(max_shift=0.25)), method)
    shifted = (asked["z"] != torch.cat([images, images])).flatten(1).any(dim=1)
    assert shifted[:40].sum() > 30
    assert shifted[40:].sum() > 30


def test_leaving_one_of_many_classes_leads_away_from_it():
    method = ideal((-0.5, 0.0, 0.5, 0.0))
    images = images_of(0.4)
    how = Explanation(noise_level=500, steps=6, guidance=1.0, noises=1)
    left = method.counterfactual(images, 2, 0.0, torch.arange(20), how=how)
    assert left.images.mean() < left.control.mean()
    assert left.calls == 6 * 2 + 5
    back = method.counterfactual(images, 2, 1.0, torch.arange(20), how=how)
    assert back.images.mean() > back.control.mean()
    assert back.calls == left.calls
    pair = ideal((-0.5, 0.5, 0.0), names=("a", "b"))
    assert pair.task.conditions_for(1, 0.0) == (0,), "of two classes, not one is the other"


def test_other_classes_take_turns_over_the_draws():
    method, asked = build(), []

    class Spy(nn.Module):
        def forward(self, z, steps, conditions):
            asked.append(conditions)
            return torch.zeros_like(z)

    method.unet = Spy()
    how = Explanation(noise_level=500, steps=2, noises=4)
    method.counterfactual(images_of(0.4)[:3], 1, 0.0, torch.tensor([10, 11, 12]), how=how)
    own, others = asked[0].view(2, 4, 3)
    assert (own == 1).all()
    assert others.T.tolist() == [[0, 2, 0, 2], [2, 0, 2, 0], [0, 2, 0, 2]]
    assert [len(conditions) for conditions in asked] == [24, 24, 12], "the control of the first step costs nothing"


def test_two_classes_and_one_finding_are_guided_alike():
    pair, finding = ideal((-0.5, 0.5, 0.0), names=("a", "b")), ideal((-0.5, 0.5, 0.0), "multi_label", ("b",))
    how = Explanation(noise_level=500, steps=6, guidance=1.0, noises=1)
    edits = [m.counterfactual(images_of(0.3), k, 0.0, torch.arange(20), how=how) for m, k in ((pair, 1), (finding, 0))]
    torch.testing.assert_close(edits[0].images, edits[1].images)
    plan = {"steps": 20, "sampler": "ddim", "guidance": 1.0}
    drawn = pair.sample(torch.eye(2)[[1] * 8], torch.arange(8), **plan)
    torch.testing.assert_close(drawn, finding.sample(torch.ones(8, 1), torch.arange(8), **plan))


def test_a_foundation_model_is_tuned_saved_and_read_without_its_pipeline(tmp_path):
    save_pipeline(tmp_path / "sd")
    data = info("multi_label", ("lesion", "mass"), size=16)
    run: RunSpec = tiny_run(
        "diffusion_classifier",
        dataset="toy",
        settings={
            "backbone": "stable_diffusion",
            "pretrained": str(tmp_path / "sd"),
            "tuning": "lora",
            "lora_rank": 2,
            "present": "a {label}",
            "absent": "no {label}",
            "quick_trials": 2,
        },
    )
    codec = Autoencoder(tmp_path / "sd" / "vae", data)
    method = DiffusionClassifier.build(data, run.settings, codec)
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    codes = codec.encode(images)
    batch = Batch(codes, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), codes, 0, 10)
    (loss,) = method.train().losses(batch, Views(data.augmentations), method).values()
    loss.backward()
    with torch.no_grad():
        for weight in method.parameters():
            if weight.requires_grad:
                weight += 0.05
        expected = method.eval().predict(images)
    save_model(method, tmp_path / "model", run=run)
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / "sd" / part).rename(tmp_path / f"gone-{part}")
    loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(images), expected, atol=1e-4, rtol=1e-3)


def test_a_foundation_model_needs_its_own_latents(tmp_path):
    save_pipeline(tmp_path / "sd")
    settings = {"backbone": "stable_diffusion", "pretrained": str(tmp_path / "sd")}
    with pytest.raises(ValueError, match="name its own autoencoder"):
        DiffusionClassifier.build(info(), settings)
    with pytest.raises(ValueError, match="pretrained: name the folder"):
        DiffusionClassifier.build(info(), {"backbone": "stable_diffusion"})


@pytest.mark.parametrize("backbone", ["unet", "dit"])
@pytest.mark.parametrize("codec", ["identity", "wavelet"])
def test_every_backbone_and_codec_is_saved_and_read(tmp_path, backbone, codec):
    size = {"dit": {"patch": 2, "width": 16, "depth": 2, "heads": 2}}.get(backbone, {})
    run = tiny_run("diffusion_classifier", settings={"backbone": backbone, "codec": codec, **size})
    method = DiffusionClassifier.build(info(size=16), run.settings).eval()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    save_model(method, tmp_path / "model", run=run)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model").predict(images), method.predict(images))


def test_half_precision_turns_few_votes():
    method = build(size=16, width=16)
    images = torch.rand(8, 1, 16, 16) * 2 - 1
    full, half = (
        hold_trials(method, images, np.arange(8), voting=Voting(trials=20, precision=precision)).errors
        for precision in ("fp32", "bf16")
    )
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.02)


def test_log_odds_rank_where_probabilities_have_ended_at_one():
    evidence = torch.tensor([[0.3, -1.0, 0.5], [-450.0, -500.0, -900.0], [-400.0, -500.0, -900.0]])
    odds, p = log_odds(evidence), evidence.softmax(dim=1)
    torch.testing.assert_close(odds[0], torch.logit(p[0]))
    assert p[1, 0] == p[2, 0] == 1.0
    torch.testing.assert_close(odds[1:, 0], torch.tensor([50.0, 100.0]))


def test_validation_tells_apart_what_is_surely_present():
    """Of large images every error is so large that each presence has probability 1 or 0."""
    method = ideal((-0.5, 0.5, 0.0), "multi_label", ("b",))
    images = torch.cat([images_of(0.4), images_of(0.6)])
    labels = np.repeat([0.0, 1.0], 20)[:, None]
    method._evidence = lambda codes, real=method._evidence: [400.0 * evidence for evidence in real(codes)]
    assert (method.predict(images) == 1.0).all()
    assert method.validate(iter(images.split(16)), labels)["auroc"] > 0.7


@pytest.mark.parametrize("kind", ["one_of_k", "multi_label"])
def test_inputs_at_once_change_no_answer(monkeypatch, kind):
    method = build(kind)
    with torch.no_grad():
        for weight in method.unet.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    images, labels, seeds = images_of(0.3)[:5], torch.eye(3)[[0, 1, 2, 0, 1]], torch.arange(5)
    how = Explanation(noise_level=300, steps=2, noises=2)

    def answers():
        drawn = method.sample(labels, seeds, steps=2, sampler="ddim", guidance=1.0)
        return method.predict(images), drawn, method.counterfactual(images, 1, 0.0, seeds, how=how).images

    whole = answers()
    sizes = []
    method.unet.register_forward_pre_hook(lambda net, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(diffusion_classifier, "AT_ONCE", 7)
    torch.testing.assert_close(answers(), whole)
    assert max(sizes) == 7


def test_no_trial_lies_beyond_the_last_step():
    assert fractions(90727, 501).max() < 1.0, "the largest double below 1 rounds to 1 in single precision"
    process = DiscreteProcess("linear")
    assert process.steps_at(torch.from_numpy(fractions(90727, 501))).max() == 999


@pytest.mark.parametrize("balance", ["inverse", "logit_adjusted"])
def test_there_is_no_loss_over_labels_to_balance(balance):
    with pytest.raises(ValueError, match="class_balance"):
        build(class_balance=balance)
