import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from jointdiff.nets.groups import groups_of
from jointdiff.nets.unet import UNet

SMALL = {"channels": 1, "size": 16, "width": 16, "multipliers": (1, 2), "blocks": 2}


@pytest.mark.parametrize("attention_at", [(), (8,), (16, 8)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_equals_the_network_of_diffusers(tmp_path, attention_at, blocks):
    torch.manual_seed(0)
    unet = UNet(**SMALL | {"attention_at": attention_at, "blocks": blocks}).eval()
    unet.save_pretrained(tmp_path)
    reference = UNet2DModel.from_pretrained(tmp_path).eval()
    assert {name: tuple(p.shape) for name, p in reference.named_parameters()} == {
        name: tuple(p.shape) for name, p in unet.named_parameters()
    }
    images, steps = torch.randn(3, 1, 16, 16), torch.tensor([0, 10, 999])
    with torch.no_grad():
        torch.testing.assert_close(unet(images, steps), reference(images, steps).sample, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_diffusers(tmp_path):
    torch.manual_seed(0)
    unet = UNet(**SMALL, attention_at=(8,))
    unet.save_pretrained(tmp_path)
    reference = UNet2DModel.from_pretrained(tmp_path).train()
    images, steps = torch.randn(3, 1, 16, 16), torch.tensor([0, 10, 999])
    unet(images, steps).square().mean().backward()
    reference(images, steps).sample.square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-3, msg=name)


def test_widths_of_the_maps_are_known_before_a_pass():
    unet = UNet(channels=3, size=32, width=8, multipliers=(1, 2, 4), blocks=2, attention_at=(16,))
    maps = unet.encode(torch.randn(2, 3, 32, 32), torch.tensor([1, 2])).maps
    assert tuple(m.shape[1] for m in maps) == unet.map_widths


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_and_maps_are_kept_channels_last(channels):
    unet = UNet(channels=channels, size=16, width=16, multipliers=(1, 2), blocks=1, attention_at=(8,))
    kernels = [weight for weight in unet.parameters() if weight.ndim == 4]
    encoding = unet.encode(torch.randn(2, channels, 16, 16), torch.tensor([1, 2]))
    deep = [*encoding.maps[1:], *unet.decoder_maps(encoding)]  # of one channel, the first map may have either layout
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels + deep)


def test_the_published_size_pools_29_maps_of_the_base_width():
    # Kaleta et al.: 128 channels, multipliers (1, 2, 2, 2), 3 blocks at 32 px give 29 x channels features.
    unet = UNet(channels=3, size=32, width=8, multipliers=(1, 2, 2, 2), blocks=3, attention_at=(16, 8))
    assert sum(unet.map_widths) == 29 * 8


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="30 px cannot be halved 2 times"):
        UNet(channels=1, size=30, width=8, multipliers=(1, 1, 1), blocks=1, attention_at=())


@pytest.mark.parametrize("width", [4, 8, 12, 16, 32, 64, 128])
def test_no_normalisation_forgets_how_bright_a_map_is(width):
    unet = UNet(channels=1, size=8, width=width, multipliers=(1, 2), blocks=1, attention_at=(4,))
    norms = [module for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) > 10
    for norm in norms:
        maps, offsets = torch.randn(1, norm.num_channels, 8, 8), torch.randn(1, norm.num_channels, 1, 1)
        assert not torch.allclose(norm(maps), norm(maps + offsets), atol=0.1)


def test_groups_are_those_of_the_published_widths_and_never_of_one_channel():
    assert [groups_of(width, of="U-Net") for width in (128, 192, 256)] == [32, 32, 32]
    for width in range(4, 1024, 4):
        groups = groups_of(width, of="U-Net")
        assert width % groups == 0 and width // groups >= 4 and groups <= 32
    with pytest.raises(ValueError, match="width 18 of the U-Net must be a multiple of 4"):
        groups_of(18, of="U-Net")


def test_widths_that_heads_of_attention_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads of 64 channels, into which 96 cannot be divided"):
        UNet(channels=1, size=16, width=96, multipliers=(1, 2), blocks=1, attention_at=(16,))
