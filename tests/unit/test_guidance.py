"""What trained models are guided to, in the eyes of a closed form that knows neither them nor their training."""

import pytest
import torch

from baselines.guided_diffusion import GuidedDiffusion
from jointdiff.config import Explanation
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.method import Batch
from jointdiff.methods.diffusion_classifier import DiffusionClassifier
from jointdiff.methods.joint import JointDiffusion
from jointdiff.training.averaging import averaged_copy, update_average
from tests.tiny import SMALL

SIZE = 8
JOINT = {"classification_weight": 1.0, "classifier_input": "both"}
TOLD = {"prediction": "v", "conditional": True, "consistency_threshold": 0.8}
# Class, settings, steps of training and guidance; the deepest maps and their reach as in the ablation.
METHODS = {
    "representation": (JointDiffusion, {**JOINT, "guided_maps": (3, 4), "guidance_reach": 30.0}, 200, 100.0),
    "conditional": (JointDiffusion, {**JOINT, **TOLD}, 100, 2.0),
    "classifier_free": (DiffusionClassifier, {"quick_trials": 4}, 100, 2.0),
    "classifier": (GuidedDiffusion, {}, 100, 5.0),
}


def halves(sides):
    """Return an image for each side: brighter there, 0 on the left and 1 on the right, under noise."""
    bright = (torch.arange(SIZE) >= SIZE // 2) == sides[:, None].bool()
    columns = torch.where(bright, 0.3, -0.3)[:, None, None, :].expand(-1, 1, SIZE, -1)
    return columns + 0.3 * torch.randn(columns.shape)


def leftness(images):
    """Return how much brighter the left half is, (N,)."""
    left, right = images.split(SIZE // 2, dim=3)
    return left.mean(dim=(1, 2, 3)) - right.mean(dim=(1, 2, 3))


def train(cls, settings, steps):
    """Return a method's averaged weights after a few seconds of training."""
    torch.manual_seed(0)
    info = DataInfo(
        name="halves",
        title="halves",
        labels=LabelSpec("one_of_k", ("left", "right")),
        channels=1,
        size=SIZE,
        augmentations=Augmentations(max_shift=0.0),
        samples=0,
        digest="",
        has_regions=False,
    )
    method = cls.build(info, {**SMALL["joint"], "width": 16, **settings}).train()
    averaged, views = averaged_copy(method), Views(info.augmentations)
    optimiser = torch.optim.AdamW(method.parameters(), lr=2e-3)
    for step in range(steps):
        sides = torch.randint(2, (32,))
        images = halves(sides)
        batch = Batch(images[:16], torch.eye(2)[sides[:16]], images[16:], step, steps)
        torch.stack(list(method(batch, views, averaged).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        update_average(averaged, method, decay=0.99, step=step + 1)
    return averaged


@pytest.fixture(scope="module")
def models():
    return {name: train(cls, settings, steps) for name, (cls, settings, steps, _) in METHODS.items()}


def draw(method, sides, guidance):
    plan = {"steps": 10, "sampler": "ddim", "guidance": guidance}
    return method.sample(torch.eye(2)[sides], torch.arange(len(sides)), **plan)


@pytest.mark.parametrize("name", METHODS)
def test_guided_samples_show_what_was_asked_for(models, name):
    asked = torch.arange(64) % 2
    guidance = METHODS[name][-1]
    one, other = (leftness(draw(models[name], sides, guidance)) < 0 for sides in (asked, 1 - asked))
    assert (one == asked).float().mean() >= 0.85
    assert (other != asked).float().mean() >= 0.85
    assert (one != other).float().mean() >= 0.75, "the same seeds show the other side"


def test_guidance_on_every_map_shows_what_was_asked_for(models, monkeypatch):
    """As the paper moves them: the shallow maps alone would lead away from it, the others outweigh them."""
    monkeypatch.setattr(models["representation"], "guided", models["representation"].pooled)
    asked = torch.arange(64) % 2
    drawn = draw(models["representation"], asked, METHODS["representation"][-1])
    assert ((leftness(drawn) < 0) == asked).float().mean() >= 0.85


@pytest.mark.parametrize("name", METHODS)
def test_unguided_samples_show_either_side_whatever_was_asked_for(models, name):
    asked = torch.arange(64) % 2
    drawn = draw(models[name], asked, 0.0)
    assert torch.equal(drawn, draw(models[name], 1 - asked, 0.0))
    assert 0.25 < ((leftness(drawn) < 0) == asked).float().mean() < 0.75
    assert leftness(drawn).abs().mean() > 0.2, "an image has a bright side all the same"


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("representation", Explanation(noise_level=150, steps=2, guidance=200.0, guide="image", noises=1)),
        ("representation", Explanation(noise_level=300, steps=4, guidance=100.0, guide="representation", noises=1)),
        ("conditional", Explanation(noise_level=500, steps=4, guidance=1.0, guide="label", noises=1)),
        ("classifier", Explanation(noise_level=300, steps=4, guidance=10.0, guide="image", noises=1)),
    ],
    ids=["image", "representation", "label", "classifier"],
)
def test_a_class_removed_gives_way_to_the_other_and_stays_in_the_control(models, name, how, side):
    torch.manual_seed(1)
    images = halves(torch.full((32,), side))
    answer = models[name].counterfactual(images, side, 0.0, torch.arange(32), how=how)
    edited, control = ((1 - 2 * side) * leftness(x) for x in (answer.images, answer.control))
    assert edited.mean() < -0.1
    assert control.mean() > 0.3
    assert (edited < 0).float().mean() >= 0.6
    assert (control < 0).float().mean() <= 0.1
