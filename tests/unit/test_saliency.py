"""Saliency maps by formulas written differently, and by what completeness and hand-made networks demand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jointdiff.explain.saliency import (
    SALIENCY,
    centre_prior,
    change_map,
    grad_cam,
    grad_cam_plus_plus,
    integrated_gradients,
    occlusion,
    random_map,
)
from jointdiff.nets.classifier import WideResNet


class Classifier:
    def __init__(self):
        torch.manual_seed(0)
        self.net = WideResNet(depth=10, width=1, channels=1, outputs=3).eval()

    def image_logits(self, images):
        return self.net(images)

    def feature_layer(self):
        return self.net.maps


class Linear:
    """Logits that are weighted sums of pixels, of which every map is known."""

    def __init__(self, weights):
        self.weights = weights  # (K, C, H, W)

    def image_logits(self, images):
        return torch.einsum("nchw,kchw->nk", images, self.weights)


def asked(model, images, finding):
    """Return the last maps and the logit of a finding, kept apart from the code under test."""
    kept = []
    handle = model.feature_layer().register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model.image_logits(images)
    handle.remove()
    return kept[0], logits[:, finding]


def test_grad_cam_equals_the_formula_of_the_paper():
    model, images = Classifier(), torch.rand(2, 1, 16, 16)
    maps, logit = asked(model, images, 1)
    (gradient,) = torch.autograd.grad(logit.sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = F.relu((weights * maps).sum(1, keepdim=True))
    expected = F.interpolate(expected, (16, 16), mode="bilinear")[:, 0].detach()
    torch.testing.assert_close(grad_cam(model, images, 1), expected)


def test_grad_cam_plus_plus_equals_derivatives_of_the_exponential_score():
    """alpha from the second and third derivative of Y = exp(S) by each map value, one at a time, by autograd."""
    torch.manual_seed(3)
    head = nn.Linear(4, 2)
    head.weight.data.abs_()
    layer = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())

    class Tiny:
        def image_logits(self, images):
            return head(layer(images).mean(dim=(2, 3)))

        def feature_layer(self):
            return layer

    images = torch.rand(1, 1, 4, 4, dtype=torch.float32)
    values = layer(images).detach().double()
    weight, bias = head.weight.detach().double(), head.bias.detach().double()

    def score(flat):
        return torch.exp(flat.view(4, 16).mean(dim=1) @ weight[1] + bias[1])

    flat = values.flatten().requires_grad_()
    first, second, third = [], [], []
    for place in range(64):
        derivative = score(flat)
        for order in (first, second, third):
            derivative = torch.autograd.grad(derivative, flat, create_graph=True)[0][place]
            order.append(derivative.item())
    first, second, third = (torch.tensor(d, dtype=torch.float64).view(4, 4, 4) for d in (first, second, third))
    alpha = second / (2 * second + values[0].sum(dim=(1, 2), keepdim=True) * third)
    weights = (alpha * first.relu()).sum(dim=(1, 2))
    expected = (weights[:, None, None] * values[0]).sum(0).relu() / score(flat).detach()
    torch.testing.assert_close(grad_cam_plus_plus(Tiny(), images, 1)[0].double(), expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_plus_plus_is_zero_where_nothing_matters():
    model, images = Classifier(), torch.rand(2, 1, 16, 16)
    model.net.head.weight.data.zero_()
    assert torch.equal(grad_cam_plus_plus(model, images, 0), torch.zeros(2, 16, 16))


def test_integrated_gradients_of_a_linear_classifier_are_its_terms():
    weights, images = torch.randn(2, 3, 8, 8), torch.rand(4, 3, 8, 8) * 2 - 1
    expected = (weights[1] * images).sum(1).abs()  # from mid-grey, which is 0
    torch.testing.assert_close(integrated_gradients(Linear(weights), images, 1), expected)


def test_integrated_gradients_follow_a_curved_classifier():
    """S = sum x^3 has the path integral x^3 for each pixel, whatever the other pixels are."""

    class Cubic:
        def image_logits(self, images):
            return images.pow(3).flatten(1).sum(1, keepdim=True)

    images = torch.rand(2, 1, 8, 8) * 2 - 1
    expected = images[:, 0].pow(3).abs()
    torch.testing.assert_close(integrated_gradients(Cubic(), images, 0), expected, rtol=1e-4, atol=1e-6)


def test_occlusion_of_a_linear_classifier_is_what_its_windows_hold():
    weights, images = torch.randn(2, 2, 16, 16), torch.rand(3, 2, 16, 16) * 2 - 1
    terms = (weights[0] * images).sum(1)  # by which the logit falls when a pixel turns mid-grey
    total, times = torch.zeros(3, 16, 16), torch.zeros(16, 16)
    for y in range(0, 13, 3):
        for x in range(0, 13, 3):
            window = np.s_[y : y + 4, x : x + 4]
            total[:, *window] += terms[:, *window].sum(dim=(1, 2))[:, None, None]
            times[window] += 1
    torch.testing.assert_close(occlusion(Linear(weights), images, 0), (total / times).relu())


@pytest.mark.parametrize("name", SALIENCY)
def test_every_map_is_of_the_image_alone(name):
    """Not of its neighbours in a batch, nor of what was asked before, and the image stays as it was."""
    model, images = Classifier(), torch.rand(3, 1, 16, 16) * 2 - 1
    before = images.clone()
    maps = SALIENCY[name].draw(model, images, 2)
    assert maps.shape == (3, 16, 16) and maps.dtype == torch.float32 and (maps >= 0).all() and maps.max() > 0
    torch.testing.assert_close(SALIENCY[name].draw(model, images[1:2], 2), maps[1:2], rtol=1e-3, atol=1e-6)
    assert torch.equal(images, before) and not images.requires_grad


def test_controls_know_nothing_of_the_image():
    maps = random_map(np.array([1, 2, 1]), 32)
    assert maps.shape == (3, 32, 32)
    assert np.array_equal(maps[0], maps[2])
    assert not np.array_equal(maps[0], maps[1])
    assert abs(maps.mean() - 0.5) < 0.03
    prior = centre_prior(2, 9)
    assert prior[0].argmax() == 40
    assert np.allclose(prior[0], prior[0].T)
    assert np.allclose(prior[0], prior[0][::-1])


def test_change_is_a_share_of_the_pixel_range():
    black, white = -torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert torch.equal(change_map(black, white), torch.ones(1, 2, 2))
    assert torch.equal(change_map(white, white), torch.zeros(1, 2, 2))
