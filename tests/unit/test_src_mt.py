"""SRC-MT against its formulas in numpy."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import linear_kernel
from torch.nn import functional as F

from baselines.src_mt import METHOD, relations
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.method import Batch
from jointdiff.training.averaging import averaged_copy
from tests.tiny import SMALL

KINDS = {"one_of_k": ("a", "b", "c"), "multi_label": ("a", "b")}
VIEWS = Views(Augmentations(max_shift=0.0))  # leave images as they are


def build(kind, **settings):
    """Return a method and a teacher that answers otherwise."""
    torch.manual_seed(0)
    info = DataInfo("toy", "toy", LabelSpec(kind, KINDS[kind]), 1, 8, VIEWS.allowed, 10, "", has_regions=False)
    method = METHOD(info, METHOD.Settings(**{**SMALL["src_mt"], **settings}))
    teacher = averaged_copy(method)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return method.train(), teacher


def batch(kind, step=15, steps=100):
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.eye(len(KINDS[kind]))[[0, 1]]
    return Batch(images[:2], labels, images[2:], step, steps)


def numpy_relations(features):
    rows = linear_kernel(features)
    return np.stack([row / math.sqrt(sum(value**2 for value in row)) for row in rows])


def test_relations_are_rows_of_the_gram_matrix_at_length_one():
    # [[1, 0], [3, 4]]: products [[1, 3], [3, 25]].
    expected = [[1 / 10**0.5, 3 / 10**0.5], [3 / 634**0.5, 25 / 634**0.5]]
    torch.testing.assert_close(relations(torch.tensor([[1.0, 0.0], [3.0, 4.0]])), torch.tensor(expected))
    features = torch.randn(7, 5).double()
    np.testing.assert_allclose(relations(features), numpy_relations(features.numpy()), rtol=1e-5)


def test_relations_keep_single_precision_where_the_loop_takes_half():
    features = torch.randn(6, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (features @ features.T).dtype == torch.bfloat16
        found = relations(features)
    assert torch.equal(found, relations(features))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_follow_their_formulas(kind):
    method, teacher = build(kind, weight=2.0, relation_weight=3.0, warmup=0.3)
    seen = batch(kind)
    images = torch.cat([seen.labelled, seen.unlabelled])
    terms = method(seen, VIEWS, teacher)
    with torch.no_grad():  # in training mode normalisation takes the same statistics of the same images again
        student, logits = method.features(images).numpy(), method.logits(images)
        other, other_logits = teacher.features(images).numpy(), teacher.logits(images)

    def probabilities(scores):
        scores = scores.double().numpy()
        if kind == "one_of_k":
            return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return 1 / (1 + np.exp(-scores))

    ramp = math.exp(-5 * 0.5**2)  # half of the warm-up is over
    distance = np.linalg.norm(probabilities(logits) - probabilities(other_logits), axis=1) ** 2 @ np.full(8, 1 / 8)
    relation = np.linalg.norm(numpy_relations(student) - numpy_relations(other), "fro") ** 2 / 8
    assert terms["consistency"].item() == pytest.approx(2.0 * ramp * distance, rel=1e-4)
    assert terms["relation"].item() == pytest.approx(2.0 * ramp * 3.0 * relation, rel=1e-3)
    expected = (F.cross_entropy if kind == "one_of_k" else F.binary_cross_entropy_with_logits)(logits[:2], seen.labels)
    torch.testing.assert_close(terms["supervised"], expected)


@pytest.mark.parametrize(("step", "share"), [(0, math.exp(-5)), (30, 1.0), (99, 1.0)])
def test_the_weight_grows_from_a_hundredth_to_all_over_the_warm_up(step, share):
    method, teacher = build("one_of_k")
    now, whole = method(batch("one_of_k", step), VIEWS, teacher), method(batch("one_of_k", 50), VIEWS, teacher)
    for term in ("consistency", "relation"):
        torch.testing.assert_close(now[term], share * whole[term])
    torch.testing.assert_close(now["supervised"], whole["supervised"])


def test_the_teacher_gets_no_gradients_and_the_student_gets_some_from_each_term():
    method, teacher = build("multi_label")
    teacher.requires_grad_(True)
    for name, term in method(batch("multi_label"), VIEWS, teacher).items():
        method.zero_grad()
        term.backward(retain_graph=True)
        assert method.net.stem.weight.grad.abs().sum() > 0, name
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_teacher_that_agrees_costs_nothing():
    method, _ = build("one_of_k")
    terms = method.eval()(batch("one_of_k"), VIEWS, averaged_copy(method))
    assert terms["consistency"].item() == terms["relation"].item() == 0.0
