import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from jointdiff.data.source import LabelSpec
from jointdiff.task import MultiLabel, OneOfK, task_for

ONE = OneOfK(LabelSpec("one_of_k", ("a", "b", "c")))
MANY = MultiLabel(LabelSpec("multi_label", ("a", "b", "c")))


def test_task_follows_the_kind_of_labels():
    assert isinstance(task_for(ONE.labels), OneOfK)
    assert isinstance(task_for(MANY.labels), MultiLabel)


def test_one_of_k_loss_equals_torch_cross_entropy():
    logits, classes = torch.randn(7, 3), torch.randint(3, (7,))
    expected = F.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(ONE.loss(logits, F.one_hot(classes, 3).float()), expected)
    weight = torch.rand(7, 1)
    torch.testing.assert_close(ONE.loss(logits, F.one_hot(classes, 3).float(), weight), expected * weight[:, 0])


def test_multi_label_loss_ignores_unknown_findings():
    logits = torch.tensor([[0.3, -1.2, 5.0]])
    target = torch.tensor([[1.0, 0.0, math.nan]])
    expected = (-math.log(1 / (1 + math.exp(-0.3))) - math.log(1 - 1 / (1 + math.exp(1.2)))) / 2
    assert MANY.loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
    assert MANY.loss(logits, torch.full((1, 3), math.nan)).item() == 0.0


@given(st.floats(0.5, 0.99))
def test_pseudo_labels_are_confident_exactly_beyond_the_threshold(threshold):
    logits = torch.linspace(-6, 6, 60).reshape(20, 3)
    p = logits.sigmoid()
    target, confident = MANY.pseudo_labels(logits, threshold=threshold)
    assert torch.equal(target, (p >= 0.5).float())
    assert torch.equal(confident, ((p >= threshold) | (p <= 1 - threshold)).float())
    target, confident = ONE.pseudo_labels(logits, threshold=threshold)
    best = logits.softmax(1).max(1)
    assert torch.equal(target.argmax(1), best.indices)
    assert torch.equal(target.sum(1), torch.ones(20))
    assert torch.equal(confident[:, 0], (best.values >= threshold).float())


@pytest.mark.parametrize("task", [ONE, MANY])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_finding_loss_is_the_negative_log_probability(task, target):
    logits = torch.randn(5, 3, dtype=torch.float32)
    p = task.probabilities(logits)[:, 1]
    torch.testing.assert_close(task.finding_loss(logits, 1, target), -(p if target else 1 - p).log())


def test_balanced_classes_have_equal_shares_of_the_loss():
    task = task_for(LabelSpec("one_of_k", ("a", "b", "c")))
    labels = torch.eye(3)[torch.tensor([0] * 6 + [1] * 3 + [2])]
    logits = torch.zeros(10, 3)
    assert torch.equal(task.labelled_loss(logits, labels), task.loss(logits, labels)), "balance is asked for"
    task.balance_by(labels)
    each = task.labelled_loss(logits, labels)
    shares = labels.T @ each
    torch.testing.assert_close(shares, shares.mean().expand(3))
    torch.testing.assert_close(each.mean(), task.loss(logits, labels).mean())
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.argmax(1).numpy())
    np.testing.assert_allclose(task.balance.numpy(), expected, rtol=1e-6)


def test_balanced_findings_weigh_presence_as_much_as_absence():
    task = task_for(LabelSpec("multi_label", ("a", "b")))
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    task.balance_by(labels)
    weights = task.weigh(labels)
    assert weights[0, 0].item() == pytest.approx(4 * weights[1, 0].item())
    assert weights[2, 1].item() == pytest.approx(3 * weights[1, 1].item())
    known = ~labels.isnan()
    torch.testing.assert_close((weights * known).sum(0), known.sum(0).float())
    assert task.labelled_loss(torch.zeros(5, 2), labels).isfinite().all()


def test_a_class_without_labels_weighs_nothing_infinite():
    for kind in ("one_of_k", "multi_label"):
        task = task_for(LabelSpec(kind, ("a", "b")))
        labels = torch.tensor([[1.0, 0.0]] * 3)
        task.balance_by(labels)
        assert task.labelled_loss(torch.zeros(3, 2), labels).isfinite().all()


def test_adjusted_classes_have_the_softmax_with_prior():
    """Menon et al. 2021, Eq. 10, written as a softmax whose terms the prior multiplies."""
    task = task_for(ONE.labels)
    labels = torch.eye(3)[torch.tensor([0] * 6 + [1] * 3 + [2])]
    logits = torch.randn(10, 3)
    prior = torch.tensor([0.6, 0.3, 0.1])
    terms = prior * logits.exp()
    expected = -((terms / terms.sum(1, keepdim=True)) * labels).sum(1).log()
    task.adjust_by(labels)
    torch.testing.assert_close(task.labelled_loss(logits, labels), expected)
    assert torch.equal(task.probabilities(logits), logits.softmax(1)), "answers leave the prior out"


def test_adjusted_findings_have_the_odds_with_prior():
    task = task_for(MANY.labels)
    nan = math.nan
    labels = torch.tensor([[1, 0, nan], [0, 1, nan], [0, nan, 1], [0, 1, 0], [0, 1, 1.0]])
    logits = torch.randn(5, 3)
    task.adjust_by(labels)
    p = np.array([1 / 5, 3 / 4, 2 / 3])  # among known labels
    odds = np.exp(logits.double().numpy()) * p / (1 - p)
    chance = np.where(labels == 1, odds / (1 + odds), 1 / (1 + odds))
    expected = np.nanmean(np.where(labels.isnan(), nan, -np.log(chance)), axis=1)
    np.testing.assert_allclose(task.labelled_loss(logits, labels).numpy(), expected, rtol=1e-5)
    assert torch.equal(task.loss(logits, labels), MANY.loss(logits, labels)), "only of labelled images"


def test_what_never_occurs_is_adjusted_as_if_seen_once():
    classes, findings = task_for(ONE.labels), task_for(MANY.labels)
    classes.adjust_by(torch.eye(3)[[0] * 6 + [1] * 2])
    torch.testing.assert_close(classes.prior.exp(), torch.tensor([6.0, 2.0, 1.0]) / 9)
    findings.adjust_by(torch.tensor([[1.0, 0.0, math.nan]] * 8))
    torch.testing.assert_close(findings.prior.exp(), torch.tensor([8.0, 1 / 8, 1.0]))


@pytest.mark.parametrize("kind", ["one_of_k", "multi_label"])
def test_adjusted_training_gives_the_balanced_posterior(kind):
    """Of normal classes with means -1 and 1 and variance 1, the posterior under equal priors is sigmoid(2 x)."""
    torch.manual_seed(0)
    rare = torch.arange(20_000) < 1_000
    x = torch.randn(20_000, 1) + torch.where(rare, 1.0, -1.0)[:, None]
    labels = torch.stack([~rare, rare], dim=1).float() if kind == "one_of_k" else rare[:, None].float()
    found = {}
    for adjusted in (False, True):
        task = task_for(LabelSpec(kind, ("common", "rare") if kind == "one_of_k" else ("rare",)))
        if adjusted:
            task.adjust_by(labels)
        model = torch.nn.Linear(1, task.outputs)
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure(task=task, model=model, optimiser=optimiser):
            optimiser.zero_grad()
            loss = task.labelled_loss(model(x), labels).mean()
            loss.backward()
            return loss

        optimiser.step(closure)
        at = torch.tensor([[-1.0], [0.0], [1.0]])
        found[adjusted] = task.probabilities(model(at)).detach()[:, -1]
    torch.testing.assert_close(found[True], torch.sigmoid(2 * at[:, 0]), atol=0.03, rtol=0)
    torch.testing.assert_close(found[False], torch.sigmoid(2 * at[:, 0] + math.log(1 / 19)), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["one_of_k", "multi_label"])
def test_a_condition_stands_for_labels_that_fulfil_it(kind):
    task = task_for(LabelSpec(kind, ("a", "b", "c")))
    conditions = torch.arange(task.conditions)
    labels = task.labels_of(conditions)
    assert torch.equal(task.draw_conditions(labels), conditions)
    if kind == "multi_label":
        assert (labels.isnan().sum(dim=1) == 2).all(), "the other findings are left open"


def test_what_does_not_occur_takes_no_share_of_the_weight():
    classes, findings = (task_for(LabelSpec(kind, ("a", "b", "c"))) for kind in ("one_of_k", "multi_label"))
    labels = torch.eye(3)[[0] * 6 + [1] * 2]
    for task in (classes, findings):
        task.balance_by(labels)
        torch.testing.assert_close(task.weigh(labels).mean(), torch.tensor(1.0))
