"""SimCLR: its loss against the formula, and that no label reaches its encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from baselines.simclr import SimCLR, nt_xent
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.data.store import open_store
from jointdiff.method import Batch
from jointdiff.training.averaging import averaged_copy
from jointdiff.training.loop import build_method, fit
from tests.tiny import tiny_phantoms, tiny_run


def by_pairs(one: torch.Tensor, other: torch.Tensor, temperature: float) -> float:
    """Eq. 1 and Algorithm 1 of the paper, pair by pair: views 2k - 1 and 2k are of one image."""
    z = [view.tolist() for pair in zip(one, other, strict=True) for view in pair]

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / math.sqrt(sum(a * a for a in z[i]) * sum(b * b for b in z[j]))

    def loss(i: int, j: int) -> float:
        others = [math.exp(similarity(i, k) / temperature) for k in range(len(z)) if k != i]
        return -math.log(math.exp(similarity(i, j) / temperature) / sum(others))

    pairs = [(2 * k, 2 * k + 1) for k in range(len(one))]
    return sum(loss(i, j) + loss(j, i) for i, j in pairs) / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_contrast_is_that_of_the_paper(temperature: float) -> None:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    g = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 8, generator=g)
    found = nt_xent(one, other, temperature=temperature).item()
    assert found == pytest.approx(by_pairs(one, other, temperature), rel=1e-4)
    assert found == pytest.approx(SelfSupervisedLoss(NTXentLoss(temperature))(one, other).item(), rel=1e-4)


def test_the_contrast_is_least_where_views_of_an_image_agree_and_images_do_not() -> None:
    apart = torch.eye(4)
    agreeing = nt_xent(apart, 3 * apart, temperature=0.5)  # lengths do not count
    assert agreeing.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 6)), rel=1e-5)
    assert nt_xent(apart, apart.roll(1, 0), temperature=0.5) > agreeing
    assert nt_xent(torch.ones(4, 4), torch.ones(4, 4), temperature=0.5).item() == pytest.approx(math.log(7), rel=1e-5)


@pytest.fixture
def case() -> tuple[SimCLR, Batch]:
    torch.manual_seed(0)
    info = DataInfo(
        name="toy", title="toy", labels=LabelSpec("multi_label", ("a", "b")), channels=1, size=16,
        augmentations=Augmentations(), samples=10, digest="", has_regions=False,
    )  # fmt: skip
    method = build_method(tiny_run("simclr"), info)
    assert isinstance(method, SimCLR)
    images = torch.rand(12, 1, 16, 16) * 2 - 1
    return method.train(), Batch(images[:4], torch.eye(2)[[0, 1, 1, 0]], images[4:], step=5, steps=10)


def test_the_probe_teaches_the_head_alone_and_the_contrast_all_but_it(case: tuple[SimCLR, Batch]) -> None:
    method, batch = case
    taught = {}
    for term in ("contrast", "probe"):
        method.zero_grad(set_to_none=True)
        method(batch, Views(method.data.augmentations), averaged_copy(method))[term].backward()
        taught[term] = {name for name, weight in method.named_parameters() if weight.grad is not None}
    assert taught["probe"] == {"net.head.weight", "net.head.bias"}
    assert taught["contrast"] == {name for name, _ in method.named_parameters()} - taught["probe"]


def test_the_probe_is_judged_by_the_task_and_predicts(case: tuple[SimCLR, Batch]) -> None:
    """Of plain features, with unknown labels left out: log-sigmoids by hand."""
    method, batch = case
    batch = replace(batch, labels=torch.tensor([[1.0, 0.0], [0.0, torch.nan], [1.0, 1.0], [torch.nan, 0.0]]))
    teacher = averaged_copy(method)
    plain = Views(Augmentations(max_shift=0.0))
    p = method.net.head(teacher.net.features(batch.labelled)).sigmoid().tolist()
    each = [
        -(math.log(p[0][0]) + math.log(1 - p[0][1])) / 2, -math.log(1 - p[1][0]),
        -(math.log(p[2][0]) + math.log(p[2][1])) / 2, -math.log(1 - p[3][1]),
    ]  # fmt: skip
    assert method(batch, plain, teacher)["probe"].item() == pytest.approx(sum(each) / 4, rel=1e-4)
    torch.testing.assert_close(teacher.predict(batch.labelled), torch.tensor(p))


def test_every_weight_is_clipped_once(case: tuple[SimCLR, Batch]) -> None:
    method, _ = case
    clipped = [id(weight) for part in method.clipped_together() for weight in part]
    assert sorted(clipped) == sorted(map(id, method.parameters()))


def test_the_encoder_is_the_same_whatever_the_labels_are(tmp_path) -> None:
    """Bit for bit: neither gradients nor their common norm, statistics or the choice of weights know of labels."""
    data = open_store(tiny_phantoms(tmp_path, labelled=12, validation=8, unlabelled=16, test=12)["store"])
    roles = data.split_rows(tmp_path / "split.parquet")
    run = tiny_run("simclr", steps=6, validate_every=1, clip_norm=0.1)
    states = []
    for labels in (data.labels, 1 - data.labels[::-1]):
        torch.manual_seed(0)
        vars(data)["labels"] = labels
        method = build_method(run, data.info)
        best, *_ = fit(method, data, roles, plan=run.training, seed=0, label="", state=tmp_path / "state", key="")
        (tmp_path / "state/checkpoint.safetensors").unlink(missing_ok=True)
        states.append(best.state_dict())
    differing = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differing == {"net.head.weight", "net.head.bias"}
