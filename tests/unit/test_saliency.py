import numpy as np
import torch
from torch.nn import functional as F

from jointdiff.explain.saliency import centre_prior, change_map, grad_cam, random_map
from jointdiff.nets.classifier import WideResNet


class Classifier:
    def __init__(self):
        torch.manual_seed(0)
        self.net = WideResNet(depth=10, width=1, channels=1, outputs=3).eval()

    def logits(self, images):
        return self.net(images)

    def features(self, images):
        return self.net.features(images)

    def feature_layer(self):
        return self.net.maps


def test_grad_cam_equals_the_formula_of_the_paper():
    model, images = Classifier(), torch.rand(2, 1, 16, 16)
    kept = []
    handle = model.net.maps.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model.logits(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = F.relu((weights * kept[0]).sum(1, keepdim=True))
    expected = F.interpolate(expected, (16, 16), mode="bilinear")[:, 0].detach()
    torch.testing.assert_close(grad_cam(model, images, 1), expected)


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
