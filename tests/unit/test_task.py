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
