"""What a training takes, against counts by hand, and how long one of given compute is."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import jointdiff.training.loop as loop
from jointdiff.config import ConfigError, Training
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations
from jointdiff.files import read_json
from jointdiff.method import Batch, MethodSettings, Trainable
from jointdiff.training.averaging import averaged_copy
from jointdiff.training.compute import steps_and_gflop
from jointdiff.training.loop import train
from tests.tiny import tiny_phantoms, tiny_run


class Growing(Trainable):
    """A convolution and a layer, which also sees the unlabelled images from the second half of a training on."""

    def __init__(self):
        super().__init__(None, MethodSettings())
        self.conv, self.norm, self.head = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Linear(5 * 6 * 6, 2)

    def answers(self, images):
        return self.head(self.norm(self.conv(images)).flatten(1)).sum()

    def losses(self, batch, views, averaged):
        terms = {"labelled": self.answers(batch.labelled)}
        if batch.progress >= 0.5:
            terms["unlabelled"] = self.answers(batch.unlabelled)
            with torch.no_grad():
                terms["teacher"] = averaged.answers(batch.unlabelled)
        return terms

    def validate(self, batches, labels):
        return {"auroc": 0.5}


# Of one image: 5 x 6 x 6 outputs of 3 x 3 products, whose image needs no gradient; a layer from 180 to 2.
CONV, HEAD = 2 * 5 * 6 * 6 * 9, 2 * 180 * 2
STEP, ASKED = 2 * CONV + 3 * HEAD, CONV + HEAD
EARLY, LATE = 4 * STEP / 1e9, (4 * STEP + 3 * (STEP + ASKED)) / 1e9  # of 4 labelled images and 3 others


def counted(method, **plan):
    seen = []

    def batch_of(step, steps):
        seen.append((step, steps))
        return Batch(torch.rand(4, 1, 8, 8), torch.zeros(4, 2), torch.rand(3, 1, 8, 8), step=step, steps=steps)

    answer = steps_and_gflop(
        method, averaged_copy(method), Views(Augmentations()), plan=Training(**plan), seed=0, batch_of=batch_of,
        autocast=nullcontext,
    )  # fmt: skip
    return *answer, seen


def test_the_count_is_that_by_hand_over_the_first_the_middle_and_the_last_step():
    steps, gflop, seen = counted(Growing(), steps=11)
    assert seen == [(0, 11), (5, 11), (10, 11)]
    assert (steps, gflop) == (11, pytest.approx(11 * (2 * EARLY + LATE) / 3))
    steps, gflop, _ = counted(Growing(), steps=10)
    assert (steps, gflop) == (10, pytest.approx(10 * (EARLY + 2 * LATE) / 3)), "step 5 of 10 is in the second half"


def test_compute_decides_the_steps():
    mean = (EARLY + 2 * LATE) / 3
    steps, gflop, seen = counted(Growing(), steps=3, compute=40 * EARLY)
    assert seen == [(0, 1), (20, 40), (39, 40)], "about as long as the first step lets it be"
    assert steps == round(40 * EARLY / mean)
    assert gflop == pytest.approx(steps * mean)
    assert counted(Growing(), compute=1e-12)[0] == 1


def test_nothing_is_counted_of_no_steps():
    assert counted(Growing(), steps=0) == (0, 0.0, [])


def test_counting_changes_nothing():
    method = Growing()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    counted(method, steps=4)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert all(weight.grad is None for weight in method.parameters())


def test_steps_without_operations_that_count_cannot_fill_compute():
    method = Growing()
    method.losses = lambda batch, views, averaged: {"size": method.conv.weight.square().sum()}
    with pytest.raises(ConfigError, match=r"training\.compute: .* use steps"):
        counted(method, compute=1.0)


# --- In the loop ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


def spec(method, **training):
    return tiny_run(method, **{"steps": 5, "validate_every": 3, "log_every": 2, **training})


def cost_of(folder):
    return read_json(folder / "run.json")["cost"]


def test_a_teachers_pass_is_counted(data, tmp_path):
    """Of twice the images the student takes twice as much, and the teacher one forward pass over half of them."""
    for method in ("supervised", "mean_teacher"):
        train(spec(method), **data, out=tmp_path / method, state=tmp_path / "state")
    alone, taught = (cost_of(tmp_path / method)["train_gflop"] for method in ("supervised", "mean_teacher"))
    stem = 5 * 4 * 2 * 16 * 16 * 16 * 9 / 1e9  # the first convolution has no gradient of its input, all else both
    assert taught == pytest.approx(2 * alone + (alone + stem) / 3)


@pytest.mark.parametrize("method", ["joint", "mean_teacher"])
def test_a_training_of_given_compute_goes_on_where_it_was(data, tmp_path, monkeypatch, method):
    train(spec(method), **data, out=tmp_path / "steps", state=tmp_path / "state")
    run = spec(method, steps=99, compute=cost_of(tmp_path / "steps")["train_gflop"], checkpoint_seconds=0.0)
    real = loop.save_checkpoint

    def save_then_die(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "save_checkpoint", save_then_die)
        train(run, **data, out=tmp_path / "compute", state=tmp_path / "state")
    train(run, **data, out=tmp_path / "compute", state=tmp_path / "state")
    assert cost_of(tmp_path / "compute")["steps"] == 5
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("steps", "compute")]
    assert lines[0] == lines[1], "the same schedule, the same numbers"
    assert json.loads(lines[1].splitlines()[-1])["step"] == 5
    assert cost_of(tmp_path / "compute")["train_gflop"] == pytest.approx(cost_of(tmp_path / "steps")["train_gflop"])


def test_a_control_takes_nothing(data, tmp_path):
    train(spec("random", compute=1.0), **data, out=tmp_path, state=tmp_path / "state")
    assert cost_of(tmp_path)["train_gflop"] == 0
