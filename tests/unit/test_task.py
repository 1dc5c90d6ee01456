import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
