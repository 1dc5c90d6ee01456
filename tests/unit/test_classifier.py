"""Backbones of the discriminative methods: the wide ResNet, and timm's networks by name."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from jointdiff.config import ConfigError
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.explain.saliency import grad_cam
from jointdiff.models import load_model, save_model
from jointdiff.nets.classifier import TimmClassifier, WideResNet
from jointdiff.training.loop import build_method
from tests.tiny import tiny_run

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
SMALL = "test_resnet"  # a residual network of 0.5 M parameters, made for tests


def info(*, size=32, channels=1):
    return DataInfo(
        name="toy",
        title="toy",
        labels=LabelSpec("one_of_k", ("a", "b", "c")),
        channels=channels,
        size=size,
        augmentations=Augmentations(),
        samples=10,
        digest="",
        has_regions=False,
    )


def build(size=32, channels=1, **settings):
    torch.manual_seed(0)
    return build_method(tiny_run("supervised", settings=settings), info(size=size, channels=channels))


def images(n=2, *, size=32, channels=1):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def make_checkpoint(folder, name=SMALL, **pretrained_cfg):
    """Write a randomly initialised network of timm as timm does; return it."""
    torch.manual_seed(7)
    net = timm.create_model(name, num_classes=5)
    net.pretrained_cfg |= pretrained_cfg
    timm.models.save_for_hf(net, folder, safe_serialization=True)
    return net


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size", "width", "side"),
    [
        ("wide_resnet", 32, 64, 8),
        ("resnet18", 40, 512, 2),
        ("densenet121", 64, 1024, 2),
        ("efficientnet_b0", 64, 1280, 2),
        ("mobilenetv3_small_050", 64, 1024, 2),  # its last layers come after the pooling
        (VIT, 48, 192, 3),
        ("vit_medium_patch16_gap_240", 32, 512, 2),  # without a class token
        (SWIN, 64, 768, 2),
    ],
)
def test_the_logits_are_made_of_the_maps_that_grad_cam_sees(name, size, width, side, channels):
    method = build(size, channels, backbone=name).eval()
    shown, kept = images(size=size, channels=channels), []
    handle = method.feature_layer().register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        logits = method.logits(shown)
        handle.remove()
        assert kept[0].shape == (2, width, side, side)
        pooled = kept[0].flatten(2).sum(2) / side**2
        torch.testing.assert_close(method.features(shown), pooled)
        torch.testing.assert_close(logits, F.linear(pooled, method.net.head.weight, method.net.head.bias))
    assert logits.shape == (2, 3) and logits.std() > 0
    found = grad_cam(method, shown, 1)
    assert found.shape == (2, size, size) and found.isfinite().all()


def test_tokens_become_maps_in_reading_order():
    """What a patch shows has its token in the place of the patch: without attention, other tokens do not change."""
    net = TimmClassifier("test_vit", size=48, channels=1, outputs=2).eval()
    assert net.encoder.num_prefix_tokens == 1
    net.encoder.blocks = torch.nn.Identity()
    black, dotted = torch.full((1, 1, 48, 48), -1.0), torch.full((1, 1, 48, 48), -1.0)
    dotted[..., 16:32, 32:48] = 1.0  # second row, third column
    with torch.no_grad():
        changed = (net.maps(net.encoder(dotted)) - net.maps(net.encoder(black))).abs().sum(1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]


def test_the_encoder_of_swin_keeps_rows_and_columns_apart():
    net = TimmClassifier(SWIN, size=64, channels=1, outputs=2).eval()
    with torch.no_grad():
        ended = net.encoder(images(size=64))  # (N, h, w, D)
        assert torch.equal(net.maps(ended)[1, 5, 0, 1], ended[1, 0, 1, 5])


def test_every_weight_of_a_backbone_trains_and_only_the_head_is_called_head():
    for net in (
        WideResNet(depth=10, width=1, channels=1, outputs=3),
        TimmClassifier(SMALL, size=32, channels=1, outputs=3),
        TimmClassifier("test_vit", size=32, channels=1, outputs=3),
    ):
        net.train()(images(4)).square().sum().backward()
        assert not [name for name, weight in net.named_parameters() if weight.grad is None]
        heads = {name: value.shape for name, value in net.state_dict().items() if name.startswith("head.")}
        assert heads == {"head.weight": (3, net.features(images()).shape[1]), "head.bias": (3,)}


def test_convolutions_are_kept_channels_last():
    net = TimmClassifier(SMALL, size=32, channels=3, outputs=2)
    kernels = [weight for weight in net.parameters() if weight.ndim == 4 and weight.shape[1] > 1]
    assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_pretrained_weights_are_those_of_the_folder(tmp_path):
    make_checkpoint(tmp_path / "net")
    method = build(channels=3, backbone=SMALL, pretrained=str(tmp_path / "net"))
    stored = load_file(tmp_path / "net/model.safetensors")
    own = method.net.encoder.state_dict()
    assert stored.keys() - own.keys() == {"fc.weight", "fc.bias"} and not own.keys() - stored.keys()
    assert all(torch.equal(own[name], stored[name]) for name in own)


def test_images_are_standardised_as_the_weights_expect(tmp_path):
    """timm's mean and deviation are of images in [0, 1]; a grey image has their means over the colours."""
    mean, std = (0.2, 0.4, 0.9), (0.1, 0.2, 0.6)
    theirs = make_checkpoint(tmp_path / "net", mean=mean, std=std).eval()
    colour = build(channels=3, backbone=SMALL, pretrained=str(tmp_path / "net")).eval()
    shown = images(channels=3)
    by_hand = torch.stack([((shown[:, c] + 1) / 2 - mean[c]) / std[c] for c in range(3)], dim=1)
    grey = build(channels=1, backbone=SMALL, pretrained=str(tmp_path / "net")).eval()
    stem = theirs.state_dict()["conv1.0.weight"]
    with torch.no_grad():
        expected = theirs.forward_features(by_hand).mean(dim=(2, 3))
        torch.testing.assert_close(colour.features(shown), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(grey.net.encoder.state_dict()["conv1.0.weight"], stem.sum(1, keepdim=True))
        # The sum of the weights sees one channel as the three weights see three copies of it.
        copies = (((shown[:, :1] + 1) / 2 - 0.5) / 0.3).expand(-1, 3, -1, -1)
        expected = theirs.forward_features(copies).mean(dim=(2, 3))
        torch.testing.assert_close(grey.features(shown[:, :1]), expected, atol=1e-5, rtol=1e-4)


def test_from_scratch_images_stay_as_they_are():
    net = TimmClassifier(SMALL, size=32, channels=3, outputs=2).eval()
    with torch.no_grad():
        expected = net.encoder.forward_features(images(channels=3)).mean(dim=(2, 3))
        torch.testing.assert_close(net.features(images(channels=3)), expected)


def test_positions_of_another_size_are_adapted(tmp_path):
    theirs = make_checkpoint(tmp_path / "net", "test_vit")  # 160 px
    method = build(32, 3, backbone="test_vit", pretrained=str(tmp_path / "net"))
    assert method.net.encoder.pos_embed.shape[1] == 1 + 4
    own = method.net.encoder.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in theirs.state_dict().items() if "blocks" in name)


def test_a_saved_model_needs_its_pretrained_weights_no_more(tmp_path):
    make_checkpoint(tmp_path / "net")
    run = tiny_run("supervised", settings={"backbone": SMALL, "pretrained": str(tmp_path / "net")})
    method = build_method(run, info()).eval()
    save_model(method, tmp_path / "model", run=run)
    for path in (tmp_path / "net").iterdir():
        path.unlink()
    (tmp_path / "net").rmdir()
    loaded = load_model(tmp_path / "model")
    assert loaded.network == "test_resnet, pretrained"
    with torch.no_grad():
        assert torch.equal(loaded.predict(images()), method.predict(images()))
    with pytest.raises(ConfigError, match=r"settings: pretrained: '.*net' is no folder.*not found"):
        build_method(run, info())


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"backbone": "resnet81"}, 32, "unknown backbone 'resnet81': did you mean 'resnet18'"),
        ({"backbone": "wideresnet"}, 32, "did you mean 'wide_resnet'"),
        ({"backbone": "resnet18.a1_in1k"}, 32, "unknown backbone.*without the tag of weights"),
        ({"pretrained": "timm/resnet18.a1_in1k"}, 32, "pretrained: wide_resnet has no published weights"),
        ({"backbone": VIT}, 28, "cannot take images of 28 px.*patches of 16 px.*multiple of 16"),
        ({"backbone": SWIN}, 30, "cannot take images of 30 px.*multiple of 4"),
        ({"backbone": "densenet121"}, 16, "'densenet121' cannot take images of 16 px.*too small.*use larger images"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, 32, "ends in no maps"),
    ],
)
def test_what_does_not_go_together_is_one_clear_message(settings, size, message):
    with pytest.raises(ConfigError, match=f"methods.supervised.settings: .*{message}"):
        build(size, **settings)


def test_pickles_and_folders_that_are_not_whole_are_refused(tmp_path):
    folder = tmp_path / "net"
    net = make_checkpoint(folder)
    start = {"backbone": SMALL, "pretrained": str(folder), "channels": 3}
    (folder / "model.safetensors").rename(tmp_path / "aside.safetensors")
    for name in ("pytorch_model.bin", "model.pth"):
        torch.save(net.state_dict(), folder / name)
    with pytest.raises(ConfigError, match=r"model\.safetensors not found.*\(\.bin, \.pth\) are not read"):
        build(**start)
    tensors = load_file(tmp_path / "aside.safetensors")
    save_file({name: value for name, value in tensors.items() if "layer3" not in name}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"do not fit test_resnet.*layer3"):
        build(**start)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="do not fit test_resnet"):
        build(**start)
    with pytest.raises(ConfigError, match="holds weights of 'test_resnet'; say `backbone: test_resnet`"):
        build(**start | {"backbone": "resnet18"})
    edit_config(folder, model_args={"act_layer": "gelu", "num_classes": 5})
    with pytest.raises(ConfigError, match=r"no plain test_resnet.*sets act_layer;"):
        build(**start)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is no JSON"):
        build(**start)


def test_a_hub_id_fetches_settings_and_safetensors_alone(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "net")
    asked = []

    def fetch(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "net")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    method = build(channels=3, backbone=SMALL, pretrained="timm/test_resnet.r160_in1k")
    assert asked == [("timm/test_resnet.r160_in1k", ["config.json", "model.safetensors"])]
    stored = load_file(tmp_path / "net/model.safetensors")
    assert torch.equal(method.net.encoder.state_dict()["conv1.0.weight"], stored["conv1.0.weight"])


def test_methods_name_their_networks():
    small = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": []}
    dit = {"backbone": "dit", "patch": 4, "depth": 2, "width": 32, "heads": 4}
    for method, settings, expected in (
        ("supervised", {"depth": 16, "width": 2}, "WRN-16-2"),
        ("fixmatch", {"backbone": SMALL}, "test_resnet"),
        ("joint", small, "U-Net 8 x (1, 2)"),
        ("diffusion_classifier", small, "U-Net 8 x (1, 2)"),
        ("diffusion_classifier", dit, "DiT 2 x 32/4"),
        ("diffusion_classifier", {**dit, "depth": 12, "width": 384, "heads": 6}, "DiT-S/4"),
        ("random", {}, ""),
    ):
        assert build_method(tiny_run(method, settings=settings), info(size=32)).network == expected


def test_the_wide_resnet_does_without_timm():
    code = (
        "import sys; from baselines.supervised import METHOD; from jointdiff.nets.classifier import WideResNet;"
        "WideResNet(depth=10, width=1, channels=1, outputs=2); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
