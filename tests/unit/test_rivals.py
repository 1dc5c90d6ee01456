"""The losses of the semi-supervised rivals, each against its formula written in another way."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from baselines._classifier import fixed_statistics, sharpened
from baselines.class_prior import ClassPrior
from baselines.vat import _unit
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.method import Batch, MethodSettings
from jointdiff.pseudo_labels import UniformAlignment
from jointdiff.registry import load_method
from jointdiff.task import task_for
from jointdiff.training.averaging import averaged_copy, update_average
from tests.tiny import SMALL

KINDS = {"one_of_k": ("a", "b", "c"), "multi_label": ("a", "b")}
UNLABELLED = 6


class Still(Views):
    """Views that leave images as they are, so that losses can be computed by hand."""

    def weak(self, images):
        return images

    def strong(self, images):
        return -images


STILL = Still(Augmentations())


def info(kind):
    return DataInfo("toy", "toy", LabelSpec(kind, KINDS[kind]), 1, 8, Augmentations(), 10, "", has_regions=False)


def build(name, kind, *, evaluated=True, **settings):
    """Return a method whose normalisation does not depend on the batch, so that parts can be asked about alone."""
    torch.manual_seed(0)
    cls = load_method(name)
    method = cls(info(kind), cls.Settings(**{**SMALL[name], **settings}))
    method.prepare(labels(kind, 4), UNLABELLED)
    with torch.no_grad():  # answers of all degrees of confidence
        drawn = method.eval().logits(batch(kind).unlabelled)
        method.net.head.weight.mul_(1.5 / drawn.std(dim=0)[:, None])
        method.net.head.bias.mul_(1.5 / drawn.std(dim=0)).sub_(1.5 * drawn.mean(dim=0) / drawn.std(dim=0))
    return method.train(not evaluated)


def labels(kind, count):
    if kind == "one_of_k":
        return torch.eye(3)[torch.arange(count) % 3]
    return torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])[torch.arange(count) % 4]


def batch(kind, *, step=1, steps=10, unlabelled=UNLABELLED):
    g = torch.Generator().manual_seed(1)
    images = torch.rand(4 + unlabelled, 1, 8, 8, generator=g) * 2 - 1
    at = torch.arange(unlabelled)
    return Batch(images[:4], labels(kind, 4), images[4:], step, steps, torch.arange(4), at)


def outcomes(method, logits):
    """Return probabilities (N, M, C) written out: a softmax, or a sigmoid and what it lacks to 1."""
    if method.data.labels.kind == "one_of_k":
        return logits.exp()[:, None] / logits.exp().sum(1)[:, None, None]
    p = 1 / (1 + (-logits).exp())
    return torch.stack([1 - p, p], 2)


def cross_entropy(p, target, weight=None):
    """Return the weighted cross-entropy of outcomes (N, M, C), averaged over contests and cases."""
    each = -(target * p.log()).sum(2)
    return (each if weight is None else each * weight).mean()


def one_hot(p):
    return F.one_hot(p.argmax(2), p.shape[2]).float()


both = pytest.mark.parametrize("kind", KINDS)


# --- Distributions ----------------------------------------------------------------------------------------------------


@both
def test_distributions_hold_what_probabilities_say(kind):
    task, logits = task_for(info(kind).labels), torch.randn(5, len(KINDS[kind])) * 4
    p = task.distributions(logits)
    torch.testing.assert_close(p.sum(2), torch.ones(p.shape[:2]))
    assert p.shape[1:] == (len(task.contests), len(task.contests[0]))
    torch.testing.assert_close(task.as_labels(p), task.probabilities(logits))
    torch.testing.assert_close(task.as_distributions(task.probabilities(logits)), p)
    extreme = task.log_distributions(torch.full((1, len(KINDS[kind])), 200.0).mul_(torch.eye(len(KINDS[kind]))[:1]))
    assert extreme.isfinite().all(), "no log of 0"


def test_unknown_findings_stay_unknown():
    task = task_for(info("multi_label").labels)
    assert task.as_distributions(torch.tensor([[math.nan, 1.0]])).isnan().tolist() == [[[True, True], [False, False]]]


def test_sharpening_is_a_power():
    p = torch.tensor([[[0.5, 0.3, 0.2]]])
    torch.testing.assert_close(sharpened(p, 0.5), p**2 / (p**2).sum())
    torch.testing.assert_close(sharpened(p, 1.0), p)
    assert sharpened(torch.tensor([[[0.9, 0.1]]]), 1e-3).tolist() == [[[1.0, 0.0]]], "no 0 / 0"


def test_fixed_statistics_are_used_as_they_come_and_not_remembered():
    method = build("supervised", "one_of_k", evaluated=False)
    images, before = torch.rand(4, 1, 8, 8), {k: v.clone() for k, v in method.state_dict().items()}
    with fixed_statistics(method.net):
        inside = method.logits(images)
    kept = {k: v for k, v in method.state_dict().items() if "running" in k}
    assert all(torch.equal(v, before[k]) for k, v in kept.items())
    torch.testing.assert_close(method.logits(images), inside)
    assert any(not torch.equal(v, before[k]) for k, v in method.state_dict().items() if "running" in k)


# --- Losses -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("step", [0, 2, 4, 9])
def test_pseudo_label(kind, step):
    method, seen = build("pseudo_label", kind, threshold=0.7, weight=2.0), batch(kind, step=step)
    terms = method.losses(seen, STILL, None)
    p = outcomes(method, method.logits(seen.unlabelled))
    confident = (p.max(2).values >= 0.7).float()
    assert 0 < confident.mean() < 1
    expected = 2.0 * min(step / 4, 1) * cross_entropy(p, one_hot(p), confident)
    torch.testing.assert_close(terms["pseudo_label"], expected)
    supervised = cross_entropy(
        outcomes(method, method.logits(seen.labelled)), method.task.as_distributions(seen.labels)
    )
    torch.testing.assert_close(terms["supervised"], supervised)


@both
def test_pi_model_and_its_gradient_through_one_view_only(kind):
    class Halved(Still):
        calls = 0

        def weak(self, images):
            self.calls += 1
            return images / self.calls  # labelled as they are, one view halved, the other a third

    method, seen = build("pi_model", kind, weight=10.0), batch(kind, step=2)
    images = seen.unlabelled.clone().requires_grad_()
    terms = method.losses(Batch(seen.labelled, seen.labels, images, 2, 10), Halved(Augmentations()), None)
    one, other = (method.task.probabilities(method.logits(seen.unlabelled / n)) for n in (2, 3))
    torch.testing.assert_close(terms["consistency"], 10.0 * 0.5 * (one - other).pow(2).sum() / one.numel())
    (gradient,) = torch.autograd.grad(terms["consistency"], images)
    leaf = seen.unlabelled.clone().requires_grad_()
    alone = (one.detach() - method.task.probabilities(method.logits(leaf / 3))).pow(2).mean() * 5.0
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, leaf)[0])


@both
def test_mean_teacher_asks_the_average(kind):
    method, seen = build("mean_teacher", kind, weight=50.0), batch(kind, step=4)
    teacher = averaged_copy(method)
    with torch.no_grad():
        teacher.net.head.bias.add_(torch.arange(len(KINDS[kind])))
    terms = method.losses(seen, STILL, teacher)
    gap = method.predict(seen.unlabelled) - teacher.predict(seen.unlabelled)
    torch.testing.assert_close(terms["consistency"], 50.0 * gap.pow(2).mean())
    assert not any(p.requires_grad for p in teacher.parameters())
    update_average(teacher, method, decay=0.5, step=1000)
    torch.testing.assert_close(teacher.net.head.bias[-1], method.net.head.bias[-1] + (len(KINDS[kind]) - 1) / 2)


@both
def test_uda_sharpens_what_is_confident(kind):
    method, seen = build("uda", kind, threshold=0.8, temperature=0.4, weight=3.0), batch(kind)
    terms = method.losses(seen, STILL, None)
    p, strong = (outcomes(method, method.logits(images)) for images in (seen.unlabelled, -seen.unlabelled))
    target = p**2.5 / (p**2.5).sum(2, keepdim=True)
    confident = (p.max(2).values >= 0.8).float()
    assert 0 < confident.mean() < 1
    torch.testing.assert_close(terms["consistency"], 3.0 * cross_entropy(strong, target.detach(), confident))


@both
def test_fixmatch_takes_the_hard_answer(kind):
    method, seen = build("fixmatch", kind, threshold=0.8), batch(kind)
    terms = method.losses(seen, STILL, None)
    p, strong = (outcomes(method, method.logits(images)) for images in (seen.unlabelled, -seen.unlabelled))
    confident = (p.max(2).values >= 0.8).float()
    torch.testing.assert_close(terms["consistency"], cross_entropy(strong, one_hot(p), confident))


@both
def test_mixmatch_mixes_labels_with_the_images(kind):
    method = build("mixmatch", kind)
    count = 400
    targets = method.task.as_labels(
        torch.rand(count, *method.task.distributions(torch.zeros(1, len(KINDS[kind]))).shape[1:])
    )
    # An image that says what its target is: what is mixed of the one must be mixed of the other.
    images = targets.sum(1)[:, None, None, None].expand(-1, 1, 2, 2)
    torch.manual_seed(3)
    mixed, labelled = method.mix(images, targets)
    torch.testing.assert_close(mixed[:, 0, 0, 0], labelled.sum(1))
    share = ((mixed - images).abs() / (images.max() - images.min()))[:, 0, 0, 0]
    assert share.max() <= 0.5 + 1e-6, "each image stays the larger part of its mixture"
    assert not torch.equal(mixed, images)
    torch.manual_seed(3)
    lost = targets.clone()
    lost[5] = math.nan
    _, partly = method.mix(images, lost)
    assert partly.isnan().all(1).sum() in (1, 2), "the mixtures it is part of, and no others"


def test_mixing_shares_are_of_the_beta_distribution():
    method = build("mixmatch", "one_of_k", alpha=0.5)
    torch.manual_seed(0)
    images = torch.cat([torch.zeros(4000, 1, 1, 1), torch.ones(4000, 1, 1, 1)])
    mixed, _ = method.mix(images, torch.zeros(8000, 3))
    small = torch.where(images > 0.5, 1 - mixed, mixed).flatten()
    small = small[small > 0].numpy()  # those mixed with an image of the other kind
    # For Beta(1/2, 1/2) the smaller share s has the distribution (4 / pi) arcsin sqrt(s) on [0, 1/2].
    ordered = np.sort(small)
    cdf = 4 / math.pi * np.arcsin(np.sqrt(ordered))
    assert np.abs(cdf - (np.arange(len(ordered)) + 0.5) / len(ordered)).max() < 0.03


@both
def test_mixmatch_without_mixing(kind):
    method, seen = build("mixmatch", kind, temperature=0.5, weight=100.0, warmup=0.0), batch(kind)
    method.mix = lambda images, targets: (images, targets)
    terms = method.losses(seen, STILL, None)
    p = outcomes(method, method.logits(seen.unlabelled)).detach()
    guess = method.task.as_labels(p**2 / (p**2).sum(2, keepdim=True))
    gap = method.predict(seen.unlabelled) - guess
    torch.testing.assert_close(terms["consistency"], 100.0 * gap.pow(2).mean())
    labelled = outcomes(method, method.logits(seen.labelled))
    torch.testing.assert_close(terms["supervised"], cross_entropy(labelled, method.task.as_distributions(seen.labels)))


# --- VAT --------------------------------------------------------------------------------------------------------------


@both
def test_vat_divergence_is_kullback_leibler(kind):
    method = build("vat", kind)
    one, other = torch.randn(2, 5, len(KINDS[kind])) * 3
    p, q = outcomes(method, one), outcomes(method, other)
    expected = torch.stack([F.kl_div(b.log(), a, reduction="none").sum(1).mean() for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(method.divergence(one, other), expected)
    assert (method.divergence(one, one).abs() < 1e-6).all()


def test_vat_finds_the_direction_that_changes_the_answer_most():
    """For a linear model the divergence is a quadratic form of one direction: that of the difference of weights."""
    method = build("vat", "one_of_k")
    direction = torch.randn(8 * 8)
    weights = torch.stack([direction, -direction, torch.zeros(64)])
    method.logits = lambda images: images.flatten(1) @ weights.T
    images = torch.randn(4, 1, 8, 8) * 0.01
    found = method.worst_direction(images, method.logits(images))
    cosine = F.cosine_similarity(found.flatten(1), direction[None].expand(4, -1))
    torch.testing.assert_close(cosine.abs(), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.square().mean((1, 2, 3)), torch.ones(4))


@both
def test_vat_losses(kind):
    method, seen = build("vat", kind, weight=0.3, entropy_weight=0.06, warmup=0.0), batch(kind)
    torch.manual_seed(5)
    terms = method.losses(seen, STILL, None)
    torch.manual_seed(5)
    logits = method.logits(seen.unlabelled)
    worst = seen.unlabelled + 0.054 * method.worst_direction(seen.unlabelled, logits.detach())
    p, q = outcomes(method, logits).detach(), outcomes(method, method.logits(worst))
    torch.testing.assert_close(terms["divergence"], 0.3 * (p * (p / q).log()).sum(2).mean(), rtol=1e-3, atol=1e-6)
    own = outcomes(method, logits)
    torch.testing.assert_close(terms["entropy"], -0.06 * (own * own.log()).sum(2).mean())
    random = seen.unlabelled + 0.054 * _unit(torch.randn_like(seen.unlabelled))
    assert terms["divergence"] / 0.3 > method.divergence(logits, method.logits(random)).mean()


def test_the_change_of_an_image_has_unit_size_whatever_its_gradient():
    for scale in (1e-25, 1.0, 1e20):
        torch.testing.assert_close(_unit(torch.randn(3, 1, 8, 8) * scale).square().mean((1, 2, 3)), torch.ones(3))
    assert _unit(torch.zeros(1, 1, 4, 4)).abs().max() == 0


def test_vat_remembers_no_statistics_of_changed_images():
    method, seen = build("vat", "one_of_k", evaluated=False), batch("one_of_k")
    method.losses(seen, STILL, None)
    kept = method.net.blocks[0].norm1.running_mean.clone()
    other = build("vat", "one_of_k", evaluated=False)
    other.logits(seen.labelled)
    torch.testing.assert_close(kept, other.net.blocks[0].norm1.running_mean)


# --- Adaptive thresholds ----------------------------------------------------------------------------------------------


@both
def test_flexmatch_lowers_the_threshold_of_what_is_learnt_less(kind):
    method = build("flexmatch", kind, threshold=0.9)
    contests = len(method.task.contests)
    assert method.thresholds().eq(0).all(), "nothing has been answered: all is accepted, as the warm-up has it"
    method.answers = torch.tensor([0, 0, 0, 0, 1, -1])[:, None].expand(-1, contests).clone()
    share = torch.tensor([1.0, 0.25, 0.0])[: method.thresholds().shape[1]]
    expected = 0.9 * share / (2 - share)
    torch.testing.assert_close(method.thresholds(), expected.expand(contests, -1))
    method.answers = torch.tensor([0, 0, 1, -1, -1, -1, -1, -1])[:, None].expand(-1, contests).clone()
    share = torch.tensor([2 / 5, 1 / 5, 0.0])[: method.thresholds().shape[1]]  # five without an answer
    torch.testing.assert_close(method.thresholds(), (0.9 * share / (2 - share)).expand(contests, -1))


@both
def test_flexmatch_remembers_confident_answers_only(kind):
    method, seen = build("flexmatch", kind, threshold=0.8), batch(kind)
    terms = method.losses(seen, STILL, None)
    p, strong = (outcomes(method, method.logits(images)) for images in (seen.unlabelled, -seen.unlabelled))
    confident = p.max(2).values >= 0.8
    assert torch.equal(method.answers, torch.where(confident, p.argmax(2), -1))
    assert confident.any() and not confident.all()
    torch.testing.assert_close(terms["consistency"], cross_entropy(strong, one_hot(p)), msg="every threshold was 0")
    again = method.losses(seen, STILL, None)
    thresholds = method.thresholds()
    passed = torch.stack(
        [
            torch.stack([p[n, m].max() >= thresholds[m, p[n, m].argmax()] for m in range(p.shape[1])])
            for n in range(len(p))
        ]
    ).float()
    torch.testing.assert_close(again["consistency"], cross_entropy(strong, one_hot(p), passed))


def test_the_record_of_every_image_is_neither_averaged_nor_saved():
    method = build("flexmatch", "one_of_k")
    averaged = averaged_copy(method)
    assert len(averaged.answers) == 0
    method.answers += 1
    update_average(averaged, method, decay=0.9, step=1)
    assert len(averaged.answers) == 0 and averaged.state_dict()["answers"].numel() == 0


@both
def test_freematch_follows_the_running_means(kind):
    method = build("freematch", kind, momentum=0.75)
    contests, size = method.expected.shape
    p = torch.rand(50, contests, size)
    p = p / p.sum(2, keepdim=True)
    method.follow(p)
    torch.testing.assert_close(method.confidence, 0.75 / size + 0.25 * p.max(2).values.mean(0))
    torch.testing.assert_close(method.expected, 0.75 / size + 0.25 * p.mean(0))
    histogram = torch.stack([torch.bincount(p[:, m].argmax(1), minlength=size) for m in range(contests)]) / 50
    torch.testing.assert_close(method.answered, 0.75 / size + 0.25 * histogram)
    for m in range(contests):
        for c in range(size):
            expected = method.confidence[m] * method.expected[m, c] / max(method.expected[m])
            torch.testing.assert_close(method.thresholds()[m, c], expected)


@both
def test_freematch_fairness(kind):
    method = build("freematch", kind)
    contests, size = method.expected.shape
    torch.manual_seed(1)
    method.expected.copy_(torch.rand(contests, size).softmax(1))
    method.answered.copy_(torch.rand(contests, size).softmax(1))
    p = (torch.randn(40, contests, size) * 2).softmax(2)
    passed = (torch.rand(40, contests) < 0.6).float()
    total = 0.0
    for m in range(contests):
        own = p[passed[:, m] > 0, m].double()
        histogram = torch.bincount(own.argmax(1), minlength=size) / len(own)
        a = method.expected[m].double() / method.answered[m].double()
        b = own.mean(0) / histogram
        b[histogram == 0] = 0
        total += ((a / a.sum()) * (b / b.sum() + 1e-12).log()).sum().item()
    assert method.unfairness(p, passed).item() == pytest.approx(total / contests, rel=1e-4)
    assert method.unfairness(p, torch.zeros_like(passed)).item() == 0.0
    method.unfairness(p.requires_grad_(), torch.zeros_like(passed)).backward()
    assert p.grad.isfinite().all()


@both
def test_freematch_losses(kind):
    method, seen = build("freematch", kind), batch(kind)
    terms = method.losses(seen, STILL, None)
    p, strong = (outcomes(method, method.logits(images)) for images in (seen.unlabelled, -seen.unlabelled))
    passed = torch.tensor(
        [
            [float(p[n, m].max() >= method.thresholds()[m, p[n, m].argmax()]) for m in range(p.shape[1])]
            for n in range(6)
        ]
    )
    torch.testing.assert_close(terms["consistency"], cross_entropy(strong, one_hot(p), passed))
    torch.testing.assert_close(terms["fairness"], 0.001 * method.unfairness(strong, passed))


@both
def test_softmatch_weighs_by_aligned_confidence(kind):
    method, seen = build("softmatch", kind), batch(kind)
    contests = len(method.task.contests)
    with torch.no_grad():
        method.trust.mean.fill_(0.8)
        method.trust.variance.fill_(0.09)
        method.align.mean.mul_(torch.arange(1.0, 1.0 + method.align.mean.shape[1]))
    terms = method.losses(seen, STILL, None)
    p, strong = (outcomes(method, method.logits(images)) for images in (seen.unlabelled, -seen.unlabelled))
    aligned = p / method.align.mean
    confidence = (aligned / aligned.sum(2, keepdim=True)).max(2).values
    weight = torch.where(confidence >= 0.8, 1.0, torch.exp(-((confidence - 0.8) ** 2) * 4 / (2 * 0.09)))
    assert weight.shape == (6, contests) and weight.min() < 0.9
    expected = cross_entropy(strong, one_hot(p), weight)
    torch.testing.assert_close(terms["consistency"], expected, rtol=1e-4, atol=1e-6)


def test_alignment_makes_the_mean_answer_uniform():
    task = task_for(info("one_of_k").labels)
    align = UniformAlignment(task, momentum=0.0).train()
    p = torch.tensor([0.7, 0.2, 0.1]).expand(8, 1, 3)
    torch.testing.assert_close(align(p), torch.full((8, 1, 3), 1 / 3))
    align.eval()(torch.eye(3)[:, None])
    torch.testing.assert_close(align.mean, torch.tensor([[0.7, 0.2, 0.1]]), msg="nothing is learnt in evaluation")


# --- Controls and what all share --------------------------------------------------------------------------------------


@both
def test_class_prior_is_the_best_constant_answer(kind):
    method = ClassPrior(info(kind), MethodSettings())
    known = labels(kind, 7)
    method.prepare(known)
    answers = method.predict(torch.rand(7, 1, 8, 8))
    torch.testing.assert_close(answers, known.mean(0).expand(7, -1))
    if kind == "one_of_k":
        truth = known.argmax(1).numpy()
        own = log_loss(truth, answers.numpy(), labels=[0, 1, 2])
        assert own < log_loss(truth, np.roll(answers.numpy(), 1, axis=1), labels=[0, 1, 2])
    assert not list(method.parameters()) and method.losses(SimpleNamespace(), None, None) == {}


def test_class_prior_of_what_is_never_known_is_a_guess():
    method = ClassPrior(info("multi_label"), MethodSettings())
    method.prepare(torch.tensor([[1.0, math.nan], [0.0, math.nan], [0.0, math.nan]]))
    torch.testing.assert_close(method.predict(torch.rand(1, 1, 8, 8)), torch.tensor([[1 / 3, 0.5]]))


def test_ramps_grow_over_their_share_of_the_training():
    grown = [batch("one_of_k", step=step).ramp(0.4) for step in (0, 2, 4, 9)]
    assert grown == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert batch("one_of_k", step=0).ramp(0.0) == 1.0
