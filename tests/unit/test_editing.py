"""Counterfactual editing, with a network whose answers are known."""

import pytest
import torch

from jointdiff.config import Explanation
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.diffusion.editing import edit, invert, most_changed, near
from jointdiff.diffusion.process import ContinuousProcess, DiscreteProcess, noise_for
from jointdiff.nets.codecs import Codec, HaarWavelet, Identity
from jointdiff.seeding import derive

DATA = DataInfo(
    name="toy", title="toy", labels=LabelSpec("multi_label", ("a",)), channels=1, size=8,
    augmentations=Augmentations(), samples=1, digest="", has_regions=False,
)  # fmt: skip
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
SEEDS = torch.arange(3)


def answers(process, *, shift=0.1, spread=0.4):
    """Return the network of Gaussian images, and the same with its mean shifted as guidance."""

    def output(z, steps, mean):
        a, s = process.scales(steps)
        shrunk = (z - a * mean) / (a**2 * spread**2 + s**2)
        clean, noise = mean + a * spread**2 * shrunk, s * shrunk
        return noise if process.prediction == "epsilon" else a * noise - s * clean

    calls = {"plain": 0, "guide": 0}

    def plain(z, steps):
        calls["plain"] += 1
        return output(z, steps, 0.0)

    def guide(z, steps):
        calls["guide"] += 1
        return output(z, steps, 0.0), output(z, steps, shift)

    return plain, guide, calls


def run(how, *, process=None, codec: Codec | None = None, shift=0.1):
    process = process or DiscreteProcess(clip=False)
    plain, guide, calls = answers(process, shift=shift)
    found = edit(
        IMAGES, SEEDS, plain=plain, guide=guide, guide_calls=2, codec=codec or Identity(DATA), process=process, how=how
    )
    return found, calls


@pytest.mark.parametrize("start", ["noise", "inversion"])
def test_calls_are_counted_as_they_are_made(start):
    found, calls = run(Explanation(noise_level=200, steps=4, noises=3, start=start))
    draws = 3 if start == "noise" else 1
    inversion = 4 if start == "inversion" else 0
    assert calls == {"plain": 3 + inversion, "guide": 4}, "draws run as one batch; the first control is a by-product"
    assert found.calls == draws * (2 * 4 + 3 + inversion)


def test_without_a_shift_the_edit_is_the_control_and_has_no_spread():
    found, _ = run(Explanation(noise_level=300, steps=3, noises=4), shift=0.0)
    assert torch.equal(found.images, found.control)
    assert (found.spread == 0).all()


@pytest.mark.parametrize("process", [DiscreteProcess(clip=False), ContinuousProcess(8, clip=False)])
@pytest.mark.parametrize("codec", [Identity(DATA), HaarWavelet(DATA)], ids=["pixels", "wavelet"])
def test_guidance_moves_the_edit_its_way(process, codec):
    found, _ = run(Explanation(noise_level=400, steps=5, noises=2), process=process, codec=codec, shift=0.4)
    assert found.images.shape == found.control.shape == IMAGES.shape
    assert found.spread.shape == (3, 8, 8)
    assert (found.images.mean((1, 2, 3)) > found.control.mean((1, 2, 3))).all()


def test_means_and_spread_are_over_draws():
    how = Explanation(noise_level=400, steps=2, noises=3)
    found, _ = run(how, shift=0.3)
    process = DiscreteProcess(clip=False)
    plain, guide, _ = answers(process, shift=0.3)
    single, controls = [], []
    for draw in range(3):
        # One draw with the seed that the draw has among three.
        seeds = torch.tensor([derive(int(s), "noise", draw) for s in SEEDS])
        solver = process.solver("ddim", 2, start=400)
        z = process.add_noise(IMAGES, noise_for(seeds, (1, 8, 8)), torch.full((3,), solver.times[0]))
        c = z
        for i, t in enumerate(solver.times):
            steps = torch.full((3,), t)
            unguided, guided = guide(z, steps)
            control = unguided if i == 0 else plain(c, steps)
            z, c = (
                solver.step(process.clean_from(output, x, steps), t, x) for x, output in ((z, guided), (c, control))
            )
        single.append(z.clamp(-1, 1))
        controls.append(c.clamp(-1, 1))
    torch.testing.assert_close(found.images, torch.stack(single).mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.control, torch.stack(controls).mean(0), atol=1e-5, rtol=1e-5)
    spread = (torch.stack(single) - torch.stack(controls)).std(0, correction=0).mean(1) / 2
    torch.testing.assert_close(found.spread, spread, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("process", [DiscreteProcess(clip=False), ContinuousProcess(64, clip=False)])
def test_inversion_leads_back_to_the_image(process):
    """With many small steps, DDIM backwards and forwards again is the identity (Song et al. 2021)."""
    plain, _, _ = answers(process)
    times = process.times(200, start=600)
    z = invert(IMAGES, plain=plain, process=process, times=times[::-1])
    assert (z - IMAGES).abs().mean() > 0.1
    solver = process.solver("ddim", 200, start=600)
    for t in solver.times:
        steps = torch.full((3,), t)
        z = solver.step(process.clean_from(plain(z, steps), z, steps), t, z)
    assert (z - IMAGES).abs().max() < 0.02


def test_inversion_keeps_more_of_the_image_than_noise_does():
    by_noise, _ = run(Explanation(noise_level=500, steps=20, noises=1))
    by_inversion, _ = run(Explanation(noise_level=500, steps=20, start="inversion", noises=1))
    lost = [(found.control - IMAGES).abs().mean().item() for found in (by_noise, by_inversion)]
    assert lost[1] < 0.5 * lost[0]


def test_the_proximal_step_minimises_its_objective():
    """argmin_x (x - c)^2 / 2 + l |x - o|, against a search over a fine grid."""
    clean, origin, weight = torch.tensor([0.9, 0.3, -0.5]), torch.tensor([0.2, 0.25, 0.1]), 0.2
    found = near(clean, origin, weight)
    grid = torch.linspace(-1, 1, 200_001)[:, None]
    best = grid[((grid - clean).square() / 2 + weight * (grid - origin).abs()).argmin(0), 0]
    torch.testing.assert_close(found, best, atol=1e-4, rtol=0)
    assert near(clean, origin, 0.0) is clean


def test_proximity_leaves_more_pixels_as_they_were():
    free, _ = run(Explanation(noise_level=300, steps=4, noises=1), shift=0.5)
    tied, _ = run(Explanation(noise_level=300, steps=4, proximity=0.2, noises=1), shift=0.5)
    assert (tied.images - IMAGES).abs().mean() < (free.images - IMAGES).abs().mean()
    assert ((tied.images - IMAGES).abs() < 1e-5).float().mean() > ((free.images - IMAGES).abs() < 1e-5).float().mean()


def test_only_the_most_changed_pixels_are_kept():
    shift = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found, _ = run(Explanation(noise_level=300, steps=4, keep=0.25, noises=1), shift=shift)
    everywhere, _ = run(Explanation(noise_level=300, steps=4, noises=1), shift=shift)
    kept = most_changed(everywhere.images - everywhere.control, 0.25)
    assert (kept.sum((1, 2, 3)) == 16).all()
    assert torch.equal(found.images, torch.where(kept, everywhere.images, IMAGES))
    assert torch.equal(found.control, torch.where(kept, everywhere.control, IMAGES))


def test_what_did_not_change_is_not_among_the_most_changed():
    change = torch.zeros(2, 1, 4, 4)
    change[0, 0, 1, 2] = 0.5
    kept = most_changed(change, 0.25)
    assert kept[0].nonzero().tolist() == [[0, 1, 2]] and not kept[1].any()


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("level", "steps"), [(120, 2), (300, 5), (500, 10)])
def test_stronger_guidance_goes_further_the_same_way_up_to_the_end_of_the_range(prediction, level, steps):
    """Where an image cannot become darker, the noise of a clipped estimate must not make it brighter."""
    process, mean, spread = DiscreteProcess(prediction=prediction, clip=True), 0.5, 0.2
    images = mean + spread * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def plain(z, at):
        a, s = process.scales(at)
        noise = s * (z - a * mean) / (a**2 * spread**2 + s**2)
        return noise if prediction == "epsilon" else (noise - s * z) / a

    moved = []
    for strength in (0.5, 1.0, 2.0, 5.0, 10.0, 50.0):

        def guide(z, at, strength=strength):
            _, s = process.scales(at)
            return plain(z, at), process.with_more_noise(plain(z, at), strength * s, at)

        how = Explanation(noise_level=level, steps=steps, noises=1)
        found = edit(
            images, torch.arange(4), plain=plain, guide=guide, guide_calls=1,
            codec=Identity(DATA), process=process, how=how,
        )  # fmt: skip
        moved.append((found.images - found.control).mean().item())
    assert moved == sorted(moved, reverse=True) and moved[0] < 0
    assert moved[-1] == pytest.approx(-1.0 - found.control.mean().item(), abs=0.05), "black"
