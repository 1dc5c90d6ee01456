import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline

from jointdiff.config import Explanation
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.diffusion.process import STEPS, noise_for
from jointdiff.method import Batch
from jointdiff.methods.joint import JointDiffusion
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
    small = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_at": (), **settings}
    return JointDiffusion(info, JointDiffusion.Settings(**small)).eval()


def batch(method, labelled=4, unlabelled=6):
    labels = torch.zeros(labelled, method.task.outputs)
    labels[torch.arange(labelled), torch.arange(labelled) % method.task.outputs] = 1.0
    shape = (1, 16, 16)
    return Batch(torch.rand(labelled, *shape) * 2 - 1, labels, torch.rand(unlabelled, *shape) * 2 - 1, 0, 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.001, 0.5])
def test_one_pass_equals_separate_passes(kind, weight):
    method = build(kind, classification_weight=weight, classifier_input="clean")
    seen, views = batch(method), Views(method.data.augmentations)
    passes = []
    method.unet.conv_in.register_forward_hook(lambda *_: passes.append(1))
    torch.manual_seed(3)
    terms = method.losses(seen, views, method)
    assert len(passes) == 1, "noisy and clean images go through the encoder together"

    torch.manual_seed(3)
    steps = torch.randint(STEPS, (6,))
    noise = torch.randn_like(seen.unlabelled)
    estimate = method.unet(method.process.add_noise(seen.unlabelled, noise, steps), steps)
    torch.testing.assert_close(terms["denoising"], torch.nn.functional.mse_loss(estimate, noise))
    logits = method.classify(method.unet.encode(seen.labelled, torch.zeros(4, dtype=torch.long)))
    expected = weight * method.task.loss(logits, seen.labels).mean()
    torch.testing.assert_close(terms["classification"], expected)


def test_classification_weight_warms_up():
    method = build(classification_weight=0.2, classification_warmup=0.5)
    assert method._weight(0.0) == 0.0
    assert method._weight(0.25) == pytest.approx(0.1)
    assert method._weight(0.9) == pytest.approx(0.2)


@pytest.mark.parametrize("classifier_input", ["clean", "noisy", "both"])
@pytest.mark.parametrize("pooling", ["avg", "max", "both"])
def test_every_option_trains_both_halves(classifier_input, pooling):
    method = build(classifier_input=classifier_input, pooling=pooling, classification_weight=1.0)
    sum(method.losses(batch(method), Views(method.data.augmentations), method).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_the_head_can_see_some_maps_only():
    method = build(pooled_maps=(0, 4))
    assert method.head.net[1].in_features == 8 + 16
    with pytest.raises(ValueError, match=r"pooled_maps \[99\]"):
        build(pooled_maps=(0, 99))
    assert build(pooled_maps=(4,)).feature_layer() is not None
    with pytest.raises(ValueError, match=r"pooled_maps \[0, 1\]: Grad-CAM looks at .* remove grad_cam"):
        build(pooled_maps=(0, 1)).feature_layer()


def test_guidance_can_be_kept_to_some_maps():
    method = build(guided_maps=(3, 4))
    with torch.no_grad():
        encoding = method.unet.encode(torch.randn(2, 1, 16, 16), torch.tensor([5, 500]))
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    moved = method.guide(encoding, lambda logits: method.task.loss(logits, labels), scale=10.0)
    changed = [not torch.equal(a, b) for a, b in zip(encoding.maps, moved.maps, strict=True)]
    assert changed == [False, False, False, True, True]


def test_guidance_moves_every_map_down_the_finite_difference_gradient():
    method = build().double()
    images, steps = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.tensor([400, 10])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        encoding = method.unet.encode(images, steps)
    moved = method.guide(encoding, lambda logits: method.task.loss(logits, labels), scale=1.0)
    loss = lambda e: method.head([e.maps[i] for i in method.pooled])  # noqa: E731
    assert len(encoding.maps) == 5

    def total(maps):
        logits = loss(encoding.with_maps(maps))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1).sum()

    for index, pixel in enumerate([(0, 3, 5, 5), (1, 0, 9, 2), (0, 6, 1, 7), (1, 5, 4, 4), (1, 7, 2, 3)]):
        step = 1e-4
        up, down = ([m.clone() for m in encoding.maps] for _ in range(2))
        up[index][pixel] += step
        down[index][pixel] -= step
        with torch.no_grad():
            slope = (total(up) - total(down)) / (2 * step)
        change = (moved.maps[index] - encoding.maps[index])[pixel]
        assert change.item() == pytest.approx(-slope.item(), rel=1e-3, abs=1e-9)
    with torch.no_grad():
        assert total(moved.maps) < total(encoding.maps)


def test_samples_do_not_depend_on_the_batch():
    method = build()
    labels, seeds = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([1, 2, 3])
    settings = {"steps": 3, "sampler": "ddim", "guidance": 5.0}
    together = method.sample(labels, seeds, **settings)
    alone = method.sample(labels[1:2], seeds[1:2], **settings)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-3)
    assert together.shape == (3, 1, 16, 16)
    assert together.abs().max() <= 1.0


def test_without_guidance_labels_do_not_matter():
    method = build()
    seeds = torch.tensor([1, 2])
    one = method.sample(torch.tensor([[1.0, 0.0]] * 2), seeds, steps=3, sampler="dpm++", guidance=0.0)
    other = method.sample(torch.tensor([[0.0, 1.0]] * 2), seeds, steps=3, sampler="dpm++", guidance=0.0)
    assert torch.equal(one, other)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_counterfactual_moves_the_finding_towards_its_target(kind, target):
    method = build(kind)
    images, seeds = torch.rand(4, 1, 16, 16) * 2 - 1, torch.arange(4)
    plain = method.counterfactual(
        images, 1, target, seeds, how=Explanation(noise_level=300, steps=4, guidance=0.0, noises=1)
    )
    torch.testing.assert_close(plain.images, plain.control)
    edited = method.counterfactual(
        images, 1, target, seeds, how=Explanation(noise_level=300, steps=4, guidance=20.0, noises=1)
    )
    torch.testing.assert_close(edited.control, plain.control)
    before, after = (method.task.finding_loss(method.logits(x), 1, target) for x in (edited.control, edited.images))
    assert (after < before).all()
    assert edited.calls == 4 * 2 + 3, "the first control is a by-product"


@pytest.mark.parametrize("prediction", ["noise", "v"])
def test_counterfactual_step_is_that_of_finite_differences(prediction):
    """One DDIM step from t to 0 gives z_0' = (z_t - s_t eps') / a_t, so edit - control = -s (s_t^2 / a_t) dL/dz_t."""
    method = build(prediction=prediction)
    images, seeds, guidance = torch.rand(1, 1, 16, 16) * 0.2, torch.tensor([4]), 5.0
    process, how = method.process, Explanation(noise_level=50, steps=1, guidance=guidance, noises=1)
    t = torch.tensor([49])
    drawn = torch.tensor([derive(4, "noise", 0)])
    z = process.add_noise(images, noise_for(drawn, (1, 16, 16)), t)

    def loss(noisy):
        clean = process.clean_from(method.unet(noisy, t), noisy, t)
        return method.task.finding_loss(method.logits(clean), 0, 0.0).sum().item()

    answer = method.counterfactual(images, 0, 0.0, seeds, how=how)
    a, s = (x.item() for x in process.scales(t))
    gradient = (answer.control - answer.images) * a / (guidance * s**2)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = (loss(z + 0.005 * direction) - loss(z - 0.005 * direction)) / 0.01
    assert gradient.norm().item() == pytest.approx(slope, rel=0.03)


def test_training_both_tasks_shares_one_encoder():
    method = build(classification_weight=1.0)
    before = copy.deepcopy(method.unet.conv_in.weight)
    terms = method.losses(batch(method), Views(method.data.augmentations), method)
    for term in terms.values():
        (gradient,) = torch.autograd.grad(term, method.unet.conv_in.weight, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert torch.equal(before, method.unet.conv_in.weight)


@pytest.mark.parametrize("reach", [1.0, 4.0])
def test_reach_enlarges_what_guidance_changes_in_the_noise_estimate(reach):
    method = build(guidance_reach=reach)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        encoding = method.unet.encode(torch.randn(2, 1, 16, 16), torch.tensor([5, 500]))
        plain = method.unet.decode(encoding)
        loss = lambda logits: method.task.loss(logits, labels)  # noqa: E731
        moved = method.unet.decode(method.guide(encoding, loss, scale=50.0))
        assert (moved - plain).abs().max() > 1e-4
        torch.testing.assert_close(
            method._guided(encoding, loss, scale=50.0)[1], plain + reach * (moved - plain), atol=1e-5, rtol=1e-4
        )


# --- Consistency, conditions, latents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["strong", "noise"])
@pytest.mark.parametrize("rule", ["fixmatch", "softmatch"])
@pytest.mark.parametrize("kind", KINDS)
def test_consistency_reaches_the_encoder_in_one_pass(kind, rule, view):
    method = build(
        kind, consistency=rule, consistency_view=view, consistency_threshold=0.1, classification_weight=0.5
    ).train()
    teacher, passes = copy.deepcopy(method).eval().requires_grad_(False), []
    method.unet.conv_in.register_forward_hook(lambda *_: passes.append(1))
    torch.manual_seed(0)
    terms = method.losses(batch(method, unlabelled=32), Views(method.data.augmentations), teacher)
    assert len(passes) == 1
    assert set(terms) == {"denoising", "classification", "consistency"}
    (gradient,) = torch.autograd.grad(terms["consistency"], method.unet.conv_in.weight)
    assert gradient.abs().sum() > 0


def test_consistency_by_noise_is_that_of_its_formula():
    method = build("one_of_k", consistency="fixmatch", consistency_view="noise", consistency_threshold=0.0)
    teacher = build("one_of_k", consistency="fixmatch")
    with torch.no_grad():
        teacher.head.net[-1].bias += torch.tensor([0.0, 3.0, 0.0])
    seen = batch(method, unlabelled=40)
    torch.manual_seed(7)
    found = method.losses(seen, Views(method.data.augmentations), teacher)["consistency"]
    torch.manual_seed(7)
    steps = torch.randint(STEPS, (40,))
    noisy = method.process.add_noise(seen.unlabelled, torch.randn_like(seen.unlabelled), steps)
    logits = method.classify(method.unet.encode(noisy, steps))
    kept = method.process.signal(steps) >= 0.5  # elsewhere a finding may be gone
    assert 0 < kept.sum() < 40
    expected = -logits.log_softmax(1)[:, 1] * kept  # the teacher is sure of the second class
    torch.testing.assert_close(found, method.settings.classification_weight * expected.mean())


def test_the_classification_term_can_be_left_out_of_most_steps():
    method = build(classification_every=3)
    views = Views(method.data.augmentations)
    names = [set(method.losses(replace(batch(method), step=step), views, method)) for step in range(4)]
    assert names == [{"denoising", "classification"}, {"denoising"}, {"denoising"}, {"denoising", "classification"}]


def test_nothing_told_is_no_condition():
    method = build(conditional=True)
    with torch.no_grad():
        encoding = method.unet.encode(torch.randn(2, 1, 16, 16), torch.tensor([5, 500]))
        unknown = method._tell(encoding, torch.full((2, 2), torch.nan))
        assert torch.equal(unknown.embedding, encoding.embedding)
        known = method._tell(encoding, torch.tensor([[1.0, torch.nan], [0.0, torch.nan]]))
        assert not torch.equal(known.embedding[0] - encoding.embedding[0], known.embedding[1] - encoding.embedding[1])


def test_a_conditional_decoder_is_guided_by_the_difference_that_labels_make():
    method = build(conditional=True)
    with torch.no_grad():
        method.told.weight.normal_()
    seeds, labels = torch.tensor([1, 2]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    one = method.sample(labels, seeds, steps=3, sampler="ddim", guidance=1.0)
    other = method.sample(labels.flip(0), seeds, steps=3, sampler="ddim", guidance=1.0)
    assert not torch.equal(one, other)
    assert method.calls_per_step(1.0) == 2
    assert method.calls_per_step(0.0) == 1


def test_what_the_decoder_is_told_is_what_the_teacher_is_sure_of():
    method = build("multi_label", conditional=True, consistency_threshold=0.9, label_dropout=0.0).train()
    teacher = build("multi_label", conditional=True)
    with torch.no_grad():
        teacher.head.net[-1].weight.zero_()
        teacher.head.net[-1].bias.copy_(torch.tensor([5.0, 0.0]))  # sure of the first, not of the second
    told = []
    method._tell = lambda encoding, labels: told.append(labels) or encoding
    method.losses(batch(method, unlabelled=8), Views(method.data.augmentations), teacher)
    assert (told[0][:, 0] == 1).all()
    assert told[0][:, 1].isnan().all()


def test_the_head_may_learn_at_a_rate_of_its_own():
    from jointdiff.training.optimiser import build_optimiser

    groups = build_optimiser(build(learning_rate=1e-3, head_learning_rate=1e-5)).param_groups
    rates = {group["base"]: sum(p.numel() for p in group["params"]) for group in groups}
    head = sum(p.numel() for p in build().head.parameters())
    assert rates[1e-5] == head
    assert set(rates) == {1e-3, 1e-5}


@pytest.mark.parametrize("guide", ["image", "representation"])
def test_counterfactuals_follow_either_guide(guide):
    method = build("multi_label", classifier_input="both")
    images, seeds = torch.rand(4, 1, 16, 16) * 2 - 1, torch.arange(4)
    strength = {"image": 20.0, "representation": 2000.0}[guide]
    how = Explanation(noise_level=300, steps=4, guidance=strength, guide=guide, noises=1)
    edited = method.counterfactual(images, 1, 1.0, seeds, how=how)
    plain = method.counterfactual(images, 1, 1.0, seeds, how=how.model_copy(update={"guidance": 0.0}))
    torch.testing.assert_close(plain.images, plain.control)
    assert not torch.equal(edited.images, edited.control)


def test_a_head_that_has_seen_no_noise_guides_on_no_noisy_maps():
    method, seeds = build("multi_label", classifier_input="clean"), torch.arange(2)
    labels, how = torch.zeros(2, 2), Explanation(noise_level=300, steps=1, guidance=1.0, guide="representation")
    with pytest.raises(ValueError, match=r"generation.guidance: 0.*classifier_input: both"):
        method.sample(labels, seeds, steps=1, sampler="ddim", guidance=1.0)
    assert method.sample(labels, seeds, steps=1, sampler="ddim", guidance=0.0).shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"explanation.guide: image.*classifier_input: both"):
        method.counterfactual(torch.zeros(2, 1, 16, 16), 0, 1.0, seeds, how=how)
    method.counterfactual(torch.zeros(2, 1, 16, 16), 0, 1.0, seeds, how=how.model_copy(update={"guide": "image"}))
    told = build("multi_label", classifier_input="clean", conditional=True)
    assert told.sample(labels, seeds, steps=1, sampler="ddim", guidance=1.0).shape == (2, 1, 16, 16)


def test_velocity_is_learnt_and_drawn_from(tmp_path, monkeypatch):
    """The loss is 0 for v itself, and diffusers' own pipeline draws the same images from the saved folder."""
    method = build(prediction="v", classification_weight=0.0)
    seen, views = batch(method), Views(method.data.augmentations)
    torch.manual_seed(3)
    steps, noise = torch.randint(STEPS, (6,)), torch.randn_like(seen.unlabelled)
    a, s = method.process.scales(steps)
    torch.manual_seed(3)
    method.unet.decode = lambda encoding: a * noise - s * seen.unlabelled
    assert method.losses(seen, views, method)["denoising"] == 0

    method = build(prediction="v")
    save_model(method, tmp_path / "model", run=tiny_run("joint", settings={**SMALL["joint"], "prediction": "v"}))
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        batch_size=2,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=4,
        use_clipped_model_output=True,
        output_type="np",
    ).images
    start = torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("jointdiff.diffusion.method.noise_for", lambda *_: start)
    ours = method.sample(torch.zeros(2, 2), torch.tensor([5, 6]), steps=4, sampler="ddim", guidance=0.0)
    theirs = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)
    assert "use_clipped_model_output=True" in (tmp_path / "model" / "README.md").read_text()


def test_wavelets_are_another_space_for_the_same_method():
    method = build(codec="wavelet")
    assert method.unet.config["in_channels"] == 4
    assert method.unet.config["sample_size"] == 8
    drawn = method.sample(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), steps=2, sampler="ddim", guidance=1.0)
    assert drawn.shape == (1, 1, 16, 16)


def test_a_conditional_decoder_edits_by_what_it_is_told():
    method = build("multi_label", conditional=True)
    with torch.no_grad():
        method.told.weight.normal_()
    images, seeds = torch.rand(3, 1, 16, 16) * 2 - 1, torch.arange(3)
    how = Explanation(noise_level=300, steps=3, guidance=2.0, guide="label", noises=1)
    absent, present = (method.counterfactual(images, 1, target, seeds, how=how) for target in (0.0, 1.0))
    assert not torch.equal(absent.control, present.control), "the control is told what was"
    assert not torch.equal(absent.images, present.images)
    gentle = how.model_copy(update={"guidance": 0.0})
    absent, present = (method.counterfactual(images, 1, target, seeds, how=gentle) for target in (0.0, 1.0))
    # At w = 0 an edit is told no more than the other's control.
    torch.testing.assert_close(absent.images, present.control)
    torch.testing.assert_close(present.images, absent.control)
    present = method.counterfactual(images, 1, 1.0, seeds, how=how)
    other = method.counterfactual(images, 0, 1.0, seeds, how=how)
    assert not torch.equal(other.images, present.images), "nothing is said of the other findings"
    with pytest.raises(ValueError, match="conditional: true"):
        build("multi_label").counterfactual(images, 0, 0.0, seeds, how=how)


def test_a_conditional_decoder_is_told_one_class_and_another_in_turn(monkeypatch):
    method, told = build("one_of_k", conditional=True), []
    real = method._tell
    monkeypatch.setattr(method, "_tell", lambda encoding, labels: told.append(labels) or real(encoding, labels))
    images, how = torch.rand(2, 1, 16, 16) * 2 - 1, Explanation(noise_level=300, steps=1, guide="label", noises=2)
    method.counterfactual(images, 1, 0.0, torch.tensor([0, 1]), how=how)
    against, wanted = told
    assert torch.equal(against, torch.eye(3)[[1, 1, 1, 1]])
    assert torch.equal(wanted, torch.eye(3)[[0, 2, 2, 0]]), "as in training, all of the row is known"
