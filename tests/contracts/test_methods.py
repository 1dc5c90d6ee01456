"""What every registered method must do, whatever it is: a new file in a method package is tested from its first day."""

import json
from dataclasses import replace

import pytest
import torch

from jointdiff.config import ConfigError, Explanation, RunSpec
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.method import Batch, Explainer, Generator, HasFeatures, HasLogits, HasMaps, Method
from jointdiff.models import load_model, save_model
from jointdiff.nets.unet import UNetEncoder
from jointdiff.registry import load_method, methods
from jointdiff.training.averaging import averaged_copy, update_average
from jointdiff.training.loop import build_method
from jointdiff.training.tuning import declared_settings
from tests.tiny import tiny_run

KINDS = {"one_of_k": ("a", "b", "c"), "multi_label": ("a", "b")}


def info(kind, channels=1):
    return DataInfo(
        name="toy",
        title="toy & data",
        labels=LabelSpec(kind, KINDS[kind]),
        channels=channels,
        size=16,
        augmentations=Augmentations(),
        samples=10,
        digest="",
        has_regions=False,
    )


def spec(name, **settings):
    return tiny_run(name, dataset="toy", settings=settings)


@pytest.fixture(params=[(name, kind) for name in methods() for kind in KINDS], ids="-".join)
def case(request) -> tuple[RunSpec, Method]:
    name, kind = request.param
    torch.manual_seed(0)
    run = spec(name)
    method = build_method(run, info(kind))
    method.prepare(batch(method).labels, 4 * method.settings.unlabelled_ratio)
    return run, method


def batch(method: Method) -> Batch:
    shape = (method.data.channels, 16, 16)
    labels = torch.eye(method.task.outputs)[torch.arange(4) % method.task.outputs]
    unlabelled = 4 * method.settings.unlabelled_ratio
    return Batch(
        torch.rand(4, *shape) * 2 - 1,
        labels,
        torch.rand(unlabelled, *shape) * 2 - 1,
        step=5,
        steps=10,
        labelled_at=torch.arange(4),
        unlabelled_at=torch.arange(unlabelled),
    )


def test_losses_are_finite_named_scalars_that_reach_every_weight(case):
    _, method = case
    terms = method.train()(batch(method), Views(method.data.augmentations), averaged_copy(method))
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    if terms:
        torch.stack(list(terms.values())).sum().backward()
    silent = [name for name, p in method.named_parameters() if p.grad is None]
    assert not silent


def test_predictions_are_probabilities_that_ignore_the_batch(case):
    _, method = case
    images = torch.rand(5, method.data.channels, 16, 16) * 2 - 1
    with torch.no_grad():
        together = method.eval().predict(images)
        alone = torch.cat([method.predict(image[None]) for image in images])
    assert together.shape == (5, method.task.outputs)
    assert ((together >= 0) & (together <= 1)).all()
    if method.data.labels.kind == "one_of_k":
        torch.testing.assert_close(together.sum(1), torch.ones(5))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_saved_model_answers_as_before(case, tmp_path):
    run, method = case
    method = averaged_copy(method)
    images = torch.rand(3, method.data.channels, 16, 16) * 2 - 1
    save_model(method, tmp_path / "model", run=run, results={"auroc": 0.5})
    loaded = Method.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(method)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded.predict(images), method.predict(images))
    suffixes = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file() and path.name != "SHA256SUMS"}
    assert suffixes <= {".json", ".safetensors", ".md"}, "no pickles"
    assert json.loads((tmp_path / "model/config.json").read_text())["method"] == run.method


def test_a_generator_draws_and_an_explainer_edits(case):
    _, method = case
    method.eval()
    if isinstance(method, Generator):
        labels = torch.eye(method.task.outputs)[:2]
        drawn = method.sample(labels, torch.tensor([1, 2]), steps=2, sampler="ddim", guidance=1.0)
        assert drawn.shape == (2, method.data.channels, 16, 16)
        assert drawn.abs().max() <= 1
    if isinstance(method, Explainer):
        images = torch.rand(2, method.data.channels, 16, 16) * 2 - 1
        seeds = torch.tensor([1, 2])
        evaluated: list[int] = []
        for network in method.modules():
            if isinstance(network, UNetEncoder):
                network.conv_in.register_forward_hook(lambda net, inputs, output: evaluated.append(len(output)))
        answer = method.counterfactual(images, 0, 0.0, seeds, how=Explanation())
        assert answer.images.shape == answer.control.shape == images.shape
        assert answer.calls <= 25, "the default setting costs at most 25 network evaluations"
        assert sum(evaluated) == answer.calls * len(images), "calls are counted as they are made"


def test_what_saliency_maps_ask_for_is_there(case):
    _, method = case
    method.eval()
    images = torch.rand(2, method.data.channels, 16, 16)
    if isinstance(method, HasLogits):
        torch.testing.assert_close(method.task.probabilities(method.image_logits(images)), method.predict(images))
    if isinstance(method, HasMaps):
        maps: list[torch.Tensor] = []
        handle = method.feature_layer().register_forward_hook(lambda layer, inputs, output: maps.append(output))
        (gradient,) = torch.autograd.grad(method.image_logits(images.requires_grad_()).sum(), images)
        handle.remove()
        assert maps[0].ndim == 4 and gradient.abs().max() > 0
    if isinstance(method, HasFeatures):
        assert method.features(images).ndim == 2


@pytest.mark.parametrize("name", ["joint", "supervised", "fixmatch", "mean_teacher"])
def test_rare_classes_weigh_more_where_the_settings_say_so(name):
    """Three images of one class to one of another, and none of the third: each of both gets half of the loss."""
    found = {}
    for balance in ("none", "inverse"):
        torch.manual_seed(0)
        method = build_method(spec(name, class_balance=balance), info("one_of_k"))
        seen, views, teacher = batch(method), Views(method.data.augmentations), averaged_copy(method)
        method.prepare(torch.eye(3)[[0, 0, 0, 1]])
        for k in (0, 1):
            torch.manual_seed(1)
            found[balance, k] = method.train()(replace(seen, labels=torch.eye(3)[[k] * 4]), views, teacher)
    for k, weight in enumerate((4 / (2 * 3), 4 / (2 * 1))):
        plain = found["none", k]
        (labelled,) = {"classification", "supervised"} & plain.keys()
        torch.testing.assert_close(found["inverse", k], {**plain, labelled: weight * plain[labelled]})


@pytest.mark.parametrize("name", [name for name in methods() if name != "diffusion_classifier"])
def test_the_prior_adjusts_the_loss_of_labelled_images_alone(name):
    """Of eight images of one class and one of another, the former cost less, the latter more; all else stays."""
    found = {}
    for balance in ("none", "logit_adjusted"):
        torch.manual_seed(0)
        method = build_method(spec(name, class_balance=balance), info("one_of_k"))
        seen, views, teacher = batch(method), Views(method.data.augmentations), averaged_copy(method)
        method.prepare(torch.eye(3)[[0] * 8 + [1]], 9 + len(seen.unlabelled))
        for k in (0, 1):
            torch.manual_seed(1)
            found[balance, k] = method.train()(replace(seen, labels=torch.eye(3)[[k] * 4]), views, teacher)
    for k, costlier in enumerate((False, True)):
        plain, adjusted = found["none", k], found["logit_adjusted", k]
        labelled = {"classification", "supervised", "probing", "probe"} & plain.keys()
        torch.testing.assert_close(adjusted, {**plain, **{term: adjusted[term] for term in labelled}})
        assert all((adjusted[term] > plain[term]) == costlier for term in labelled)


def test_what_a_search_multiplies_are_positive_settings(case):
    run, method = case
    defaults = type(method).Settings()
    for name in method.tunable:
        value = getattr(defaults, name)
        assert isinstance(value, float) and value > 0, name
    assert declared_settings(run) == {name: getattr(method.settings, name) for name in method.tunable}
    assert bool(method.tunable) == any(True for _ in method.parameters()), "what trains is tuned"


def test_an_unknown_setting_is_one_clear_error(case):
    run, method = case
    wrong = run.model_copy(update={"settings": {**run.settings, "learnig_rate": 1.0}})
    with pytest.raises(ConfigError, match="learnig_rate"):
        build_method(wrong, method.data)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fixmatch'"):
        load_method("fixmach")


def test_the_joint_model_folder_is_a_pipeline_of_diffusers(tmp_path):
    from diffusers import DDIMPipeline

    run = spec("joint")
    method = build_method(run, info("one_of_k", channels=3)).eval()
    save_model(method, tmp_path / "model", run=run)
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    noisy, steps = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(noisy, steps).sample, method.unet(noisy, steps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, method.process.signals)


def test_load_model_says_what_a_folder_lacks(tmp_path):
    with pytest.raises(ValueError, match="no model folder"):
        load_model(tmp_path)


def test_average_follows_its_formula():
    run = spec("supervised")
    method = build_method(run, info("one_of_k"))
    mean = averaged_copy(method)
    start = {name: value.clone() for name, value in mean.state_dict().items()}
    with torch.no_grad():
        for value in [*method.parameters(), *method.buffers()]:
            value.add_(1)
    update_average(mean, method, decay=0.9, step=1)  # warm-up: (1 + 1) / (10 + 1)
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, start[name] + 1 - 2 / 11)
        else:
            assert torch.equal(value, start[name] + 1), "counters are copied"
    update_average(mean, method, decay=0.9, step=10_000)
    weight = "net.head.weight"
    torch.testing.assert_close(mean.state_dict()[weight], start[weight] + 1 - 2 / 11 * 0.9)
