import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from jointdiff.nets.unet import build_unet, decode, encode, pooled_width


@pytest.mark.parametrize("attention_at", [(), (8,), (16, 8)])
def test_halves_equal_the_whole_network_of_diffusers(attention_at):
    torch.manual_seed(0)
    unet = build_unet(channels=1, size=16, width=16, multipliers=(1, 2), blocks=2, attention_at=attention_at).eval()
    assert type(unet) is UNet2DModel
    images, steps = torch.randn(3, 1, 16, 16), torch.tensor([0, 10, 999])
    with torch.no_grad():
        torch.testing.assert_close(decode(unet, encode(unet, images, steps)), unet(images, steps).sample)


def test_the_published_size_pools_29_maps_of_the_base_width():
    # Kaleta et al.: 128 channels, multipliers (1, 2, 2, 2), 3 blocks at 32 px give 29 x channels features.
    unet = build_unet(channels=3, size=32, width=8, multipliers=(1, 2, 2, 2), blocks=3, attention_at=(16, 8))
    assert sum(pooled_width(unet)) == 29 * 8


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="30 px cannot be halved 2 times"):
        build_unet(channels=1, size=30, width=8, multipliers=(1, 1, 1), blocks=1, attention_at=())
