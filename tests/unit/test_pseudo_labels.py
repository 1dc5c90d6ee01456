"""How far pseudo-labels are trusted, against the formulas."""

import math

import pytest
import torch

from jointdiff.data.source import LabelSpec
from jointdiff.pseudo_labels import FixedThreshold, SoftThreshold
from jointdiff.task import task_for

CLASSES = task_for(LabelSpec("one_of_k", ("a", "b")))
FINDINGS = task_for(LabelSpec("multi_label", ("a", "b")))


def test_a_fixed_threshold_trusts_what_reaches_it():
    logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 4.0]])  # .88, .62, .98
    target, weight = FixedThreshold(CLASSES, 0.8)(logits)
    assert target.argmax(dim=1).tolist() == [0, 0, 1]
    assert weight.flatten().tolist() == [1.0, 0.0, 1.0]


def test_a_soft_threshold_is_a_gaussian_of_what_lacks_to_the_mean():
    trust = SoftThreshold(CLASSES, momentum=0.0).train()  # mean and variance are those of the batch
    p = torch.tensor([0.9, 0.7, 0.6, 0.8])
    _, weight = trust(torch.stack([torch.logit(p), torch.zeros(4)], dim=1))
    deviation = p.std().item() / 2  # SoftMatch: n_sigma 2
    expected = [1.0, math.exp(-(0.05**2) / (2 * deviation**2)), math.exp(-(0.15**2) / (2 * deviation**2)), 1.0]
    torch.testing.assert_close(weight.flatten(), torch.tensor(expected))


def test_findings_have_a_mean_each():
    trust = SoftThreshold(FINDINGS, momentum=0.0).train()
    trust(torch.logit(torch.tensor([[0.9, 0.4], [0.7, 0.5]])))
    torch.testing.assert_close(trust.mean, torch.tensor([0.8, 0.55]))


@pytest.mark.parametrize("task", [CLASSES, FINDINGS], ids=["classes", "findings"])
def test_a_single_image_leaves_numbers(task):
    trust = SoftThreshold(task).train()
    for _ in range(3):
        _, weight = trust(torch.tensor([[2.0, -1.0]]))
    assert weight.isfinite().all() and trust.variance.isfinite().all()


def test_nothing_is_learnt_in_evaluation():
    trust = SoftThreshold(CLASSES).eval()
    before = trust.mean.clone()
    trust(torch.tensor([[5.0, 0.0]]))
    assert torch.equal(trust.mean, before)
